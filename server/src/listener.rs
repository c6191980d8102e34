//! The listener: accepts connections, spreads them over one single-threaded runtime a core, and at
//! the end drains them.
//!
//! A request never leaves the thread of its connection. That takes no locks, wakes no other core,
//! and is half again as fast as a runtime shared by all cores.

use crate::component::Precompiled;
use crate::config::Config;
use crate::log::Log;
use crate::sandbox::{Limits, Sandbox};
use crate::service::Service;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

/// Header fields that a request may have; more are answered with 431.
const HEADER_COUNT: usize = 100;

/// Bytes that a request's head may have; more are answered with 431.
const HEADER_BYTES: usize = 32 << 10;

/// HTTP/2 requests that one connection may have under way.
const STREAMS: u32 = 100;

/// How long idle connections stay open when the server shuts down. A client that sent its next
/// request before it saw the shutdown is still answered.
const LINGER: Duration = Duration::from_millis(300);

/// How often at most failures to accept are logged.
const ACCEPT_LOG: Duration = Duration::from_secs(1);

/// How long to wait after `accept` failed for want of something, mostly file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that listens, though it does not serve yet.
pub struct Server {
    listener: TcpListener,
    config: Config,
    service: Arc<Service>,
    log: Log,
}

impl Server {
    /// Loads the component and starts to listen; port 0 takes a free port.
    ///
    /// # Errors
    /// One line that says what failed and what to do.
    pub fn bind(component: &Precompiled, config: Config, log: &Log) -> Result<Self, String> {
        let limits = Limits {
            calls: config.max_requests,
            time: config.guest_timeout,
        };
        let sandbox = Sandbox::load(component, limits, log.clone())
            .map_err(|error| format!("the component does not load: {error:#}"))?;
        let listener = TcpListener::bind(config.listen)
            .map_err(|error| format!("cannot listen on {}: {}", config.listen, advice(&error)))?;
        Ok(Self {
            listener,
            service: Arc::new(Service {
                sandbox: Arc::new(sandbox),
                log: log.clone(),
                access_log: config.access_log,
                draining: AtomicBool::new(false),
            }),
            log: log.clone(),
            config,
        })
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` gives a reason to stop, then drains: accepts no more, answers what is
    /// under way, closes. A second reason ends it at once.
    ///
    /// # Errors
    /// One line, when the system denies a thread or a file descriptor.
    pub async fn run(self, mut stop: mpsc::Receiver<String>) -> Result<(), String> {
        let error = |error: io::Error| format!("cannot serve: {error}");
        let (close_idle, closing) = watch::channel(false);
        let workers = (0..cores())
            .map(|_| Worker::start(self.service.clone(), &self.config, closing.clone()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(error)?;
        let places = Arc::new(Semaphore::new(self.config.max_connections as usize));
        self.listener.set_nonblocking(true).map_err(error)?;
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(error)?;

        let reason = tokio::select! {
            reason = stop.recv() => reason.unwrap_or_default(),
            never = accept(&listener, &workers, &places, &self.log) => match never {},
        };
        // From here on the listener refuses. Who has connected by now is still served.
        self.service.draining.store(true, Ordering::Relaxed);
        let listener = listener.into_std().map_err(error)?;
        while let Ok((stream, peer)) = listener.accept()
            && let Ok(place) = places.clone().try_acquire_owned()
        {
            assign(&workers, stream, peer, place);
        }
        drop(listener);
        let all = self.config.max_connections;
        let open = all as usize - places.available_permits();
        self.log.event(format_args!(
            "{reason}: shutting down, {open} connections open"
        ));

        let drained = async {
            // All places free: all connections closed.
            if timeout(LINGER, places.acquire_many(all)).await.is_err() {
                close_idle.send_replace(true);
                let _ = places.acquire_many(all).await;
            }
        };
        tokio::select! {
            () = drained => {}
            _ = stop.recv() => self.log.event(format_args!("told again: ending at once")),
            () = sleep(self.config.drain_timeout) => {
                let open = all as usize - places.available_permits();
                self.log.event(format_args!("out of time: {open} connections cut"));
            }
        }
        for worker in workers {
            worker.end();
        }
        Ok(())
    }
}

/// One worker for each core that this process may use (a container's CPU limit counts).
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use; choose another with PORT".into(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; choose a port from 1024 with PORT".into()
        }
        _ => error.to_string(),
    }
}

/// Accepts connections for ever.
async fn accept(
    listener: &tokio::net::TcpListener,
    workers: &[Worker],
    places: &Arc<Semaphore>,
    log: &Log,
) -> Infallible {
    let mut last_error: Option<Instant> = None;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            std::future::pending().await
        };
        let accepted = listener.accept().await;
        match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => assign(workers, stream, peer, place),
            // The client was gone before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if last_error.is_none_or(|last| last.elapsed() >= ACCEPT_LOG) {
                    log.event(format_args!("cannot accept connections: {error}"));
                    last_error = Some(Instant::now());
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Gives the connection to the worker that has the fewest.
fn assign(workers: &[Worker], stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
    if let Some(worker) = workers.iter().min_by_key(|worker| worker.load()) {
        let load = worker.load.clone();
        // A worker that is gone takes its connections along.
        let _ = worker.inbox.send(Connection {
            stream,
            peer,
            _load: load,
            _place: place,
        });
    }
}

/// A connection, and what it holds for as long as it is open.
struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    _load: Arc<()>,
    _place: OwnedSemaphorePermit,
}

/// A thread with a runtime of its own.
struct Worker {
    inbox: mpsc::UnboundedSender<Connection>,
    /// Each of the worker's connections holds a clone.
    load: Arc<()>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(
        service: Arc<Service>,
        config: &Config,
        closing: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let (inbox, mut connections) = mpsc::unbounded_channel();
        let protocol = Arc::new(Protocol::new(service, config, closing));
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = async move {
            while let Some(connection) = connections.recv().await {
                tokio::spawn(protocol.clone().serve(connection));
            }
        };
        let thread = thread::Builder::new().name("worker".into());
        let thread = thread.spawn(move || runtime.block_on(serve))?;
        Ok(Self {
            inbox,
            load: Arc::default(),
            thread,
        })
    }

    fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Ends the thread, and cuts the connections that it still has.
    fn end(self) {
        drop(self.inbox);
        let _ = self.thread.join();
    }
}

/// HTTP/1.1 and HTTP/2 (by prior knowledge), with their limits.
struct Protocol {
    http: auto::Builder<TokioExecutor>,
    header_timeout: Duration,
    service: Arc<Service>,
    closing: watch::Receiver<bool>,
}

impl Protocol {
    fn new(service: Arc<Service>, config: &Config, closing: watch::Receiver<bool>) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_headers(HEADER_COUNT)
            .max_buf_size(HEADER_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_BYTES as u32);
        Self {
            http,
            header_timeout: config.header_timeout,
            service,
            closing,
        }
    }

    async fn serve(self: Arc<Self>, connection: Connection) {
        let Connection {
            stream,
            peer,
            _load,
            _place,
        } = connection;
        let Ok(stream) = register(stream) else {
            return; // It broke before its first byte.
        };
        let spoke = Arc::new(AtomicBool::new(false));
        let answer = service_fn(|request| {
            spoke.store(true, Ordering::Relaxed);
            let service = self.service.clone();
            async move { Ok::<_, Infallible>(service.answer(peer, request).await) }
        });
        let mut http = pin!(self.http.serve_connection(TokioIo::new(stream), answer));
        let mut closing = self.closing.clone();
        let mut silence = pin!(sleep(self.header_timeout));
        let (mut closed, mut checked) = (false, false);
        loop {
            tokio::select! {
                biased;
                // An error is the client's: it broke off, or sent what is not HTTP.
                _ = http.as_mut() => return,
                _ = closing.wait_for(|closing| *closing), if !closed => {
                    http.as_mut().graceful_shutdown();
                    closed = true;
                }
                // hyper's own limit on a head's time begins with its first byte.
                () = silence.as_mut(), if !checked => {
                    if !spoke.load(Ordering::Relaxed) {
                        return;
                    }
                    checked = true;
                }
            }
        }
    }
}

/// Puts the connection under the care of this thread's runtime.
fn register(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
