//! The configuration: read once at start-up from flags and the environment, never again.

use crate::config::container;
use crate::outbound::allowed::AllowedHost;
use crate::outbound::limits as outbound;
use crate::telemetry::client::{self as forwarded, TrustedProxies};
use crate::telemetry::line::{LogFormat, escape_control};
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The settings, for `--help`.
pub const ENV_HELP: &str = "\
Settings, from the environment:
  COMPONENT                    the component's file                      /component.cwasm
  LISTEN                       address and port to listen on             0.0.0.0:5000
  PORT                         the port alone; LISTEN has priority       5000
  MANAGEMENT_LISTEN            the same for probes and metrics, or off   off
  LOG_FORMAT                   text or json                              text
  ACCESS_LOG                   on or off: a line for each request        on
  TRUSTED_PROXIES              those that name the client, as 10.0.0.0/8 none
  MAX_CONNECTIONS              connections open at a time                10000
  MAX_REQUESTS                 requests in the component at a time       64
  REQUESTS_PER_SANDBOX         requests that one sandbox may serve       1
  GUEST_MEMORY                 most memory of a sandbox, up to 1GiB      64MiB
  GUEST_MEMORY_RESIDENT        of that, kept for the sandbox's next use  256KiB
  GUEST_MEMORY_TOTAL           most memory of all sandboxes together     256MiB
  IDLE_TIMEOUT                 for the next request to begin             75s
  HEADER_TIMEOUT               for a request's head to arrive            10s
  BODY_TIMEOUT                 for a client to send 1 KiB of a body      10s
  WRITE_TIMEOUT                for a client to take 1 KiB of a response  30s
  GUEST_TIMEOUT                for the component to go on with its work  5s
  DRAIN_DELAY                  not ready, but serving, after a signal    0s
  DRAIN_TIMEOUT                for a shutdown to let work finish         8s
In a container with less than 577 MiB of memory, MAX_CONNECTIONS and GUEST_MEMORY_TOTAL are less by default.

What the component may use, which is nothing by default:
  GUEST_ENV                    names of variables that it sees, such as GREETING,UPSTREAM
  ALLOWED_OUTBOUND_HOSTS       where it may send requests, such as https://api.example.com,http://*.internal:8080
  MAX_OUTBOUND_CONNECTIONS     connections for them at a time            64
  OUTBOUND_CONNECT_TIMEOUT     for a connection: DNS, TCP and TLS        2s
  OUTBOUND_FIRST_BYTE_TIMEOUT  from then to the head of the response     4s
  OUTBOUND_IDLE_TIMEOUT        for the next piece of the response        4s";

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Where probes and metrics are; `None` if nowhere.
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
    /// Memory of the container that the server runs in, in bytes.
    pub memory_limit: Option<u64>,
    /// The variables that guests see, as they are in the server's environment. One that is not set is not there.
    pub guest_env: Vec<(String, Option<String>)>,
    pub outbound: outbound::Limits,
    pub idle_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub guest_timeout: Duration,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
}

impl Config {
    /// Reads the settings: `listen` from the command line, the rest through `env`, a view of the
    /// environment. A variable that is set but empty counts as not set. `memory_limit` is that of the container, in bytes.
    ///
    /// # Errors
    /// One line that names the setting, its value and what it takes.
    pub fn read(
        listen: Option<String>,
        env: impl Fn(&str) -> Option<OsString>,
        memory_limit: Option<u64>,
    ) -> Result<Self, String> {
        let env = Env(env);
        let port = env.get("PORT", 5000, parse_port)?;
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listen = match listen {
            Some(value) => parse_setting("--listen", &value, parse_addr)?,
            None => env.get("LISTEN", any, parse_addr)?,
        };
        let max_connections = env.read("MAX_CONNECTIONS", parse_count::<1_000_000>)?;
        let guest_memory_total = env.read("GUEST_MEMORY_TOTAL", parse_size::<MAX_TOTAL>)?;
        let given = guest_memory_total.map(|MemorySize(bytes)| bytes);
        let (connections, guests) = container::defaults(memory_limit, max_connections, given);
        Ok(Self {
            listen,
            management: env.get("MANAGEMENT_LISTEN", None, parse_addr_or_off)?,
            log_format: env.get("LOG_FORMAT", LogFormat::Text, parse_format)?,
            access_log: env.get("ACCESS_LOG", true, parse_switch)?,
            trusted_proxies: TrustedProxies::new(
                env.list("TRUSTED_PROXIES", forwarded::parse_network)?,
            ),
            max_connections: max_connections.unwrap_or(connections),
            max_requests: env.get("MAX_REQUESTS", 64, parse_count::<MAX_REQUESTS>)?,
            requests_per_sandbox: env.get("REQUESTS_PER_SANDBOX", 1, parse_count::<1_000_000>)?,
            guest_memory: env.get(
                "GUEST_MEMORY",
                MemorySize(64 << 20),
                parse_size::<MAX_GUEST_MEMORY>,
            )?,
            guest_memory_resident: env.get(
                "GUEST_MEMORY_RESIDENT",
                MemorySize(256 << 10),
                parse_size::<MAX_GUEST_MEMORY>,
            )?,
            guest_memory_total: guest_memory_total.unwrap_or(MemorySize(guests)),
            memory_limit,
            guest_env: env.granted("GUEST_ENV")?,
            outbound: outbound::Limits {
                allowed: env.list("ALLOWED_OUTBOUND_HOSTS", AllowedHost::parse)?,
                connections: env.get("MAX_OUTBOUND_CONNECTIONS", 64, parse_count::<4096>)?,
                connect_timeout: env.seconds("OUTBOUND_CONNECT_TIMEOUT", 2)?,
                first_byte_timeout: env.seconds("OUTBOUND_FIRST_BYTE_TIMEOUT", 4)?,
                idle_timeout: env.seconds("OUTBOUND_IDLE_TIMEOUT", 4)?,
            },
            idle_timeout: env.seconds("IDLE_TIMEOUT", 75)?,
            header_timeout: env.seconds("HEADER_TIMEOUT", 10)?,
            body_timeout: env.seconds("BODY_TIMEOUT", 10)?,
            write_timeout: env.seconds("WRITE_TIMEOUT", 30)?,
            guest_timeout: env.seconds("GUEST_TIMEOUT", 5)?,
            drain_delay: env.get("DRAIN_DELAY", Duration::ZERO, parse_duration_or_zero)?,
            drain_timeout: env.seconds("DRAIN_TIMEOUT", 8)?,
        })
    }

    /// The settings that depend on the container, for the log.
    pub fn sizes(&self) -> String {
        format!(
            "MAX_CONNECTIONS={}, GUEST_MEMORY_TOTAL={}",
            self.max_connections, self.guest_memory_total
        )
    }

    /// A line for the log if the container may be too small for the settings.
    pub fn warning(&self) -> Option<String> {
        let limit = self.memory_limit?;
        let needed = container::needed(self.max_connections, self.guest_memory_total.0);
        (needed > limit).then(|| {
            format!(
                "warning: {} may take {} MiB, and this container has {} MiB",
                self.sizes(),
                needed.div_ceil(1 << 20),
                limit >> 20
            )
        })
    }

    /// What guests may use beyond what every guest may, for the log; `None` if that is nothing.
    pub fn granted(&self) -> Option<String> {
        let name = |(name, value): &(String, Option<String>)| match value {
            Some(_) => name.clone(),
            None => format!("{name} (not set)"),
        };
        let names: Vec<_> = self.guest_env.iter().map(name).collect();
        let allowed = &self.outbound.allowed;
        let hosts: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        let granted = [
            ("the variables", names.join(", ")),
            ("outbound HTTP to", hosts.join(", ")),
        ];
        let granted = granted.iter().filter(|(_, list)| !list.is_empty());
        let granted: Vec<_> = granted
            .map(|(what, list)| format!("{what} {list}"))
            .collect();
        (!granted.is_empty()).then(|| granted.join(" and "))
    }
}

/// A size of linear memory, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemorySize(pub u64);

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.0;
        let unit = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) if bytes > 0 => write!(f, "{}{name}", bytes / unit),
            _ => write!(f, "{bytes} bytes"),
        }
    }
}

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

struct Env<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Env<F> {
    fn text(&self, name: &str) -> Option<String> {
        let value = (self.0)(name).filter(|value| !value.is_empty())?;
        Some(value.to_string_lossy().into_owned())
    }

    fn read<T>(&self, name: &str, parse: Parse<T>) -> Result<Option<T>, String> {
        let value = self.text(name);
        value
            .map(|value| parse_setting(name, &value, parse))
            .transpose()
    }

    fn get<T>(&self, name: &str, default: T, parse: Parse<T>) -> Result<T, String> {
        Ok(self.read(name, parse)?.unwrap_or(default))
    }

    fn seconds(&self, name: &str, default: u64) -> Result<Duration, String> {
        self.get(name, Duration::from_secs(default), parse_duration)
    }

    /// Reads a comma-separated list, by default an empty one.
    fn list<T>(&self, name: &str, parse: Parse<T>) -> Result<Vec<T>, String> {
        let Some(list) = self.text(name) else {
            return Ok(Vec::new());
        };
        let items = list.split(',').map(str::trim);
        let read = |item| match item {
            "" => parse_setting(name, &list, |_| Err("it has an empty item".into())),
            item => parse_setting(name, item, parse),
        };
        items.map(read).collect()
    }

    /// Reads the variables that a list names.
    fn granted(&self, name: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let mut granted = Vec::<(String, Option<String>)>::new();
        for variable in self.list(name, parse_variable_name)? {
            let value = (self.0)(&variable).map(OsString::into_string);
            let value = value
                .transpose()
                .map_err(|_| format!("{name}={variable}: the value of {variable} is not UTF-8"))?;
            if granted.iter().all(|(name, _)| *name != variable) {
                granted.push((variable, value));
            }
        }
        Ok(granted)
    }
}

/// Reads a value, or says what a value would have to be.
type Parse<T> = fn(&str) -> Result<T, String>;

fn parse_setting<T>(name: &str, value: &str, parse: Parse<T>) -> Result<T, String> {
    parse(value).map_err(|expected| format!("{name}={}: {expected}", escape_control(value)))
}

fn parse_addr(value: &str) -> Result<SocketAddr, String> {
    let expected = "not an IP address and port (such as 0.0.0.0:5000 or [::]:5000)";
    value.parse().map_err(|_| expected.into())
}

fn parse_addr_or_off(value: &str) -> Result<Option<SocketAddr>, String> {
    match value {
        "off" => Ok(None),
        _ => value.parse().map(Some).map_err(|_| {
            "neither off nor an IP address and port (such as 127.0.0.1:5001 or [::]:5001)".into()
        }),
    }
}

fn parse_port(value: &str) -> Result<u16, String> {
    let expected = "not a port number (0–65535)";
    value.parse().map_err(|_| expected.into())
}

fn parse_format(value: &str) -> Result<LogFormat, String> {
    match value {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("not a log format (text or json)".into()),
    }
}

fn parse_switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("neither on nor off".into()),
    }
}

fn parse_count<const MAX: u32>(value: &str) -> Result<u32, String> {
    let in_range = value.parse().ok().filter(|n| (1..=MAX).contains(n));
    in_range.ok_or_else(|| format!("not a whole number from 1 to {MAX}"))
}

fn parse_size<const MAX: u64>(value: &str) -> Result<MemorySize, String> {
    let bytes = UNITS.iter().find_map(|(name, unit)| {
        let number = value.strip_suffix(name)?;
        number.parse::<u64>().ok()?.checked_mul(*unit)
    });
    let in_range = bytes.filter(|bytes| (64 << 10..=MAX).contains(bytes));
    let bytes = in_range.ok_or_else(|| {
        let most = MemorySize(MAX);
        format!("not a size from 64KiB to {most} (such as 64MiB)")
    })?;
    Ok(MemorySize(bytes))
}

/// What as many sandboxes as there can be may have.
const MAX_TOTAL: u64 = MAX_REQUESTS as u64 * MAX_GUEST_MEMORY;
const MAX_GUEST_MEMORY: u64 = 1 << 30;
const MAX_REQUESTS: u32 = 4096;

fn parse_variable_name(value: &str) -> Result<String, String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let is_name = value.bytes().all(is_part);
    is_name
        .then(|| value.to_owned())
        .ok_or_else(|| "not names of variables (such as GREETING,UPSTREAM)".into())
}

fn parse_duration(value: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(value).ok();
    let in_range = parsed.filter(|d| (Duration::from_millis(1)..=DAY).contains(d));
    in_range.ok_or_else(|| "not a time from 1ms to 1d (such as 8s or 500ms)".into())
}

fn parse_duration_or_zero(value: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(value).ok();
    let in_range = parsed.filter(|d| *d <= DAY);
    in_range.ok_or_else(|| "not a time from 0s to 1d (such as 5s or 500ms)".into())
}

const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<Config, String> {
        let env = |name: &str| {
            let (_, value) = env.iter().find(|(key, _)| *key == name)?;
            Some(value.into())
        };
        Config::read(None, env, None)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = read(&[]).expect("defaults");
        assert_eq!(config.listen.to_string(), "0.0.0.0:5000");
        for (name, default) in [
            ("MAX_CONNECTIONS", config.max_connections.to_string()),
            ("MAX_REQUESTS", config.max_requests.to_string()),
            (
                "REQUESTS_PER_SANDBOX",
                config.requests_per_sandbox.to_string(),
            ),
            ("GUEST_MEMORY", config.guest_memory.to_string()),
            (
                "GUEST_MEMORY_RESIDENT",
                config.guest_memory_resident.to_string(),
            ),
            (
                "MAX_OUTBOUND_CONNECTIONS",
                config.outbound.connections.to_string(),
            ),
            (
                "OUTBOUND_CONNECT_TIMEOUT",
                format!("{:?}", config.outbound.connect_timeout),
            ),
            (
                "OUTBOUND_FIRST_BYTE_TIMEOUT",
                format!("{:?}", config.outbound.first_byte_timeout),
            ),
            (
                "OUTBOUND_IDLE_TIMEOUT",
                format!("{:?}", config.outbound.idle_timeout),
            ),
            ("IDLE_TIMEOUT", format!("{:?}", config.idle_timeout)),
            ("HEADER_TIMEOUT", format!("{:?}", config.header_timeout)),
            ("BODY_TIMEOUT", format!("{:?}", config.body_timeout)),
            ("WRITE_TIMEOUT", format!("{:?}", config.write_timeout)),
            ("GUEST_TIMEOUT", format!("{:?}", config.guest_timeout)),
            (
                "DRAIN_DELAY",
                humantime::format_duration(config.drain_delay).to_string(),
            ),
            ("DRAIN_TIMEOUT", format!("{:?}", config.drain_timeout)),
            ("GUEST_MEMORY_TOTAL", config.guest_memory_total.to_string()),
        ] {
            let is_of = |line: &&str| line.trim_start().starts_with(&format!("{name} "));
            let line = ENV_HELP.lines().find(is_of).expect(name);
            assert!(line.ends_with(&format!(" {default}")), "{line}");
        }
    }

    #[test]
    fn listen_has_priority_over_port_and_the_flag_over_both() {
        let listen = |env| read(env).expect("valid").listen.to_string();
        assert_eq!(listen(&[("PORT", "80")]), "0.0.0.0:80");
        assert_eq!(
            listen(&[("PORT", "80"), ("LISTEN", "[::1]:81")]),
            "[::1]:81"
        );
        assert_eq!(listen(&[("PORT", "")]), "0.0.0.0:5000");
        let flag = Config::read(Some("127.0.0.1:82".into()), |_| Some("83".into()), None);
        assert!(
            flag.expect_err("LISTEN is not looked at, MAX_CONNECTIONS=83 is valid")
                .starts_with("GUEST_MEMORY_TOTAL=83")
        );
    }

    #[test]
    fn settings_that_do_not_fit_are_kept_with_a_warning() {
        let read = |env: &[(&str, &str)]| {
            let env = |name: &str| {
                let (_, value) = env.iter().find(|(key, _)| *key == name)?;
                Some(value.into())
            };
            Config::read(None, env, Some(512 << 20)).expect("valid")
        };
        assert_eq!(read(&[]).warning(), None);
        let config = read(&[("MAX_CONNECTIONS", "20000"), ("GUEST_MEMORY_TOTAL", "1GiB")]);
        assert_eq!(
            config.warning().as_deref(),
            Some(
                "warning: MAX_CONNECTIONS=20000, GUEST_MEMORY_TOTAL=1GiB may take 1657 MiB, and this container has 512 MiB"
            )
        );
    }

    #[test]
    fn guests_see_the_variables_that_are_named() {
        let env = [
            ("GUEST_ENV", "A, B,MISSING,A"),
            ("A", "1"),
            ("B", ""),
            ("C", "3"),
        ];
        let config = read(&env).expect("valid");
        let variable =
            |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(
            config.guest_env,
            [
                variable("A", Some("1")),
                variable("B", Some("")),
                variable("MISSING", None)
            ]
        );
        let granted = "the variables A, B, MISSING (not set)";
        assert_eq!(config.granted().as_deref(), Some(granted));
        assert_eq!(read(&[]).expect("valid").granted(), None);
    }

    #[test]
    fn a_bad_value_is_named_with_what_it_takes() {
        for (name, value, expected) in [
            ("PORT", "abc", "not a port number (0–65535)"),
            ("PORT", "65536", "not a port number (0–65535)"),
            (
                "LISTEN",
                "5000",
                "not an IP address and port (such as 0.0.0.0:5000 or [::]:5000)",
            ),
            (
                "MANAGEMENT_LISTEN",
                "on",
                "neither off nor an IP address and port (such as 127.0.0.1:5001 or [::]:5001)",
            ),
            (
                "GUEST_MEMORY_TOTAL",
                "1KiB",
                "not a size from 64KiB to 4096GiB (such as 64MiB)",
            ),
            (
                "DRAIN_DELAY",
                "5",
                "not a time from 0s to 1d (such as 5s or 500ms)",
            ),
            ("LOG_FORMAT", "xml", "not a log format (text or json)"),
            ("ACCESS_LOG", "1", "neither on nor off"),
            (
                "TRUSTED_PROXIES",
                "10.0.0.0/33",
                "neither an IP address nor a network (such as 10.0.0.0/8)",
            ),
            ("MAX_REQUESTS", "0", "not a whole number from 1 to 4096"),
            (
                "GUEST_MEMORY",
                "2GiB",
                "not a size from 64KiB to 1GiB (such as 64MiB)",
            ),
            (
                "GUEST_MEMORY",
                "64",
                "not a size from 64KiB to 1GiB (such as 64MiB)",
            ),
            (
                "DRAIN_TIMEOUT",
                "8",
                "not a time from 1ms to 1d (such as 8s or 500ms)",
            ),
            (
                "DRAIN_TIMEOUT",
                "0s",
                "not a time from 1ms to 1d (such as 8s or 500ms)",
            ),
            (
                "GUEST_ENV",
                "*",
                "not names of variables (such as GREETING,UPSTREAM)",
            ),
            ("GUEST_ENV", "A,,B", "it has an empty item"),
        ] {
            let error = read(&[(name, value)]).expect_err(value);
            assert_eq!(error, format!("{name}={value}: {expected}"));
        }
        assert!(
            read(&[("PORT", "\u{1b}[2J")])
                .expect_err("")
                .starts_with("PORT=\\u{1b}[2J: ")
        );
    }
}
