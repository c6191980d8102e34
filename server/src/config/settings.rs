//! The settings of a server, read once at start.

use crate::config::container;
use crate::config::environment::Environment;
use crate::config::parse::{
    parse_addr, parse_addr_or_off, parse_count, parse_duration, parse_duration_or_zero,
    parse_log_format, parse_port, parse_size, parse_switch,
};
use crate::config::size::MemorySize;
use crate::outbound::allowed::AllowedHost;
use crate::outbound::limits::Limits as OutboundLimits;
use crate::telemetry::client::{TrustedProxies, parse_network};
use crate::telemetry::line::LogFormat;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const MAX_REQUESTS: u32 = 4096;
const MAX_GUEST_MEMORY: u64 = 1 << 30;
/// As much as [`MAX_REQUESTS`] sandboxes can have.
const MAX_GUEST_MEMORY_TOTAL: u64 = MAX_REQUESTS as u64 * MAX_GUEST_MEMORY;

/// The settings; [the table](crate::config::table) explains each.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// `None` if the management listener is off.
    pub management: Option<SocketAddr>,
    pub log_format: LogFormat,
    pub access_log: bool,
    pub trusted_proxies: TrustedProxies,
    pub max_connections: u32,
    pub max_requests: u32,
    pub requests_per_sandbox: u32,
    pub guest_memory: MemorySize,
    pub guest_memory_resident: MemorySize,
    pub guest_memory_total: MemorySize,
    /// Memory of the server's container, in bytes; `None` if it has no limit.
    pub memory_limit: Option<u64>,
    /// The variables that guests see, each with its value if it is set.
    pub guest_env: Vec<(String, Option<String>)>,
    pub outbound: OutboundLimits,
    pub idle_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub guest_timeout: Duration,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
}

impl Config {
    /// Reads the settings: the flag `--listen`, and all others from `variable`, in which an empty value is none.
    /// `memory_limit` is that of the container, in bytes.
    ///
    /// # Errors
    /// A line for each bad value: the setting, the value, the rule.
    pub fn read(
        listen: Option<String>,
        variable: impl Fn(&str) -> Option<OsString>,
        memory_limit: Option<u64>,
    ) -> Result<Self, Vec<String>> {
        let mut env = Environment::new(variable);
        let port = env.get("PORT", parse_port);
        let listen = match listen {
            Some(value) => env.parse("--listen", &value, parse_addr),
            None => env.optional("LISTEN", parse_addr),
        };
        let max_connections = env.optional("MAX_CONNECTIONS", parse_count::<1_000_000>);
        let guest_memory_total =
            env.optional("GUEST_MEMORY_TOTAL", parse_size::<MAX_GUEST_MEMORY_TOTAL>);
        let (default_connections, default_total) = container::defaults(
            memory_limit,
            max_connections,
            guest_memory_total.map(|MemorySize(bytes)| bytes),
        );
        let config = Self {
            listen: listen.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, port).into()),
            management: env.get("MANAGEMENT_LISTEN", parse_addr_or_off),
            log_format: env.get("LOG_FORMAT", parse_log_format),
            access_log: env.get("ACCESS_LOG", parse_switch),
            trusted_proxies: TrustedProxies::new(env.list("TRUSTED_PROXIES", parse_network)),
            max_connections: max_connections.unwrap_or(default_connections),
            max_requests: env.get("MAX_REQUESTS", parse_count::<MAX_REQUESTS>),
            requests_per_sandbox: env.get("REQUESTS_PER_SANDBOX", parse_count::<1_000_000>),
            guest_memory: env.get("GUEST_MEMORY", parse_size::<MAX_GUEST_MEMORY>),
            guest_memory_resident: env.get("GUEST_MEMORY_RESIDENT", parse_size::<MAX_GUEST_MEMORY>),
            guest_memory_total: guest_memory_total.unwrap_or(MemorySize(default_total)),
            memory_limit,
            guest_env: env.variables("GUEST_ENV"),
            outbound: OutboundLimits {
                allowed: env.list("ALLOWED_OUTBOUND_HOSTS", AllowedHost::parse),
                connections: env.get("MAX_OUTBOUND_CONNECTIONS", parse_count::<4096>),
                connect_timeout: env.get("OUTBOUND_CONNECT_TIMEOUT", parse_duration),
                first_byte_timeout: env.get("OUTBOUND_FIRST_BYTE_TIMEOUT", parse_duration),
                idle_timeout: env.get("OUTBOUND_IDLE_TIMEOUT", parse_duration),
            },
            idle_timeout: env.get("IDLE_TIMEOUT", parse_duration),
            header_timeout: env.get("HEADER_TIMEOUT", parse_duration),
            body_timeout: env.get("BODY_TIMEOUT", parse_duration),
            write_timeout: env.get("WRITE_TIMEOUT", parse_duration),
            guest_timeout: env.get("GUEST_TIMEOUT", parse_duration),
            drain_delay: env.get("DRAIN_DELAY", parse_duration_or_zero),
            drain_timeout: env.get("DRAIN_TIMEOUT", parse_duration),
        };
        env.finish(config)
    }

    /// Returns true if guests may send requests to other services.
    pub fn allows_outbound(&self) -> bool {
        !self.outbound.allowed.is_empty()
    }

    /// Returns the settings whose defaults depend on the container, for the log.
    pub fn sizes(&self) -> String {
        format!(
            "MAX_CONNECTIONS={}, GUEST_MEMORY_TOTAL={}",
            self.max_connections, self.guest_memory_total
        )
    }

    /// Returns a line for the log if the container may be too small for the settings.
    pub fn warning(&self) -> Option<String> {
        let limit = self.memory_limit?;
        let needed = container::needed(self.max_connections, self.guest_memory_total.0);
        (needed > limit).then(|| {
            format!(
                "warning: {} may take {} MiB, and this container has {} MiB: lower one, or raise its memory limit",
                self.sizes(),
                needed.div_ceil(1 << 20),
                limit >> 20
            )
        })
    }

    /// Returns what the settings allow guests to use, for the log; `None` if that is nothing.
    pub fn granted(&self) -> Option<String> {
        let name = |(name, value): &(String, Option<String>)| match value {
            Some(_) => name.clone(),
            None => format!("{name} (not set)"),
        };
        let names: Vec<_> = self.guest_env.iter().map(name).collect();
        let allowed = &self.outbound.allowed;
        let hosts: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        let grants = [
            ("the variables", names.join(", ")),
            ("outbound HTTP to", hosts.join(", ")),
        ];
        let grants = grants.iter().filter(|(_, list)| !list.is_empty());
        let grants: Vec<_> = grants
            .map(|(kind, list)| format!("{kind} {list}"))
            .collect();
        (!grants.is_empty()).then(|| grants.join(" and "))
    }
}
