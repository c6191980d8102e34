//! Tracks what a connection waits for, and its deadline.
//!
//! The transport reports bytes, the service reports requests and their bodies. [`ConnectionState::deadline`] is the first of
//! these that applies:
//!
//! 1. The kernel takes no more bytes of a response: `WRITE_TIMEOUT` since the client last made progress. Nothing else is
//!    waited for meanwhile, because hyper does not read while it cannot write.
//! 2. An HTTP/2 response waits for a window that the client keeps closed (`WRITE_TIMEOUT`), or a head is incomplete
//!    (`HEADER_TIMEOUT` since its first byte): the earlier of both.
//! 3. No request is in flight: `IDLE_TIMEOUT` since the last response.
//!
//! Otherwise the connection waits for a guest or for a request's body, which have timeouts of their own.
//!
//! hyper's `header_read_timeout` cannot serve for this: it covers the idle connection and the head in one and is for HTTP/1
//! only. There is none for a client that does not read; h2's keep-alive only detects that the client is gone.

use crate::connection::buffers::{Buffers, ConnectionBuffers, Reservation};
use crate::connection::http1::Heads;
use crate::connection::http2::Streams;
use crate::connection::stall::StallClock;
use crate::connection::timeouts::Timeouts;
use crate::telemetry::metrics::Metrics;
use http::StatusCode;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// Shared by the transport, the service and the requests of one connection.
pub struct ConnectionState {
    timeouts: Timeouts,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

struct State {
    /// Requests whose responses have not been handed to HTTP as a whole.
    in_flight: usize,
    /// Request bodies that are not complete.
    bodies: usize,
    /// When the last response ended.
    last_activity: Instant,
    heads: Heads,
    streams: Streams,
    buffers: ConnectionBuffers,
    /// Runs while the kernel takes no more bytes.
    blocked: StallClock,
    /// Set when the client has closed its side.
    is_read_closed: bool,
    /// Set when a response's body has failed whose end the client could take for the end of the body.
    is_truncated: bool,
}

impl State {
    fn is_http2(&self) -> bool {
        self.streams.is_http2()
    }

    /// Returns true if the connection is between requests. h2 may still hold the last piece of a response that has ended.
    fn is_idle(&self) -> bool {
        self.in_flight == 0
            && !self.blocked.is_running()
            && !self.streams.has_responses()
            && self.head_started().is_none()
    }

    fn head_started(&self) -> Option<Instant> {
        match self.is_http2() {
            true => self.streams.incomplete_since(),
            false => self.heads.started(),
        }
    }
}

/// Method of closing a connection's socket.
pub enum CloseMode {
    /// Send FIN and discard input for a while, so that the client receives the last response.
    Lingering,
    /// The same, after a 503.
    Rejected,
    /// Close at once. The kernel still sends what it has.
    Immediate,
    /// Send RST and drop what the kernel has not sent.
    Reset,
}

impl ConnectionState {
    pub fn new(timeouts: Timeouts, buffers: Buffers, metrics: Arc<Metrics>) -> Self {
        Self {
            timeouts,
            metrics,
            state: Mutex::new(State {
                in_flight: 0,
                bodies: 0,
                last_activity: Instant::now(),
                heads: Heads::default(),
                streams: Streams::default(),
                buffers: ConnectionBuffers::new(buffers),
                blocked: StallClock::default(),
                is_read_closed: false,
                is_truncated: false,
            }),
        }
    }

    /// Returns when the client times out, and the timeout's name in [`Metrics::timeouts`]. `None` while nothing is expected
    /// of the client.
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        let state = self.state();
        let timeouts = &self.timeouts;
        if let Some(blocked) = state.blocked.deadline(timeouts.write) {
            return Some((blocked, "write"));
        }
        let window = state.streams.stall_deadline(timeouts.write);
        let window = window.map(|at| (at, "write"));
        let head = state.head_started();
        let head = head.map(|since| (since + timeouts.header, "header"));
        let idle = (state.in_flight == 0).then(|| (state.last_activity + timeouts.idle, "idle"));
        window.into_iter().chain(head).min().or(idle)
    }

    /// Returns when to start the graceful shutdown of a connection during a drain; `None` while it is in use. HTTP/1 waits
    /// until it has been idle for `grace`. HTTP/2 starts at once, because GOAWAY lets it finish what it has.
    pub fn shutdown_time(&self, grace: Duration) -> Option<Instant> {
        let state = self.state();
        match state.is_http2() {
            true => Some(Instant::now()),
            false => state.is_idle().then(|| state.last_activity + grace),
        }
    }

    /// Returns when to close an HTTP/2 connection whose client does not acknowledge GOAWAY: `limit` after GOAWAY and after
    /// the last response. `None` while it is in use.
    pub fn goaway_deadline(&self, goaway: Instant, limit: Duration) -> Option<Instant> {
        let state = self.state();
        let is_waiting = state.is_http2() && state.is_idle();
        is_waiting.then(|| state.last_activity.max(goaway) + limit)
    }

    /// Returns when the head of a request started that is incomplete.
    pub fn head_started(&self) -> Option<Instant> {
        self.state().head_started()
    }

    /// Returns the statuses of requests that h2 has rejected since the last call.
    pub fn drain_rejected(&self) -> Vec<StatusCode> {
        self.state().streams.drain_rejected()
    }

    /// Returns true if some responses may progress although one timed out: over HTTP/2, unless the kernel takes no bytes.
    pub fn is_multiplexed(&self) -> bool {
        let state = self.state();
        state.is_http2() && !state.blocked.is_running()
    }

    /// Returns true if there is no memory for what the connection holds. It has to close.
    pub fn is_exhausted(&self) -> bool {
        self.state().buffers.is_exhausted()
    }

    /// Returns how to close after the last response. A truncated response over HTTP/1.0 resets the connection, because its
    /// body ends where the connection is closed in order (RFC 9112, section 6.3).
    pub fn close_mode(&self) -> CloseMode {
        let state = self.state();
        match (state.is_truncated, state.is_read_closed) {
            (true, _) => CloseMode::Reset,
            (false, false) => CloseMode::Lingering,
            (false, true) => CloseMode::Immediate,
        }
    }

    /// Returns how to close when the client has timed out or memory is exhausted. If the client does not read, only a reset
    /// frees what the kernel holds for it.
    pub fn abort_mode(&self) -> CloseMode {
        let state = self.state();
        let is_blocked = state.blocked.is_running();
        let is_between_requests = state.in_flight == 0 && !state.is_http2();
        match state.buffers.is_exhausted() {
            true if is_between_requests && !is_blocked => CloseMode::Rejected,
            false if !is_blocked => CloseMode::Immediate,
            _ => CloseMode::Reset,
        }
    }

    /// Records bytes that were read; none at the end of input. Returns false if there is no memory for what becomes of them.
    pub fn on_read(&self, bytes: &[u8]) -> bool {
        self.metrics.received.inc_by(bytes.len() as u64);
        let state = &mut *self.state();
        state.streams.on_read(bytes);
        state.buffers.resize_streams(state.streams.cost());
        let is_of_heads = state.bodies == 0 && !state.is_http2();
        if is_of_heads {
            state.heads.on_read(bytes);
        }
        if state.heads.is_long() {
            state.buffers.reserve_long_head();
        }
        if bytes.is_empty() {
            state.is_read_closed = true;
        } else if is_of_heads && state.in_flight == 0 {
            state.heads.start();
        }
        !state.buffers.is_exhausted()
    }

    /// Records the result of a write of `pieces`.
    pub fn on_write(&self, written: &Poll<io::Result<usize>>, pieces: &[IoSlice]) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.metrics.sent.inc_by(*bytes as u64);
        }
        let state = &mut *self.state();
        if state.is_http2()
            && let Poll::Ready(Ok(bytes)) = written
        {
            let mut left = *bytes;
            for piece in pieces {
                let (sent, _) = piece.split_at(left.min(piece.len()));
                state.streams.on_write(sent);
                left -= sent.len();
            }
            state.buffers.resize_streams(state.streams.cost());
        }
        match written {
            Poll::Ready(Ok(bytes)) if state.blocked.is_running() => {
                state.blocked.record(*bytes);
                state.blocked.start();
            }
            Poll::Pending => state.blocked.start(),
            _ => {}
        }
    }

    /// Records that nothing is left to write. Waits that passed while the server could not read start again.
    pub fn on_flush(&self) {
        let mut state = self.state();
        if state.blocked.is_running() {
            let now = Instant::now();
            state.blocked = StallClock::default();
            state.last_activity = now;
            state.heads.restart(now);
            state.streams.restart_incomplete();
        }
        state.buffers.on_flush();
    }

    pub fn on_request_start(&self) {
        let mut state = self.state();
        if state.in_flight == 0 {
            self.metrics.busy_connections.inc();
        }
        state.in_flight += 1;
        state.heads.on_request();
        state.streams.on_request();
    }

    /// Records that a response has been handed to HTTP. Keeps its reservations until it has been written.
    pub fn on_request_end(&self, reservations: &mut Vec<Reservation>) {
        let mut state = self.state();
        state.in_flight -= 1;
        if state.in_flight == 0 {
            self.metrics.busy_connections.dec();
        }
        let now = Instant::now();
        state.last_activity = now;
        if state.in_flight == 0 && state.bodies == 0 {
            state.heads.start_pipelined(now);
        }
        state.buffers.keep(reservations);
    }

    pub fn on_truncated(&self) {
        self.state().is_truncated = true;
    }

    pub fn on_body_start(&self) {
        let mut state = self.state();
        state.bodies += 1;
        state.heads.on_body();
    }

    pub fn on_body_progress(&self) {
        self.state().heads.on_body_progress();
    }

    pub fn on_body_stalled(&self) {
        self.metrics.timeouts.count("body");
    }

    pub fn on_body_end(&self) {
        let mut state = self.state();
        state.bodies -= 1;
        state.heads.on_body_progress();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
