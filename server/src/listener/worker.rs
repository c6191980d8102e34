//! The workers: one single-threaded runtime a core, each with its connections.
//!
//! A request never leaves the thread of its connection. That takes no locks, wakes no other core,
//! and is half again as fast as a runtime shared by all cores.

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
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::{self, Handle};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

/// Bytes that a request's head may have; more are answered with 431.
const MAX_HEADER_BYTES: usize = 32 << 10;

/// HTTP/2 requests that one connection may have under way.
const MAX_CONCURRENT_STREAMS: u32 = 100;

/// The same for the management listener, whose responses take no part of the buffers: a whole `/metrics` can have 1.7 MB.
const MANAGEMENT_STREAMS: u32 = 1;

/// Bytes of request bodies that a connection of HTTP/2, and one of its streams, may send ahead: the least that a connection
/// can have (RFC 9113, section 6.9.2).
const RECEIVE_WINDOW_BYTES: u32 = 65_535;

/// How long an idle connection stays open when the server shuts down. A client that sent its next request before it saw the
/// shutdown is still served.
pub const IDLE_GRACE_PERIOD: Duration = Duration::from_millis(300);

/// How long a client of HTTP/2 has to acknowledge GOAWAY (RFC 9113, section 6.8) when the server shuts down. One that does
/// not read while it is idle never does. A slow one first takes what the kernel has of earlier responses.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(3);

/// Threads of a worker that look up names for outbound requests. Each of a name server's timeouts keeps one busy for
/// seconds.
const RESOLVER_THREADS: usize = 16;

/// A resolver's time without work before it ends: none, as the runtime aborts the process if there is no resolver and
/// the system denies a thread.
const RESOLVER_KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// A connection, and its permit among [`Config::max_connections`] for as long as it is open.
pub struct Connection {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub permit: OwnedSemaphorePermit,
}

/// Runs on a worker's thread, within its runtime.
type Job = Box<dyn FnOnce() + Send>;

/// A thread with a runtime of its own, which has no service yet.
pub struct WorkerThread {
    jobs: mpsc::UnboundedSender<Job>,
    started: std::sync::mpsc::Receiver<io::Result<Handle>>,
    thread: JoinHandle<()>,
}

impl WorkerThread {
    /// Starts the thread, and does not wait for it.
    ///
    /// # Errors
    /// When the system denies a thread.
    pub fn start(name: &str, resolves_names: bool) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let run = async move {
            while let Some(job) = queue.recv().await {
                job();
            }
        };
        let (report, started) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name(name.into());
        // The runtime is made there, as none may be dropped within another, not even when no thread is to be had.
        let thread = thread.spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(RESOLVER_THREADS)
                .thread_keep_alive(RESOLVER_KEEP_ALIVE)
                .thread_name("resolver")
                .build();
            let runtime = runtime.and_then(|runtime| {
                if resolves_names {
                    // The runtime panics if the system denies the first resolver a thread: this one returns an error.
                    thread::Builder::new().spawn(|| ())?.join().ok();
                    runtime.spawn_blocking(|| ());
                }
                Ok(runtime)
            });
            match runtime {
                Ok(runtime) => {
                    let _ = report.send(Ok(runtime.handle().clone()));
                    runtime.block_on(run);
                    // Without waiting for a look-up of a name.
                    runtime.shutdown_background();
                }
                Err(error) => drop(report.send(Err(error))),
            }
        })?;
        Ok(Self {
            jobs,
            started,
            thread,
        })
    }

    /// Runs a job on the thread, before all else.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // A thread without a runtime reports that to `serve`.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Returns why the thread has no runtime, if it has none.
    pub fn error(self) -> Option<io::Error> {
        self.started.recv().ok()?.err()
    }

    /// Gives the thread what it serves. When `closing` turns true, idle connections close.
    ///
    /// # Errors
    /// When the system denies a thread or a file descriptor.
    pub fn serve(
        self,
        service: Arc<Service>,
        config: &Config,
        closing: watch::Receiver<bool>,
    ) -> io::Result<Worker> {
        let runtime = self.started.recv().map_err(io::Error::other)??;
        Ok(Worker {
            jobs: self.jobs,
            handler: Arc::new(ConnectionHandler::new(service, config, closing)),
            load: Arc::default(),
            thread: self.thread,
            runtime,
        })
    }
}

/// A thread that serves connections.
pub struct Worker {
    jobs: mpsc::UnboundedSender<Job>,
    handler: Arc<ConnectionHandler>,
    /// Each of the worker's connections holds a clone.
    load: Arc<()>,
    thread: JoinHandle<()>,
    runtime: Handle,
}

impl Worker {
    /// The thread's runtime.
    pub fn handle(&self) -> &Handle {
        &self.runtime
    }

    /// How many connections the worker has, give or take a constant.
    pub fn connection_count(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Hands a connection to the worker.
    pub fn dispatch(&self, connection: Connection) {
        let (handler, load) = (self.handler.clone(), self.load.clone());
        // A worker that is gone takes its connections along.
        let _ = self.jobs.send(Box::new(move || {
            tokio::spawn(async move {
                handler.serve(connection).await;
                drop(load);
            });
        }));
    }

    /// Ends the thread, and cuts the connections that it still has.
    pub fn shutdown(self) {
        drop(self.jobs);
        let _ = self.thread.join();
    }
}

/// HTTP/1.1 and HTTP/2 (by prior knowledge), with their limits.
struct ConnectionHandler {
    http: auto::Builder<TokioExecutor>,
    timeouts: Timeouts,
    service: Arc<Service>,
    closing: watch::Receiver<bool>,
}

impl ConnectionHandler {
    fn new(service: Arc<Service>, config: &Config, closing: watch::Receiver<bool>) -> Self {
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
            closing,
        }
    }

    async fn serve(&self, connection: Connection) {
        let Connection {
            stream,
            peer,
            permit,
        } = connection;
        let Ok(stream) = into_tokio(stream) else {
            return; // It broke before its first byte.
        };
        let Service {
            buffers, metrics, ..
        } = &*self.service;
        metrics.connections.inc();
        let connection = ConnectionState::new(self.timeouts, buffers.clone(), metrics.clone());
        let connection = Arc::new(connection);
        let transport = Transport::new(stream, connection.clone());
        let end = self.serve_http(transport.clone(), &connection, peer).await;
        let refused = match end {
            ConnectionEnd::Closed => None,
            ConnectionEnd::Refused(status) => Some(status),
            ConnectionEnd::Cut if connection.is_exhausted() => {
                self.service.log_cut();
                None
            }
            ConnectionEnd::Cut => connection
                .head_started()
                .map(|_| StatusCode::REQUEST_TIMEOUT),
        };
        if let Some(status) = refused {
            let took = connection.head_started().map(|since| since.elapsed());
            self.service
                .log_refused(peer, status, took.unwrap_or_default());
        }
        match end {
            ConnectionEnd::Cut => transport.abort().await,
            _ => transport.close().await,
        }
        metrics.connections.dec();
        drop(permit);
    }

    /// Responds to requests until the connection has had its last.
    async fn serve_http(
        &self,
        transport: Transport,
        connection: &Arc<ConnectionState>,
        peer: SocketAddr,
    ) -> ConnectionEnd {
        let respond = service_fn(|request| {
            let service = self.service.clone();
            let connection = connection.clone();
            // Boxed, as hyper keeps room for it in each connection, the idle ones included.
            Box::pin(async move {
                Ok::<_, Infallible>(service.handle(peer, request, &connection).await)
            })
        });
        let mut http = pin!(self.http.serve_connection(TokioIo::new(transport), respond));
        let mut closing = self.closing.clone();
        let mut closing = pin!(async move {
            let _ = closing.wait_for(|closing| *closing).await;
            // By then the runtime has looked what has come in since, and hyper read it.
            yield_now().await;
        });
        let mut is_closing = false;
        // When the connection began to close.
        let mut closed: Option<Instant> = None;
        // When a connection of HTTP/2 that closes for the sake of one response may be cut.
        let mut grace = None;
        let mut watchdog = pin!(sleep(Duration::ZERO));
        poll_fn(|cx| {
            loop {
                let polled = http.as_mut().poll(cx);
                for status in connection.drain_rejected() {
                    if status == StatusCode::SERVICE_UNAVAILABLE {
                        self.service.metrics.rejected_requests.count("max_streams");
                    }
                    self.service.log_refused(peer, status, Duration::ZERO);
                }
                if let Poll::Ready(ended) = polled {
                    return Poll::Ready(ConnectionEnd::of(ended, connection));
                }
                if connection.is_exhausted() {
                    return Poll::Ready(ConnectionEnd::Cut);
                }
                is_closing = is_closing || closing.as_mut().poll(cx).is_ready();
                let end = match closed {
                    _ if !is_closing => None,
                    None => connection.shutdown_time(IDLE_GRACE_PERIOD),
                    Some(closed) => connection.goaway_deadline(closed, GOAWAY_TIMEOUT),
                };
                if end.is_some_and(|end| end <= Instant::now()) {
                    if closed.is_some() {
                        return Poll::Ready(ConnectionEnd::Closed);
                    }
                    closed = Some(Instant::now());
                    http.as_mut().graceful_shutdown();
                    continue;
                }
                let (deadline, timeout) = connection.deadline().unzip();
                let deadline = deadline.map(|it| grace.map_or(it, |grace| it.max(grace)));
                let Some(next) = deadline.into_iter().chain(end).min() else {
                    return Poll::Pending;
                };
                if next != watchdog.deadline() {
                    watchdog.as_mut().reset(next);
                }
                ready!(watchdog.as_mut().poll(cx));
                if Some(next) == end {
                    continue;
                }
                if let (None, Some(timeout)) = (grace, timeout) {
                    self.service.metrics.timeouts.count(timeout);
                }
                if grace.is_some() || !connection.is_multiplexed() {
                    return Poll::Ready(ConnectionEnd::Cut);
                }
                // HTTP/2 says that the connection closes, and a client that does not go on cuts no other response.
                closed = Some(Instant::now());
                grace = closed.map(|closed| closed + self.timeouts.multiplexed_close);
                http.as_mut().graceful_shutdown();
            }
        })
        .await
    }
}

/// How a connection ends.
enum ConnectionEnd {
    /// In order, or by the client.
    Closed,
    /// hyper refuses what has come, with this status.
    Refused(StatusCode),
    /// The client took too long, or no memory is left for what it sends.
    Cut,
}

impl ConnectionEnd {
    /// An error is the client's, which broke off or sent what is not HTTP, unless there was no memory for it.
    fn of(ended: Result<(), Box<dyn Error + Send + Sync>>, connection: &ConnectionState) -> Self {
        let error = ended.err();
        let error = error
            .as_ref()
            .and_then(|it| it.downcast_ref::<hyper::Error>());
        match error {
            _ if connection.is_exhausted() => Self::Cut,
            Some(error) if error.is_parse_too_large() => {
                Self::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            Some(error) if error.is_parse() => Self::Refused(StatusCode::BAD_REQUEST),
            _ => Self::Closed,
        }
    }
}

/// Puts the connection under the care of this thread's runtime.
fn into_tokio(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
