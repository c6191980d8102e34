//! Detects clients that stall while they send or receive a body.
//!
//! A client makes progress when [`MIN_PROGRESS_BYTES`] have passed. Only time in which the server waits for the client
//! counts, so that a slow guest is not held against the client. A client that moves single bytes is not given more time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that a client has to send in each `BODY_TIMEOUT`, and to receive in each `WRITE_TIMEOUT`.
pub const MIN_PROGRESS_BYTES: usize = 1 << 10;

/// Measures the time that the server has waited for a client since the client last made progress.
#[derive(Default)]
pub struct StallClock {
    bytes: usize,
    /// Total of the earlier waits.
    waited: Duration,
    /// When the current wait started.
    since: Option<Instant>,
}

impl StallClock {
    /// Starts a wait, or continues the current one.
    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Ends the current wait.
    pub fn stop(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Counts bytes that have passed. Progress resets the clock, which also ends the current wait.
    pub fn record(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= MIN_PROGRESS_BYTES {
            *self = Self::default();
        }
    }

    /// Returns true during a wait.
    pub fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// Returns when the client will have stalled for `limit`, unless the current wait ends before.
    pub fn deadline(&self, limit: Duration) -> Option<Instant> {
        let left = limit.saturating_sub(self.waited);
        self.since.map(|since| since + left)
    }
}

/// Wakes a task when the client that it waits for stalls.
pub struct StallTimer {
    limit: Duration,
    clock: StallClock,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            clock: StallClock::default(),
            sleep: None,
        }
    }

    /// Ends the current wait and counts the bytes that it brought.
    pub fn record(&mut self, bytes: usize) {
        self.clock.record(bytes);
        self.clock.stop();
    }

    /// Starts or continues a wait. Ready when the client has stalled.
    pub fn poll_stalled(&mut self, cx: &mut Context) -> Poll<()> {
        self.clock.start();
        let Some(deadline) = self.clock.deadline(self.limit) else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }
}
