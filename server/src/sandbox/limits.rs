//! Limits on the instances of a component and their calls.

use crate::config::size::MemorySize;
use std::time::Duration;

/// Settings for the instances of a component.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of concurrent calls (`MAX_REQUESTS`).
    pub max_concurrent_requests: u32,
    /// CPU and waiting time of a call until its response starts, and then between two parts of the body
    /// (`GUEST_TIMEOUT`). Time in which the guest waits for its client does not count.
    pub guest_timeout: Duration,
    /// Maximum number of requests that an instance serves (`REQUESTS_PER_SANDBOX`).
    pub requests_per_instance: u32,
    /// Maximum linear memory of an instance (`GUEST_MEMORY`).
    pub memory: MemorySize,
    /// Linear memory that stays resident in a slot for the next instance (`GUEST_MEMORY_RESIDENT`), and the most that its
    /// tables keep in addition.
    pub resident: MemorySize,
}
