//! The state of a drain that requests read and update.

use std::sync::atomic::{AtomicBool, AtomicUsize};

#[derive(Default)]
pub struct Shutdown {
    /// Set when the listener has closed: from then on, each response over HTTP/1 closes its connection.
    pub is_draining: AtomicBool,
    /// Set when the connections that are left are force-closed.
    pub is_cutting: AtomicBool,
    /// Number of requests in flight.
    pub requests: AtomicUsize,
}
