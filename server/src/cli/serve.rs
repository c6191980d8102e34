//! The process of a server: its signals, its log, its start and its exit.
//!
//! The main thread installs the signal handlers, loads the component, and then is the first worker: nothing has to wake up
//! before the first client is served. The thread `control` has all that must not wait for a guest: signals, accepting, the
//! drain. It starts before the load, so that a signal ends the process also while it loads. The handlers come even before,
//! because process 1 of a container receives only signals that it handles.

use crate::cli::arguments;
use crate::component::file::Component;
use crate::config::settings::Config;
use crate::listener::descriptors::{FdLimits, raise_limit};
use crate::listener::server::Server;
use crate::listener::worker::build_runtime;
use crate::startup_error::startup_error;
use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::time::Duration;
use std::{io, process, thread};
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Maximum time for the last lines of the log to be read.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the component at `path` until a signal.
///
/// # Errors
/// One line, if the component cannot be loaded, an address cannot be bound, or a thread or a file descriptor cannot be created.
pub fn run(path: PathBuf, config: Config) -> Result<(), String> {
    raise_limit();
    // A container's CPU limit counts.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    // Before anything opens a file descriptor: with too few, any part could be the one that fails.
    let fds = FdLimits::divide(&config, cores)?;
    let log = Log::new(config.log_format);
    let runtime = build_runtime(config.allows_outbound()).map_err(startup_error)?;
    let signals = Signals::install(&runtime).map_err(startup_error)?;
    let (sender, loaded) = oneshot::channel();
    let control = thread::Builder::new().name("control".into()).spawn({
        let log = log.clone();
        move || control(cores, signals, loaded, &log)
    });
    let control = control.map_err(startup_error)?;
    let (server, work) = Server::bind(&Component::open(&path)?, config, fds, &log, runtime)?;
    log_start(&server, &log)?;
    server.dispatch_first();
    // Fails if the thread has ended, which has the reason.
    let _ = sender.send(server);
    work();
    control.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Waits for the loaded server, or for a signal; then serves.
fn control(
    cores: usize,
    signals: Signals,
    loaded: oneshot::Receiver<Server>,
    log: &Log,
) -> Result<(), String> {
    let mut runtime = runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(startup_error)?;
    runtime.block_on(async {
        let mut stop = signals.receive();
        tokio::select! {
            biased;
            loaded = loaded => {
                let Ok(mut server) = loaded else {
                    return Ok(()); // The main thread has failed, and ends the process.
                };
                log.start_writer(io::stdout()).map_err(startup_error)?;
                let served = match server.start_workers(cores) {
                    Ok(()) => server.run(stop).await,
                    Err(error) => Err(startup_error(error)),
                };
                log.flush(LOG_FLUSH_TIMEOUT);
                served
            }
            reason = stop.recv() => {
                let reason = reason.unwrap_or_default();
                log.event(Level::Info, format_args!("{reason}: exited before serving"));
                // Without a thread for it, the line is lost.
                if log.start_writer(io::stdout()).is_ok() {
                    log.flush(LOG_FLUSH_TIMEOUT);
                }
                // The main thread may load for long.
                process::exit(0)
            }
        }
    })
}

/// Logs what is served, where, and with which limits.
fn log_start(server: &Server, log: &Log) -> Result<(), String> {
    let (description, config) = (server.description(), server.config());
    let address = server.address().map_err(startup_error)?;
    let management = match server.management_address() {
        Some(address) => format!("management on {address}, "),
        None => String::new(),
    };
    let (version, sizes) = (arguments::version(), config.sizes());
    let host = display_host(address);
    log.event(
        Level::Info,
        format_args!(
            "{version}: {description}, {sizes}, {management}listening on {address}, see http://{host}/"
        ),
    );
    if let Some(granted) = config.granted() {
        log.event(Level::Info, format_args!("the component may use {granted}"));
    }
    if let Some(warning) = config.warning() {
        log.event(Level::Warn, format_args!("{warning}"));
    }
    Ok(())
}

/// Returns a host to connect to: the unspecified address stands for all addresses of the machine.
fn display_host(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("localhost:{}", address.port()),
        false => address.to_string(),
    }
}

/// The signals that end the process, with handlers installed.
struct Signals([(Signal, &'static str); 2]);

impl Signals {
    fn install(runtime: &Runtime) -> io::Result<Self> {
        let _context = runtime.enter();
        Ok(Self([
            (signal(SignalKind::terminate())?, "SIGTERM"),
            (signal(SignalKind::interrupt())?, "SIGINT"),
        ]))
    }

    /// Receives their names, within the runtime of the calling thread.
    fn receive(self) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel(2);
        for (mut signal, name) in self.0 {
            let sender = sender.clone();
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    let _ = sender.send(name.to_owned()).await;
                }
            });
        }
        receiver
    }
}
