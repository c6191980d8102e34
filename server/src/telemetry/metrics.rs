//! Metrics for `/metrics`: the text format of OpenMetrics 1.0, with the names of OpenTelemetry's semantic conventions where
//! they have one, as Prometheus writes them.
//!
//! What happens is counted where it happens, in a handful of instructions. What is a state, such as memory in use, is read
//! from its owner when `/metrics` is asked for. No label has values that a client chooses.

use http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::encoding::{EncodeLabel, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, getrlimit};
use std::fmt;
use std::fs;
use std::hash::{Hash, Hasher};
use std::time::{Duration, SystemTime};
use wasmtime_wasi_http::Error;

/// The type of `/metrics` (OpenMetrics 1.0, section "Overall Structure").
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of buckets, in seconds: those that OpenTelemetry advises for `http.server.request.duration`, and five below
/// them, as most guests need less than the first.
const BUCKETS: [f64; 19] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0,
];

/// A label and its value.
type Label = (&'static str, &'static str);

/// The counts of one server.
pub struct Metrics {
    requests: Family<Outcome, Histogram, fn() -> Histogram>,
    /// Connections that are open.
    pub connections: Gauge,
    /// Those of them that have a request under way.
    pub busy_connections: Gauge,
    /// Bytes from and to clients, with all of HTTP.
    pub received: Counter,
    pub sent: Counter,
    pub rejected_connections: Events,
    pub rejected_requests: Events,
    pub timeouts: Events,
    guest_starts: Histogram,
    pub guest_failures: Events,
    pub guest_memory_refusals: Events,
    outbound_requests: Family<OutboundOutcome, Histogram, fn() -> Histogram>,
    pub rejected_outbound_requests: Events,
}

/// Method and status of a request, as labels.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Outcome {
    method: Verb,
    status: Status,
}

/// One number for all of it, as each request is looked up by it.
impl Hash for Outcome {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (Status::Code(status) | Status::Class(status)) = self.status;
        state.write_u32((self.method as u32) << 16 | u32::from(status));
    }
}

/// A status code, or its class: a guest can invent statuses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Status {
    Code(u16),
    Class(u16),
}

/// Result of a guest's request to another service.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum OutboundOutcome {
    Response(Status),
    Error(&'static str),
}

impl Status {
    /// `499` is that of a client that went (see [`crate::service`]).
    fn new(status: u16) -> Self {
        let known = StatusCode::from_u16(status).ok();
        match known.and_then(|it| it.canonical_reason()) {
            Some(_) => Self::Code(status),
            None if status == 499 => Self::Code(status),
            None => Self::Class(status / 100),
        }
    }

    fn encode(self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        const NAME: &str = "http_response_status_code";
        match self {
            Self::Code(code) => (NAME, u32::from(code)).encode(encoder.encode_label()),
            Self::Class(class) => (NAME, format!("{class}xx")).encode(encoder.encode_label()),
        }
    }
}

impl EncodeLabelSet for Outcome {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        ("http_request_method", self.method.label()).encode(encoder.encode_label())?;
        self.status.encode(encoder)
    }
}

impl EncodeLabelSet for OutboundOutcome {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        match self {
            Self::Response(status) => status.encode(encoder),
            Self::Error(kind) => ("error_type", *kind).encode(encoder.encode_label()),
        }
    }
}

/// A count of events by their reason.
#[derive(Clone)]
pub struct Events {
    label: &'static str,
    family: Family<[Label; 1], Counter>,
}

impl Events {
    /// Begins with a count of 0 for each reason: the rate of a series that is not there yet cannot be asked for.
    fn new(label: &'static str, reasons: &[&'static str]) -> Self {
        let family = Family::<[Label; 1], Counter>::default();
        for reason in reasons {
            let _ = family.get_or_create(&[(label, reason)]);
        }
        Self { label, family }
    }

    pub fn count(&self, reason: &'static str) {
        self.family.get_or_create(&[(self.label, reason)]).inc();
    }
}

/// The methods that OpenTelemetry's `http.request.method` knows. Clients may invent others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verb {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    Other,
}

impl Verb {
    fn of(method: Option<&Method>) -> Self {
        match method {
            Some(&Method::GET) => Self::Get,
            Some(&Method::HEAD) => Self::Head,
            Some(&Method::POST) => Self::Post,
            Some(&Method::PUT) => Self::Put,
            Some(&Method::DELETE) => Self::Delete,
            Some(&Method::CONNECT) => Self::Connect,
            Some(&Method::OPTIONS) => Self::Options,
            Some(&Method::TRACE) => Self::Trace,
            Some(&Method::PATCH) => Self::Patch,
            _ => Self::Other,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other => "_OTHER",
        }
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::new_with_constructor(histogram),
            connections: Gauge::default(),
            busy_connections: Gauge::default(),
            received: Counter::default(),
            sent: Counter::default(),
            rejected_connections: Events::new(
                "reason",
                &["max_connections", "file_descriptors", "buffers"],
            ),
            rejected_requests: Events::new(
                "reason",
                &[
                    "max_requests",
                    "guest_memory_total",
                    "transfers",
                    "buffers",
                    "max_streams",
                ],
            ),
            timeouts: Events::new("timeout", &["idle", "header", "body", "write"]),
            guest_starts: histogram(),
            guest_failures: Events::new(
                "reason",
                &[
                    "trapped",
                    "exited",
                    "timed_out",
                    "no_response",
                    "malformed_response",
                    "refused",
                    "body_failed",
                ],
            ),
            guest_memory_refusals: Events::new("limit", &["guest_memory", "guest_memory_total"]),
            outbound_requests: Family::new_with_constructor(histogram),
            rejected_outbound_requests: Events::new("reason", &["not_allowed", "max_connections"]),
        }
    }
}

impl Metrics {
    /// Records a request; `method` is `None` if its head could not be read.
    pub fn request(&self, method: Option<&Method>, status: u16, took: Duration) {
        let outcome = Outcome {
            method: Verb::of(method),
            status: Status::new(status),
        };
        let histogram = self.requests.get_or_create(&outcome);
        histogram.observe(took.as_secs_f64());
    }

    /// Records that a guest has been instantiated.
    pub fn guest_started(&self, took: Duration) {
        self.guest_starts.observe(took.as_secs_f64());
    }

    /// Begins with a count of 0, as [`Events::new`] does, for guests that may send requests.
    pub fn expect_outbound_requests(&self) {
        let outcome = OutboundOutcome::Response(Status::Code(200));
        let _ = self.outbound_requests.get_or_create(&outcome);
    }

    /// Records a guest's request to another service, which took so long to the head of the response.
    pub fn outbound_request(&self, outcome: Result<StatusCode, &'static str>, took: Duration) {
        let outcome = match outcome {
            Ok(status) => OutboundOutcome::Response(Status::new(status.as_u16())),
            Err(kind) => OutboundOutcome::Error(kind),
        };
        let histogram = self.outbound_requests.get_or_create(&outcome);
        histogram.observe(took.as_secs_f64());
    }

    /// Lists the counts under their names.
    fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "http_server_request_duration",
            "Duration of requests, from the head to the end of the response",
            Unit::Seconds,
            self.requests.clone(),
        );
        for (name, help, events) in [
            (
                "http_server_rejected_connections",
                "Connections for which a limit left no room",
                &self.rejected_connections,
            ),
            (
                "http_server_rejected_requests",
                "Requests for which a limit left no room",
                &self.rejected_requests,
            ),
            (
                "http_server_timeouts",
                "Connections and requests that ended as the client took too long",
                &self.timeouts,
            ),
            (
                "guest_failures",
                "Requests for which the guest failed",
                &self.guest_failures,
            ),
            (
                "guest_memory_refusals",
                "Growths of memory that a limit refused a guest",
                &self.guest_memory_refusals,
            ),
            (
                "http_client_rejected_requests",
                "Requests to other services that were not sent",
                &self.rejected_outbound_requests,
            ),
        ] {
            registry.register(name, help, events.family.clone());
        }
        registry.register_with_unit(
            "guest_start_duration",
            "Time to make a sandbox",
            Unit::Seconds,
            self.guest_starts.clone(),
        );
        registry.register_with_unit(
            "http_client_request_duration",
            "Duration of requests to other services, to the head of the response",
            Unit::Seconds,
            self.outbound_requests.clone(),
        );
    }
}

/// Returns the kind of an error, as far as an operator would tell them apart, for `error.type`.
pub fn error_type(error: &Error) -> &'static str {
    match error {
        Error::DnsTimeout | Error::DnsError { .. } => "dns",
        Error::Connect(_)
        | Error::ConnectionRefused
        | Error::DestinationNotFound
        | Error::DestinationUnavailable => "connect",
        Error::ConnectionTimeout => "connection_timeout",
        Error::HttpResponseTimeout | Error::ConnectionReadTimeout => "response_timeout",
        Error::Tls(_)
        | Error::TlsProtocolError
        | Error::TlsCertificateError
        | Error::TlsAlertReceived { .. } => "tls",
        _ => "_OTHER",
    }
}

/// Values by a label, if there is one.
type Values = Vec<(Option<Label>, f64)>;

/// A metric that is read from its owner when it is asked for.
struct Reading {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    /// Returns nothing where the system denies a look.
    read: Box<dyn Fn() -> Values + Send + Sync>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let values = (self.read)();
        if values.is_empty() {
            return Ok(());
        }
        let unit = self.unit.as_ref();
        // The library ends the others with a full stop.
        let help = format!("{}.", self.help);
        let mut encoder = encoder.encode_descriptor(self.name, &help, unit, self.kind)?;
        for (label, value) in values {
            let labels: Vec<_> = label.into_iter().collect();
            let mut encoder = encoder.encode_family(&labels)?;
            match self.kind {
                MetricType::Counter => {
                    encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)?
                }
                _ => encoder.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

/// All that `/metrics` shows.
pub struct Exposition(Registry);

impl Exposition {
    pub fn new(metrics: &Metrics, build: Vec<(&'static str, String)>) -> Self {
        let mut registry = Registry::default();
        registry.register("build", "What runs", Info::new(build));
        metrics.register(&mut registry);
        let mut this = Self(registry);
        this.add_connections(metrics);
        this.add_process();
        this
    }

    fn add_connections(&mut self, metrics: &Metrics) {
        let (received, sent) = (metrics.received.clone(), metrics.sent.clone());
        let (name, help) = ("http_server_network_io", "Bytes from and to clients");
        let (bytes, label) = (Some(Unit::Bytes), "network_io_direction");
        self.reading(name, help, bytes, MetricType::Counter, move || {
            let (received, sent) = (received.get() as f64, sent.get() as f64);
            vec![
                (Some((label, "receive")), received),
                (Some((label, "transmit")), sent),
            ]
        });
        let (open, busy) = (
            metrics.connections.clone(),
            metrics.busy_connections.clone(),
        );
        let (name, label) = ("http_server_open_connections", "http_connection_state");
        self.gauges(name, "Open connections", label, move || {
            let busy = busy.get();
            let idle = open.get() - busy;
            vec![("active", busy.max(0) as u64), ("idle", idle.max(0) as u64)]
        });
    }

    /// Adds a state, which `read` returns.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.value(name, help, unit, MetricType::Gauge, move || {
            Some(read() as f64)
        });
    }

    /// Adds states that a label tells apart, which `read` returns with the label's values.
    pub fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
    ) {
        let value = move |(value, count)| (Some((label, value)), count as f64);
        self.reading(name, help, None, MetricType::Gauge, move || {
            read().into_iter().map(value).collect()
        });
    }

    /// Adds a count, which `read` returns.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.value(name, help, None, MetricType::Counter, move || {
            Some(read() as f64)
        });
    }

    /// Adds a metric with one value, if there is any.
    fn value(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        kind: MetricType,
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        self.reading(name, help, unit, kind, move || {
            read().map(|value| (None, value)).into_iter().collect()
        });
    }

    fn reading(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        kind: MetricType,
        read: impl Fn() -> Values + Send + Sync + 'static,
    ) {
        self.0.register_collector(Box::new(Reading {
            name,
            help,
            unit,
            kind,
            read: Box::new(read),
        }));
    }

    /// Adds the state of the process, under the names that Prometheus's clients use.
    fn add_process(&mut self) {
        use MetricType::{Counter, Gauge};
        let memory = "Resident memory of the process";
        let (bytes, seconds) = (Some(Unit::Bytes), Some(Unit::Seconds));
        self.value("process_resident_memory", memory, bytes, Gauge, resident);
        let cpu = "Time that the process has computed, for itself and in the kernel";
        self.value("process_cpu", cpu, seconds.clone(), Counter, cpu_seconds);
        let files = "Open file descriptors";
        self.value("process_open_fds", files, None, Gauge, || {
            Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
        });
        let most = "Most file descriptors that may be open";
        self.value("process_max_fds", most, None, Gauge, || {
            Some(getrlimit(Resource::Nofile).current? as f64)
        });
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default().as_secs_f64();
        let help = "When the process began to serve, since the Unix epoch";
        self.value("process_start_time", help, seconds, Gauge, move || {
            Some(since)
        });
    }

    /// Returns the text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A `String` takes whatever is written to it.
        let _ = text::encode(&mut text, &self.0);
        text
    }
}

/// Resident memory, in bytes (proc(5), `status`).
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Time on CPUs, in seconds (proc(5), `stat`: `utime` and `stime`, the 12th and 13th field behind the name).
fn cpu_seconds() -> Option<f64> {
    /// Ticks per second: `USER_HZ`, which is 100 on x86-64 and AArch64.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.map_while(|it| it.parse::<f64>().ok()).sum();
    Some(ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_few_values_whatever_clients_and_guests_invent() {
        let metrics = Metrics::default();
        let took = Duration::from_micros(150);
        let invented = Method::from_bytes(b"BREW").expect("a token");
        metrics.request(Some(&invented), 200, took);
        metrics.request(None, 400, took);
        for status in 700..1000 {
            metrics.request(Some(&Method::GET), status, took);
        }
        metrics.request(Some(&Method::GET), 499, took);
        let text = Exposition::new(&metrics, Vec::new()).text();
        for line in [
            r#"http_server_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="200"} 1"#,
            r#"http_server_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="400"} 1"#,
            r#"http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="7xx"} 100"#,
            r#"http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="499"} 1"#,
            r#"http_server_request_duration_seconds_bucket{le="0.00025",http_request_method="_OTHER",http_response_status_code="200"} 1"#,
            r#"http_server_rejected_requests_total{reason="max_requests"} 0"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
