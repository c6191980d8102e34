//! An instance of the component, and a call of its handler.

use crate::component::description::Wasi;
use crate::sandbox::error::HandleError;
use crate::sandbox::host::Host;
use crate::sandbox::request_state::RequestState;
use crate::sandbox::shared::Shared;
use bytes::Bytes;
use http::Request;
use hyper::body::Body;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::task::yield_now;
use wasmtime::component::{Accessor, InstancePre};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{Error, WasiHttpView};
use wasmtime_wasi_http::{p2::bindings as p2, p3::bindings as p3};

/// The linked component, by the `wasi:http` world that it exports.
pub enum ProxyPre {
    P2(p2::ProxyPre<Host>),
    P3(p3::ServicePre<Host>),
}

enum Proxy {
    P2(p2::Proxy),
    P3(p3::Service),
}

/// An instance of the component.
pub struct Instance {
    store: Store<Host>,
    proxy: Proxy,
    /// Number of requests that it has served or serves.
    pub served: u32,
}

impl ProxyPre {
    /// # Errors
    /// When the component does not export the world.
    pub fn new(component: InstancePre<Host>, wasi: Wasi) -> wasmtime::Result<Self> {
        Ok(match wasi {
            Wasi::P2 => Self::P2(p2::ProxyPre::new(component)?),
            Wasi::P3 => Self::P3(p3::ServicePre::new(component)?),
        })
    }

    /// Creates an instance for the request with this state.
    ///
    /// # Errors
    /// When the initial memory does not fit into the budget, or the component traps.
    pub async fn instantiate(
        &self,
        engine: &Engine,
        shared: &Arc<Shared>,
        state: Arc<RequestState>,
    ) -> wasmtime::Result<Instance> {
        let started = Instant::now();
        let mut store = Store::new(engine, Host::new(shared, state));
        store.limiter(|host| host.limiter());
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| {
            let state = &store.data().state;
            if !state.was_interrupted.swap(true, Ordering::Relaxed) {
                return Ok(UpdateDeadline::Continue(1));
            }
            state.has_yielded.store(true, Ordering::Relaxed);
            // With Wasmtime's own yield, tokio polls the guest up to 61 times before it polls for I/O.
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(yield_now())))
        });
        let proxy = match self {
            Self::P2(component) => Proxy::P2(component.instantiate_async(&mut store).await?),
            Self::P3(component) => Proxy::P3(component.instantiate_async(&mut store).await?),
        };
        store.data_mut().limiter().set_started();
        shared.metrics.guest_started(started.elapsed());
        Ok(Instance {
            store,
            proxy,
            served: 0,
        })
    }
}

impl Instance {
    /// Assigns the next request to an instance that has served one.
    pub fn begin_call(&mut self, state: Arc<RequestState>) {
        self.store.data_mut().begin_call(state);
    }

    /// Runs the guest to its end. It sets the response in the request's state.
    ///
    /// # Errors
    /// When the guest traps or exits.
    pub async fn call<B>(&mut self, request: Request<B>) -> wasmtime::Result<()>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        self.served += 1;
        let store = &mut self.store;
        store.set_epoch_deadline(1);
        let state = store.data().state.clone();
        match &self.proxy {
            Proxy::P2(proxy) => {
                let scheme = match request.uri().scheme_str() {
                    Some("https") => Scheme::Https,
                    _ => Scheme::Http,
                };
                let mut http = store.data_mut().http();
                let request = http.new_incoming_request(scheme, request)?;
                let out = http.new_response_outparam_from_callback(move |response| {
                    state.set_response(response.map_err(HandleError::guest_error));
                })?;
                let handler = proxy.wasi_http_incoming_handler();
                handler.call_handle(store, request, out).await
            }
            Proxy::P3(service) => {
                let hooks = store.data_mut().http().hooks;
                let (request, sent) = wasmtime_wasi_http::p3::Request::from_http(hooks, request);
                let exchange = async |guest: &Accessor<Host>| {
                    let response = match service.handle(guest, request).await? {
                        Ok(response) => guest.with(|store| response.into_http(store, sent))?,
                        Err(error) => {
                            state.set_response(Err(HandleError::guest_error(error)));
                            return Ok(());
                        }
                    };
                    state.set_response(Ok(response));
                    poll_fn(|cx| guest.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                };
                store.run_concurrent(exchange).await?
            }
        }
    }

    /// Ends a call; returns true if the guest has responded and may serve another request.
    pub fn end_call(&mut self) -> bool {
        let host = self.store.data_mut();
        host.end_call();
        let state = &host.state;
        state
            .has_logged
            .store(host.take_logged(), Ordering::Relaxed);
        state.has_responded.load(Ordering::Relaxed) && host.is_reusable()
    }
}
