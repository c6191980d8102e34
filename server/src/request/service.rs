//! What the requests of a listener share. [`Service::handle`](crate::request::handle) responds to them.

use crate::connection::buffers::{self, Buffers};
use crate::request::endpoints::Endpoints;
use crate::request::shutdown::Shutdown;
use crate::sandbox::handler::ComponentHandler;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::client::TrustedProxies;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Trace;
use http::StatusCode;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub struct Service {
    pub handler: Handler,
    pub log: Log,
    pub metrics: Arc<Metrics>,
    pub access_log: bool,
    pub trusted_proxies: TrustedProxies,
    pub body_timeout: Duration,
    /// Shared by all connections of the listener.
    pub buffers: Buffers,
    pub shutdown: Arc<Shutdown>,
}

/// The source of responses.
pub enum Handler {
    Guests(Arc<ComponentHandler>),
    Management(Arc<Endpoints>),
}

impl Service {
    /// Logs and counts a request that ends before hyper has its head: one that hyper rejects, or an incomplete one.
    pub fn log_rejected(&self, peer: SocketAddr, status: StatusCode, duration: Duration) {
        self.metrics.request(None, status.as_u16(), duration);
        if self.access_log {
            self.log.access(&AccessRecord {
                peer,
                client: peer.into(),
                trace: Trace::default(),
                method: None,
                path: "-".into(),
                status: status.as_u16(),
                bytes: 0,
                duration,
                is_cut: false,
            });
        }
    }

    /// Logs and counts a connection that is cut because the buffers have no room for what it sends.
    pub fn log_exhausted(&self) {
        self.metrics.rejected_connections.count("buffers");
        self.log.event_throttled("connections cut", |count| {
            format!("{}: closed {count} connections", buffers::EXHAUSTED)
        });
    }
}
