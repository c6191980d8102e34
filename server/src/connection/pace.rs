//! The pace of a client that sends or takes a body: steady, or stalled.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that a client has to send in each `BODY_TIMEOUT`, and to take in each `WRITE_TIMEOUT`.
pub const STEADY_BYTES: usize = 1 << 10;

/// Measures a client by [`STEADY_BYTES`]. Only the time in which something waits for the client counts.
pub struct Pace {
    limit: Duration,
    /// Since the client last was steady:
    bytes: usize,
    waited: Duration,
    /// When the present wait began.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            bytes: 0,
            waited: Duration::ZERO,
            since: None,
            timer: None,
        }
    }

    /// Ends a wait, with bytes that have passed.
    pub fn pass(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= STEADY_BYTES {
            self.bytes = 0;
            self.waited = Duration::ZERO;
            self.since = None;
        } else if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Begins a wait or goes on with it; ready when the client has stalled.
    pub fn poll_stalled(&mut self, cx: &mut Context) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let deadline = since + self.limit.saturating_sub(self.waited);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

/// Bytes that wait for a client which does not take them.
#[derive(Clone, Copy)]
pub struct Blocked {
    /// When it last was steady.
    since: Instant,
    /// What it has taken since then.
    bytes: usize,
}

impl Blocked {
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Returns when the client last was steady.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Takes note of bytes that the client has taken.
    pub fn pass(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= STEADY_BYTES {
            *self = Self::new();
        }
    }
}
