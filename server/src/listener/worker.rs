//! Workers: one thread per core, each with a single-threaded runtime and its connections.
//!
//! A request never leaves the thread of its connection. That takes no locks and wakes no other core: 1.5 times as fast as a
//! runtime shared by all cores.

use crate::config::settings::Config;
use crate::listener::http::{Connection, ConnectionHandler};
use crate::request::service::Service;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{mpsc, watch};

/// Threads of a worker that resolve names for outbound requests. Each timeout of a name server blocks one for seconds.
const RESOLVER_THREADS: usize = 16;

/// Idle time after which a resolver thread exits: practically never. The runtime aborts the process if it has no such thread
/// and cannot create one.
const RESOLVER_KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// Runs on a worker's thread, within its runtime.
type Job = Box<dyn FnOnce() + Send>;

/// A thread with a runtime that does not serve yet.
pub struct WorkerThread {
    jobs: mpsc::UnboundedSender<Job>,
    started: std::sync::mpsc::Receiver<io::Result<Handle>>,
    thread: JoinHandle<()>,
}

impl WorkerThread {
    /// Starts the thread without waiting for its runtime.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(name: &str, resolves_names: bool) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let (report, started) = std::sync::mpsc::channel();
        // The runtime is built on the thread. Otherwise it would be dropped within the caller's runtime if the system denied
        // the thread, which panics.
        let thread = thread::Builder::new().name(name.into());
        let thread = thread.spawn(move || match build_runtime(resolves_names) {
            Ok(runtime) => {
                let _ = report.send(Ok(runtime.handle().clone()));
                runtime.block_on(async move {
                    while let Some(job) = queue.recv().await {
                        job();
                    }
                });
                // Does not wait for names that are being resolved.
                runtime.shutdown_background();
            }
            Err(error) => drop(report.send(Err(error))),
        })?;
        Ok(Self {
            jobs,
            started,
            thread,
        })
    }

    /// Runs a job on the thread, before it serves.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // Fails if there is no runtime, which `serve` returns as an error.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Returns why the thread has no runtime, if it has none.
    pub fn into_startup_error(self) -> Option<io::Error> {
        self.started.recv().ok()?.err()
    }

    /// Waits for the runtime and starts to serve. When `close_idle` becomes true, connections close as soon as
    /// they are idle.
    ///
    /// # Errors
    /// If a thread or a file descriptor could not be created.
    pub fn serve(
        self,
        service: Arc<Service>,
        config: &Config,
        close_idle: watch::Receiver<bool>,
    ) -> io::Result<Worker> {
        let runtime = self.started.recv().map_err(io::Error::other)??;
        Ok(Worker {
            jobs: self.jobs,
            handler: Arc::new(ConnectionHandler::new(service, config, close_idle)),
            load: Arc::default(),
            thread: self.thread,
            runtime,
        })
    }
}

fn build_runtime(resolves_names: bool) -> io::Result<Runtime> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(RESOLVER_THREADS)
        .thread_keep_alive(RESOLVER_KEEP_ALIVE)
        .thread_name("resolver")
        .build()?;
    if resolves_names {
        // The runtime panics if the first resolver's thread cannot be created. This returns an error before.
        thread::Builder::new().spawn(|| ())?.join().ok();
        runtime.spawn_blocking(|| ());
    }
    Ok(runtime)
}

/// A thread that serves connections.
pub struct Worker {
    jobs: mpsc::UnboundedSender<Job>,
    handler: Arc<ConnectionHandler>,
    /// Cloned for each of the worker's connections.
    load: Arc<()>,
    thread: JoinHandle<()>,
    runtime: Handle,
}

impl Worker {
    /// Returns the thread's runtime.
    pub fn handle(&self) -> &Handle {
        &self.runtime
    }

    /// Returns the number of the worker's connections, plus one.
    pub fn load(&self) -> usize {
        Arc::strong_count(&self.load)
    }

    /// Serves a connection.
    pub fn dispatch(&self, connection: Connection) {
        let (handler, load) = (self.handler.clone(), self.load.clone());
        // Fails only after the thread has ended. The connection closes.
        let _ = self.jobs.send(Box::new(move || {
            tokio::spawn(async move {
                handler.serve(connection).await;
                drop(load);
            });
        }));
    }

    /// Ends the thread, which closes its remaining connections.
    pub fn shutdown(self) {
        drop(self.jobs);
        let _ = self.thread.join();
    }
}
