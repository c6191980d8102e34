//! The process of a server: its signals, its log, its start and its exit.
//!
//! The component is loaded on a worker's thread, so that a signal ends the process also while it loads. That thread starts first,
//! once the file descriptors are known to suffice: its runtime is built while this thread installs the signal handlers. They are
//! installed before anything is loaded, because process 1 of a container receives only signals that it handles.

use crate::cli::arguments;
use crate::component::description::Description;
use crate::component::file::Component;
use crate::config::settings::Config;
use crate::listener::descriptors::{FdLimits, raise_limit};
use crate::listener::server::{Server, start_workers, startup_error};
use crate::listener::worker::WorkerThread;
use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
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
    let loader = WorkerThread::start("worker", config.allows_outbound()).map_err(startup_error)?;
    let mut runtime = runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(startup_error)?;
    let stop = runtime.block_on(async { shutdown_signals() });
    let stop = stop.map_err(startup_error)?;
    let log = Log::start(config.log_format, io::stdout()).map_err(startup_error)?;
    let served = runtime.block_on(serve(path, config, cores, fds, loader, stop, &log));
    log.flush(LOG_FLUSH_TIMEOUT);
    served
}

async fn serve(
    path: PathBuf,
    config: Config,
    cores: usize,
    fds: FdLimits,
    loader: WorkerThread,
    mut stop: mpsc::Receiver<String>,
    log: &Log,
) -> Result<(), String> {
    let (sender, loaded) = oneshot::channel();
    loader.run({
        let (config, log) = (config.clone(), log.clone());
        move || {
            // After a signal, nothing receives it.
            let _ = sender.send(load(&path, config, &log));
        }
    });
    let workers = start_workers(loader, cores, &config)?;
    let (description, server) = tokio::select! {
        biased;
        reason = stop.recv() => {
            let reason = reason.unwrap_or_default();
            log.event(Level::Info, format_args!("{reason}: exited before serving"));
            return Ok(());
        }
        loaded = loaded => match loaded {
            Ok(loaded) => loaded?,
            // The thread that was to load did not start.
            Err(ended) => {
                let reason = workers.into_iter().find_map(WorkerThread::into_startup_error);
                return Err(startup_error(reason.unwrap_or_else(|| io::Error::other(ended))));
            }
        },
    };
    log_start(&description, &server, &config, log)?;
    server.run(workers, fds, stop).await
}

/// Loads the component, and listens.
fn load(path: &Path, config: Config, log: &Log) -> Result<(Description, Server), String> {
    let component = Component::open(path)?;
    let server = Server::bind(&component, config, log)?;
    Ok((component.description, server))
}

/// Logs what is served, where, and with which limits.
fn log_start(
    description: &Description,
    server: &Server,
    config: &Config,
    log: &Log,
) -> Result<(), String> {
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
