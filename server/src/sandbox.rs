use crate::engine;
use http::{Request, Response};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use wasmtime::component::{Component, HasData, Linker, ResourceTable};
use wasmtime::{Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, Enabled};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

pub struct Host { wasi: WasiCtx, http: WasiHttpCtx, table: ResourceTable, hooks: NoOutbound }
struct NoOutbound;
impl WasiHttpHooks for NoOutbound {
    fn send_request(&mut self, _r: http::Request<WasiBody>, _o: Option<wasmtime_wasi_http::RequestOptions>,
        _f: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>)
    -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>), wasmtime_wasi_http::Error>> + Send> {
        Box::new(async { Err(wasmtime_wasi_http::Error::HttpRequestDenied) })
    }
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize { 8 }
}
impl WasiView for Host { fn ctx(&mut self) -> WasiCtxView<'_> { WasiCtxView { ctx: &mut self.wasi, table: &mut self.table } } }
impl WasiHttpView for Host { fn http(&mut self) -> WasiHttpCtxView<'_> { WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http } } }

pub struct Sandboxes { engine: Engine, pre: ProxyPre<Host> }
static CODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wasi.cwasm"));

impl Sandboxes {
    pub fn new() -> wasmtime::Result<Self> {
        let mut config = engine::config();
        let mut pool = PoolingAllocationConfig::default();
        let n = 256;
        pool.total_component_instances(n).total_core_instances(4*n).total_memories(n).total_tables(2*n).total_stacks(n)
            .max_memory_size(engine::MEMORY_BYTES).linear_memory_keep_resident(1<<20).table_keep_resident(1<<16)
            .pagemap_scan(Enabled::Auto);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config)?;
        let component = unsafe { Component::deserialize(&engine, CODE)? };
        let mut l: Linker<Host> = Linker::new(&engine);
        {
            use wasmtime_wasi::cli::*; use wasmtime_wasi::clocks::*; use wasmtime_wasi::random::*;
            use wasmtime_wasi::p2::bindings::*;
            struct HasIo; impl HasData for HasIo { type Data<'a> = &'a mut ResourceTable; }
            let l = &mut l;
            io::error::add_to_linker::<_, HasIo>(l, |t: &mut Host| t.ctx().table)?;
            io::poll::add_to_linker::<_, HasIo>(l, |t| t.ctx().table)?;
            io::streams::add_to_linker::<_, HasIo>(l, |t| t.ctx().table)?;
            clocks::wall_clock::add_to_linker::<_, WasiClocks>(l, Host::clocks)?;
            clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(l, Host::clocks)?;
            random::random::add_to_linker::<_, WasiRandom>(l, Host::random)?;
            random::insecure::add_to_linker::<_, WasiRandom>(l, Host::random)?;
            random::insecure_seed::add_to_linker::<_, WasiRandom>(l, Host::random)?;
            cli::exit::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::environment::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::stdin::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::stdout::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::stderr::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::terminal_input::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::terminal_output::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, Host::cli)?;
            cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, Host::cli)?;
        }
        wasmtime_wasi_http::p2::bindings::http::types::add_to_linker::<_, WasiHttp>(&mut l, &Default::default(), Host::http)?;
        let pre = ProxyPre::new(l.instantiate_pre(&component)?)?;
        Ok(Self { engine, pre })
    }
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> wasmtime::Result<Response<WasiBody>> {
        let (tx, mut rx) = oneshot::channel();
        let mut call = Box::pin(tokio::time::timeout(Duration::from_secs(10), self.call(request, tx)));
        tokio::select! { biased;
            done = &mut call => { done??; Ok(rx.try_recv()??) }
            response = &mut rx => { tokio::spawn(call); Ok(response??) }
        }
    }
    async fn call(self: Arc<Self>, request: Request<Incoming>, tx: oneshot::Sender<Result<Response<WasiBody>, ErrorCode>>) -> wasmtime::Result<()> {
        let mut store = Store::new(&self.engine, Host { wasi: WasiCtx::builder().build(), http: WasiHttpCtx::new(), table: ResourceTable::new(), hooks: NoOutbound });
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let proxy = self.pre.instantiate_async(&mut store).await?;
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(tx)?;
        proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
    }
}
