//! The sandbox: a component loaded once, and an instance of it for every request, or for as many
//! as [`Limits::requests`] says.
//!
//! A guest gets what [`host`] gives it, [`MEMORY_BYTES`] of memory and a limit on its time, and it
//! makes room for other requests every [`TICK`](crate::clock::TICK).

use crate::clock::Clock;
use crate::component::{InPlace, Precompiled};
use crate::engine::{self, MEMORY_BYTES};
use crate::host::{self, Host};
use crate::log::Log;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, SizeHint};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings as http02;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
#[cfg(feature = "spin")]
use wasmtime_wasi_http::p3::bindings as http03;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView};

/// A component, loaded and ready to be instantiated.
pub struct Sandbox {
    engine: Engine,
    door: Door,
    limits: Limits,
    /// Guests that may serve again.
    idle: Mutex<Vec<Guest>>,
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
    /// Requests that a guest serves before it is thrown away.
    pub requests: u32,
}

/// The `wasi:http` world that the component exports.
enum Door {
    Wasi02(http02::ProxyPre<Host>),
    #[cfg(feature = "spin")]
    Wasi03(http03::ServicePre<Host>),
}

/// An instance of the component.
struct Guest {
    store: Store<Host>,
    exports: Exports,
    /// Requests that it has served.
    served: u32,
}

enum Exports {
    Wasi02(http02::Proxy),
    #[cfg(feature = "spin")]
    Wasi03(http03::Service),
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
    /// The guest's answer is not what it says it is.
    Malformed(Error),
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
            Self::Refused(_) | Self::Silent | Self::Malformed(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Trapped(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Busy => write!(f, "MAX_REQUESTS are in the component"),
            Self::Refused(code) => write!(f, "the guest refused the request: {code}"),
            Self::Silent => write!(f, "the guest ended without an answer"),
            Self::Malformed(error) => write!(f, "the guest's answer is malformed: {error}"),
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
    /// The guest has failed.
    broken: AtomicBool,
}

impl CallState {
    fn give(&self, answer: Answered) {
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
    /// When the machine code is not for this machine or this server, when the component imports
    /// what a guest here does not get, or when the system denies memory or a thread.
    pub fn load(component: &Precompiled, limits: Limits, log: Log) -> wasmtime::Result<Self> {
        let mut config = engine::config();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits.calls)))
            .with_custom_code_memory(Some(Arc::new(InPlace)));
        let engine = Engine::new(&config)?;
        let component = component.load(&engine)?;
        // Otherwise the first guest does it, and fails where no file descriptor is left for it.
        component.initialize_copy_on_write_image()?;
        let ready = host::linker(&engine, &component)?.instantiate_pre(&component)?;
        #[cfg(feature = "spin")]
        let door = match http02::ProxyPre::new(ready.clone()) {
            Ok(proxy) => Door::Wasi02(proxy),
            Err(_) => Door::Wasi03(http03::ServicePre::new(ready)?),
        };
        #[cfg(not(feature = "spin"))]
        let door = Door::Wasi02(http02::ProxyPre::new(ready)?);
        Ok(Self {
            clock: Clock::start(engine.clone())?,
            idle: Mutex::default(),
            engine,
            door,
            limits,
            log,
        })
    }

    /// Has a guest answer the request. The answer is there when the guest ends or first waits for
    /// something; in the second case its body still comes out of the guest.
    ///
    /// # Errors
    /// When no answer came; see [`Failure`].
    pub async fn answer<B>(
        self: &Arc<Self>,
        request: Request<B>,
    ) -> Result<Response<Content>, Failure>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let head_only = request.method() == Method::HEAD;
        let state = Arc::<CallState>::default();
        let mut call = Box::pin(self.clone().call(request, state.clone()));
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
                whole(answer, head_only).await
            }
            Turn::Waits(answer) => {
                let answer = answer?.map(|body| {
                    let call = state.clone();
                    Either::Right(Unfinished { body, call }.boxed_unsync())
                });
                let log = self.log.clone();
                tokio::spawn(async move {
                    if let Err(failure) = call.await {
                        state.broken.store(true, Ordering::Relaxed);
                        log.event(format_args!("after the answer began: {failure}"));
                    }
                });
                Ok(answer)
            }
        }
    }

    async fn call<B>(
        self: Arc<Self>,
        request: Request<B>,
        state: Arc<CallState>,
    ) -> Result<(), Failure>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let most = self.limits.calls as usize;
        let _running = self.clock.run(most).ok_or(Failure::Busy)?;
        match tokio::time::timeout(self.limits.time, self.run(request, state)).await {
            Ok(ended) => ended.map_err(Failure::Trapped),
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
        // A guest that fails, or is given up on, is dropped here.
        guest.handle(request).await?;
        if guest.served < self.limits.requests {
            self.idle().push(guest);
        }
        Ok(())
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn instantiate(&self, call: Arc<CallState>) -> wasmtime::Result<Guest> {
        let mut store = Store::new(&self.engine, Host::new(&self.log, call));
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|guest| {
            guest.data().call.preempted.store(true, Ordering::Relaxed);
            Ok(UpdateDeadline::Yield(1))
        });
        let exports = match &self.door {
            Door::Wasi02(ready) => Exports::Wasi02(ready.instantiate_async(&mut store).await?),
            #[cfg(feature = "spin")]
            Door::Wasi03(ready) => Exports::Wasi03(ready.instantiate_async(&mut store).await?),
        };
        Ok(Guest {
            store,
            exports,
            served: 0,
        })
    }
}

/// The answer of a guest that has ended, with all of its body.
async fn whole(answer: Response<WasiBody>, head_only: bool) -> Result<Response<Content>, Failure> {
    let (head, body) = answer.into_parts();
    if head_only {
        // Its length is that of the body that is left out (RFC 9110, section 9.3.2).
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

/// The body of an answer whose guest still runs.
struct Unfinished {
    body: WasiBody,
    call: Arc<CallState>,
}

impl Body for Unfinished {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            // All that the body shows of a failure is an end like any other.
            Poll::Ready(None) if self.call.broken.load(Ordering::Relaxed) => {
                Poll::Ready(Some(Err(Error::HttpResponseIncomplete)))
            }
            polled => polled,
        }
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
            Exports::Wasi02(proxy) => {
                let mut http = store.data_mut().http();
                let request = http.new_incoming_request(Scheme::Http, request)?;
                let out = http.new_response_outparam_from_callback(move |answer| {
                    call.give(answer.map_err(Failure::refused));
                })?;
                let handler = proxy.wasi_http_incoming_handler();
                handler.call_handle(store, request, out).await
            }
            #[cfg(feature = "spin")]
            Exports::Wasi03(service) => {
                let (request, sent) =
                    wasmtime_wasi_http::p3::Request::from_http(&mut host::NoOutboundHttp, request);
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
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10);
    pool
}
