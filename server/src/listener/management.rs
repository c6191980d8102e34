//! The management listener: a thread of its own, so that a busy worker does not delay it.

use crate::config::settings::Config;
use crate::connection::buffers::Buffers;
use crate::listener::acceptor::ACCEPT_BACKOFF;
use crate::listener::http::{Connection, ConnectionHandler};
use crate::listener::worker::Worker;
use crate::request::endpoints::Endpoints;
use crate::request::service::{Handler, Service};
use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

/// Maximum number of open connections. Further ones wait in the backlog.
pub const MAX_CONNECTIONS: usize = 16;

/// Replaces the connections' timeouts, so that silent clients do not hold all connections for longer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the endpoints until the process exits, also during a drain.
///
/// # Errors
/// If a thread or a file descriptor cannot be created.
pub fn start(
    listener: TcpListener,
    endpoints: Arc<Endpoints>,
    config: &Config,
    log: &Log,
) -> io::Result<()> {
    let config = Config {
        idle_timeout: CLIENT_TIMEOUT,
        header_timeout: CLIENT_TIMEOUT,
        write_timeout: CLIENT_TIMEOUT,
        ..config.clone()
    };
    let service = Arc::new(Service {
        handler: Handler::Management(endpoints),
        log: log.clone(),
        // Not shown anywhere: `/metrics` is about the traffic.
        metrics: Arc::default(),
        access_log: false,
        trusted_proxies: config.trusted_proxies.clone(),
        body_timeout: config.body_timeout,
        buffers: Buffers::new(MAX_CONNECTIONS as u32),
        shutdown: Arc::default(),
    });
    // Stays false, and is kept as long as connections are accepted.
    let close_idle = watch::Sender::new(false);
    let handler = ConnectionHandler::new(service, &config, close_idle.subscribe());
    let worker = Worker::start("management", false, handler)?.wait()?;
    let log = log.clone();
    let runtime = worker.handle().clone();
    runtime.spawn(async move {
        if let Err(error) = accept(listener, worker).await {
            let message = format_args!("the management listener fails: {error}");
            log.event(Level::Error, message);
        }
        drop(close_idle);
    });
    Ok(())
}

/// Accepts connections; returns only if the runtime cannot have the listener.
async fn accept(listener: TcpListener, worker: Worker) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        match accept_one(&listener).await {
            Ok((stream, peer)) => worker.dispatch(Connection {
                stream,
                peer,
                permit,
            }),
            Err(_) => sleep(ACCEPT_BACKOFF).await,
        }
    }
    Ok(())
}

async fn accept_one(listener: &tokio::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream.into_std()?, peer))
}
