//! The clock that interrupts guests: it ticks while any of them runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use wasmtime::Engine;

/// How long a guest computes before other requests on its thread get their turn.
pub const TICK: Duration = Duration::from_millis(10);

/// Ticks while guests run, so that one that computes for long makes room for others.
pub struct Clock {
    shared: Arc<ClockState>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct ClockState {
    running: AtomicUsize,
    stop: AtomicBool,
}

impl Clock {
    pub fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::<ClockState>::default();
        let state = shared.clone();
        let thread = thread::Builder::new().name("clock".into()).spawn(move || {
            while !state.stop.load(Ordering::Relaxed) {
                if state.running.load(Ordering::Relaxed) == 0 {
                    thread::park();
                } else {
                    thread::sleep(TICK);
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
    /// `most` are running.
    pub fn run(&self, most: usize) -> Option<Running<'_>> {
        let one_more = |running| (running < most).then_some(running + 1);
        let running = &self.shared.running;
        let others = running.try_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        // Unparking costs a system call only when the thread is parked.
        if others.ok()? == 0 {
            self.thread.thread().unpark();
        }
        Some(Running(running))
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

pub struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
