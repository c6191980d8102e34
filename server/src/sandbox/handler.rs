//! Loads the component, and handles requests with an instance for each, or for up to `REQUESTS_PER_SANDBOX` of them.
//!
//! # When a response is sent
//! The handler polls the guest and buffers its response, up to 64 KiB of the body, until one of these happens first:
//!
//! - The guest finishes. Its response is sent as a whole. If the guest has failed, nothing has been sent, so that the client
//!   gets an error status instead of a truncated response.
//! - The guest has started its response and waits: for a timer, for another service, for the rest of the request's body, or
//!   because the buffer is full. The buffered part is sent, and the rest is streamed from a task of its own, see
//!   [`streaming`]. If the guest fails from then on, its body ends with an error.
//!
//! A guest that has yielded at the end of its time slice does not wait. It is polled again before its response is sent.
//! A guest that waits for buffered writes alone is polled again as soon as they are read.

use crate::component::file::Component;
use crate::sandbox::call::{Call, run_with_deadline};
use crate::sandbox::epoch::EpochTicker;
use crate::sandbox::error::HandleError;
use crate::sandbox::idle::IdleInstances;
use crate::sandbox::instance::ProxyPre;
use crate::sandbox::limits::Limits;
use crate::sandbox::linker::linker;
use crate::sandbox::pool;
use crate::sandbox::progress::Progress;
use crate::sandbox::request_state::RequestState;
use crate::sandbox::response::{ResponseBody, StartedResponse};
use crate::sandbox::shared::Shared;
use crate::sandbox::streaming;
use crate::startup_error::startup_error;
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Body;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Engine;
use wasmtime_wasi_http::Error;

/// A loaded component.
pub struct ComponentHandler {
    engine: Engine,
    proxy_pre: ProxyPre,
    limits: Limits,
    ticker: EpochTicker,
    idle: Arc<IdleInstances>,
    shared: Arc<Shared>,
}

/// State of the guest when its response is sent.
enum Outcome {
    /// The guest has finished.
    Finished(Result<(), HandleError>),
    /// The guest waits, and has returned a response or an error.
    Responded(Result<StartedResponse, HandleError>),
}

impl ComponentHandler {
    /// Loads a component.
    ///
    /// # Errors
    /// One line, if the machine code does not match this machine or program, if the component has an unsupported
    /// import, or if memory or a thread cannot be allocated.
    pub fn load(component: &Component, limits: Limits, shared: Shared) -> Result<Self, String> {
        component.check_memory(limits.memory)?;
        let engine = pool::engine(&component.description, limits)?;
        let code = component.load(&engine)?;
        let link = || {
            // Otherwise the first instance maps the image, and fails if no file descriptor is left.
            code.initialize_copy_on_write_image()?;
            let wasi = component.description.wasi;
            let linked = linker(&engine, &code, wasi)?.instantiate_pre(&code)?;
            ProxyPre::new(linked, wasi)
        };
        let proxy_pre = link()
            .map_err(|error: wasmtime::Error| format!("{}: {error:#}", component.path.display()))?;
        let ticker = EpochTicker::start(engine.clone()).map_err(startup_error)?;
        let idle = Arc::new(IdleInstances::default());
        let evictable = Arc::downgrade(&idle);
        let evict = move || evictable.upgrade().is_some_and(|idle| idle.evict());
        shared.memory.set_evict(evict);
        Ok(Self {
            engine,
            proxy_pre,
            limits,
            ticker,
            idle,
            shared: Arc::new(shared),
        })
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Returns the number of idle instances.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Returns the number of running calls, and their limit.
    pub fn running(&self) -> (usize, u32) {
        (self.ticker.running(), self.limits.max_concurrent_requests)
    }

    /// Calls a guest. Returns the response, and the bytes that the client has to read of a guest that has finished.
    /// `progress` is that of the request's body, if there is one, and `transfer` the permit for a part of it that has not
    /// been received.
    ///
    /// # Errors
    /// When there is no response from the guest, see [`HandleError`].
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
        let mut started: Option<StartedResponse> = None;
        let outcome = poll_fn(|cx| {
            loop {
                state.has_yielded.store(false, Ordering::Relaxed);
                match call.as_mut().poll(cx) {
                    Poll::Ready(finished) => return Poll::Ready(Outcome::Finished(finished)),
                    Poll::Pending if state.has_yielded.load(Ordering::Relaxed) => {
                        return Poll::Pending;
                    }
                    Poll::Pending => {}
                }
                let response = match (&mut started, state.take_response()) {
                    (Some(response), _) => response,
                    (none, Some(Ok(response))) => none.insert(StartedResponse::new(response)),
                    (None, Some(Err(failure))) => {
                        return Poll::Ready(Outcome::Responded(Err(failure)));
                    }
                    (None, None) => return Poll::Pending,
                };
                // Reading the body may have made room that the guest waited for.
                if response.is_full() || !response.fill(cx) {
                    break;
                }
            }
            match started.take() {
                Some(response) => Poll::Ready(Outcome::Responded(Ok(response))),
                None => Poll::Pending,
            }
        });
        match outcome.await {
            Outcome::Finished(finished) => {
                finished?;
                let response = match started {
                    Some(response) => response,
                    None => {
                        StartedResponse::new(state.take_response().ok_or(HandleError::NoResponse)??)
                    }
                };
                let logged = state.has_logged.load(Ordering::Relaxed);
                response.finish(is_head, logged).await
            }
            Outcome::Responded(started) => {
                let shared = self.shared.clone();
                let response = streaming::stream(started?, shared, call, state, transfer, is_head)?;
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
        let guest = pin!(self.run(request, state.clone()));
        let polls_again = matches!(self.proxy_pre, ProxyPre::P2(_));
        let timeout = self.limits.guest_timeout;
        run_with_deadline(guest, &state, progress.as_deref(), polls_again, timeout).await
    }

    /// Runs a guest to its end in an idle or a new instance.
    async fn run<B>(&self, request: Request<B>, state: Arc<RequestState>) -> wasmtime::Result<()>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let mut instance = match self.idle.pop() {
            Some(mut instance) => {
                instance.begin_call(state);
                instance
            }
            None => {
                let instance = self
                    .proxy_pre
                    .instantiate(&self.engine, &self.shared, state);
                instance.await?
            }
        };
        let finished = instance.call(request).await;
        let is_reusable = instance.end_call();
        // An instance that has failed, was aborted or has not responded is dropped, because it may not be able to serve
        // another request.
        finished?;
        if is_reusable && instance.served < self.limits.requests_per_instance {
            self.idle.push(instance);
        }
        Ok(())
    }
}
