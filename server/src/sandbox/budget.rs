//! The memory of all guests, `GUEST_MEMORY_TOTAL`: their linear memories and tables, and the memory that the host holds for
//! them.
//!
//! A reservation that does not fit evicts idle instances until it does.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Evicts an idle instance; returns false if there is none.
type Evict = Box<dyn Fn() -> bool + Send + Sync>;

/// Memory of all guests.
pub struct Budget {
    /// In bytes.
    total: u64,
    reserved: AtomicU64,
    evict: OnceLock<Evict>,
}

impl Budget {
    pub fn new(total: u64) -> Self {
        Self {
            total,
            reserved: AtomicU64::new(0),
            evict: OnceLock::new(),
        }
    }

    /// Sets the hook that evicts an idle instance, once.
    pub fn set_evict(&self, evict: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.evict.set(Box::new(evict));
    }

    /// Size of the budget, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Reserved part of it, in bytes.
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Reserves bytes; returns false if they do not fit, even without idle instances.
    pub fn reserve(&self, bytes: u64) -> bool {
        while !self.try_reserve(bytes) {
            if !self.evict.get().is_some_and(|evict| evict()) {
                return false;
            }
        }
        true
    }

    fn try_reserve(&self, bytes: u64) -> bool {
        let fits = |reserved: u64| {
            reserved
                .checked_add(bytes)
                .filter(|&reserved| reserved <= self.total)
        };
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        self.reserved.try_update(set, get, fits).is_ok()
    }

    pub fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The initial memory of an instance does not fit into the budget.
#[derive(Debug)]
pub struct OverBudget;

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("guest memory exhausted (GUEST_MEMORY_TOTAL)")
    }
}

impl std::error::Error for OverBudget {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn reservation_evicts_until_it_fits() {
        let budget = Arc::new(Budget::new(100));
        assert!(budget.reserve(90));
        assert!(!budget.reserve(20));
        let idle = AtomicU32::new(2);
        let weak = Arc::downgrade(&budget);
        budget.set_evict(move || {
            let one_less = |idle: u32| idle.checked_sub(1);
            let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
            let is_evicted = idle.try_update(set, get, one_less).is_ok();
            if let Some(budget) = weak.upgrade().filter(|_| is_evicted) {
                budget.release(30);
            }
            is_evicted
        });
        assert!(budget.reserve(10));
        assert_eq!(budget.reserved(), 100);
        assert!(budget.reserve(50));
        assert_eq!(budget.reserved(), 90);
        assert!(!budget.reserve(20));
        assert_eq!(budget.reserved(), 90);
    }
}
