//! What operators ask the server: `/livez` and `/readyz`, on a listener and a thread of their own, and never a guest.

use crate::log::Log;
use crate::worker::{Connection, Worker};
use http::{Method, Request, StatusCode};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, net};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections that the management listener has at a time; further ones wait.
pub const MAX_CONNECTIONS: usize = 16;

/// Time that a worker has to make progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to wait after `accept` failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the management listener responds from.
pub struct Health {
    /// The workers of the traffic.
    workers: Vec<Handle>,
    /// Cleared by the first signal.
    is_ready: AtomicBool,
}

impl Health {
    pub fn new(workers: Vec<Handle>) -> Self {
        Self {
            workers,
            is_ready: AtomicBool::new(true),
        }
    }

    pub fn end_readiness(&self) {
        self.is_ready.store(false, Ordering::Relaxed);
    }

    /// Returns status and text of the response.
    pub async fn respond<B>(&self, request: &Request<B>) -> (StatusCode, &'static str) {
        const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        match request.uri().path() {
            "/livez" => match self.is_alive().await {
                true => (StatusCode::OK, "OK"),
                false => (UNAVAILABLE, "a worker makes no progress"),
            },
            "/readyz" => match self.is_ready.load(Ordering::Relaxed) {
                true => (StatusCode::OK, "OK"),
                false => (UNAVAILABLE, "shutting down"),
            },
            _ => (StatusCode::NOT_FOUND, "Not Found"),
        }
    }

    /// Returns true if each worker runs a task within [`PROGRESS_TIMEOUT`].
    async fn is_alive(&self) -> bool {
        let tasks: Vec<_> = self.workers.iter().map(|it| it.spawn(async {})).collect();
        let all = async {
            for task in tasks {
                task.await?;
            }
            Ok::<_, tokio::task::JoinError>(())
        };
        matches!(timeout(PROGRESS_TIMEOUT, all).await, Ok(Ok(())))
    }
}

/// Accepts connections on the worker's thread, until the process ends.
///
/// # Errors
/// When the system denies it.
pub fn accept(listener: TcpListener, worker: Worker, log: &Log) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = worker.handle().clone();
    let log = log.clone();
    runtime.spawn(async move {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                log.event(format_args!("the management listener fails: {error}"));
                return;
            }
        };
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(permit) = permits.clone().acquire_owned().await {
            match accept_one(&listener).await {
                Ok((stream, peer)) => worker.take(Connection {
                    stream,
                    peer,
                    place: permit,
                }),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    });
    Ok(())
}

async fn accept_one(
    listener: &tokio::net::TcpListener,
) -> io::Result<(net::TcpStream, net::SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream.into_std()?, peer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use tokio::runtime::Builder;

    #[test]
    fn worker_without_progress_is_not_alive() {
        let runtime = || Builder::new_current_thread().enable_all().build();
        let (sender, worker) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = runtime().expect("a runtime");
            sender
                .send(runtime.handle().clone())
                .expect("the test waits");
            // Blocks the runtime, as a guest that is never interrupted would.
            runtime.block_on(async { ended.recv() })
        });
        let health = Health::new(vec![worker.recv().expect("a worker")]);
        let request = Request::get("/livez").body(()).expect("a request");
        let asked = runtime().expect("a runtime");
        let (status, _) = asked.block_on(health.respond(&request));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        drop(end);
        let _ = thread.join();
    }
}
