//! The paths for operators: `/livez`, `/readyz`, `/metrics` and `/version`, on a listener and a thread of their own, and
//! never a guest.

use crate::component::description::{Description, VERSION};
use crate::listener::worker::{Connection, Worker};
use crate::request::service::{Page, Service};
use crate::sandbox::handler::ComponentHandler;
use crate::sandbox::shared::Shared;
use crate::telemetry::log::{Level, Log};
use crate::telemetry::metrics::{CONTENT_TYPE, Exposition};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use prometheus_client::registry::Unit;
use serde::Serialize;
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
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The state behind the management listener's responses.
pub struct Health {
    /// The workers of the traffic.
    workers: Vec<Handle>,
    /// Cleared by the first signal.
    is_ready: AtomicBool,
    exposition: Exposition,
    version: Bytes,
}

/// The parts of a server that metrics and version are read from.
pub struct Source {
    pub service: Arc<Service>,
    pub sandbox: Arc<ComponentHandler>,
    pub description: Description,
    /// Connections that may be open.
    pub connections: u32,
}

/// `/version`.
#[derive(Serialize)]
struct Version<'a> {
    version: &'a str,
    wasmtime: &'a str,
    component: ComponentVersion<'a>,
}

#[derive(Serialize)]
struct ComponentVersion<'a> {
    name: &'a str,
    /// Of the `.wasm`.
    digest: &'a str,
    /// Version of WASI.
    wasi: String,
    /// Version of this program that compiled it.
    compiled_by: &'a str,
}

impl Source {
    fn version(&self) -> Bytes {
        let version = Version {
            version: VERSION,
            wasmtime: wasmtime_environ::VERSION,
            component: ComponentVersion {
                name: &self.description.name,
                digest: &self.digest(),
                wasi: self.description.wasi.number().to_owned(),
                compiled_by: &self.description.version,
            },
        };
        // A struct of strings always has a JSON form.
        let json = serde_json::to_string(&version).unwrap_or_default();
        (json + "\n").into()
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.description.sha256)
    }

    fn exposition(self) -> Exposition {
        let build = vec![
            ("version", VERSION.to_owned()),
            ("wasmtime", wasmtime_environ::VERSION.to_owned()),
            ("component", self.description.name.clone()),
            ("component_digest", self.digest()),
        ];
        let Self {
            service,
            sandbox,
            connections,
            ..
        } = self;
        let mut all = Exposition::new(&service.metrics, build);
        let log = service.log.clone();
        let lost = "Lines of log that were dropped, as their reader was too slow";
        all.counter("log_dropped_lines", lost, move || log.dropped());
        let shutdown = service.shutdown.clone();
        let active = "Requests under way";
        all.gauge("http_server_active_requests", active, None, move || {
            shutdown.requests.load(Ordering::Relaxed) as u64
        });
        let limit = "Most connections that may be open";
        all.gauge("http_server_connections_limit", limit, None, move || {
            connections.into()
        });
        let of = sandbox.clone();
        let guests = "Sandboxes by what they do";
        all.gauges("guest_instances", guests, "state", move || {
            let idle = of.idle();
            let (running, _) = of.running();
            vec![("running", running as u64), ("idle", idle as u64)]
        });
        let (_, limit) = sandbox.running();
        let help = "Most sandboxes that may run (MAX_REQUESTS)";
        all.gauge("guest_instances_limit", help, None, move || limit.into());
        type Read = fn(&Shared) -> u64;
        let states: [(_, _, _, Read); 3] = [
            (
                "guest_memory",
                "Memory that sandboxes have, with what the server holds for them",
                Some(Unit::Bytes),
                |shared| shared.memory.reserved(),
            ),
            (
                "guest_memory_limit",
                "Most memory that sandboxes may have (GUEST_MEMORY_TOTAL)",
                Some(Unit::Bytes),
                |shared| shared.memory.total(),
            ),
            (
                "http_client_open_connections",
                "Connections to other services",
                None,
                |shared| shared.outbound.open() as u64,
            ),
        ];
        for (name, help, unit, read) in states {
            let of = sandbox.clone();
            all.gauge(name, help, unit, move || read(of.shared()));
        }
        all
    }
}

impl Health {
    pub fn new(workers: Vec<Handle>, source: Source) -> Self {
        Self {
            workers,
            is_ready: AtomicBool::new(true),
            version: source.version(),
            exposition: source.exposition(),
        }
    }

    pub fn end_readiness(&self) {
        self.is_ready.store(false, Ordering::Relaxed);
    }

    pub async fn respond<B>(&self, request: &Request<B>) -> Page {
        const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Page::line(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        match request.uri().path() {
            "/livez" => match is_alive(&self.workers).await {
                true => Page::line(StatusCode::OK, "OK"),
                false => Page::line(UNAVAILABLE, "a worker makes no progress"),
            },
            "/readyz" => match self.is_ready.load(Ordering::Relaxed) {
                true => Page::line(StatusCode::OK, "OK"),
                false => Page::line(UNAVAILABLE, "shutting down"),
            },
            "/metrics" => Page {
                status: StatusCode::OK,
                content_type: CONTENT_TYPE,
                body: self.exposition.text().into(),
            },
            "/version" => Page {
                status: StatusCode::OK,
                content_type: "application/json",
                body: self.version.clone(),
            },
            _ => Page::line(StatusCode::NOT_FOUND, "Not Found"),
        }
    }
}

/// Returns true if each worker runs a task within [`PROGRESS_TIMEOUT`].
async fn is_alive(workers: &[Handle]) -> bool {
    let tasks: Vec<_> = workers.iter().map(|it| it.spawn(async {})).collect();
    let all = async {
        for task in tasks {
            task.await?;
        }
        Ok::<_, tokio::task::JoinError>(())
    };
    matches!(timeout(PROGRESS_TIMEOUT, all).await, Ok(Ok(())))
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
                let message = format_args!("the management listener fails: {error}");
                log.event(Level::Error, message);
                return;
            }
        };
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
        let workers = [worker.recv().expect("a worker")];
        let asked = runtime().expect("a runtime");
        assert!(!asked.block_on(is_alive(&workers)));
        drop(end);
        let _ = thread.join();
    }
}
