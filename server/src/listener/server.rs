//! The listener: accepts connections, spreads them over the workers, turns away what is too much,
//! and at the end drains.

use crate::component::description::Description;
use crate::component::file::Component;
use crate::config::settings::Config;
use crate::connection::buffers::Buffers;
use crate::connection::transport::{self, OVERLOADED_RESPONSE};
use crate::listener::worker::{Connection, IDLE_GRACE_PERIOD, Worker, WorkerThread};
use crate::outbound::client::Outbound;
use crate::request::management::{self, Health, Source};
use crate::request::service::{Handler, Service};
use crate::sandbox::budget::Budget;
use crate::sandbox::handler::ComponentHandler;
use crate::sandbox::limits::Limits;
use crate::sandbox::permits::Permits;
use crate::sandbox::shared::Shared;
use crate::telemetry::log::{Level, Log};
use crate::telemetry::metrics::Metrics;
use rustix::io::{Errno, dup};
use rustix::net::listen;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use std::{io, thread};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

/// Clients that can be rejections so at a time; more are cut without a word.
const MAX_PENDING_REJECTIONS: u64 = 256;

/// How long one of them may take to hear it.
const REJECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeouts of the management listener's connections. While all are taken by clients that say nothing, another waits as long.
const MANAGEMENT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait after `accept` failed for another reason than a lack of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// File descriptors that the server needs besides those of connections: by itself, with the images of a component's
/// memories, and for each worker's runtime.
const RESERVED_FDS: u64 = 40 + management::MAX_CONNECTIONS as u64;
const FDS_PER_WORKER: u64 = 6;

/// Bytes that the kernel may hold for a client that has not confirmed them, and of these, bytes that the client has no
/// room for.
const SEND_BUFFER_BYTES: usize = 32 << 10;
const UNSENT_BYTES: u32 = 8 << 10;

/// A server that listens, though it does not serve yet.
pub struct Server {
    listener: TcpListener,
    management: Option<TcpListener>,
    config: Config,
    service: Arc<Service>,
    sandbox: Arc<ComponentHandler>,
    description: Description,
    log: Log,
}

impl Server {
    /// Starts to listen and loads the component; port 0 takes a free port.
    ///
    /// # Errors
    /// One line that says what failed and what to do.
    pub fn bind(component: &Component, config: Config, log: &Log) -> Result<Self, String> {
        // First, so that early clients wait a moment rather than being refused.
        let listener = bind(config.listen, "PORT")?;
        // As many as may be open: a burst of clients waits there. The system's limit counts (`somaxconn`).
        let backlog = config.max_connections.min(i32::MAX as u32) as i32;
        let set = listen(&listener, backlog).map_err(io::Error::from);
        set.and_then(|()| bound_send_buffers(&listener, config.write_timeout))
            .map_err(|error| format!("cannot listen: {error}"))?;
        let management = config.management.map(|it| bind(it, "MANAGEMENT_LISTEN"));
        let management = management.transpose()?;
        let limits = Limits {
            max_concurrent_requests: config.max_requests,
            request_timeout: config.guest_timeout,
            max_reuse_count: config.requests_per_sandbox,
            memory: config.guest_memory,
            resident: config.guest_memory_resident,
        };
        let set = |(name, value): &(String, Option<String>)| Some((name.clone(), value.clone()?));
        let variables: Vec<_> = config.guest_env.iter().filter_map(set).collect();
        let metrics = Arc::<Metrics>::default();
        let outbound = Outbound::new(
            config.outbound.clone(),
            config.guest_timeout,
            log.clone(),
            metrics.clone(),
        );
        let buffers = Buffers::new(config.max_connections);
        let shared = Shared {
            log: log.clone(),
            metrics: metrics.clone(),
            config: variables.iter().cloned().collect(),
            variables,
            outbound,
            memory: Budget::new(config.guest_memory_total.0),
            memory_share: component.description.memory_share(config.guest_memory),
            permits: Permits::new(
                &limits,
                config.guest_memory_total.0,
                component.description.total_initial_memory(),
                buffers.clone(),
            ),
        };
        component.check_total(config.guest_memory_total)?;
        let sandbox = ComponentHandler::load(component, limits, shared)?;
        let sandbox = Arc::new(sandbox);
        Ok(Self {
            listener,
            management,
            service: Arc::new(Service {
                handler: Handler::Guests(sandbox.clone()),
                log: log.clone(),
                metrics,
                access_log: config.access_log,
                trusted_proxies: config.trusted_proxies.clone(),
                body_timeout: config.body_timeout,
                buffers,
                shutdown: Arc::default(),
            }),
            sandbox,
            description: component.description.clone(),
            log: log.clone(),
            config,
        })
    }

    /// The address that the management listener has, if there is one.
    pub fn management_address(&self) -> Option<SocketAddr> {
        self.management.as_ref()?.local_addr().ok()
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
    pub async fn run(
        self,
        workers: Vec<WorkerThread>,
        mut stop: mpsc::Receiver<String>,
    ) -> Result<(), String> {
        let error = |error: io::Error| format!("cannot serve: {error}");
        let fds = divide_fds(&self.config, workers.len())?;
        let all = fds.connections;
        let most = self.config.max_connections;
        if all < most {
            let limit = fds.limit;
            self.log.event(
                Level::Warn,
                format_args!(
                    "the limit of {limit} file descriptors leaves room for {all} connections, not for \
                     MAX_CONNECTIONS={most}"
                ),
            );
        }
        let (close_idle, closing) = watch::channel(false);
        let serve = |worker: WorkerThread| {
            worker.serve(self.service.clone(), &self.config, closing.clone())
        };
        let workers: io::Result<Vec<_>> = workers.into_iter().map(serve).collect();
        let workers = workers.map_err(error)?;
        let health = Arc::new(Health::new(
            workers.iter().map(|it| it.handle().clone()).collect(),
            Source {
                service: self.service.clone(),
                sandbox: self.sandbox,
                description: self.description,
                connections: all,
            },
        ));
        // Management connections stay open until the process ends.
        let stays_open = watch::Sender::new(false);
        if let Some(listener) = self.management {
            let handler = Handler::Management(health.clone());
            // There are few, so that none may stay.
            let config = Config {
                idle_timeout: MANAGEMENT_TIMEOUT,
                header_timeout: MANAGEMENT_TIMEOUT,
                write_timeout: MANAGEMENT_TIMEOUT,
                ..self.config.clone()
            };
            let service = Arc::new(Service {
                handler,
                log: self.log.clone(),
                // Of the traffic, and not of those who ask about it.
                metrics: Arc::default(),
                access_log: false,
                trusted_proxies: config.trusted_proxies.clone(),
                body_timeout: config.body_timeout,
                buffers: Buffers::new(management::MAX_CONNECTIONS as u32),
                shutdown: Arc::default(),
            });
            let open = stays_open.subscribe();
            let worker = WorkerThread::start("management", false).map_err(error)?;
            let worker = worker.serve(service, &config, open).map_err(error)?;
            management::accept(listener, worker, &self.log).map_err(error)?;
        }
        let connection_limit = Arc::new(Semaphore::new(all as usize));
        self.listener.set_nonblocking(true).map_err(error)?;
        let mut acceptor = Acceptor::new(
            self.listener,
            fds.rejections,
            self.log.clone(),
            self.service.metrics.clone(),
        )
        .map_err(error)?;

        let mut reason = tokio::select! {
            reason = stop.recv() => reason.unwrap_or_default(),
            never = acceptor.accept(&workers, &connection_limit) => match never {},
        };
        health.end_readiness();
        let delay = self.config.drain_delay;
        let mut has_second_signal = false;
        if !delay.is_zero() {
            self.log.event(
                Level::Info,
                format_args!("{reason}: not ready, and serving for another {delay:?}"),
            );
            tokio::select! {
                again = stop.recv() => {
                    reason = again.unwrap_or_default();
                    has_second_signal = true;
                }
                () = sleep(delay) => {}
                never = acceptor.accept(&workers, &connection_limit) => match never {},
            }
        }
        // From here on the listener refuses. Who has connected by now is still served.
        let shutdown = &self.service.shutdown;
        shutdown.is_draining.store(true, Ordering::Relaxed);
        let listener = acceptor.into_listener().map_err(error)?;
        while let Ok((stream, peer)) = listener.accept()
            && let Ok(permit) = connection_limit.clone().try_acquire_owned()
        {
            dispatch(
                &workers,
                Connection {
                    stream,
                    peer,
                    permit,
                },
            );
        }
        drop(listener);
        let open = || all as usize - connection_limit.available_permits();
        self.log.event(
            Level::Info,
            format_args!("{reason}: shutting down, {} connections open", open()),
        );

        let second_signal = async {
            if !has_second_signal {
                stop.recv().await;
            }
        };
        let drained = async {
            // All connection_limit free: all connections closed.
            if timeout(IDLE_GRACE_PERIOD, connection_limit.acquire_many(all))
                .await
                .is_err()
            {
                close_idle.send_replace(true);
                let _ = connection_limit.acquire_many(all).await;
            }
        };
        let why = tokio::select! {
            () = drained => None,
            () = second_signal => Some("told again"),
            () = sleep(self.config.drain_timeout) => Some("out of time"),
        };
        if let Some(why) = why {
            shutdown.is_cutting.store(true, Ordering::Relaxed);
            let requests = shutdown.requests.load(Ordering::Relaxed);
            let connections = open();
            self.log.event(
                Level::Warn,
                format_args!(
                    "{why}: {} on {} cut",
                    pluralize(requests, "request"),
                    pluralize(connections, "connection")
                ),
            );
        }
        for worker in workers {
            worker.shutdown();
        }
        Ok(())
    }
}

fn pluralize(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Starts a worker for each core that this process may use (a container's CPU limit counts). The first one loads the
/// component while the others start, and its caller can receive signals meanwhile.
///
/// # Errors
/// One line, when the system denies a thread, or allows too few file descriptors to serve at all.
pub fn start_workers(
    config: &Config,
    load: impl FnOnce() + Send + 'static,
) -> Result<Vec<WorkerThread>, String> {
    raise_fd_limit();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    divide_fds(config, cores)?;
    let start = || {
        WorkerThread::start("worker", !config.outbound.allowed.is_empty())
            .map_err(|error| format!("cannot start: {error}"))
    };
    let first = start()?;
    first.run(load);
    let mut workers = vec![first];
    for _ in 1..cores {
        workers.push(start()?);
    }
    Ok(workers)
}

/// Raises the limit on file descriptors as far as this process may: shells and engines set it low
/// for the sake of programs that use `select`.
fn raise_fd_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Starts to listen on an address that this setting chooses.
fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|error| {
        format!(
            "cannot listen on {address}: {}",
            describe_bind_error(&error, setting)
        )
    })
}

/// Bounds what the kernel holds for each client, which the sockets of connections have from the listener's.
///
/// # Errors
/// When the system denies it.
fn bound_send_buffers(listener: &TcpListener, write_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // The kernel doubles it for what it needs besides (socket(7)).
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    // A connection that the server has closed ends, too, when its client takes nothing more.
    socket.set_tcp_user_timeout(Some(write_timeout))
}

fn describe_bind_error(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("the address is in use; choose another with {setting}")
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::PermissionDenied => {
            format!("not permitted; choose a port from 1024 with {setting}")
        }
        _ => error.to_string(),
    }
}

/// What the file descriptors are for.
struct FdLimits {
    limit: u64,
    /// Connections that may be open.
    connections: u32,
    /// Clients that can be rejections at a time that there is no room.
    rejections: usize,
}

/// Divides the file descriptors that this process may have. Where they are too few for all, the server and the clients
/// that are turned away come first.
///
/// # Errors
/// One line, when they are too few to serve at all.
fn divide_fds(config: &Config, workers: usize) -> Result<FdLimits, String> {
    let connections = u64::from(config.max_connections);
    let outbound = match config.outbound.allowed.as_slice() {
        [] => 0,
        _ => u64::from(config.outbound.connections),
    };
    let fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let own = RESERVED_FDS + FDS_PER_WORKER * workers as u64;
    let left = fds.saturating_sub(own + outbound);
    let rejections = MAX_PENDING_REJECTIONS.min(left / 4);
    let fit = connections.min(left - rejections);
    if fit == 0 {
        return Err(format!(
            "the limit of {fds} file descriptors is too low: the server needs {} for itself; raise it with `ulimit -n`",
            own + outbound + 1
        ));
    }
    Ok(FdLimits {
        limit: fds,
        connections: fit as u32,
        rejections: rejections.max(1) as usize,
    })
}

/// Gives the connection to the worker that has the fewest.
fn dispatch(workers: &[Worker], connection: Connection) {
    if let Some(worker) = workers
        .iter()
        .min_by_key(|worker| worker.connection_count())
    {
        worker.dispatch(connection);
    }
}

/// Where connections come in.
struct Acceptor {
    listener: tokio::net::TcpListener,
    /// Given up when there are no more file descriptors, to have one to turn clients away with.
    reserve_fd: Option<OwnedFd>,
    pending_rejections: Arc<Semaphore>,
    log: Log,
    metrics: Arc<Metrics>,
}

impl Acceptor {
    fn new(
        listener: TcpListener,
        rejections: usize,
        log: Log,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Ok(Self {
            reserve_fd: dup(&listener).ok(),
            listener: tokio::net::TcpListener::from_std(listener)?,
            pending_rejections: Arc::new(Semaphore::new(rejections)),
            log,
            metrics,
        })
    }

    fn into_listener(self) -> io::Result<TcpListener> {
        self.listener.into_std()
    }

    /// Accepts connections for ever.
    async fn accept(
        &mut self,
        workers: &[Worker],
        connection_limit: &Arc<Semaphore>,
    ) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => match connection_limit.clone().try_acquire_owned() {
                    Ok(permit) => {
                        if let Ok(stream) = stream.into_std() {
                            dispatch(
                                workers,
                                Connection {
                                    stream,
                                    peer,
                                    permit,
                                },
                            );
                        }
                    }
                    Err(_) => self.reject(stream),
                },
                // The client was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    let is_fd_exhausted = is_fd_exhausted(&error);
                    self.log.event_throttled("accept", move |count| {
                        format!("cannot accept connections: {error} ({count} times)")
                    });
                    if is_fd_exhausted && self.reserve_fd.take().is_some() {
                        self.reject_next().await;
                    } else {
                        sleep(ACCEPT_BACKOFF).await;
                    }
                    self.reserve_fd = self.reserve_fd.take().or_else(|| dup(&self.listener).ok());
                }
            }
        }
    }

    /// Tells a client in the background that there is no room.
    fn reject(&mut self, mut stream: tokio::net::TcpStream) {
        self.metrics.rejected_connections.count("max_connections");
        self.log.event_throttled("turned away", |count| {
            format!("MAX_CONNECTIONS are open: {count} more turned away")
        });
        let Ok(rejections) = self.pending_rejections.clone().try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _ = timeout(REJECT_TIMEOUT, stream.write_all(OVERLOADED_RESPONSE)).await;
            transport::lingering_close(stream, REJECT_TIMEOUT).await;
            drop(rejections);
        });
    }

    /// Tells the client whose turn it is, in no time and without another file descriptor.
    async fn reject_next(&mut self) {
        let next = poll_fn(|cx| match self.listener.poll_accept(cx) {
            Poll::Ready(Ok((stream, _))) => Poll::Ready(Some(stream)),
            _ => Poll::Ready(None),
        });
        if let Some(stream) = next.await {
            self.metrics.rejected_connections.count("file_descriptors");
            // What is left unread would reset the connection, and the answer be lost.
            let _ = stream.try_read(&mut [0; 4096]);
            let _ = stream.try_write(OVERLOADED_RESPONSE);
        }
    }
}

/// Whether the process (`EMFILE`) or the system (`ENFILE`) has no file descriptor left.
fn is_fd_exhausted(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}
