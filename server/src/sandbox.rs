//! The sandbox: a component loaded once, and a fresh instance of it for every request.
//!
//! A guest has no capabilities: no files, no environment, no sockets, no outbound HTTP. It gets
//! clocks, randomness and a log stream, [`MEMORY_BYTES`] of memory and a limit on its time, and it
//! makes room for other requests every [`TICK`].

use crate::component::Precompiled;
use crate::engine::{self, MEMORY_BYTES};
use crate::guest_log::GuestLog;
use crate::log::Log;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Body;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};
use tokio::sync::{Semaphore, oneshot};
use wasmtime::component::{Component, HasData, Linker, ResourceTable};
use wasmtime::error::Context;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings as http02;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// How long a guest computes before other requests on its thread get their turn.
pub const TICK: Duration = Duration::from_millis(10);

/// A component, loaded and ready to be instantiated.
pub struct Sandbox {
    engine: Engine,
    door: Door,
    limits: Limits,
    free: Semaphore,
    clock: Clock,
    log: Log,
}

/// What bounds the guest calls of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls at a time.
    pub calls: u32,
    /// Time for one call, its answer's body included.
    pub time: Duration,
}

/// The `wasi:http` world that the component exports.
enum Door {
    Wasi02(http02::ProxyPre<Host>),
    #[cfg(feature = "spin")]
    Wasi03(wasmtime_wasi_http::p3::bindings::ServicePre<Host>),
}

/// Why there is no answer from the guest.
#[derive(Debug)]
pub enum Failure {
    /// As many calls as allowed are under way.
    Busy,
    /// The guest gave this error instead of an answer.
    Refused(String),
    /// The guest ended without an answer.
    Silent,
    /// The guest took longer than allowed.
    TimedOut,
    /// The guest broke off: a panic, a fault, too much memory or stack.
    Trapped(wasmtime::Error),
}

impl Failure {
    fn refused(code: impl fmt::Debug) -> Self {
        Self::Refused(format!("{code:?}"))
    }

    /// The status to answer the client with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(_) | Self::Silent => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Trapped(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Busy => write!(f, "no sandbox is free"),
            Self::Refused(code) => write!(f, "the guest refused the request: {code}"),
            Self::Silent => write!(f, "the guest ended without an answer"),
            Self::TimedOut => write!(f, "the guest took too long"),
            Self::Trapped(error) => write!(f, "the guest trapped: {error:#}"),
        }
    }
}

type Reply = oneshot::Sender<Result<Response<WasiBody>, Failure>>;

impl Sandbox {
    /// Loads a component.
    ///
    /// # Errors
    /// When the machine code is not for this machine or this server, when the component imports
    /// what a guest here does not get, or when the system denies memory or a thread.
    pub fn load(component: &Precompiled, limits: Limits, log: Log) -> wasmtime::Result<Self> {
        let mut config = engine::config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits.calls)));
        let engine = Engine::new(&config)?;
        let component = load(&engine, component)?;
        let mut linker = Linker::new(&engine);
        link(&mut linker)?;
        let ready = linker
            .instantiate_pre(&component)
            .context("the component imports what a guest here does not get")?;
        #[cfg(feature = "spin")]
        let door = match http02::ProxyPre::new(ready.clone()) {
            Ok(proxy) => Door::Wasi02(proxy),
            Err(_) => Door::Wasi03(wasmtime_wasi_http::p3::bindings::ServicePre::new(ready)?),
        };
        #[cfg(not(feature = "spin"))]
        let door = Door::Wasi02(http02::ProxyPre::new(ready)?);
        Ok(Self {
            clock: Clock::start(engine.clone())?,
            free: Semaphore::new(limits.calls as usize),
            engine,
            door,
            limits,
            log,
        })
    }

    /// Has a fresh guest answer the request. The guest may go on for a while after its answer's
    /// head is here: its body comes out of the guest, too.
    ///
    /// # Errors
    /// When no answer came; see [`Failure`].
    pub async fn answer<B>(
        self: &Arc<Self>,
        request: Request<B>,
    ) -> Result<Response<WasiBody>, Failure>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let (reply, mut answer) = oneshot::channel();
        let mut call = Box::pin(self.clone().call(request, reply));
        // The usual guest ends in its first turn, its answer given. Only one that still has
        // something to do needs a task of its own.
        tokio::select! {
            biased;
            ended = &mut call => match (answer.try_recv(), ended) {
                (Ok(answer), ended) => {
                    self.log_broken(ended);
                    answer
                }
                (Err(_), Err(failure)) => Err(failure),
                (Err(_), Ok(())) => Err(Failure::Silent),
            },
            answered = &mut answer => {
                let answer = answered.map_err(|_| Failure::Silent)??;
                let sandbox = self.clone();
                tokio::spawn(async move { sandbox.log_broken(call.await) });
                Ok(answer)
            }
        }
    }

    /// Logs that a guest failed with its answer half given: the client sees the connection break.
    fn log_broken(&self, ended: Result<(), Failure>) {
        if let Err(failure) = ended {
            self.log
                .event(format_args!("an answer broke off: {failure}"));
        }
    }

    async fn call<B>(self: Arc<Self>, request: Request<B>, reply: Reply) -> Result<(), Failure>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let _free = self.free.try_acquire().map_err(|_| Failure::Busy)?;
        let _running = self.clock.run();
        match tokio::time::timeout(self.limits.time, self.run(request, reply)).await {
            Ok(ended) => ended.map_err(Failure::Trapped),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    async fn run<B>(&self, request: Request<B>, reply: Reply) -> wasmtime::Result<()>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let mut store = Store::new(&self.engine, Host::new(&self.log));
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        match &self.door {
            Door::Wasi02(ready) => {
                let guest = ready.instantiate_async(&mut store).await?;
                let mut http = store.data_mut().http();
                let request = http.new_incoming_request(Scheme::Http, request)?;
                let out = http.new_response_outparam_from_callback(move |answer| {
                    // The client may have gone by now.
                    let _ = reply.send(answer.map_err(Failure::refused));
                })?;
                let handler = guest.wasi_http_incoming_handler();
                handler.call_handle(&mut store, request, out).await
            }
            #[cfg(feature = "spin")]
            Door::Wasi03(ready) => {
                use wasmtime_wasi_http::p3::Request;
                let guest = ready.instantiate_async(&mut store).await?;
                let (request, sent) = Request::from_http(&mut NoOutboundHttp, request);
                let conversation = async |guest_side: &wasmtime::component::Accessor<Host>| {
                    let answer = match guest.handle(guest_side, request).await? {
                        Ok(answer) => guest_side.with(|store| answer.into_http(store, sent))?,
                        Err(error) => {
                            let _ = reply.send(Err(Failure::refused(error)));
                            return Ok(());
                        }
                    };
                    let _ = reply.send(Ok(answer));
                    std::future::poll_fn(|cx| guest_side.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                };
                store.run_concurrent(conversation).await?
            }
        }
    }
}

/// What the host keeps for one guest.
struct Host {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outbound: NoOutboundHttp,
    handles: ResourceTable,
}

impl Host {
    fn new(log: &Log) -> Self {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(GuestLog::new(log)).stderr(GuestLog::new(log));
        Self {
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            outbound: NoOutboundHttp,
            handles: ResourceTable::new(),
        }
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.handles,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.handles,
            ctx: &mut self.http,
        }
    }
}

struct NoOutboundHttp;

type Sending<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

impl WasiHttpHooks for NoOutboundHttp {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Sending<()>,
    ) -> Sending<(Response<WasiBody>, Sending<()>)> {
        Box::new(async { Err(Error::HttpRequestDenied) })
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

/// Gives the guest the interfaces that need no capability, and no others.
fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::{cli, clocks, io, random};

    struct Handles;
    impl HasData for Handles {
        type Data<'a> = &'a mut ResourceTable;
    }
    fn handles(host: &mut Host) -> &mut ResourceTable {
        &mut host.handles
    }

    io::error::add_to_linker::<_, Handles>(linker, handles)?;
    io::poll::add_to_linker::<_, Handles>(linker, handles)?;
    io::streams::add_to_linker::<_, Handles>(linker, handles)?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, Host::clocks)?;
    clocks::wall_clock::add_to_linker::<_, WasiClocks>(linker, Host::clocks)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, Host::random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, Host::random)?;
    random::random::add_to_linker::<_, WasiRandom>(linker, Host::random)?;
    // Rust's standard library imports these whether it needs them or not. The environment that
    // they show is empty, standard input is at its end, and no stream is a terminal.
    cli::environment::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::stderr::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::stdout::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    http02::http::types::add_to_linker::<_, WasiHttp>(linker, &Default::default(), Host::http)?;
    #[cfg(feature = "spin")]
    {
        use wasmtime_wasi::p3::{cli, clocks, random};
        cli::add_to_linker(linker)?;
        clocks::add_to_linker(linker)?;
        random::add_to_linker(linker)?;
        wasmtime_wasi_http::p3::bindings::http::types::add_to_linker::<_, WasiHttp>(
            linker,
            Host::http,
        )?;
    }
    Ok(())
}

/// Slots for `calls` guests, of the size that a component like ours needs: two core instances and
/// the adapter's shims, one memory.
fn pool(calls: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        .total_core_instances(calls.saturating_mul(4))
        .total_memories(calls)
        .total_tables(calls.saturating_mul(2))
        .total_stacks(calls)
        .max_memory_size(MEMORY_BYTES)
        // A used slot goes back to its first state page by page: `PAGEMAP_SCAN` finds the pages
        // that were written to, and those stay resident (Linux 6.7; below, the kernel takes them).
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(64 << 10);
    pool
}

fn load(engine: &Engine, component: &Precompiled) -> wasmtime::Result<Component> {
    // SAFETY: the bytes of a `Precompiled` are what `Engine::precompile_component` gave
    // `build.rs`, unchanged since: they are constants in this executable's read-only data.
    #[allow(unsafe_code)]
    unsafe {
        Component::deserialize(engine, component.code)
    }
}

/// Ticks while guests run, so that one that computes for long makes room for others.
struct Clock {
    shared: Arc<ClockState>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct ClockState {
    running: AtomicUsize,
    stop: AtomicBool,
}

impl Clock {
    fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::<ClockState>::default();
        let state = shared.clone();
        let thread = thread::Builder::new().name("clock".into()).spawn(move || {
            while !state.stop.load(Ordering::Relaxed) {
                if state.running.load(Ordering::Relaxed) == 0 {
                    thread::park();
                } else {
                    thread::sleep(TICK);
                    engine.increment_epoch();
                }
            }
        })?;
        Ok(Self { shared, thread })
    }

    /// Counts a guest as running for as long as the value that this returns lives.
    fn run(&self) -> Running<'_> {
        // Unparking costs a system call only when the thread is parked.
        if self.shared.running.fetch_add(1, Ordering::Relaxed) == 0 {
            self.thread.thread().unpark();
        }
        Running(&self.shared.running)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
