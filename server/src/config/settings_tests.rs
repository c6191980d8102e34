//! Reading of [`Config`].

use crate::config::settings::Config;
use crate::config::table;
use std::time::Duration;

fn read(env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    read_in(None, env)
}

/// Reads the settings in a container with this limit of memory, in bytes.
fn read_in(memory_limit: Option<u64>, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let env = |name: &str| {
        let (_, value) = env.iter().find(|(key, _)| *key == name)?;
        Some(value.into())
    };
    Config::read(None, env, memory_limit)
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = read(&[]).expect("defaults");
    let duration = |value: Duration| humantime::format_duration(value).to_string();
    let outbound = &config.outbound;
    for (name, value) in [
        ("LISTEN", config.listen.to_string()),
        ("PORT", config.listen.port().to_string()),
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
        ("GUEST_MEMORY_TOTAL", config.guest_memory_total.to_string()),
        ("IDLE_TIMEOUT", format!("{:?}", config.idle_timeout)),
        ("HEADER_TIMEOUT", duration(config.header_timeout)),
        ("BODY_TIMEOUT", duration(config.body_timeout)),
        ("WRITE_TIMEOUT", duration(config.write_timeout)),
        ("GUEST_TIMEOUT", duration(config.guest_timeout)),
        ("DRAIN_DELAY", duration(config.drain_delay)),
        ("DRAIN_TIMEOUT", duration(config.drain_timeout)),
        ("MAX_OUTBOUND_CONNECTIONS", outbound.connections.to_string()),
        (
            "OUTBOUND_CONNECT_TIMEOUT",
            duration(outbound.connect_timeout),
        ),
        (
            "OUTBOUND_FIRST_BYTE_TIMEOUT",
            duration(outbound.first_byte_timeout),
        ),
        ("OUTBOUND_IDLE_TIMEOUT", duration(outbound.idle_timeout)),
    ] {
        assert_eq!(value, table::default(name), "{name}");
    }
    assert_eq!(config.management, None);
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
    let env = |name: &str| (name == "LISTEN").then(|| "invalid".into());
    let flag = Config::read(Some("127.0.0.1:82".into()), env, None);
    assert_eq!(flag.expect("valid").listen.to_string(), "127.0.0.1:82");
}

#[test]
fn settings_that_do_not_fit_are_kept_with_a_warning() {
    let read = |env| read_in(Some(512 << 20), env).expect("valid");
    assert_eq!(read(&[]).warning(), None);
    let config = read(&[("MAX_CONNECTIONS", "20000"), ("GUEST_MEMORY_TOTAL", "1GiB")]);
    assert_eq!(
        config.warning().as_deref(),
        Some(
            "warning: MAX_CONNECTIONS=20000, GUEST_MEMORY_TOTAL=1GiB may take 1657 MiB, and this container has 512 MiB: \
             lower one, or raise its memory limit"
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
    let variable = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
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
fn error_has_name_value_and_rule() {
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
        assert_eq!(error, [format!("{name}={value}: {expected}")]);
    }
    let escaped = read(&[("PORT", "\u{1b}[2J")]).expect_err("invalid");
    assert_eq!(escaped, ["PORT=\\u{1b}[2J: not a port number (0–65535)"]);
}

#[test]
fn each_bad_value_is_reported() {
    let env = [
        ("PORT", "abc"),
        ("GUEST_ENV", "A,*,+"),
        ("MAX_REQUESTS", "0"),
        ("LOG_FORMAT", "json"),
    ];
    let errors = read(&env).expect_err("invalid");
    assert_eq!(
        errors,
        [
            "PORT=abc: not a port number (0–65535)",
            "MAX_REQUESTS=0: not a whole number from 1 to 4096",
            "GUEST_ENV=*: not names of variables (such as GREETING,UPSTREAM)",
        ]
    );
}
