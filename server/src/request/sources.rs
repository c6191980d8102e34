//! The content of `/version` and `/metrics`, and the parts of the server that have the values.

use crate::component::description::{Description, VERSION};
use crate::request::shutdown::Shutdown;
use crate::sandbox::handler::ComponentHandler;
use crate::sandbox::shared::Shared;
use crate::telemetry::exposition::Exposition;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use bytes::Bytes;
use prometheus_client::registry::Unit;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub struct Sources {
    pub metrics: Arc<Metrics>,
    pub log: Log,
    pub shutdown: Arc<Shutdown>,
    pub handler: Arc<ComponentHandler>,
    pub description: Description,
    /// Maximum number of open connections.
    pub max_connections: u32,
}

/// `/version`.
#[derive(Serialize)]
struct Version<'a> {
    version: &'a str,
    wasmtime: &'a str,
    component: ComponentVersion<'a>,
}

#[derive(Serialize)]
struct ComponentVersion<'a> {
    name: &'a str,
    /// Digest of the `.wasm`.
    digest: &'a str,
    /// Version of WASI.
    wasi: String,
    /// Version of the program that compiled it.
    compiled_by: &'a str,
}

/// Name, help, unit and value of a gauge.
type SandboxGauge = (&'static str, &'static str, Option<Unit>, fn(&Shared) -> u64);

const SANDBOX_GAUGES: [SandboxGauge; 3] = [
    (
        "guest_memory",
        "Memory of all sandboxes, including host memory held for them",
        Some(Unit::Bytes),
        |shared| shared.memory.reserved(),
    ),
    (
        "guest_memory_limit",
        "Maximum memory of all sandboxes (GUEST_MEMORY_TOTAL)",
        Some(Unit::Bytes),
        |shared| shared.memory.total(),
    ),
    (
        "http_client_open_connections",
        "Connections to other services",
        None,
        |shared| shared.outbound.open() as u64,
    ),
];

impl Sources {
    /// Returns the JSON of `/version`, which does not change.
    pub fn version(&self) -> Bytes {
        let version = Version {
            version: VERSION,
            wasmtime: wasmtime_environ::VERSION,
            component: ComponentVersion {
                name: &self.description.name,
                digest: &self.digest(),
                wasi: self.description.wasi.number().to_owned(),
                compiled_by: &self.description.version,
            },
        };
        // Serializing strings does not fail.
        let json = serde_json::to_string(&version).unwrap_or_default();
        (json + "\n").into()
    }

    /// Returns the metrics of `/metrics`, whose values are read for each response.
    pub fn exposition(&self) -> Exposition {
        let build = vec![
            ("version", VERSION.to_owned()),
            ("wasmtime", wasmtime_environ::VERSION.to_owned()),
            ("component", self.description.name.clone()),
            ("component_digest", self.digest()),
        ];
        let mut exposition = Exposition::new(&self.metrics, build);
        self.add_server(&mut exposition);
        self.add_sandboxes(&mut exposition);
        exposition
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.description.sha256)
    }

    fn add_server(&self, exposition: &mut Exposition) {
        let log = self.log.clone();
        let help = "Log lines dropped because the reader was too slow";
        exposition.counter("log_dropped_lines", help, move || log.dropped());
        let shutdown = self.shutdown.clone();
        let (name, help) = ("http_server_active_requests", "Requests in progress");
        exposition.gauge(name, help, None, move || {
            shutdown.requests.load(Ordering::Relaxed) as u64
        });
        let limit = self.max_connections.into();
        let help = "Maximum number of open connections";
        exposition.gauge("http_server_connections_limit", help, None, move || limit);
    }

    fn add_sandboxes(&self, exposition: &mut Exposition) {
        let handler = self.handler.clone();
        let (name, help) = ("guest_instances", "Sandboxes by state");
        exposition.gauges(name, help, "state", move || {
            let idle = handler.idle();
            let (running, _) = handler.running();
            vec![("running", running as u64), ("idle", idle as u64)]
        });
        let (_, limit) = self.handler.running();
        let help = "Maximum number of running sandboxes (MAX_REQUESTS)";
        exposition.gauge("guest_instances_limit", help, None, move || limit.into());
        for (name, help, unit, read) in SANDBOX_GAUGES {
            let handler = self.handler.clone();
            exposition.gauge(name, help, unit, move || read(handler.shared()));
        }
    }
}
