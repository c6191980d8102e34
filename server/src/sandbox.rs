//! The sandbox: a component loaded once, and an instance of it for every request, or for as many
//! as [`Limits::requests`] says.
//!
//! A guest gets what [`host`] gives it, [`Limits::memory`] and a limit on its time, and it
//! makes room for other requests every [`TICK`](crate::clock::TICK).

use crate::clock::Clock;
use crate::component::{Component, Description, Wasi};
use crate::config::MemorySize;
use crate::host::{Host, Shared};
use crate::{engine, imports};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, SizeHint};
use std::fmt;
use std::future::{self, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView};
use wasmtime_wasi_http::{p2::bindings as p2, p3::bindings as p3};

/// Bytes that a guest may write of a body that nobody wants, such as that of a response to `HEAD`, and
/// the time that it may take. Then the guest ends, as the client has its response.
const MAX_DISCARDED_BYTES: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// A component, loaded and ready to be instantiated.
pub struct Sandbox {
    engine: Engine,
    ready: ProxyPre,
    limits: Limits,
    /// Guests that may serve again.
    idle: Mutex<Vec<Guest>>,
    clock: Clock,
    shared: Arc<Shared>,
}

/// What bounds the guest calls of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls at a time.
    pub calls: u32,
    /// Time for one call, its answer's body included.
    pub time: Duration,
    /// Requests that a guest serves before it is thrown away.
    pub requests: u32,
    /// Linear memory of one guest.
    pub memory: MemorySize,
    /// Linear memory that a guest leaves resident for the next one.
    pub resident: MemorySize,
}

/// The component, linked, by the `wasi:http` world that it exports.
enum ProxyPre {
    P2(p2::ProxyPre<Host>),
    P3(p3::ServicePre<Host>),
}

/// An instance of the component.
struct Guest {
    store: Store<Host>,
    exports: Proxy,
    /// Requests that it has served.
    served: u32,
}

enum Proxy {
    P2(p2::Proxy),
    P3(p3::Service),
}

/// Why there is no answer from the guest.
#[derive(Debug)]
pub enum Failure {
    /// As many calls as allowed are under way.
    Busy,
    /// The client has gone before the request's body was whole, or has sent what is no body.
    NoWholeRequest,
    /// The guest gave this error instead of an answer.
    Refused(String),
    /// The guest ended without an answer.
    Silent,
    /// The guest's answer is not what it says it is.
    Malformed(Error),
    /// The guest exited.
    Exited {
        status: i32,
        /// Set when the guest has written to its standard error during the request.
        logged: bool,
    },
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
            Self::NoWholeRequest => StatusCode::BAD_REQUEST,
            Self::Refused(_) | Self::Silent | Self::Malformed(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Exited { .. } | Self::Trapped(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns true if the log needs no line of the server's own: the fault is the client's, or the guest
    /// exited and has written to its standard error, as a program does that gives its reason.
    pub fn is_quiet(&self) -> bool {
        matches!(
            self,
            Self::NoWholeRequest | Self::Exited { logged: true, .. }
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Busy => write!(f, "MAX_REQUESTS are in the component"),
            Self::NoWholeRequest => write!(f, "the request's body is not whole"),
            Self::Refused(code) => write!(f, "the guest refused the request: {code}"),
            Self::Silent => write!(f, "the guest ended without an answer"),
            Self::Malformed(error) => write!(f, "the guest's answer is malformed: {error}"),
            Self::Exited { status, .. } => write!(f, "the guest exited with status {status}"),
            Self::TimedOut => write!(f, "the guest took too long"),
            Self::Trapped(error) => write!(f, "the guest trapped: {error:#}"),
        }
    }
}

/// An answer's body: all of it, or one that is still to come.
pub type Content = Either<Full<Bytes>, WasiBody>;

type Answered = Result<Response<WasiBody>, Failure>;

/// What is known of a call outside of it.
#[derive(Default)]
pub struct CallState {
    /// What the guest has answered.
    answer: Mutex<Option<Answered>>,
    /// The guest has not come to a wait or an end: others were given a turn.
    preempted: AtomicBool,
    /// The guest has given a response, or an error in its place.
    answered: AtomicBool,
    /// The guest has failed.
    broken: AtomicBool,
    /// The guest has ended, and had written to its standard error.
    logged: AtomicBool,
}

impl CallState {
    fn give(&self, answer: Answered) {
        self.answered.store(true, Ordering::Relaxed);
        *self.answer() = Some(answer);
    }

    fn take(&self) -> Option<Answered> {
        self.answer().take()
    }

    fn answer(&self) -> MutexGuard<'_, Option<Answered>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a guest's turn ended.
enum Turn {
    Ended(Result<(), Failure>),
    /// The guest waits, its answer given.
    Waits(Answered),
}

impl Sandbox {
    /// Loads a component.
    ///
    /// # Errors
    /// One line, when the machine code is not for this machine or this program, when the component imports
    /// what a guest here does not get, or when the system denies memory or a thread.
    pub fn load(component: &Component, limits: Limits, shared: Shared) -> Result<Self, String> {
        component.check_memory(limits.memory)?;
        let engine = engine(&component.description, limits)?;
        let loaded = component.load(&engine)?;
        Self::link(engine, &loaded, component.description.wasi, limits, shared)
            .map_err(|error| format!("{}: {error:#}", component.path.display()))
    }

    fn link(
        engine: Engine,
        component: &wasmtime::component::Component,
        wasi: Wasi,
        limits: Limits,
        shared: Shared,
    ) -> wasmtime::Result<Self> {
        // Otherwise the first guest does it, and fails where no file descriptor is left for it.
        component.initialize_copy_on_write_image()?;
        let ready = imports::linker(&engine, component, wasi)?.instantiate_pre(component)?;
        let ready = match wasi {
            Wasi::P2 => ProxyPre::P2(p2::ProxyPre::new(ready)?),
            Wasi::P3 => ProxyPre::P3(p3::ServicePre::new(ready)?),
        };
        Ok(Self {
            clock: Clock::start(engine.clone())?,
            idle: Mutex::default(),
            engine,
            ready,
            limits,
            shared: Arc::new(shared),
        })
    }

    /// Has a guest answer the request. The answer is there when the guest ends or first waits for
    /// something; in the second case its body still comes out of the guest. The guest ends when
    /// `body_failed` is notified.
    ///
    /// # Errors
    /// When no answer came; see [`Failure`].
    pub async fn answer<B>(
        self: &Arc<Self>,
        request: Request<B>,
        body_failed: Option<Arc<Notify>>,
    ) -> Result<Response<Content>, Failure>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let is_head = request.method() == Method::HEAD;
        let state = Arc::<CallState>::default();
        let mut call = Box::pin(self.clone().call(request, body_failed, state.clone()));
        let turn = poll_fn(|cx| {
            state.preempted.store(false, Ordering::Relaxed);
            match call.as_mut().poll(cx) {
                Poll::Ready(ended) => Poll::Ready(Turn::Ended(ended)),
                Poll::Pending if state.preempted.load(Ordering::Relaxed) => Poll::Pending,
                Poll::Pending => match state.take() {
                    Some(answer) => Poll::Ready(Turn::Waits(answer)),
                    None => Poll::Pending,
                },
            }
        });
        match turn.await {
            Turn::Ended(ended) => {
                // Of a guest that failed, nothing has been sent, and nothing will be.
                ended?;
                let answer = state.take().ok_or(Failure::Silent)??;
                whole(answer, is_head).await
            }
            Turn::Waits(answer) => {
                let (head, body) = answer?.into_parts();
                let shared = self.shared.clone();
                let in_flight = state.clone();
                let guest = tokio::spawn(async move {
                    if let Err(failure) = call.await {
                        in_flight.broken.store(true, Ordering::Relaxed);
                        if !failure.is_quiet() {
                            let log = &shared.log;
                            log.event(format_args!("after the response started: {failure}"));
                        }
                    }
                });
                let body = if has_no_body(is_head, head.status) {
                    // The guest writes one all the same, and writing fails if nobody takes it.
                    let guest = guest.abort_handle();
                    tokio::spawn(async move {
                        if timeout(DISCARD_TIMEOUT, discard(body)).await != Ok(true) {
                            guest.abort();
                        }
                    });
                    Either::Left(Full::default())
                } else {
                    let length = head.headers.get(CONTENT_LENGTH).and_then(number);
                    let body = StreamingBody {
                        body,
                        call: state,
                        guest: guest.abort_handle(),
                        missing: length,
                        ended: false,
                    };
                    Either::Right(body.boxed_unsync())
                };
                Ok(Response::from_parts(head, body))
            }
        }
    }

    async fn call<B>(
        self: Arc<Self>,
        request: Request<B>,
        body_failed: Option<Arc<Notify>>,
        state: Arc<CallState>,
    ) -> Result<(), Failure>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let most = self.limits.calls as usize;
        let _running = self.clock.run(most).ok_or(Failure::Busy)?;
        let run = timeout(self.limits.time, self.run(request, state.clone()));
        let body_failed = async {
            match body_failed {
                Some(failed) => failed.notified().await,
                None => future::pending().await,
            }
        };
        let ended = tokio::select! {
            biased;
            ended = run => ended,
            () = body_failed => return Err(Failure::NoWholeRequest),
        };
        match ended {
            Ok(ended) => ended.map_err(|error| match error.downcast_ref() {
                Some(&I32Exit(status)) => Failure::Exited {
                    status,
                    logged: state.logged.load(Ordering::Relaxed),
                },
                None => Failure::Trapped(error),
            }),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    async fn run<B>(&self, request: Request<B>, state: Arc<CallState>) -> wasmtime::Result<()>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let idle = self.idle().pop();
        let mut guest = match idle {
            Some(mut guest) => {
                guest.store.data_mut().call = state;
                guest
            }
            None => self.instantiate(state).await?,
        };
        let ended = guest.handle(request).await;
        let host = guest.store.data();
        host.call
            .logged
            .store(host.take_logged(), Ordering::Relaxed);
        let answered = host.call.answered.load(Ordering::Relaxed);
        // A guest that has failed is dropped here, as is one whose time is over, or that has given no response: it may
        // not be able to serve a second request.
        ended?;
        if answered && guest.served < self.limits.requests {
            self.idle().push(guest);
        }
        Ok(())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn instantiate(&self, call: Arc<CallState>) -> wasmtime::Result<Guest> {
        let mut store = Store::new(&self.engine, Host::new(&self.shared, call));
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|guest| {
            guest.data().call.preempted.store(true, Ordering::Relaxed);
            Ok(UpdateDeadline::Yield(1))
        });
        let exports = match &self.ready {
            ProxyPre::P2(ready) => Proxy::P2(ready.instantiate_async(&mut store).await?),
            ProxyPre::P3(ready) => Proxy::P3(ready.instantiate_async(&mut store).await?),
        };
        Ok(Guest {
            store,
            exports,
            served: 0,
        })
    }
}

/// The response of a guest that has ended, with all of its body.
async fn whole(answer: Response<WasiBody>, is_head: bool) -> Result<Response<Content>, Failure> {
    let (head, body) = answer.into_parts();
    if has_no_body(is_head, head.status) {
        // Its length, if it has one, is that of the body that is left out (RFC 9110, section 8.6).
        return Ok(Response::from_parts(head, Either::Left(Full::default())));
    }
    let body = body.collect().await.map_err(Failure::Malformed)?;
    if body.trailers().is_some() {
        let body = body.map_err(Error::from).boxed_unsync();
        return Ok(Response::from_parts(head, Either::Right(body)));
    }
    let body = body.to_bytes();
    match head.headers.get(CONTENT_LENGTH) {
        Some(claimed) if number(claimed) != Some(body.len()) => {
            let length = Error::HttpResponseBodySize(Some(body.len() as u64));
            Err(Failure::Malformed(length))
        }
        _ => Ok(Response::from_parts(head, Either::Left(Full::new(body)))),
    }
}

fn number(value: &HeaderValue) -> Option<usize> {
    value.to_str().ok()?.parse().ok()
}

/// Returns true if the response has no body, whatever its fields say (RFC 9110, section 6.4.1).
fn has_no_body(is_head: bool, status: StatusCode) -> bool {
    is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Takes a body that nobody wants, up to [`MAX_DISCARDED_BYTES`]. Returns true if that was all of it.
async fn discard(mut body: WasiBody) -> bool {
    let mut bytes = 0;
    while bytes <= MAX_DISCARDED_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    bytes <= MAX_DISCARDED_BYTES
}

/// The body of a response whose guest still runs. If it is dropped before its end, the client has
/// gone, and the guest ends without a word: it would take the missing reader for a failure of its own.
struct StreamingBody {
    body: WasiBody,
    call: Arc<CallState>,
    guest: AbortHandle,
    /// Bytes that are to come by `content-length`; after them hyper does not ask for the end.
    missing: Option<usize>,
    /// Set when the end has come.
    ended: bool,
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        if !self.ended && self.missing != Some(0) && !self.body.is_end_stream() {
            self.guest.abort();
        }
    }
}

impl Body for StreamingBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            // When the guest fails, its body just ends. An error instead, so that the client does not
            // take half a response for a whole one.
            Poll::Ready(None) if self.call.broken.load(Ordering::Relaxed) => {
                return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.missing = self.missing.map(|missing| missing.saturating_sub(bytes));
                self.ended |= frame.is_trailers();
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Guest {
    async fn handle<B>(&mut self, request: Request<B>) -> wasmtime::Result<()>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        self.served += 1;
        let store = &mut self.store;
        store.set_epoch_deadline(1);
        let call = store.data().call.clone();
        match &self.exports {
            Proxy::P2(proxy) => {
                let scheme = match request.uri().scheme_str() {
                    Some("https") => Scheme::Https,
                    _ => Scheme::Http,
                };
                let mut http = store.data_mut().http();
                let request = http.new_incoming_request(scheme, request)?;
                let out = http.new_response_outparam_from_callback(move |answer| {
                    call.give(answer.map_err(Failure::refused));
                })?;
                let handler = proxy.wasi_http_incoming_handler();
                handler.call_handle(store, request, out).await
            }
            Proxy::P3(service) => {
                let hooks = store.data_mut().http().hooks;
                let (request, sent) = wasmtime_wasi_http::p3::Request::from_http(hooks, request);
                let conversation = async |guest: &wasmtime::component::Accessor<Host>| {
                    let answer = match service.handle(guest, request).await? {
                        Ok(answer) => guest.with(|store| answer.into_http(store, sent))?,
                        Err(error) => {
                            call.give(Err(Failure::refused(error)));
                            return Ok(());
                        }
                    };
                    call.give(Ok(answer));
                    poll_fn(|cx| guest.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                };
                store.run_concurrent(conversation).await?
            }
        }
    }
}

/// Makes an engine with a slot of memory for each guest.
///
/// # Errors
/// One line. Where the process has too little address space, such as 39 bits of it or what `RLIMIT_AS`
/// leaves, the line has the most guests that fit.
fn engine(component: &Description, limits: Limits) -> Result<Engine, String> {
    let engine = |calls| {
        let mut config = engine::config(component.wasi);
        let pool = pool(component, Limits { calls, ..limits });
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        Engine::new(&config)
    };
    let calls = limits.calls;
    engine(calls).map_err(|error| {
        let fits = |calls| {
            let mut spare = Vec::<u8>::new();
            spare.try_reserve_exact(SPARE_ADDRESS_SPACE).is_ok() && engine(calls).is_ok()
        };
        let (mut fit, mut too_many) = (0, calls);
        while fit + 1 < too_many {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle) {
                fit = middle;
            } else {
                too_many = middle;
            }
        }
        format!(
            "MAX_REQUESTS={calls}: the address space that this process may have does not hold as many guests, each \
             with {} GiB; {}",
            (engine::MEMORY_RESERVATION >> 30) * u64::from(component.memories.max(1)),
            match fit {
                0 => format!("none fits: {}", error.root_cause()),
                _ => format!("{fit} fit"),
            }
        )
    })
}

/// Address space that the advice on `MAX_REQUESTS` leaves, in bytes: for the threads with their stacks, and what the
/// allocator reserves for each.
const SPARE_ADDRESS_SPACE: usize = 256 << 20;

/// Elements that a table may grow to, if it does not start with more: Wasmtime's default.
const TABLE_ELEMENTS: usize = 20_000;

/// Slots for guests: each as many memories and tables as the component's modules define, which share what a guest may
/// have. A component that makes several instances of a module may need more, and then does not load.
fn pool(component: &Description, limits: Limits) -> PoolingAllocationConfig {
    let Limits { calls, .. } = limits;
    let Description {
        memories, tables, ..
    } = *component;
    let elements = component.table_elements as usize;
    let share = |size: MemorySize| (size.0 / u64::from(memories.max(1))) as usize;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        // They take no room of their own.
        .total_core_instances(u32::MAX)
        .total_memories(calls.saturating_mul(memories))
        .max_memories_per_component(memories)
        .total_tables(calls.saturating_mul(tables))
        .max_tables_per_component(tables)
        .table_elements(elements.max(TABLE_ELEMENTS))
        .total_stacks(calls)
        .max_memory_size(share(limits.memory))
        // Each guest starts from the component's initial memory. The first bytes of a used slot are
        // overwritten with it and stay resident: by default all of it for a guest that starts small (see the
        // root package's build.rs). The kernel takes the pages above them (`madvise`).
        .linear_memory_keep_resident(share(limits.resident))
        .table_keep_resident(4 << 10)
        // Resetting only the pages that the kernel reports as written (`PAGEMAP_SCAN`, as Wasmtime 48
        // asks for it: written and present) misses a page that was swapped out or is just migrating.
        // The next guest in the slot would read what the last one left there.
        .pagemap_scan(Enabled::No);
    pool
}
