//! The settings that bound how long the server waits for a client.

use crate::config::settings::Config;
use std::time::Duration;

/// Maximum waits of a connection. [`state`](crate::connection::state) explains which one holds when.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the first byte of a request (`IDLE_TIMEOUT`).
    pub idle: Duration,
    /// From the first byte of a request's head to its last (`HEADER_TIMEOUT`).
    pub header: Duration,
    /// For the client to take [`MIN_PROGRESS_BYTES`](crate::connection::stall::MIN_PROGRESS_BYTES) of a response
    /// (`WRITE_TIMEOUT`).
    pub write: Duration,
    /// For the other responses of an HTTP/2 connection that closes because one of its streams timed out
    /// (`GUEST_TIMEOUT`).
    pub multiplexed_close: Duration,
}

impl From<&Config> for Timeouts {
    fn from(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            header: config.header_timeout,
            write: config.write_timeout,
            multiplexed_close: config.guest_timeout,
        }
    }
}
