//! The endpoints of the management listener: `/livez`, `/readyz`, `/metrics` and `/version`. They never call a guest.

use crate::request::page::Page;
use crate::request::sources::Sources;
use crate::telemetry::exposition::{CONTENT_TYPE, Exposition};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Maximum time for a worker to run a task for `/livez`.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Endpoints {
    /// The runtimes of the workers that serve the traffic.
    workers: Vec<Handle>,
    /// Cleared when a drain starts.
    is_ready: AtomicBool,
    exposition: Exposition,
    version: Bytes,
}

impl Endpoints {
    pub fn new(workers: Vec<Handle>, sources: &Sources) -> Self {
        Self {
            workers,
            is_ready: AtomicBool::new(true),
            version: sources.version(),
            exposition: sources.exposition(),
        }
    }

    /// Has `/readyz` return 503 from now on.
    pub fn end_readiness(&self) {
        self.is_ready.store(false, Ordering::Relaxed);
    }

    pub async fn respond<B>(&self, request: &Request<B>) -> Page {
        const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        match request.uri().path() {
            "/livez" => match is_alive(&self.workers).await {
                true => Page::text(StatusCode::OK, "OK"),
                false => Page::text(UNAVAILABLE, "a worker makes no progress"),
            },
            "/readyz" => match self.is_ready.load(Ordering::Relaxed) {
                true => Page::text(StatusCode::OK, "OK"),
                false => Page::text(UNAVAILABLE, "shutting down"),
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
            _ => Page::text(StatusCode::NOT_FOUND, "Not Found"),
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
            // Blocks the runtime, as a guest does that is never interrupted.
            runtime.block_on(async { ended.recv() })
        });
        let workers = [worker.recv().expect("a worker")];
        let caller = runtime().expect("a runtime");
        assert!(!caller.block_on(is_alive(&workers)));
        drop(end);
        let _ = thread.join();
    }
}
