//! The workers as a whole: assigns connections to them, and counts those that are open.

use crate::listener::http::Connection;
use crate::listener::worker::Worker;
use std::net::TcpListener;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub struct Dispatcher {
    workers: Vec<Worker>,
    /// A permit for each connection that may be open.
    permits: Arc<Semaphore>,
    max_connections: u32,
}

impl Dispatcher {
    pub fn new(first: Worker, max_connections: u32) -> Self {
        Self {
            workers: vec![first],
            permits: Arc::new(Semaphore::new(max_connections as usize)),
            max_connections,
        }
    }

    /// Adds a worker to the first one.
    pub fn add(&mut self, worker: Worker) {
        self.workers.push(worker);
    }

    /// Returns the workers' runtimes.
    pub fn runtimes(&self) -> Vec<Handle> {
        let handles = self.workers.iter().map(Worker::handle);
        handles.cloned().collect()
    }

    /// Returns a permit for a connection; `None` if the maximum is open.
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Gives a connection to the worker that has the fewest.
    pub fn dispatch(&self, connection: Connection) {
        if let Some(worker) = self.workers.iter().min_by_key(|worker| worker.load()) {
            worker.dispatch(connection);
        }
    }

    /// Accepts and dispatches the next client of a listener that does not block. Returns false if none waits, or if the
    /// maximum is open.
    pub fn dispatch_next(&self, listener: &TcpListener) -> bool {
        let Some(permit) = self.try_acquire() else {
            return false;
        };
        let Ok((stream, peer)) = listener.accept() else {
            return false;
        };
        self.dispatch(Connection {
            stream,
            peer,
            permit,
        });
        true
    }

    /// Returns the number of open connections.
    pub fn open_connections(&self) -> usize {
        self.max_connections as usize - self.permits.available_permits()
    }

    /// Waits until all connections are closed.
    pub async fn wait_closed(&self) {
        // The semaphore is never closed.
        let _ = self.permits.acquire_many(self.max_connections).await;
    }

    /// Ends all workers, which closes the remaining connections.
    pub fn shutdown(self) {
        for worker in self.workers {
            worker.shutdown();
        }
    }
}
