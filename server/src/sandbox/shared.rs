//! State that all instances of a component share.

use crate::outbound::client::Outbound;
use crate::sandbox::budget::Budget;
use crate::sandbox::permits::Permits;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use std::sync::Arc;
use wasmtime_wasi_config::WasiConfigVariables;

pub struct Shared {
    pub log: Log,
    pub metrics: Arc<Metrics>,
    /// Environment of the guests.
    pub variables: Vec<(String, String)>,
    /// The same variables, for `wasi:config/store`.
    pub config: WasiConfigVariables,
    pub outbound: Outbound,
    pub memory: Budget,
    /// Maximum size of each memory of an instance, in bytes.
    pub memory_share: usize,
    pub permits: Permits,
}
