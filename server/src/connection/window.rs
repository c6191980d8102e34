//! HTTP/2 flow control as the server sees it (RFC 9113, section 5.2): bytes that the client is ready to receive.

use crate::connection::stall::StallClock;
use std::time::Duration;
use tokio::time::Instant;

/// Size of a window before any SETTINGS or WINDOW_UPDATE, in bytes (RFC 9113, section 6.9.2).
pub const DEFAULT_WINDOW_BYTES: i64 = 65_535;

/// The window of a connection or of a stream, and the time for which the client has kept it closed.
pub struct Window {
    /// Negative if the client has reduced the initial size since (RFC 9113, section 6.9.2).
    bytes: i64,
    closed: StallClock,
}

impl Window {
    pub fn new(bytes: i64) -> Self {
        let closed = StallClock::default();
        let mut window = Self { bytes, closed };
        window.change(0);
        window
    }

    /// Adds to the size, or subtracts from it.
    pub fn change(&mut self, bytes: i64) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= 0 {
            self.closed.start();
        } else {
            self.closed.stop();
        }
    }

    /// Counts bytes that have been sent.
    pub fn on_sent(&mut self, bytes: usize) {
        self.closed.record(bytes);
        self.change(-(bytes as i64));
    }

    /// Forgets how long the window has been closed: nothing was waiting for it.
    pub fn reset_stall(&mut self) {
        self.closed = StallClock::default();
        self.change(0);
    }

    /// Returns when the window will have been closed for `limit`, unless the client opens it.
    pub fn stall_deadline(&self, limit: Duration) -> Option<Instant> {
        self.closed.deadline(limit)
    }
}
