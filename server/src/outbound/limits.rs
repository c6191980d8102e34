//! Limits on the requests of guests to other services.

use crate::outbound::allowed::AllowedHost;
use std::time::Duration;

/// Settings for the requests of guests to other services.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `ALLOWED_OUTBOUND_HOSTS`. If empty, guests have no outbound HTTP.
    pub allowed: Vec<AllowedHost>,
    /// Maximum number of open connections, of all guests together.
    pub connections: u32,
    /// Time to resolve a name, connect, and negotiate TLS.
    pub connect_timeout: Duration,
    /// Time from the connection to the head of the response.
    pub first_byte_timeout: Duration,
    /// Time between two parts of the response's body.
    pub idle_timeout: Duration,
}
