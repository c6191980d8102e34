//! The thread that interrupts guests, and the limit on concurrent calls (`MAX_REQUESTS`).
//!
//! The count of running guests serves both: the thread increments the epoch while there are any, and is parked otherwise.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use wasmtime::Engine;

/// Interval between interruptions of a guest. The guest continues at the first interruption of a request, because it may just
/// have started, and would wait for all others if it yielded. It yields at every later one, so that it holds the thread for
/// 10 ms at most.
pub const EPOCH_INTERVAL: Duration = Duration::from_millis(5);

/// Increments the epoch of an engine while guests run.
pub struct EpochTicker {
    shared: Arc<TickerState>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct TickerState {
    running: AtomicUsize,
    stop: AtomicBool,
}

impl EpochTicker {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::<TickerState>::default();
        let state = shared.clone();
        let thread = thread::Builder::new().name("epoch".into()).spawn(move || {
            while !state.stop.load(Ordering::Relaxed) {
                if state.running.load(Ordering::Relaxed) == 0 {
                    thread::park();
                } else {
                    thread::sleep(EPOCH_INTERVAL);
                    engine.increment_epoch();
                }
            }
        })?;
        Ok(Self { shared, thread })
    }

    /// Returns the number of running guests.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::Relaxed)
    }

    /// Counts a guest as running until the guard is dropped; returns `None` if `limit` guests are running.
    pub fn try_acquire(&self, limit: usize) -> Option<RunningGuard<'_>> {
        let one_more = |running| (running < limit).then_some(running + 1);
        let running = &self.shared.running;
        let others = running.try_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        // The thread is parked only if no other guest runs. Unparking it is a system call.
        if others.ok()? == 0 {
            self.thread.thread().unpark();
        }
        Some(RunningGuard(running))
    }
}

impl Drop for EpochTicker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

/// Counts a guest as running until dropped.
pub struct RunningGuard<'a>(&'a AtomicUsize);

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
