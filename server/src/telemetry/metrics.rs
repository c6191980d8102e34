//! The counts of one server, each of which is incremented where its event happens, in a handful of instructions.
//!
//! Names are those of OpenTelemetry's semantic conventions where these have one, as Prometheus writes them. States, such as
//! memory in use, are not counted but [read](crate::telemetry::exposition) from their owners.

use crate::telemetry::labels::{Label, OutboundLabels, RequestLabels, StatusLabel};
use http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Upper bounds of buckets, in seconds: those that OpenTelemetry recommends for `http.server.request.duration`, and five
/// below them because most guests need less than the first.
const BUCKETS: [f64; 19] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0,
];

/// The counts of one server.
pub struct Metrics {
    requests: Family<RequestLabels, Histogram, fn() -> Histogram>,
    /// Open connections.
    pub connections: Gauge,
    /// Open connections with a request in progress.
    pub busy_connections: Gauge,
    /// Bytes received from clients, and sent to them, HTTP's own included.
    pub received: Counter,
    pub sent: Counter,
    pub rejected_connections: Events,
    pub rejected_requests: Events,
    pub timeouts: Events,
    guest_starts: Histogram,
    pub guest_failures: Events,
    pub guest_memory_refusals: Events,
    outbound_requests: Family<OutboundLabels, Histogram, fn() -> Histogram>,
    pub rejected_outbound_requests: Events,
}

/// A count of events by their reason.
#[derive(Clone)]
pub struct Events {
    label: &'static str,
    family: Family<[Label; 1], Counter>,
}

impl Events {
    /// Starts at 0 for each reason. A series that appears with its first event has no rate at that time.
    fn new(label: &'static str, reasons: &[&'static str]) -> Self {
        let family = Family::<[Label; 1], Counter>::default();
        for reason in reasons {
            let _ = family.get_or_create(&[(label, reason)]);
        }
        Self { label, family }
    }

    pub fn count(&self, reason: &'static str) {
        self.family.get_or_create(&[(self.label, reason)]).inc();
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::new_with_constructor(histogram),
            connections: Gauge::default(),
            busy_connections: Gauge::default(),
            received: Counter::default(),
            sent: Counter::default(),
            rejected_connections: Events::new(
                "reason",
                &["max_connections", "file_descriptors", "buffers"],
            ),
            rejected_requests: Events::new(
                "reason",
                &[
                    "max_requests",
                    "guest_memory_total",
                    "transfers",
                    "buffers",
                    "max_streams",
                ],
            ),
            timeouts: Events::new("timeout", &["idle", "header", "body", "write"]),
            guest_starts: histogram(),
            guest_failures: Events::new(
                "reason",
                &[
                    "trapped",
                    "exited",
                    "timed_out",
                    "no_response",
                    "malformed_response",
                    "guest_error",
                    "body_failed",
                ],
            ),
            guest_memory_refusals: Events::new("limit", &["guest_memory", "guest_memory_total"]),
            outbound_requests: Family::new_with_constructor(histogram),
            rejected_outbound_requests: Events::new("reason", &["not_allowed", "max_connections"]),
        }
    }
}

impl Metrics {
    /// Records a request; `method` is `None` if its head could not be read.
    pub fn request(&self, method: Option<&Method>, status: u16, duration: Duration) {
        let labels = RequestLabels::new(method, status);
        let histogram = self.requests.get_or_create(&labels);
        histogram.observe(duration.as_secs_f64());
    }

    /// Records the instantiation of a guest.
    pub fn guest_started(&self, duration: Duration) {
        self.guest_starts.observe(duration.as_secs_f64());
    }

    /// Shows requests to other services before the first one, as [`Events::new`] does.
    pub fn expect_outbound_requests(&self) {
        let labels = OutboundLabels::Response(StatusLabel::of(200));
        let _ = self.outbound_requests.get_or_create(&labels);
    }

    /// Records a guest's request to another service, up to the head of the response. An error is an
    /// [`error_type`](crate::telemetry::labels::error_type).
    pub fn outbound_request(&self, result: Result<StatusCode, &'static str>, duration: Duration) {
        let labels = match result {
            Ok(status) => OutboundLabels::Response(StatusLabel::of(status.as_u16())),
            Err(kind) => OutboundLabels::Error(kind),
        };
        let histogram = self.outbound_requests.get_or_create(&labels);
        histogram.observe(duration.as_secs_f64());
    }

    /// Adds the counts to a registry, under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "http_server_request_duration",
            "Duration of requests, from the head to the end of the response",
            Unit::Seconds,
            self.requests.clone(),
        );
        for (name, help, events) in [
            (
                "http_server_rejected_connections",
                "Connections rejected because of a limit",
                &self.rejected_connections,
            ),
            (
                "http_server_rejected_requests",
                "Requests rejected because of a limit",
                &self.rejected_requests,
            ),
            (
                "http_server_timeouts",
                "Connections and requests closed because the client timed out",
                &self.timeouts,
            ),
            (
                "guest_failures",
                "Requests for which the guest failed",
                &self.guest_failures,
            ),
            (
                "guest_memory_refusals",
                "Memory growths of guests that a limit rejected",
                &self.guest_memory_refusals,
            ),
            (
                "http_client_rejected_requests",
                "Requests to other services that were not sent",
                &self.rejected_outbound_requests,
            ),
        ] {
            registry.register(name, help, events.family.clone());
        }
        registry.register_with_unit(
            "guest_start_duration",
            "Time to instantiate a sandbox",
            Unit::Seconds,
            self.guest_starts.clone(),
        );
        registry.register_with_unit(
            "http_client_request_duration",
            "Duration of requests to other services, to the head of the response",
            Unit::Seconds,
            self.outbound_requests.clone(),
        );
    }
}
