//! The table of settings. `--help` prints it, and [`Config`](crate::config::settings::Config) takes the defaults from it.

/// Name, meaning, and default as it would be written in the variable. Lists of grants are empty by default.
type Setting = (&'static str, &'static str, &'static str);

/// Settings of the server.
#[rustfmt::skip]
const SERVER: [Setting; 20] = [
    ("COMPONENT", "file of the component", "/component.cwasm"),
    ("LISTEN", "address and port to listen on", "0.0.0.0:5000"),
    ("PORT", "port only; LISTEN takes precedence", "5000"),
    ("MANAGEMENT_LISTEN", "address of probes and metrics, or off", "off"),
    ("LOG_FORMAT", "text or json", "text"),
    ("ACCESS_LOG", "log each request: on or off", "on"),
    ("TRUSTED_PROXIES", "networks of proxies, such as 10.0.0.0/8", "none"),
    ("MAX_CONNECTIONS", "open connections", "10000"),
    ("MAX_REQUESTS", "concurrent requests in the component", "64"),
    ("REQUESTS_PER_SANDBOX", "requests that one sandbox serves", "1"),
    ("GUEST_MEMORY", "memory limit of a sandbox, up to 1GiB", "64MiB"),
    ("GUEST_MEMORY_RESIDENT", "of that, kept resident for reuse", "256KiB"),
    ("GUEST_MEMORY_TOTAL", "memory limit of all sandboxes together", "256MiB"),
    ("IDLE_TIMEOUT", "between requests on a connection", "75s"),
    ("HEADER_TIMEOUT", "to receive the head of a request", "10s"),
    ("BODY_TIMEOUT", "to receive each 1 KiB of a request body", "10s"),
    ("WRITE_TIMEOUT", "to send each 1 KiB of a response", "30s"),
    ("GUEST_TIMEOUT", "for a guest to respond, or to continue", "5s"),
    ("DRAIN_DELAY", "after a signal: not ready, still serving", "0s"),
    ("DRAIN_TIMEOUT", "for requests to finish at shutdown", "8s"),
];

/// What the component may use.
#[rustfmt::skip]
const GRANTS: [Setting; 6] = [
    ("GUEST_ENV", "variables that it sees, such as GREETING,UPSTREAM", ""),
    ("ALLOWED_OUTBOUND_HOSTS", "destinations of its requests, such as https://api.example.com,http://*.internal:8080", ""),
    ("MAX_OUTBOUND_CONNECTIONS", "open outbound connections", "64"),
    ("OUTBOUND_CONNECT_TIMEOUT", "to connect: DNS, TCP and TLS", "2s"),
    ("OUTBOUND_FIRST_BYTE_TIMEOUT", "from then to the head of the response", "4s"),
    ("OUTBOUND_IDLE_TIMEOUT", "between two pieces of the response", "4s"),
];

/// Returns the settings for `--help`.
pub fn help() -> String {
    let rows = |settings: &[Setting]| -> String {
        let row = |(name, meaning, default): &Setting| {
            let row = format!("  {name:28} {meaning:41} {default}");
            format!("{}\n", row.trim_end())
        };
        settings.iter().map(row).collect()
    };
    format!(
        "Settings, from the environment:\n{}In a container with less than 577 MiB of memory, MAX_CONNECTIONS is lower by default; below 512 MiB, GUEST_MEMORY_TOTAL, too.\n\n\
         What the component may use, which is nothing by default:\n{}",
        rows(&SERVER),
        rows(&GRANTS)
    )
}

/// Returns the default of a setting.
pub fn default(name: &str) -> &'static str {
    let mut settings = SERVER.iter().chain(&GRANTS);
    let setting = settings.find(|(other, _, _)| *other == name);
    setting.map_or("", |(_, _, default)| default)
}
