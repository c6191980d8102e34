//! The table of settings: names, meanings, defaults. `--help` prints it, and [`Config`](crate::config::settings::Config)
//! takes the defaults from it.

/// A line for each setting, which ends with the default. Only lists of grants have none.
pub const TABLE: &str = "\
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

/// Returns the default of a setting that has one, as a value of its variable.
pub fn default(name: &str) -> &'static str {
    let is_of = |line: &&str| line.split_whitespace().next() == Some(name);
    let line = TABLE.lines().find(is_of).unwrap_or_default();
    line.split_whitespace().next_back().unwrap_or_default()
}
