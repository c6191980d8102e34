//! The permits for bodies that wait for a client.
//!
//! A guest that waits for its client occupies an instance and its memory. At most half of the instances may do so, so that
//! slow clients cannot block the others. A small body needs no permit.

use crate::connection::buffers::Buffers;
use crate::sandbox::limits::Limits;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits for transfers and for buffers.
pub struct Permits {
    transfers: Arc<Semaphore>,
    buffers: Buffers,
}

impl Permits {
    /// `total_memory` is `GUEST_MEMORY_TOTAL`, and `initial_memory` the initial size of an instance, both in bytes.
    pub fn new(limits: &Limits, total_memory: u64, initial_memory: u64, buffers: Buffers) -> Self {
        let half = u64::from(limits.max_concurrent_requests / 2);
        let fit = total_memory / 2 / initial_memory.max(1);
        // Without one permit, no large body is ever served.
        let transfers = half.min(fit).max(1) as usize;
        Self {
            transfers: Arc::new(Semaphore::new(transfers)),
            buffers,
        }
    }

    /// Returns a permit for a guest that waits for its client; `None` if all are in use.
    pub fn transfer(&self) -> Option<OwnedSemaphorePermit> {
        self.transfers.clone().try_acquire_owned().ok()
    }

    /// Returns a permit to buffer bytes for a client, from the buffers that connections share or else one for a transfer;
    /// `None` if all are in use.
    pub fn buffer(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.buffers.try_reserve(bytes).or_else(|| self.transfer())
    }
}
