//! The process's limit on file descriptors (`RLIMIT_NOFILE`), and its division among what needs them.

use crate::config::settings::Config;
use crate::listener::management;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the server itself, including the images of a component's memories, and of the management listener.
const RESERVED_FDS: u64 = 40 + management::MAX_CONNECTIONS as u64;

/// Descriptors of a worker's runtime.
const FDS_PER_WORKER: u64 = 6;

/// Maximum number of clients that are being rejected at a time. Further ones are closed without a response.
const MAX_PENDING_REJECTIONS: u64 = 256;

/// Division of the file descriptors.
pub struct FdLimits {
    /// All that the process may have.
    pub total: u64,
    /// Connections that may be open.
    pub connections: u32,
    /// Clients that may be rejected at a time.
    pub rejections: usize,
}

impl FdLimits {
    /// Divides the file descriptors that this process may have. If they are too few for `MAX_CONNECTIONS`, the server itself,
    /// `MAX_OUTBOUND_CONNECTIONS` and rejections take precedence.
    ///
    /// # Errors
    /// One line, if they are too few for a single connection.
    pub fn divide(config: &Config, workers: usize) -> Result<Self, String> {
        let outbound = match config.outbound.allowed.as_slice() {
            [] => 0,
            _ => u64::from(config.outbound.connections),
        };
        let total = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let reserved = RESERVED_FDS + FDS_PER_WORKER * workers as u64 + outbound;
        let left = total.saturating_sub(reserved);
        let rejections = MAX_PENDING_REJECTIONS.min(left / 4);
        let connections = u64::from(config.max_connections).min(left - rejections);
        if connections == 0 {
            return Err(format!(
                "the limit of {total} file descriptors is too low: the server needs {} for itself; raise it with `ulimit -n`",
                reserved + 1
            ));
        }
        Ok(Self {
            total,
            connections: connections as u32,
            rejections: rejections.max(1) as usize,
        })
    }
}

/// Raises the soft limit to the hard limit. Shells and container engines set it low for programs that use select(2).
pub fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}
