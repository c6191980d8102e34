//! The host of one instance: its handles, standard streams, environment and HTTP.

use crate::sandbox::guest_log::{GuestLog, StdStream};
use crate::sandbox::hooks::Hooks;
use crate::sandbox::host_memory::{
    self, CALLS_BETWEEN_COUNTS, FREE_BYTES, HANDLES_PER_CALL, HostMemory, MAX_FIELDS_BYTES,
    MAX_HANDLES,
};
use crate::sandbox::limiter::MemoryLimiter;
use crate::sandbox::request_state::RequestState;
use crate::sandbox::shared::Shared;
use std::sync::Arc;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::WasiConfig;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// WASI without HTTP.
struct Wasi {
    context: WasiCtx,
    stdout: GuestLog,
    stderr: GuestLog,
}

/// Host of one instance.
pub struct Host {
    /// State of the request that the guest serves.
    pub state: Arc<RequestState>,
    hooks: Hooks,
    /// `None` until the guest needs it. Most guests do not, and creating it takes as long as the rest of the host.
    wasi: Option<Wasi>,
    http: WasiHttpCtx,
    table: ResourceTable,
    /// Host calls since the last count that may have created handles.
    calls: u32,
    /// Handles at the last count.
    handles: u32,
    /// Upper bound on the slots of the table, which grows only if all are in use.
    slots: u32,
    /// Set when the log has a line that the guest was denied a socket.
    pub has_logged_denial: bool,
}

impl Host {
    pub fn new(shared: &Arc<Shared>, state: Arc<RequestState>) -> Self {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(MAX_FIELDS_BYTES);
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES as usize);
        Self {
            state,
            hooks: Hooks::new(shared),
            wasi: None,
            http,
            table,
            calls: 0,
            handles: 0,
            slots: CALLS_BETWEEN_COUNTS * HANDLES_PER_CALL,
            has_logged_denial: false,
        }
    }

    pub fn shared(&self) -> &Shared {
        self.hooks.limiter.shared()
    }

    pub fn limiter(&mut self) -> &mut MemoryLimiter {
        &mut self.hooks.limiter
    }

    /// Returns the guest's handles, for a host call that may create others.
    pub fn table(&mut self) -> &mut ResourceTable {
        self.calls += 1;
        if self.calls == CALLS_BETWEEN_COUNTS {
            self.charge_host_memory();
        }
        &mut self.table
    }

    /// Charges the memory that the host holds for the guest. If it does not fit, the guest gets no further handles and
    /// fields.
    #[cold]
    fn charge_host_memory(&mut self) {
        self.calls = 0;
        let HostMemory { handles, bytes } = host_memory::count(&mut self.table, self.slots);
        let more = CALLS_BETWEEN_COUNTS * HANDLES_PER_CALL;
        self.slots = self.slots.max(handles + more);
        self.handles = handles;
        let held = bytes.saturating_sub(FREE_BYTES);
        if !self.hooks.limiter.charge_held(held) {
            self.table.set_max_capacity(0);
        }
    }

    /// Returns true if the guest has memory and handles for another request. Some guests never drop the handles of a request
    /// that they have served: StarlingMonkey keeps one of each.
    pub fn is_reusable(&self) -> bool {
        !self.hooks.limiter.is_over_budget() && self.handles < MAX_HANDLES / 2
    }

    /// Begins another call of a guest that has served one.
    pub fn begin_call(&mut self, state: Arc<RequestState>) {
        if let Some(Wasi { stdout, stderr, .. }) = &self.wasi {
            stdout.begin_request(state.trace.clone());
            stderr.begin_request(state.trace.clone());
        }
        self.state = state;
    }

    /// Ends the call: closes its outbound connections and ends its log lines.
    pub fn end_call(&mut self) {
        self.hooks.end_call();
        if let Some(Wasi { stdout, stderr, .. }) = &self.wasi {
            stdout.end_request();
            stderr.end_request();
        }
    }

    /// Returns true if the guest has written to its standard error since the last call of this function.
    pub fn take_logged(&self) -> bool {
        let wasi = self.wasi.as_ref();
        wasi.is_some_and(|wasi| wasi.stderr.take_written())
    }

    pub fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.hooks.limiter.shared().config)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.table();
        let shared = self.hooks.limiter.shared();
        let wasi = self.wasi.get_or_insert_with(|| {
            let stream = |kind| {
                let stream = GuestLog::new(&shared.log, kind);
                stream.begin_request(self.state.trace.clone());
                stream
            };
            let (stdout, stderr) = (stream(StdStream::Stdout), stream(StdStream::Stderr));
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
