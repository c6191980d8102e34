//! `/metrics`: the counters of [`Metrics`], and values that are read from their owners for each response, in the text format
//! of OpenMetrics 1.0.

use crate::telemetry::labels::Label;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::SystemTime;

/// The media type (OpenMetrics 1.0, section "Overall Structure").
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Values by a label, if there is one.
type Values = Vec<(Option<Label>, f64)>;

/// A metric that is read from its owner for each response.
struct SampledMetric {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    /// Returns nothing if the value cannot be read.
    read: Box<dyn Fn() -> Values + Send + Sync>,
}

impl fmt::Debug for SampledMetric {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for SampledMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let values = (self.read)();
        if values.is_empty() {
            return Ok(());
        }
        let unit = self.unit.as_ref();
        // The library appends a full stop to the help of its own metrics.
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

/// The metrics of `/metrics`.
pub struct Exposition(Registry);

impl Exposition {
    /// `build` is what `build_info` shows.
    pub fn new(metrics: &Metrics, build: Vec<(&'static str, String)>) -> Self {
        let mut registry = Registry::default();
        registry.register("build", "Build information", Info::new(build));
        metrics.register(&mut registry);
        let mut this = Self(registry);
        this.add_connections(metrics);
        this.add_process();
        this
    }

    /// Returns the metrics as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail.
        let _ = text::encode(&mut text, &self.0);
        text
    }

    /// Registers a gauge, which `read` returns for each response.
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

    /// Registers gauges that a label distinguishes. `read` returns the label's values with them.
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

    /// Registers a counter, which `read` returns for each response.
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
        self.0.register_collector(Box::new(SampledMetric {
            name,
            help,
            unit,
            kind,
            read: Box::new(read),
        }));
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

    /// Registers the statistics of the process, under the names that Prometheus's clients use.
    fn add_process(&mut self) {
        use MetricType::{Counter, Gauge};
        let (bytes, seconds) = (Some(Unit::Bytes), Some(Unit::Seconds));
        let (name, help) = ("process_resident_memory", "Resident memory of the process");
        self.value(name, help, bytes, Gauge, process::resident_bytes);
        let (name, help) = ("process_cpu", "Total user and system CPU time");
        self.value(name, help, seconds.clone(), Counter, process::cpu_seconds);
        let (name, help) = ("process_open_fds", "Open file descriptors");
        self.value(name, help, None, Gauge, process::open_fds);
        let (name, help) = ("process_max_fds", "Maximum number of open file descriptors");
        self.value(name, help, None, Gauge, process::max_fds);
        let (name, help) = (
            "process_start_time",
            "Start time of the process since the Unix epoch",
        );
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let start = start.unwrap_or_default().as_secs_f64();
        self.value(name, help, seconds, Gauge, move || Some(start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use std::time::Duration;

    #[test]
    fn labels_have_few_values_for_invented_methods_and_statuses() {
        let metrics = Metrics::default();
        let duration = Duration::from_micros(150);
        let invented = Method::from_bytes(b"BREW").expect("a token");
        metrics.request(Some(&invented), 200, duration);
        metrics.request(None, 400, duration);
        for status in 700..1000 {
            metrics.request(Some(&Method::GET), status, duration);
        }
        metrics.request(Some(&Method::GET), 499, duration);
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
