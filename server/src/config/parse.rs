//! Parsers of settings. An error is the rule that the value breaks, with an example; it follows the name and the value.

use crate::config::size::MemorySize;
use crate::telemetry::line::LogFormat;
use std::net::SocketAddr;
use std::time::Duration;

pub type Parse<T> = fn(&str) -> Result<T, String>;

const DAY: Duration = Duration::from_secs(86_400);

pub fn parse_addr(value: &str) -> Result<SocketAddr, String> {
    let rule = "not an IP address and port (such as 0.0.0.0:5000 or [::]:5000)";
    value.parse().map_err(|_| rule.into())
}

pub fn parse_addr_or_off(value: &str) -> Result<Option<SocketAddr>, String> {
    let rule = "neither off nor an IP address and port (such as 127.0.0.1:5001 or [::]:5001)";
    match value {
        "off" => Ok(None),
        _ => value.parse().map(Some).map_err(|_| rule.into()),
    }
}

pub fn parse_port(value: &str) -> Result<u16, String> {
    let rule = "not a port number (0–65535)";
    value.parse().map_err(|_| rule.into())
}

pub fn parse_log_format(value: &str) -> Result<LogFormat, String> {
    match value {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("not a log format (text or json)".into()),
    }
}

pub fn parse_switch(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("neither on nor off".into()),
    }
}

pub fn parse_count<const MAX: u32>(value: &str) -> Result<u32, String> {
    let count = value.parse().ok().filter(|n| (1..=MAX).contains(n));
    count.ok_or_else(|| format!("not a whole number from 1 to {MAX}"))
}

/// Parses a size of up to `MAX` bytes. The least is a page of WebAssembly.
pub fn parse_size<const MAX: u64>(value: &str) -> Result<MemorySize, String> {
    let size = MemorySize::parse(value).filter(|it| (64 << 10..=MAX).contains(&it.0));
    size.ok_or_else(|| {
        let max = MemorySize(MAX);
        format!("not a size from 64KiB to {max} (such as 64MiB)")
    })
}

pub fn parse_variable_name(value: &str) -> Result<String, String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    match value.bytes().all(is_part) {
        true => Ok(value.to_owned()),
        false => Err("not names of variables (such as GREETING,UPSTREAM)".into()),
    }
}

pub fn parse_duration(value: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(value).ok();
    let duration = duration.filter(|it| (Duration::from_millis(1)..=DAY).contains(it));
    duration.ok_or_else(|| "not a time from 1ms to 1d (such as 8s or 500ms)".into())
}

pub fn parse_duration_or_zero(value: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(value).ok();
    let duration = duration.filter(|it| *it <= DAY);
    duration.ok_or_else(|| "not a time from 0s to 1d (such as 5s or 500ms)".into())
}
