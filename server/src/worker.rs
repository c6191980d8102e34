//! The workers: one single-threaded runtime a core, each with its connections.
//!
//! A request never leaves the thread of its connection. That takes no locks, wakes no other core,
//! and is half again as fast as a runtime shared by all cores.

use crate::config::Config;
use crate::service::Service;
use crate::transport::{Activity, Patience, Transport};
use crate::validate::MAX_FIELDS;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
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
const HEADER_BYTES: usize = 32 << 10;

/// HTTP/2 requests that one connection may have under way.
const STREAMS: u32 = 100;

/// Bytes of request bodies that a connection of HTTP/2, and one of its streams, may send ahead: the least that a connection
/// can have (RFC 9113, section 6.9.2).
const WINDOW: u32 = 65_535;

/// Threads of a worker that look up names for outbound requests. Each of a name server's timeouts keeps one busy for
/// seconds.
const RESOLVERS: usize = 16;

/// A resolver's time without work before it ends: none, as the runtime aborts the process if there is no resolver and
/// the system denies a thread.
const RESOLVER_IDLE: Duration = Duration::from_secs(u32::MAX as u64);

/// A connection, and its place among [`Config::max_connections`] for as long as it is open.
pub struct Connection {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub place: OwnedSemaphorePermit,
}

/// A thread with a runtime of its own.
pub struct Worker {
    inbox: mpsc::UnboundedSender<(Connection, Arc<()>)>,
    /// Each of the worker's connections holds a clone.
    load: Arc<()>,
    thread: JoinHandle<()>,
    runtime: Handle,
}

impl Worker {
    /// Starts the thread. When `closing` turns true, idle connections close.
    ///
    /// # Errors
    /// When the system denies a thread or a file descriptor.
    pub fn start(
        name: &str,
        service: Arc<Service>,
        config: &Config,
        closing: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let (inbox, mut connections) = mpsc::unbounded_channel();
        let protocol = Arc::new(Protocol::new(service, config, closing));
        let resolves_names = !config.outbound.allowed.is_empty();
        let serve = async move {
            while let Some((connection, load)) = connections.recv().await {
                let protocol = protocol.clone();
                tokio::spawn(async move {
                    protocol.serve(connection).await;
                    drop(load);
                });
            }
        };
        let (report, started) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name(name.into());
        // The runtime is made there, as none may be dropped within another, not even when no thread is to be had.
        let thread = thread.spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(RESOLVERS)
                .thread_keep_alive(RESOLVER_IDLE)
                .thread_name("resolver")
                .build();
            match runtime {
                Ok(runtime) => {
                    if resolves_names {
                        runtime.spawn_blocking(|| ());
                    }
                    let _ = report.send(Ok(runtime.handle().clone()));
                    runtime.block_on(serve);
                    // Without waiting for a look-up of a name.
                    runtime.shutdown_background();
                }
                Err(error) => drop(report.send(Err(error))),
            }
        })?;
        let runtime = started.recv().map_err(io::Error::other)??;
        Ok(Self {
            inbox,
            load: Arc::default(),
            thread,
            runtime,
        })
    }

    /// The thread's runtime.
    pub fn handle(&self) -> &Handle {
        &self.runtime
    }

    /// How many connections the worker has, give or take a constant.
    pub fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Hands a connection to the worker.
    pub fn take(&self, connection: Connection) {
        // A worker that is gone takes its connections along.
        let _ = self.inbox.send((connection, self.load.clone()));
    }

    /// Ends the thread, and cuts the connections that it still has.
    pub fn end(self) {
        drop(self.inbox);
        let _ = self.thread.join();
    }
}

/// HTTP/1.1 and HTTP/2 (by prior knowledge), with their limits.
struct Protocol {
    http: auto::Builder<TokioExecutor>,
    patience: Patience,
    service: Arc<Service>,
    closing: watch::Receiver<bool>,
}

impl Protocol {
    fn new(service: Arc<Service>, config: &Config, closing: watch::Receiver<bool>) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .max_headers(MAX_FIELDS)
            .max_buf_size(HEADER_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_BYTES as u32);
        Self {
            http,
            patience: Patience::of(config),
            service,
            closing,
        }
    }

    async fn serve(&self, connection: Connection) {
        let Connection {
            stream,
            peer,
            place,
        } = connection;
        let Ok(stream) = register(stream) else {
            return; // It broke before its first byte.
        };
        let activity = Arc::new(Activity::new(self.patience, self.service.buffers.clone()));
        let transport = Transport::new(stream, activity.clone());
        if self.converse(transport.clone(), &activity, peer).await {
            transport.close().await;
        } else {
            if activity.is_over() {
                self.service.log_cut();
            }
            transport.cut().await;
        }
        drop(place);
    }

    /// Answers requests until the connection has had its last; false when the client took too long.
    async fn converse(
        &self,
        transport: Transport,
        activity: &Arc<Activity>,
        peer: SocketAddr,
    ) -> bool {
        let answer = service_fn(|request| {
            let service = self.service.clone();
            let activity = activity.clone();
            // Boxed, as hyper keeps room for it in each connection, the idle ones included.
            Box::pin(
                async move { Ok::<_, Infallible>(service.answer(peer, request, &activity).await) },
            )
        });
        let mut http = pin!(self.http.serve_connection(TokioIo::new(transport), answer));
        let mut closing = self.closing.clone();
        let mut closing = pin!(async move {
            let _ = closing.wait_for(|closing| *closing).await;
            // By then the runtime has looked what has come in since, and hyper read it.
            yield_now().await;
        });
        let mut closed = false;
        // When a connection that was told to go away may be cut.
        let mut grace = None;
        let mut watchdog = pin!(sleep(Duration::ZERO));
        poll_fn(|cx| {
            // An error is the client's, which broke off or sent what is not HTTP, unless there was no memory for it.
            if http.as_mut().poll(cx).is_ready() {
                return Poll::Ready(!activity.is_over());
            }
            if !closed && closing.as_mut().poll(cx).is_ready() {
                closed = true;
                http.as_mut().graceful_shutdown();
                if http.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
            }
            if activity.is_over() {
                return Poll::Ready(false);
            }
            let Some(deadline) = activity.deadline() else {
                return Poll::Pending;
            };
            let deadline = grace.map_or(deadline, |grace| deadline.max(grace));
            if deadline != watchdog.deadline() {
                watchdog.as_mut().reset(deadline);
            }
            ready!(watchdog.as_mut().poll(cx));
            // One response of HTTP/2 that its client does not take ends the connection, but no other response.
            if grace.is_none() && activity.is_multiplexed() {
                http.as_mut().graceful_shutdown();
                if http.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(!activity.is_over());
                }
                let end = Instant::now() + self.patience.last;
                grace = Some(end);
                watchdog.as_mut().reset(end);
                ready!(watchdog.as_mut().poll(cx));
            }
            Poll::Ready(false)
        })
        .await
    }
}

/// Puts the connection under the care of this thread's runtime.
fn register(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
