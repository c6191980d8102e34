//! Reserves memory in the budget for one instance.
//!
//! Wasmtime calls the [`ResourceLimiter`] before a memory or table grows. The memory that the host holds for a guest is
//! charged by [`MemoryLimiter::charge_held`]. All of it is released when the instance is dropped.

use crate::component::description::TABLE_ELEMENT_BYTES;
use crate::sandbox::budget::OverBudget;
use crate::sandbox::shared::Shared;
use std::sync::Arc;
use wasmtime::ResourceLimiter;

/// Memory of one instance.
pub struct MemoryLimiter {
    shared: Arc<Shared>,
    /// Bytes of [`Shared::memory`] that are reserved for the instance.
    reserved: u64,
    /// Of these, bytes that the host holds for the guest.
    held: u64,
    /// Of these, bytes of the last growth of a memory or table.
    growth: u64,
    /// Set when the instance has been instantiated.
    has_started: bool,
    /// Set when the budget has no memory left for what the host holds for the guest.
    is_over_budget: bool,
}

impl MemoryLimiter {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: shared.clone(),
            reserved: 0,
            held: 0,
            growth: 0,
            has_started: false,
            is_over_budget: false,
        }
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Returns true if the budget had no memory left for what the host holds for the guest.
    pub fn is_over_budget(&self) -> bool {
        self.is_over_budget
    }

    /// Records that the instance has been instantiated. From then on, growth that does not fit fails in the guest.
    pub fn set_started(&mut self) {
        self.has_started = true;
    }

    /// Charges the bytes that the host holds for the guest; returns false if they do not fit.
    pub fn charge_held(&mut self, held: u64) -> bool {
        if held <= self.held {
            let less = self.held - held;
            self.shared.memory.release(less);
            self.reserved -= less;
            self.held = held;
        } else if self.shared.memory.reserve(held - self.held) {
            self.reserved += held - self.held;
            self.held = held;
        } else {
            let metrics = &self.shared.metrics;
            metrics.guest_memory_refusals.count("guest_memory_total");
            self.is_over_budget = true;
            return false;
        }
        true
    }

    /// Reserves memory for a growth. An instance whose initial memory does not fit fails to start.
    fn grow(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
        element_bytes: usize,
    ) -> wasmtime::Result<bool> {
        self.growth = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = (desired.saturating_sub(current)).saturating_mul(element_bytes) as u64;
        if self.shared.memory.reserve(more) {
            self.reserved += more;
            self.growth = more;
            return Ok(true);
        }
        let metrics = &self.shared.metrics;
        metrics.guest_memory_refusals.count("guest_memory_total");
        match self.has_started {
            true => Ok(false),
            false => Err(OverBudget.into()),
        }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let share = self.shared.memory_share;
        if desired > share {
            let metrics = &self.shared.metrics;
            metrics.guest_memory_refusals.count("guest_memory");
        }
        let maximum = maximum.map_or(share, |maximum| maximum.min(share));
        self.grow(current, desired, Some(maximum), 1)
    }

    /// Releases the reservation for a growth that Wasmtime rejects, for example beyond the size of the slot.
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.shared.memory.release(self.growth);
        self.reserved -= self.growth;
        self.growth = 0;
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, TABLE_ELEMENT_BYTES)
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.shared.memory.release(self.reserved);
    }
}
