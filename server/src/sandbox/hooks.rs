//! The callbacks of `wasmtime-wasi-http`: forbidden headers, outbound requests, and buffers of bodies.

use crate::outbound::client::{IoFuture, Sent};
use crate::sandbox::host_memory::{BODY_CHUNK_BYTES, BODY_CHUNKS};
use crate::sandbox::limiter::MemoryLimiter;
use crate::sandbox::shared::Shared;
use http::{HeaderName, Request};
use std::sync::Arc;
use tokio::sync::watch;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, RequestOptions, WasiBody, WasiHttpHooks};

/// A static, because a constant would be constructed for each header that is checked.
static FORBIDDEN_HEADERS: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

/// Callbacks for one instance.
pub struct Hooks {
    /// Also holds the instance's only reference to [`Shared`].
    pub limiter: MemoryLimiter,
    /// Dropped at the end of a call, which closes the outbound connections of that call.
    connections: Option<watch::Sender<()>>,
}

impl Hooks {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self {
            limiter: MemoryLimiter::new(shared),
            connections: None,
        }
    }

    /// Closes the outbound connections of a call.
    pub fn end_call(&mut self) {
        self.connections = None;
    }
}

impl WasiHttpHooks for Hooks {
    /// As the default, without its allocation for each header. A guest that is over budget gets no more headers.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        self.limiter.is_over_budget() || FORBIDDEN_HEADERS.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: IoFuture<()>,
    ) -> IoFuture<Sent> {
        let connections = &mut self.connections;
        let connections = connections.get_or_insert_with(|| watch::Sender::new(()));
        let call_ended = connections.subscribe();
        let outbound = &self.limiter.shared().outbound;
        outbound.send(request, options, call_ended)
    }

    /// Number of writes that are buffered before the guest waits for its client. With the default of 1, a guest waits even
    /// with a small response.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    /// Maximum size of a write, in bytes.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}
