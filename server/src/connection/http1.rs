//! The request heads of an HTTP/1 connection, from the bytes that are read.
//!
//! hyper reports a request when its head is complete. Everything before that, when a head starts and how much memory it
//! takes, is only visible here.

use crate::connection::buffers::FREE_BYTES;
use tokio::time::Instant;

/// Bytes that are read before a head counts as long: one read, after the 24 bytes by which hyper tells HTTP/1 from HTTP/2.
const SHORT_HEAD_BYTES: usize = FREE_BYTES + 24;

/// Tracks heads. Bytes of bodies are not to be recorded.
#[derive(Default)]
pub struct Heads {
    /// When the first byte of the awaited head arrived.
    started: Option<Instant>,
    /// The last four bytes of heads, as a big-endian number.
    tail: u32,
    /// Bytes received since hyper last reported a request or a part of a body.
    unreported: usize,
}

impl Heads {
    /// Returns when the awaited head started; `None` if no byte of it has arrived.
    pub fn started(&self) -> Option<Instant> {
        self.started
    }

    /// Starts the clock of the awaited head, unless it runs.
    pub fn start(&mut self) {
        self.started.get_or_insert_with(Instant::now);
    }

    /// Restarts the clock of the awaited head if it runs.
    pub fn restart(&mut self, now: Instant) {
        self.started = self.started.map(|_| now);
    }

    /// Starts the clock of a pipelined head, of which a part arrived before the last response was sent.
    pub fn start_pipelined(&mut self, now: Instant) {
        if !self.is_complete() {
            self.started = Some(now);
        }
    }

    /// Records bytes of heads.
    pub fn on_read(&mut self, bytes: &[u8]) {
        self.unreported += bytes.len();
        let last = bytes.len().saturating_sub(size_of_val(&self.tail));
        for byte in bytes.get(last..).unwrap_or_default() {
            self.tail = self.tail << 8 | u32::from(*byte);
        }
    }

    /// Records that hyper has reported a request.
    pub fn on_request(&mut self) {
        self.started = None;
        self.unreported = 0;
    }

    /// Records that a request's body starts. What was read behind the head counts as a part of the body.
    pub fn on_body(&mut self) {
        self.tail = 0x0a0a;
        self.unreported = 0;
    }

    /// Records that hyper has reported a part or the end of a body.
    pub fn on_body_progress(&mut self) {
        self.unreported = 0;
    }

    /// Returns true if hyper holds more than it does for a short head.
    pub fn is_long(&self) -> bool {
        self.unreported > SHORT_HEAD_BYTES
    }

    /// Returns true if the last head is complete: it ends with an empty line (RFC 9112, section 2.1), and its lines may end
    /// without a CR (section 2.2).
    fn is_complete(&self) -> bool {
        self.tail & 0xff_ffff == 0x0a_0d0a || self.tail & 0xffff == 0x0a0a
    }
}
