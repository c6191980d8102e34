//! Workers: one thread per core, each with a single-threaded runtime and its connections.
//!
//! A request never leaves the thread of its connection. That takes no locks and wakes no other core: 1.5 times as fast as a
//! runtime shared by all cores.

use crate::listener::http::{Connection, ConnectionHandler};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::mpsc;

/// Threads of a worker that resolve names for outbound requests. Each timeout of a name server blocks one for seconds.
const RESOLVER_THREADS: usize = 16;

/// Idle time after which a resolver thread exits: practically never. The runtime aborts the process if it has no such thread
/// and cannot create one.
const RESOLVER_KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// Runs on a worker's thread, within its runtime.
type Job = Box<dyn FnOnce() + Send>;

/// A thread that serves connections.
pub struct Worker {
    jobs: mpsc::UnboundedSender<Job>,
    handler: Arc<ConnectionHandler>,
    /// Cloned for each of the worker's connections.
    load: Arc<()>,
    runtime: Handle,
    /// Disconnected when the work of the thread has ended.
    ended: Receiver<()>,
}

/// A worker whose thread builds its runtime.
pub struct Starting(Receiver<io::Result<Worker>>);

impl Starting {
    /// Waits for the runtime.
    ///
    /// # Errors
    /// If a thread or a file descriptor could not be created.
    pub fn wait(self) -> io::Result<Worker> {
        self.0.recv().map_err(io::Error::other)?
    }
}

impl Worker {
    /// Returns a worker, and the work for its thread, which lasts until the worker is shut down or dropped.
    pub fn new(runtime: Runtime, handler: ConnectionHandler) -> (Self, impl FnOnce() + Send) {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let (working, ended) = channel();
        let worker = Self {
            jobs,
            handler: Arc::new(handler),
            load: Arc::default(),
            runtime: runtime.handle().clone(),
            ended,
        };
        let work = move || {
            runtime.block_on(async move {
                while let Some(job) = queue.recv().await {
                    job();
                }
            });
            // Does not wait for names that are being resolved.
            runtime.shutdown_background();
            drop(working);
        };
        (worker, work)
    }

    /// Starts a worker on a thread of its own, without waiting for its runtime.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(
        name: &str,
        resolves_names: bool,
        handler: ConnectionHandler,
    ) -> io::Result<Starting> {
        let (report, started) = channel();
        // The runtime is built on the thread. Otherwise it would be dropped within the caller's runtime if the system denied
        // the thread, which panics.
        let thread = thread::Builder::new().name(name.into());
        thread.spawn(move || match build_runtime(resolves_names) {
            Ok(runtime) => {
                let (worker, work) = Self::new(runtime, handler);
                let _ = report.send(Ok(worker));
                work();
            }
            Err(error) => drop(report.send(Err(error))),
        })?;
        Ok(Starting(started))
    }

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

    /// Ends the work of the thread, which closes its remaining connections.
    pub fn shutdown(self) {
        drop(self.jobs);
        // Nothing is sent.
        let _ = self.ended.recv();
    }
}

/// Builds a runtime for a worker.
///
/// # Errors
/// If a thread or a file descriptor cannot be created.
pub fn build_runtime(resolves_names: bool) -> io::Result<Runtime> {
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
