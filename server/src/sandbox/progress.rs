//! The progress of a request's body, which the guest's call observes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;
use tokio::sync::Notify;

/// Progress of a request's body.
pub struct Progress {
    /// Maximum time that the guest can wait for the client without interruption: `BODY_TIMEOUT`, and a margin, because the
    /// body itself enforces that timeout.
    pub limit: Duration,
    /// Set while the guest waits for data that the client has not sent.
    pub is_awaited: AtomicBool,
    /// Waker of the guest's call. A guest for WASI 0.2 that waits polls the body with this waker; one that only checks for
    /// data polls with another. `None` for WASI 0.3, where the host reads ahead of the guest.
    call: Mutex<Option<Waker>>,
    /// Notified when the client disconnects or sends a malformed body. The guest does not see this error, because it would
    /// report it as a failure of its own.
    pub failed: Notify,
}

impl Progress {
    pub fn new(body_timeout: Duration) -> Self {
        Self {
            limit: body_timeout + Duration::from_secs(1),
            is_awaited: AtomicBool::new(false),
            call: Mutex::new(None),
            failed: Notify::new(),
        }
    }

    /// Prepares for a poll of a guest's call that polls again everything that it waits for.
    pub fn begin_poll(&self, call: &Waker) {
        self.is_awaited.store(false, Ordering::Relaxed);
        let mut waker = self.call();
        if !waker.as_ref().is_some_and(|it| it.will_wake(call)) {
            *waker = Some(call.clone());
        }
    }

    /// Records that the body has been polled with this waker.
    pub fn record_poll(&self, is_pending: bool, waker: &Waker) {
        let is_waiting = self.call().as_ref().is_none_or(|it| it.will_wake(waker));
        self.is_awaited
            .store(is_pending && is_waiting, Ordering::Relaxed);
    }

    fn call(&self) -> MutexGuard<'_, Option<Waker>> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
