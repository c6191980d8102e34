//! What a guest sees of its host: clocks, randomness, a log stream, and what it was granted of environment and outbound
//! HTTP.

use crate::component::description::TABLE_ELEMENT_BYTES;
use crate::outbound::client::{IoFuture, Outbound, Sent};
use crate::sandbox::budget::{
    self, BODY_CHUNK_BYTES, BODY_CHUNKS, Budget, CALLS_BETWEEN_COUNTS, FREE_BYTES,
    HANDLES_OF_A_CALL, Held, MAX_FIELDS_BYTES, MAX_HANDLES, OverBudget,
};
use crate::sandbox::guest_log::{GuestLog, Kind};
use crate::sandbox::handler::{Instance, RequestState};
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use http::{HeaderName, Request};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, RequestOptions, WasiBody};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// What all guests of a server have in common.
pub struct Shared {
    pub log: Log,
    pub metrics: Arc<Metrics>,
    /// Their environment.
    pub variables: Vec<(String, String)>,
    /// The same, as `wasi:config/store` has it.
    pub config: WasiConfigVariables,
    pub outbound: Outbound,
    pub memory: Budget,
    /// The most bytes that each memory of a guest may have.
    pub memory_share: usize,
    /// Guests that may serve again.
    pub idle: Mutex<Vec<Instance>>,
}

impl Shared {
    pub fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes memory for a guest that runs, if need be that of guests that do not.
    fn reserve_memory(&self, bytes: u64) -> bool {
        loop {
            if self.memory.reserve(bytes) {
                return true;
            }
            let Some(idle) = self.idle().pop() else {
                return false;
            };
            drop(idle);
        }
    }
}

/// What a guest has of WASI besides HTTP.
struct Wasi {
    context: WasiCtx,
    stdout: GuestLog,
    stderr: GuestLog,
}

/// What the host keeps for one guest.
pub struct Host {
    pub call: Arc<RequestState>,
    hooks: Hooks,
    /// Made when the guest first needs it: most guests do not, and making it takes as long as all the rest of the host.
    wasi: Option<Wasi>,
    http: WasiHttpCtx,
    table: ResourceTable,
    /// Bytes of [`Shared::memory`] that the guest has.
    reserved: u64,
    /// Of these, what the host holds for it.
    held: u64,
    /// Of these, what the last growth of a memory or table took.
    growth: u64,
    /// Host calls since the last count that may have made table.
    calls: u32,
    /// Handles at the last count.
    handle_count: u32,
    /// Places that the table of table has at most: it grows when all are reserved.
    slots: u32,
    /// Set when the guest has been instantiated.
    pub has_started: bool,
    /// Set when the guest has been refused a socket.
    pub is_refused: bool,
}

impl Host {
    pub fn new(shared: &Arc<Shared>, call: Arc<RequestState>) -> Self {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(MAX_FIELDS_BYTES);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES as usize);
        Self {
            call,
            hooks: Hooks {
                shared: shared.clone(),
                connections: None,
                is_over_budget: false,
            },
            wasi: None,
            http,
            table,
            reserved: 0,
            held: 0,
            growth: 0,
            calls: 0,
            handle_count: 0,
            slots: CALLS_BETWEEN_COUNTS * HANDLES_OF_A_CALL,
            has_started: false,
            is_refused: false,
        }
    }

    /// The guest's table, for a host call that may make others.
    pub fn table(&mut self) -> &mut ResourceTable {
        self.calls += 1;
        if self.calls == CALLS_BETWEEN_COUNTS {
            self.charge_host_memory();
        }
        &mut self.table
    }

    /// Charges what the host holds for the guest. If there is no memory left for it, the guest gets no more table, and
    /// no more fields.
    #[cold]
    fn charge_host_memory(&mut self) {
        self.calls = 0;
        let Held { handles, bytes } = budget::held(&mut self.table, self.slots);
        let more = CALLS_BETWEEN_COUNTS * HANDLES_OF_A_CALL;
        self.slots = self.slots.max(handles + more);
        self.handle_count = handles;
        let held = bytes.saturating_sub(FREE_BYTES);
        let shared = &self.hooks.shared;
        if held <= self.held {
            let less = self.held - held;
            shared.memory.release(less);
            self.reserved -= less;
            self.held = held;
        } else if shared.reserve_memory(held - self.held) {
            self.reserved += held - self.held;
            self.held = held;
        } else {
            let metrics = &shared.metrics;
            metrics.guest_memory_refusals.count("guest_memory_total");
            self.hooks.is_over_budget = true;
            self.table.set_max_capacity(0);
        }
    }

    /// Returns true if the host has refused the guest memory for what it holds for it: such a guest serves no other request.
    pub fn is_over_budget(&self) -> bool {
        self.hooks.is_over_budget
    }

    /// Returns true if the guest has table for another request. Some never give back those of a request that they have
    /// served: StarlingMonkey keeps one of each.
    pub fn has_handles(&self) -> bool {
        self.handle_count < MAX_HANDLES / 2
    }

    /// Begins another call of a guest that has served one.
    pub fn begin_call(&mut self, call: Arc<RequestState>) {
        if let Some(Wasi { stdout, stderr, .. }) = &self.wasi {
            stdout.begin(call.trace.clone());
            stderr.begin(call.trace.clone());
        }
        self.call = call;
    }

    /// Ends what belongs to a call.
    pub fn end_call(&mut self) {
        self.hooks.connections = None;
        if let Some(Wasi { stdout, stderr, .. }) = &self.wasi {
            stdout.end_request();
            stderr.end_request();
        }
    }

    /// Returns true if the guest has written to its standard error since the last call.
    pub fn take_logged(&self) -> bool {
        let wasi = self.wasi.as_ref();
        wasi.is_some_and(|wasi| wasi.stderr.take_written())
    }

    pub fn shared(&self) -> &Shared {
        &self.hooks.shared
    }

    pub fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.hooks.shared.config)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.table();
        let shared = &self.hooks.shared;
        let wasi = self.wasi.get_or_insert_with(|| {
            let stream = |kind| {
                let stream = GuestLog::new(&shared.log, kind);
                stream.begin(self.call.trace.clone());
                stream
            };
            let (stdout, stderr) = (stream(Kind::Stdout), stream(Kind::Stderr));
            let mut context = WasiCtx::builder();
            context
                .stdout(stdout.clone())
                .stderr(stderr.clone())
                .envs(&shared.variables);
            Wasi {
                context: context.build(),
                stdout,
                stderr,
            }
        });
        WasiCtxView {
            ctx: &mut wasi.context,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.table();
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

impl ResourceLimiter for Host {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let share = self.hooks.shared.memory_share;
        if desired > share {
            let metrics = &self.hooks.shared.metrics;
            metrics.guest_memory_refusals.count("guest_memory");
        }
        let maximum = maximum.map_or(share, |maximum| maximum.min(share));
        self.grow(current, desired, Some(maximum), 1)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.release_growth();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, TABLE_ELEMENT_BYTES)
    }
}

impl Host {
    /// Gives back what was reserved for a growth that Wasmtime has then refused: beyond `GUEST_MEMORY`, for one.
    fn release_growth(&mut self) {
        self.hooks.shared.memory.release(self.growth);
        self.reserved -= self.growth;
        self.growth = 0;
    }

    /// Takes memory for a guest that grows. A guest that starts ends if there is none.
    fn grow(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
        bytes: usize,
    ) -> wasmtime::Result<bool> {
        self.growth = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = (desired.saturating_sub(current)).saturating_mul(bytes) as u64;
        if self.hooks.shared.reserve_memory(more) {
            self.reserved += more;
            self.growth = more;
            return Ok(true);
        }
        let metrics = &self.hooks.shared.metrics;
        metrics.guest_memory_refusals.count("guest_memory_total");
        match self.has_started {
            true => Ok(false),
            false => Err(OverBudget.into()),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.hooks.shared.memory.release(self.reserved);
    }
}

/// What `wasmtime-wasi-http` asks its embedder.
struct Hooks {
    shared: Arc<Shared>,
    /// Dropped at the end of a call, which closes the outbound connections of that call.
    connections: Option<watch::Sender<()>>,
    /// Set when there is no memory for more of what the host holds for the guest.
    is_over_budget: bool,
}

/// A static, as a constant would be made once more for each field.
static FORBIDDEN_FIELDS: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

impl WasiHttpHooks for Hooks {
    /// The default, without the allocation that it makes for each field.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        self.is_over_budget || FORBIDDEN_FIELDS.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: IoFuture<()>,
    ) -> IoFuture<Sent> {
        let connections = &mut self.connections;
        let connections = connections.get_or_insert_with(|| watch::Sender::new(()));
        let is_over = connections.subscribe();
        self.shared.outbound.send(request, options, is_over)
    }

    /// Writes of the guest that wait for the client before the guest has to. With one, the
    /// default, even a guest with a short answer has to wait.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    /// Bytes that one write can have.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}
