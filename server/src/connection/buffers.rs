//! The memory that connections share.
//!
//! Each connection may hold [`FREE_BYTES`] of a head or a body without a reservation, so that clients with small requests
//! are served even if others hold all of the shared memory. Longer heads, bodies and responses and all HTTP/2 streams but
//! the first take a reservation. Nothing waits for memory: without a reservation, the request or connection is rejected.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The reason in the log when no buffer is left.
pub const EXHAUSTED: &str = "connection buffers exhausted (5 KiB for each of MAX_CONNECTIONS)";

/// Shared bytes for each of `MAX_CONNECTIONS`.
const CONNECTION_BYTES: usize = 5 << 10;

/// Minimum of shared bytes, for servers with few connections.
const MIN_BYTES: usize = 2 << 20;

/// Bytes of a body or a head that a connection holds without a reservation.
pub const FREE_BYTES: usize = 8 << 10;

/// Bytes that hyper may hold for an HTTP/1 head of more than [`FREE_BYTES`], including its copies: measured, 25 KiB more
/// than for a short one.
const LONG_HEAD_BYTES: usize = 32 << 10;

/// The shared memory, as permits of 1 KiB.
#[derive(Clone)]
pub struct Buffers(Arc<Semaphore>);

/// Shared memory that is in use until this is dropped.
pub type Reservation = OwnedSemaphorePermit;

impl Buffers {
    pub fn new(max_connections: u32) -> Self {
        let bytes = (max_connections as usize)
            .saturating_mul(CONNECTION_BYTES)
            .max(MIN_BYTES);
        Self(Arc::new(Semaphore::new(bytes >> 10)))
    }

    /// Reserves bytes, rounded up to KiB; `None` if fewer are left.
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).ok()?;
        self.0.clone().try_acquire_many_owned(kib).ok()
    }
}

/// The reservations of one connection.
pub struct ConnectionBuffers {
    shared: Buffers,
    /// Kept until the connection closes, because hyper keeps its buffer as long.
    long_head: Option<Reservation>,
    streams: Option<Reservation>,
    /// For responses that hyper has not written yet.
    responses: Vec<Reservation>,
    is_exhausted: bool,
}

impl ConnectionBuffers {
    pub fn new(shared: Buffers) -> Self {
        Self {
            shared,
            long_head: None,
            streams: None,
            responses: Vec::new(),
            is_exhausted: false,
        }
    }

    /// Returns true if the connection holds more than could be reserved. It has to close.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// Reserves memory for a long HTTP/1 head, once in a connection.
    pub fn reserve_long_head(&mut self) {
        if self.long_head.is_none() && !self.is_exhausted {
            self.long_head = self.reserve(LONG_HEAD_BYTES);
        }
    }

    /// Changes the reservation for HTTP/2 streams to this number of bytes.
    pub fn resize_streams(&mut self, bytes: usize) {
        let reserved = self.streams.as_ref().map_or(0, |it| it.num_permits() << 10);
        if bytes > reserved {
            let more = self.reserve(bytes - reserved);
            match (&mut self.streams, more) {
                (Some(streams), Some(more)) => streams.merge(more),
                (streams @ None, more) => *streams = more,
                (Some(_), None) => {}
            }
        } else if let Some(streams) = &mut self.streams {
            let excess = streams
                .num_permits()
                .saturating_sub(bytes.div_ceil(1 << 10));
            drop(streams.split(excess));
        }
    }

    /// Keeps the reservations of a response until [`Self::on_flush`].
    pub fn keep(&mut self, response: &mut Vec<Reservation>) {
        self.responses.append(response);
    }

    /// Releases the reservations of responses, which have been written.
    pub fn on_flush(&mut self) {
        self.responses.clear();
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        let reservation = self.shared.try_reserve(bytes);
        self.is_exhausted |= reservation.is_none();
        reservation
    }
}
