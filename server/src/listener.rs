//! The listener: accepts connections, spreads them over the workers, turns away what is too much,
//! and at the end drains.

use crate::component::Component;
use crate::config::Config;
use crate::host::Shared;
use crate::log::{Log, Often};
use crate::outbound::Outbound;
use crate::sandbox::{Limits, Sandbox};
use crate::service::Service;
use crate::transport;
use crate::worker::{Connection, Worker};
use rustix::io::{Errno, dup};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use std::{io, thread};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

/// How long idle connections stay open when the server shuts down. A client that sent its next
/// request before it saw the shutdown is still answered.
const LINGER: Duration = Duration::from_millis(300);

/// What a client hears for whom there is no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 19\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\r\n\
    Service Unavailable";

/// Clients that can be told so at a time; more are cut without a word.
const TOLD: usize = 256;

/// How long one of them may take to hear it.
const TELLING: Duration = Duration::from_secs(1);

/// How long to wait after `accept` failed for another reason than a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// File descriptors that the server needs besides those of connections, rounded up.
const OWN_FILES: u64 = 64;

/// A server that listens, though it does not serve yet.
pub struct Server {
    listener: TcpListener,
    config: Config,
    service: Arc<Service>,
    log: Log,
}

impl Server {
    /// Starts to listen and loads the component; port 0 takes a free port.
    ///
    /// # Errors
    /// One line that says what failed and what to do.
    pub fn bind(component: &Component, config: Config, log: &Log) -> Result<Self, String> {
        // First, so that early clients wait a moment rather than being refused.
        let listener = TcpListener::bind(config.listen)
            .map_err(|error| format!("cannot listen on {}: {}", config.listen, advice(&error)))?;
        let limits = Limits {
            calls: config.max_requests,
            time: config.guest_timeout,
            requests: config.requests_per_sandbox,
            memory: config.guest_memory,
            resident: config.guest_memory_resident,
        };
        let set = |(name, value): &(String, Option<String>)| Some((name.clone(), value.clone()?));
        let variables: Vec<_> = config.guest_env.iter().filter_map(set).collect();
        let shared = Shared {
            log: log.clone(),
            config: variables.iter().cloned().collect(),
            variables,
            outbound: Outbound::new(config.outbound.clone(), config.guest_timeout),
        };
        let sandbox = Sandbox::load(component, limits, shared)?;
        Ok(Self {
            listener,
            service: Arc::new(Service {
                sandbox: Arc::new(sandbox),
                log: log.clone(),
                access_log: config.access_log,
                body_timeout: config.body_timeout,
                refused: Often::default(),
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
        let all = self.config.max_connections;
        allow_files(&self.config, &self.log);
        let (close_idle, closing) = watch::channel(false);
        let workers = (0..cores())
            .map(|_| Worker::start(self.service.clone(), &self.config, closing.clone()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(error)?;
        let places = Arc::new(Semaphore::new(all as usize));
        self.listener.set_nonblocking(true).map_err(error)?;
        let mut door = Door::open(self.listener, self.log.clone()).map_err(error)?;

        let reason = tokio::select! {
            reason = stop.recv() => reason.unwrap_or_default(),
            never = door.accept(&workers, &places) => match never {},
        };
        // From here on the listener refuses. Who has connected by now is still served.
        self.service.draining.store(true, Ordering::Relaxed);
        let listener = door.close().map_err(error)?;
        while let Ok((stream, peer)) = listener.accept()
            && let Ok(place) = places.clone().try_acquire_owned()
        {
            assign(
                &workers,
                Connection {
                    stream,
                    peer,
                    place,
                },
            );
        }
        drop(listener);
        let open = || all as usize - places.available_permits();
        self.log.event(format_args!(
            "{reason}: shutting down, {} connections open",
            open()
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
                self.log.event(format_args!("out of time: {} connections cut", open()));
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

/// Raises the limit on file descriptors as far as this process may: shells and engines set it low
/// for the sake of programs that use `select`.
fn allow_files(config: &Config, log: &Log) {
    let connections = u64::from(config.max_connections);
    let outbound = match config.outbound.allowed.as_slice() {
        [] => 0,
        _ => u64::from(config.outbound.connections),
    };
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < connections + outbound + OWN_FILES
    {
        let outbound = match outbound {
            0 => String::new(),
            outbound => format!(" and MAX_OUTBOUND_CONNECTIONS={outbound}"),
        };
        log.event(format_args!(
            "the limit of {files} file descriptors is too low for MAX_CONNECTIONS={connections}{outbound}"
        ));
    }
}

/// Gives the connection to the worker that has the fewest.
fn assign(workers: &[Worker], connection: Connection) {
    if let Some(worker) = workers.iter().min_by_key(|worker| worker.load()) {
        worker.take(connection);
    }
}

/// Where connections come in.
struct Door {
    listener: tokio::net::TcpListener,
    /// Given up when there are no more file descriptors, to have one to turn clients away with.
    spare: Option<OwnedFd>,
    being_told: Arc<Semaphore>,
    turned_away: Often,
    log: Log,
}

impl Door {
    fn open(listener: TcpListener, log: Log) -> io::Result<Self> {
        Ok(Self {
            spare: dup(&listener).ok(),
            listener: tokio::net::TcpListener::from_std(listener)?,
            being_told: Arc::new(Semaphore::new(TOLD)),
            turned_away: Often::default(),
            log,
        })
    }

    fn close(self) -> io::Result<TcpListener> {
        self.listener.into_std()
    }

    /// Accepts connections for ever.
    async fn accept(&mut self, workers: &[Worker], places: &Arc<Semaphore>) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        if let Ok(stream) = stream.into_std() {
                            assign(
                                workers,
                                Connection {
                                    stream,
                                    peer,
                                    place,
                                },
                            );
                        }
                    }
                    Err(_) => self.turn_away(stream),
                },
                // The client was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.log.often(&self.turned_away, |count| {
                        format!("cannot accept connections: {error} ({count} times)")
                    });
                    if is_lack_of_files(&error) && self.spare.take().is_some() {
                        self.cut_one().await;
                    } else {
                        sleep(ACCEPT_PAUSE).await;
                    }
                    self.spare = self.spare.take().or_else(|| dup(&self.listener).ok());
                }
            }
        }
    }

    /// Tells a client in the background that there is no room.
    fn turn_away(&mut self, mut stream: tokio::net::TcpStream) {
        self.log.often(&self.turned_away, |count| {
            format!("MAX_CONNECTIONS are open: {count} more turned away")
        });
        let Ok(told) = self.being_told.clone().try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _ = timeout(TELLING, stream.write_all(NO_ROOM)).await;
            transport::close(stream, TELLING).await;
            drop(told);
        });
    }

    /// Tells the client whose turn it is, in no time and without another file descriptor.
    async fn cut_one(&mut self) {
        let next = poll_fn(|cx| match self.listener.poll_accept(cx) {
            Poll::Ready(Ok((stream, _))) => Poll::Ready(Some(stream)),
            _ => Poll::Ready(None),
        });
        if let Some(stream) = next.await {
            // What is left unread would reset the connection, and the answer be lost.
            let _ = stream.try_read(&mut [0; 4096]);
            let _ = stream.try_write(NO_ROOM);
        }
    }
}

/// Whether the process (`EMFILE`) or the system (`ENFILE`) has no file descriptor left.
fn is_lack_of_files(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}
