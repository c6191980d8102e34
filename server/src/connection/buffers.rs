//! The memory that connections share for what they hold beyond a small part each: long heads, bodies and responses that
//! wait, further streams of HTTP/2.
//!
//! A connection that holds little takes nothing of it, so that a client with a small request is served whatever the others
//! hold.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes for each connection that may be open. As many times `MAX_CONNECTIONS` are shared.
const CONNECTION_BYTES: usize = 5 << 10;

/// The least that is shared, for servers of few connections.
const MIN_BYTES: usize = 2 << 20;

/// Bytes of a body or a head that a connection holds without taking anything.
pub const FREE_BYTES: usize = 8 << 10;

/// The memory, in permits of 1 KiB.
#[derive(Clone)]
pub struct Buffers(Arc<Semaphore>);

/// A part of the memory; given back when dropped.
pub type Part = OwnedSemaphorePermit;

impl Buffers {
    pub fn new(connections: u32) -> Self {
        let bytes = (connections as usize)
            .saturating_mul(CONNECTION_BYTES)
            .max(MIN_BYTES);
        Self(Arc::new(Semaphore::new(bytes >> 10)))
    }

    /// Returns the bytes of a part.
    pub fn size(part: &Part) -> usize {
        part.num_permits() << 10
    }

    /// Gives back what is more than these bytes.
    pub fn shrink(part: &mut Part, bytes: usize) {
        let more = part.num_permits().saturating_sub(bytes.div_ceil(1 << 10));
        drop(part.split(more));
    }

    /// Takes bytes, if there are as many left.
    pub fn take(&self, bytes: usize) -> Option<Part> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).ok()?;
        self.0.clone().try_acquire_many_owned(kib).ok()
    }
}
