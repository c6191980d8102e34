//! Instances that have served a request and may serve another (`REQUESTS_PER_SANDBOX`).
//!
//! The handler alone owns them. The hook of the memory budget that evicts them has a weak reference, because an instance
//! refers to the budget: a strong one would be a cycle, which keeps instances and engine alive.

use crate::sandbox::instance::Instance;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Idle instances. The one that was added last is reused first.
#[derive(Default)]
pub struct IdleInstances(Mutex<Vec<Instance>>);

impl IdleInstances {
    pub fn push(&self, instance: Instance) {
        self.lock().push(instance);
    }

    pub fn pop(&self) -> Option<Instance> {
        self.lock().pop()
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Drops an instance, without holding the lock; returns false if there is none.
    pub fn evict(&self) -> bool {
        self.pop().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
