//! What a guest sees of its host: clocks, randomness, a log stream, and what it was granted of environment and outbound
//! HTTP.

use crate::guest_log::GuestLog;
use crate::log::Log;
use crate::outbound::{Outbound, Sending, Sent};
use crate::sandbox::CallState;
use http::{HeaderName, Request};
use std::sync::Arc;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, RequestOptions, WasiBody};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// What all guests of a server have in common.
pub struct Shared {
    pub log: Log,
    /// Their environment.
    pub variables: Vec<(String, String)>,
    /// The same, as `wasi:config/store` has it.
    pub config: WasiConfigVariables,
    pub outbound: Outbound,
}

/// What the host keeps for one guest.
pub struct Host {
    pub call: Arc<CallState>,
    hooks: Hooks,
    /// Made when the guest first needs it, with its standard error: most guests do not, and making it
    /// takes as long as all the rest of the host.
    wasi: Option<(WasiCtx, GuestLog)>,
    http: WasiHttpCtx,
    pub handles: ResourceTable,
    /// Set when the guest has been refused a socket.
    pub is_refused: bool,
}

impl Host {
    pub fn new(shared: &Arc<Shared>, call: Arc<CallState>) -> Self {
        Self {
            call,
            hooks: Hooks(shared.clone()),
            wasi: None,
            http: WasiHttpCtx::new(),
            handles: ResourceTable::new(),
            is_refused: false,
        }
    }

    /// Returns true if the guest has written to its standard error since the last call.
    pub fn take_logged(&self) -> bool {
        let stderr = self.wasi.as_ref().map(|(_, stderr)| stderr);
        stderr.is_some_and(GuestLog::take_written)
    }

    pub fn shared(&self) -> &Shared {
        &self.hooks.0
    }

    pub fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.hooks.0.config)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let shared = &self.hooks.0;
        let (wasi, _) = self.wasi.get_or_insert_with(|| {
            let stderr = GuestLog::new(&shared.log);
            let mut wasi = WasiCtx::builder();
            wasi.stdout(GuestLog::new(&shared.log))
                .stderr(stderr.clone())
                .envs(&shared.variables);
            (wasi.build(), stderr)
        });
        WasiCtxView {
            ctx: wasi,
            table: &mut self.handles,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.handles,
            ctx: &mut self.http,
        }
    }
}

/// What `wasmtime-wasi-http` asks its embedder.
struct Hooks(Arc<Shared>);

/// A static, as a constant would be made once more for each field.
static FORBIDDEN_FIELDS: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

impl WasiHttpHooks for Hooks {
    /// The default, without the allocation that it makes for each field.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        FORBIDDEN_FIELDS.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Sending<()>,
    ) -> Sending<Sent> {
        self.0.outbound.send(request, options, &self.0.log)
    }

    /// Writes of the guest that wait for the client before the guest has to. With one, the
    /// default, even a guest with a short answer has to wait.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        8
    }

    /// Bytes that one write can have.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        64 << 10
    }
}
