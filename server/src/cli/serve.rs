//! The process of a server: its signals, its log, its start and its exit.
//!
//! The main thread loads the component, and then is the first worker: a start waits for no other thread before it listens. The
//! thread `control` has all that must not wait for a guest: signals, accepting, the drain. It starts first, so that a signal ends
//! the process also while it loads; process 1 of a container receives only signals that it handles.

use crate::cli::arguments;
use crate::component::file::Component;
use crate::config::settings::Config;
use crate::listener::descriptors::{FdLimits, raise_limit};
use crate::listener::server::{Server, startup_error};
use crate::listener::worker::build_runtime;
use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::time::Duration;
use std::{io, process, thread};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
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
    let (sender, loaded) = oneshot::channel();
    let control = thread::Builder::new().name("control".into()).spawn({
        let log = log.clone();
        move || control(cores, loaded, &log)
    });
    let control = control.map_err(startup_error)?;
    let (server, work) = Server::bind(&Component::open(&path)?, config, fds, &log, runtime)?;
    log_start(&server, &log)?;
    server.dispatch_backlog();
    // Fails if the thread has ended, which has the reason.
    let _ = sender.send(server);
    work();
    let served = control.join().unwrap_or_else(|panic| resume_unwind(panic));
    log.flush(LOG_FLUSH_TIMEOUT);
    served
}

/// Receives the signals from now on, and the server when it is loaded.
fn control(cores: usize, loaded: oneshot::Receiver<Server>, log: &Log) -> Result<(), String> {
    let mut runtime = runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(startup_error)?;
    runtime.block_on(async {
        let mut stop = shutdown_signals().map_err(startup_error)?;
        let loaded = tokio::select! {
            biased;
            reason = stop.recv() => Err(reason.unwrap_or_default()),
            loaded = loaded => Ok(loaded),
        };
        log.start_writer(io::stdout()).map_err(startup_error)?;
        match loaded {
            Ok(Ok(mut server)) => {
                server.start_threads(cores).map_err(startup_error)?;
                server.run(stop).await
            }
            // The main thread has failed, and ends the process.
            Ok(Err(_)) => Ok(()),
            // It may load for long.
            Err(reason) => {
                log.event(Level::Info, format_args!("{reason}: exited before serving"));
                log.flush(LOG_FLUSH_TIMEOUT);
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

/// Receives the names of the signals that end the process, from now on.
fn shutdown_signals() -> io::Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::channel(2);
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
    ] {
        let mut signal = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                let _ = sender.send(name.to_owned()).await;
            }
        });
    }
    Ok(receiver)
}
