//! The clock that interrupts guests: it ticks while any of them runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use wasmtime::Engine;

/// How long a guest computes before other requests on its thread get their turn.
pub const EPOCH_INTERVAL: Duration = Duration::from_millis(10);

/// Ticks while guests run, so that one that computes for long makes room for others.
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
    pub fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::<TickerState>::default();
        let state = shared.clone();
        let thread = thread::Builder::new().name("clock".into()).spawn(move || {
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

    /// Guests that run.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::Relaxed)
    }

    /// Counts a guest as running for as long as the value that this returns lives; none when
    /// `limit` are running.
    pub fn try_acquire(&self, limit: usize) -> Option<RunningGuard<'_>> {
        let one_more = |running| (running < limit).then_some(running + 1);
        let running = &self.shared.running;
        let others = running.try_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        // Unparking costs a system call only when the thread is parked.
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

pub struct RunningGuard<'a>(&'a AtomicUsize);

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
