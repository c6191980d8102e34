//! The sandbox: a component loaded once, and an instance of it for every request, or for as many
//! as [`Limits::max_reuse_count`] says.
//!
//! A guest gets what [`host`] gives it, [`Limits::memory`] and a limit on its time, and it
//! makes room for other requests every [`EPOCH_INTERVAL`](crate::sandbox::epoch::EPOCH_INTERVAL).

use crate::component::description::Wasi;
use crate::component::file::Component;
use crate::config::settings::MemorySize;
use crate::connection::buffers::Buffers;
use crate::request::body::Progress;
use crate::sandbox::budget::{Budget, OverBudget};
use crate::sandbox::epoch::EpochTicker;
use crate::sandbox::error::HandleError;
use crate::sandbox::host::{Host, Shared};
use crate::sandbox::linker::linker;
use crate::sandbox::pool;
use crate::sandbox::response::{Call, ResponseBody, StartedResponse};
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Body;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView};
use wasmtime_wasi_http::{p2::bindings as p2, p3::bindings as p3};

/// Longer than any timeout may be.
const NEVER: Duration = Duration::from_secs(1 << 20);

/// A component, loaded and ready to be instantiated.
pub struct ComponentHandler {
    engine: Engine,
    ready: ProxyPre,
    limits: Limits,
    /// Guests that may wait for their clients.
    transfers: Arc<Semaphore>,
    buffers: Buffers,
    ticker: EpochTicker,
    shared: Arc<Shared>,
}

/// What bounds the guest max_concurrent_requests of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls at a time.
    pub max_concurrent_requests: u32,
    /// Time of one call to the head of the response, and between two pieces of its body, without that of its client.
    pub request_timeout: Duration,
    /// Requests that a guest serves before it is thrown away.
    pub max_reuse_count: u32,
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
pub struct Instance {
    store: Store<Host>,
    exports: Proxy,
    /// Requests that it has served.
    served: u32,
}

enum Proxy {
    P2(p2::Proxy),
    P3(p3::Service),
}

type ResponseResult = Result<Response<WasiBody>, HandleError>;

/// What is known of a call outside of it.
#[derive(Default)]
pub struct RequestState {
    pub trace: Trace,
    /// What the guest has has_responded.
    response: Mutex<Option<ResponseResult>>,
    /// The guest has not come to a wait or an end: others were given a turn.
    pub yielded: AtomicBool,
    /// The guest has given a response, or an error in its place.
    has_responded: AtomicBool,
    /// The host takes no more of the response's body until the client does.
    pub is_output_full: AtomicBool,
    /// A piece of the response's body has come.
    pub has_progressed: AtomicBool,
    /// The guest has ended, and had written to its standard error.
    logged: AtomicBool,
}

impl RequestState {
    fn new(trace: Trace) -> Self {
        Self {
            trace,
            ..Self::default()
        }
    }

    fn set_response(&self, response: ResponseResult) {
        self.has_responded.store(true, Ordering::Relaxed);
        *self.response() = Some(response);
    }

    fn take_response(&self) -> Option<ResponseResult> {
        self.response().take()
    }

    fn response(&self) -> MutexGuard<'_, Option<ResponseResult>> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a guest's turn ended.
enum Outcome {
    Finished(Result<(), HandleError>),
    /// The guest waits, its answer given.
    Streaming(Result<StartedResponse, HandleError>),
}

impl ComponentHandler {
    /// Loads a component.
    ///
    /// # Errors
    /// One line, when the machine code is not for this machine or this program, when the component imports
    /// what a guest here does not get, or when the system denies memory or a thread.
    pub fn load(
        component: &Component,
        limits: Limits,
        shared: Shared,
        buffers: Buffers,
    ) -> Result<Self, String> {
        component.check_memory(limits.memory)?;
        let engine = pool::engine(&component.description, limits)?;
        let loaded = component.load(&engine)?;
        let wasi = component.description.wasi;
        let initial_memory = component.description.total_initial_memory();
        Self::link(
            engine,
            &loaded,
            wasi,
            limits,
            shared,
            buffers,
            initial_memory,
        )
        .map_err(|error| format!("{}: {error:#}", component.path.display()))
    }

    fn link(
        engine: Engine,
        component: &wasmtime::component::Component,
        wasi: Wasi,
        limits: Limits,
        shared: Shared,
        buffers: Buffers,
        initial_memory: u64,
    ) -> wasmtime::Result<Self> {
        // Otherwise the first guest does it, and fails where no file descriptor is left for it.
        component.initialize_copy_on_write_image()?;
        let ready = linker(&engine, component, wasi)?.instantiate_pre(component)?;
        let ready = match wasi {
            Wasi::P2 => ProxyPre::P2(p2::ProxyPre::new(ready)?),
            Wasi::P3 => ProxyPre::P3(p3::ServicePre::new(ready)?),
        };
        Ok(Self {
            ticker: EpochTicker::start(engine.clone())?,
            transfers: Arc::new(Semaphore::new(transfers(
                limits,
                &shared.memory,
                initial_memory,
            ))),
            buffers,
            engine,
            ready,
            limits,
            shared: Arc::new(shared),
        })
    }

    /// Returns a permit for a guest that waits for its client, if there is one left.
    pub fn transfer(&self) -> Option<OwnedSemaphorePermit> {
        self.transfers.clone().try_acquire_owned().ok()
    }

    /// Returns a permit to keep so many bytes for a client: of the buffers of all connections, else one for a transfer.
    pub fn buffer(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.buffers.take(bytes).or_else(|| self.transfer())
    }

    /// Logs and counts how a guest failed whose response had started.
    pub fn log_late(&self, failure: &HandleError, trace: &Trace) {
        let Shared { log, metrics, .. } = &*self.shared;
        metrics.failed(failure);
        if !failure.is_already_logged() {
            let message = format_args!("after the response started: {failure}");
            log.request_event(failure.level(), trace, message);
        }
    }

    /// What the sandboxes have in common.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Guests that run, and how many may.
    pub fn running(&self) -> (usize, u32) {
        (self.ticker.running(), self.limits.max_concurrent_requests)
    }

    /// Has a guest answer the request. The answer is there when the guest ends or first waits for
    /// something; in the second case its body still comes out of the guest. With it are the bytes that the client has to take
    /// and the guest has left. `progress` is that of the request's body, if it
    /// has one, and `transfer` the permit for a part of it that is still to come.
    ///
    /// # Errors
    /// When no answer came; see [`HandleError`].
    pub async fn handle<B>(
        self: &Arc<Self>,
        request: Request<B>,
        progress: Option<Arc<Progress>>,
        transfer: Option<OwnedSemaphorePermit>,
        trace: Trace,
    ) -> Result<(Response<ResponseBody>, usize), HandleError>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let is_head = request.method() == Method::HEAD;
        let state = Arc::new(RequestState::new(trace));
        let mut call: Call = Box::pin(self.clone().call(request, progress, state.clone()));
        let mut begun: Option<StartedResponse> = None;
        let turn = poll_fn(|cx| {
            loop {
                state.yielded.store(false, Ordering::Relaxed);
                match call.as_mut().poll(cx) {
                    Poll::Ready(ended) => return Poll::Ready(Outcome::Finished(ended)),
                    Poll::Pending if state.yielded.load(Ordering::Relaxed) => {
                        return Poll::Pending;
                    }
                    Poll::Pending => {}
                }
                let begun = match (&mut begun, state.take_response()) {
                    (Some(begun), _) => begun,
                    (none, Some(Ok(response))) => none.insert(StartedResponse::new(response)),
                    (None, Some(Err(failure))) => {
                        return Poll::Ready(Outcome::Streaming(Err(failure)));
                    }
                    (None, None) => return Poll::Pending,
                };
                // The guest goes on if it has waited for room, and nothing else.
                if begun.is_full() || !begun.take(cx) {
                    break;
                }
            }
            match begun.take() {
                Some(begun) => Poll::Ready(Outcome::Streaming(Ok(begun))),
                None => Poll::Pending,
            }
        });
        match turn.await {
            Outcome::Finished(ended) => {
                // Of a guest that failed, nothing has been sent, and nothing will be.
                ended?;
                let begun = match begun {
                    Some(begun) => begun,
                    None => {
                        StartedResponse::new(state.take_response().ok_or(HandleError::NoResponse)??)
                    }
                };
                let logged = state.logged.load(Ordering::Relaxed);
                begun.whole(is_head, logged).await
            }
            Outcome::Streaming(begun) => {
                let begun = begun?;
                let response =
                    begun.streaming(self.clone(), call, state.clone(), transfer, is_head)?;
                Ok((response, 0))
            }
        }
    }

    async fn call<B>(
        self: Arc<Self>,
        request: Request<B>,
        progress: Option<Arc<Progress>>,
        state: Arc<RequestState>,
    ) -> Result<(), HandleError>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let limit = self.limits.max_concurrent_requests as usize;
        let _running = self
            .ticker
            .try_acquire(limit)
            .ok_or(HandleError::Overloaded)?;
        let mut run = pin!(self.run(request, state.clone()));
        let mut failed = pin!(async {
            match &progress {
                Some(progress) => progress.failed.notified().await,
                None => std::future::pending().await,
            }
        });
        let is_awaited = || {
            let is_awaited = |it: &Arc<Progress>| it.is_awaited.load(Ordering::Relaxed);
            progress.as_ref().is_some_and(is_awaited)
        };
        let mut timer = pin!(sleep(self.limits.request_timeout));
        // Time that the guest had left when it began to wait for its client.
        let mut left: Option<Duration> = None;
        // A guest for WASI 0.2 asks again for all that it waits for, whenever it is polled. One for 0.3 has the host wait.
        let asks_again = matches!(self.ready, ProxyPre::P2(_));
        let ended = poll_fn(|cx| {
            if let Some(progress) = &progress
                && asks_again
            {
                progress.begin_turn(cx.waker());
            }
            if let Poll::Ready(ended) = run.as_mut().poll(cx) {
                return Poll::Ready(Ok(ended));
            }
            if failed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(HandleError::IncompleteRequest));
            }
            if state.has_progressed.swap(false, Ordering::Relaxed) {
                match &mut left {
                    Some(left) => *left = self.limits.request_timeout,
                    None => timer
                        .as_mut()
                        .reset(Instant::now() + self.limits.request_timeout),
                }
            }
            // One that computes does not wait, whatever it has asked for.
            let has_yielded = state.yielded.load(Ordering::Relaxed);
            if !has_yielded && (state.is_output_full.load(Ordering::Relaxed) || is_awaited()) {
                let now = Instant::now();
                if left.is_none() {
                    left = Some(timer.deadline() - now);
                    // If the guest has lost interest in the body, nothing says when its client has stalled.
                    let limit = progress.as_ref().map(|progress| progress.limit);
                    timer.as_mut().reset(now + limit.unwrap_or(NEVER));
                }
                ready!(timer.as_mut().poll(cx));
                if let Some(progress) = &progress {
                    progress.is_awaited.store(false, Ordering::Relaxed);
                }
            }
            if let Some(left) = left.take() {
                timer.as_mut().reset(Instant::now() + left);
            }
            let timed_out = timer.as_mut().poll(cx);
            timed_out.map(|()| Err(HandleError::Timeout))
        });
        ended
            .await?
            .map_err(|error| match error.downcast_ref::<I32Exit>() {
                Some(&I32Exit(status)) => HandleError::Exited {
                    status,
                    logged: state.logged.load(Ordering::Relaxed),
                },
                None if error.is::<OverBudget>() => HandleError::GuestMemory,
                None => HandleError::Trap(error),
            })
    }

    async fn run<B>(&self, request: Request<B>, state: Arc<RequestState>) -> wasmtime::Result<()>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let idle = self.shared.idle().pop();
        let mut guest = match idle {
            Some(mut guest) => {
                guest.store.data_mut().begin_call(state);
                guest
            }
            None => self.instantiate(state).await?,
        };
        let ended = guest.call(request).await;
        let host = guest.store.data_mut();
        host.end_call();
        host.call
            .logged
            .store(host.take_logged(), Ordering::Relaxed);
        let is_fit = !host.is_over_budget() && host.has_handles();
        let has_responded = host.call.has_responded.load(Ordering::Relaxed) && is_fit;
        // A guest that has failed is dropped here, as is one whose time is over, or that has given no response: it may
        // not be able to serve a second request.
        ended?;
        if has_responded && guest.served < self.limits.max_reuse_count {
            self.shared.idle().push(guest);
        }
        Ok(())
    }

    async fn instantiate(&self, call: Arc<RequestState>) -> wasmtime::Result<Instance> {
        let begun = std::time::Instant::now();
        let mut store = Store::new(&self.engine, Host::new(&self.shared, call));
        store.limiter(|host| host);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|guest| {
            guest.data().call.yielded.store(true, Ordering::Relaxed);
            // Wasmtime's own yield is back at once: tokio would look for other events after 61 of them.
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(yield_now())))
        });
        let exports = match &self.ready {
            ProxyPre::P2(ready) => Proxy::P2(ready.instantiate_async(&mut store).await?),
            ProxyPre::P3(ready) => Proxy::P3(ready.instantiate_async(&mut store).await?),
        };
        store.data_mut().has_started = true;
        self.shared.metrics.guest_started(begun.elapsed());
        Ok(Instance {
            store,
            exports,
            served: 0,
        })
    }
}

/// Returns how many guests may wait for their clients: half of those that may run, and not more than start with half of the
/// memory. One alone may, or nothing large is ever served.
fn transfers(limits: Limits, memory: &Budget, initial_memory: u64) -> usize {
    let fit = memory.total() / 2 / initial_memory.max(1);
    let half = u64::from(limits.max_concurrent_requests / 2);
    half.min(fit).max(1) as usize
}

impl Drop for ComponentHandler {
    /// The idle guests have what they are in.
    fn drop(&mut self) {
        self.shared.idle().clear();
    }
}

impl Instance {
    async fn call<B>(&mut self, request: Request<B>) -> wasmtime::Result<()>
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
                let out = http.new_response_outparam_from_callback(move |response| {
                    call.set_response(response.map_err(HandleError::guest_error));
                })?;
                let handler = proxy.wasi_http_incoming_handler();
                handler.call_handle(store, request, out).await
            }
            Proxy::P3(service) => {
                let hooks = store.data_mut().http().hooks;
                let (request, sent) = wasmtime_wasi_http::p3::Request::from_http(hooks, request);
                let conversation = async |guest: &wasmtime::component::Accessor<Host>| {
                    let response = match service.handle(guest, request).await? {
                        Ok(response) => guest.with(|store| response.into_http(store, sent))?,
                        Err(error) => {
                            call.set_response(Err(HandleError::guest_error(error)));
                            return Ok(());
                        }
                    };
                    call.set_response(Ok(response));
                    poll_fn(|cx| guest.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                };
                store.run_concurrent(conversation).await?
            }
        }
    }
}
