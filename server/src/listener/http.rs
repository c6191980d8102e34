//! HTTP/1.1 and HTTP/2 (by prior knowledge) on one connection: hyper's limits, and when the connection ends.
//!
//! hyper is polled together with the deadlines of the [`ConnectionState`]. A connection ends when
//!
//! - hyper is done: the client closed, a response closes the connection, or the input is malformed (400, 431);
//! - the client times out. If other HTTP/2 responses may still progress, GOAWAY comes first, and they may take
//!   [`Timeouts::multiplexed_close`]: hyper cannot reset a single stream;
//! - no memory is left for what the connection holds;
//! - the server drains and the connection is idle: HTTP/1 after [`IDLE_GRACE_PERIOD`]. HTTP/2 receives GOAWAY at once, and
//!   closes when its client acknowledges it, or after [`GOAWAY_TIMEOUT`].

use crate::config::settings::Config;
use crate::connection::state::ConnectionState;
use crate::connection::timeouts::Timeouts;
use crate::connection::transport::Transport;
use crate::request::service::{Handler, Service};
use crate::request::validate::MAX_FIELDS;
use http::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

/// Maximum bytes of a request's head; longer ones are rejected with 431.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// Maximum number of HTTP/2 requests in flight on a connection.
const MAX_CONCURRENT_STREAMS: u32 = 100;

/// The same for the management listener, whose responses reserve no buffers: `/metrics` can have 1.7 MB.
const MANAGEMENT_STREAMS: u32 = 1;

/// HTTP/2 receive window of a connection and of a stream, in bytes: the smallest for a connection (RFC 9113, section 6.9.2).
const RECEIVE_WINDOW_BYTES: u32 = 65_535;

/// Time that an idle connection stays open when the server drains, so that a client that has sent a request meanwhile is
/// served.
pub const IDLE_GRACE_PERIOD: Duration = Duration::from_millis(300);

/// Maximum time for a client to acknowledge GOAWAY (RFC 9113, section 6.8) during a drain. A slow client first receives
/// what the kernel has of earlier responses. An idle one that does not read never acknowledges.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(3);

/// An accepted connection, with its permit until it is closed.
pub struct Connection {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub permit: OwnedSemaphorePermit,
}

/// Serves the connections of a worker.
pub struct ConnectionHandler {
    http: auto::Builder<TokioExecutor>,
    timeouts: Timeouts,
    service: Arc<Service>,
    /// Set by a drain.
    close_idle: watch::Receiver<bool>,
}

impl ConnectionHandler {
    pub fn new(service: Arc<Service>, config: &Config, close_idle: watch::Receiver<bool>) -> Self {
        let streams = match service.handler {
            Handler::Guests(_) => MAX_CONCURRENT_STREAMS,
            Handler::Management(_) => MANAGEMENT_STREAMS,
        };
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_HEADER_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .initial_connection_window_size(RECEIVE_WINDOW_BYTES)
            .initial_stream_window_size(RECEIVE_WINDOW_BYTES)
            .max_concurrent_streams(streams)
            .max_header_list_size(MAX_HEADER_BYTES as u32);
        Self {
            http,
            timeouts: Timeouts::from(config),
            service,
            close_idle,
        }
    }

    /// Serves a connection until it is closed.
    pub async fn serve(&self, connection: Connection) {
        let Connection {
            stream,
            peer,
            permit,
        } = connection;
        let Ok(stream) = into_tokio(stream) else {
            return; // The client has already reset it.
        };
        let Service {
            buffers, metrics, ..
        } = &*self.service;
        metrics.connections.inc();
        let state = ConnectionState::new(self.timeouts, buffers.clone(), metrics.clone());
        let state = Arc::new(state);
        let transport = Transport::new(stream, state.clone());
        let end = self.serve_http(transport.clone(), &state, peer).await;
        self.log_end(&end, &state, peer);
        match end {
            ConnectionEnd::Aborted => transport.abort().await,
            ConnectionEnd::Closed | ConnectionEnd::Rejected(_) => transport.close().await,
        }
        metrics.connections.dec();
        drop(permit);
    }

    /// Responds to requests until the connection ends.
    async fn serve_http(
        &self,
        transport: Transport,
        state: &Arc<ConnectionState>,
        peer: SocketAddr,
    ) -> ConnectionEnd {
        let respond = service_fn(|request| {
            let service = self.service.clone();
            let state = state.clone();
            // Boxed, because hyper keeps room for the future in each connection, also in idle ones.
            Box::pin(
                async move { Ok::<_, Infallible>(service.handle(peer, request, &state).await) },
            )
        });
        let mut http = pin!(self.http.serve_connection(TokioIo::new(transport), respond));
        let mut close_idle = self.close_idle.clone();
        let mut close_idle = pin!(async move {
            let _ = close_idle.wait_for(|is_set| *is_set).await;
            // Lets the runtime poll for I/O once more, so that hyper reads requests that have arrived.
            yield_now().await;
        });
        let mut is_draining = false;
        let mut shutdown = GracefulShutdown::default();
        let mut timer = pin!(sleep(Duration::ZERO));
        poll_fn(|cx| {
            loop {
                let polled = http.as_mut().poll(cx);
                self.log_rejected_streams(state, peer);
                if let Poll::Ready(result) = polled {
                    return Poll::Ready(ConnectionEnd::of(result, state));
                }
                if state.is_exhausted() {
                    return Poll::Ready(ConnectionEnd::Aborted);
                }
                is_draining = is_draining || close_idle.as_mut().poll(cx).is_ready();
                let drain_at = is_draining.then(|| shutdown.next_step(state)).flatten();
                if drain_at.is_some_and(|at| at <= Instant::now()) {
                    if shutdown.started.is_some() {
                        return Poll::Ready(ConnectionEnd::Closed);
                    }
                    shutdown.started = Some(Instant::now());
                    http.as_mut().graceful_shutdown();
                    continue;
                }
                let (deadline, timeout) = state.deadline().unzip();
                let deadline = deadline.map(|at| shutdown.extend(at));
                let Some(next) = deadline.into_iter().chain(drain_at).min() else {
                    return Poll::Pending;
                };
                if next != timer.deadline() {
                    timer.as_mut().reset(next);
                }
                ready!(timer.as_mut().poll(cx));
                if Some(next) == drain_at {
                    continue;
                }
                let has_timed_out = shutdown.responses_end.is_some();
                if let (false, Some(timeout)) = (has_timed_out, timeout) {
                    self.service.metrics.timeouts.count(timeout);
                }
                if has_timed_out || !state.is_multiplexed() {
                    return Poll::Ready(ConnectionEnd::Aborted);
                }
                shutdown.start_with_limit(self.timeouts.multiplexed_close);
                http.as_mut().graceful_shutdown();
            }
        })
        .await
    }

    /// Logs the HTTP/2 requests that h2 has rejected, which do not reach the service.
    fn log_rejected_streams(&self, state: &ConnectionState, peer: SocketAddr) {
        for status in state.drain_rejected() {
            if status == StatusCode::SERVICE_UNAVAILABLE {
                self.service.metrics.rejected_requests.count("max_streams");
            }
            self.service.log_rejected(peer, status, Duration::ZERO);
        }
    }

    /// Logs a request whose head was not served, and a connection that ended because memory was exhausted.
    fn log_end(&self, end: &ConnectionEnd, state: &ConnectionState, peer: SocketAddr) {
        let head_started = state.head_started();
        let status = match end {
            ConnectionEnd::Rejected(status) => *status,
            ConnectionEnd::Aborted if state.is_exhausted() => return self.service.log_exhausted(),
            ConnectionEnd::Aborted if head_started.is_some() => StatusCode::REQUEST_TIMEOUT,
            ConnectionEnd::Aborted | ConnectionEnd::Closed => return,
        };
        let duration = head_started.map(|started| started.elapsed());
        self.service
            .log_rejected(peer, status, duration.unwrap_or_default());
    }
}

/// The graceful shutdown of a connection: hyper finishes the requests in flight and accepts no more.
#[derive(Default)]
struct GracefulShutdown {
    started: Option<Instant>,
    /// When the responses have to end of an HTTP/2 connection that closes because its client timed out.
    responses_end: Option<Instant>,
}

impl GracefulShutdown {
    /// Returns when a drain starts the shutdown or, after that, closes the connection.
    fn next_step(&self, state: &ConnectionState) -> Option<Instant> {
        match self.started {
            None => state.shutdown_time(IDLE_GRACE_PERIOD),
            Some(started) => state.goaway_deadline(started, GOAWAY_TIMEOUT),
        }
    }

    /// Starts the shutdown of a connection whose client has timed out.
    fn start_with_limit(&mut self, limit: Duration) {
        let now = Instant::now();
        self.started = Some(now);
        self.responses_end = Some(now + limit);
    }

    /// Extends a client's deadline so that the other responses can finish.
    fn extend(&self, deadline: Instant) -> Instant {
        self.responses_end.map_or(deadline, |end| deadline.max(end))
    }
}

/// How a connection ends.
enum ConnectionEnd {
    /// In order, or by the client.
    Closed,
    /// hyper has rejected the input with this status.
    Rejected(StatusCode),
    /// The client has timed out, or no memory is left for the connection.
    Aborted,
}

impl ConnectionEnd {
    /// Interprets hyper's result. Other errors than of parsing mean that the client is gone.
    fn of(result: Result<(), Box<dyn Error + Send + Sync>>, state: &ConnectionState) -> Self {
        let error = result.err();
        let error = error
            .as_ref()
            .and_then(|it| it.downcast_ref::<hyper::Error>());
        match error {
            // Running out of memory surfaces as an error of reading.
            _ if state.is_exhausted() => Self::Aborted,
            Some(error) if error.is_parse_too_large() => {
                Self::Rejected(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            Some(error) if error.is_parse() => Self::Rejected(StatusCode::BAD_REQUEST),
            _ => Self::Closed,
        }
    }
}

/// Registers the connection with this thread's runtime.
fn into_tokio(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
