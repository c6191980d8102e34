//! Sends the HTTP requests of guests to other services.
//!
//! `wasmtime-wasi-http` sends each request over a connection of its own, with HTTP/1.1, and HTTPS with Mozilla's root
//! certificates. This module adds the limits that the library does not have:
//!
//! - The library's connect timeout does not cover TLS. Here the timer runs until hyper first reads the request's body
//!   (see [`RequestBody`]).
//! - A connection whose response is not read stays open. Here it closes when the guest's call ends.
//! - A DNS lookup goes on after its future is dropped. It occupies a blocking thread of the runtime, and later lookups
//!   queue behind it. Here at most [`MAX_CONCURRENT_LOOKUPS`] names resolve at a time: a name is first resolved under
//!   a permit, and the library resolves it again only after that has succeeded. Both hold the permit.

use crate::outbound::allowed::Destination;
use crate::outbound::body::RequestBody;
use crate::outbound::limits::Limits;
use crate::telemetry::labels::error_type;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use http::uri::Authority;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use std::future;
use std::net::{IpAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, default_send_request};

/// Maximum number of concurrent DNS lookups, for guests on all threads.
const MAX_CONCURRENT_LOOKUPS: usize = 32;

/// Upper bound on a lookup by the system's resolver. musl makes two attempts of 5 s each.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of characters of a destination in a log line.
const MAX_LOGGED_CHARS: usize = 256;

/// Sends the requests of guests.
pub struct Outbound {
    limits: Limits,
    /// `GUEST_TIMEOUT`.
    guest_timeout: Duration,
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    log: Log,
    metrics: Arc<Metrics>,
}

/// A future in the form that `wasmtime-wasi-http` takes.
pub type IoFuture<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

/// A response, and the future to poll for its body to arrive.
pub type Sent = (Response<WasiBody>, IoFuture<()>);

impl Outbound {
    pub fn new(limits: Limits, guest_timeout: Duration, log: Log, metrics: Arc<Metrics>) -> Self {
        if !limits.allowed.is_empty() {
            metrics.expect_outbound_requests();
        }
        Self {
            log,
            metrics,
            connections: Arc::new(Semaphore::new(limits.connections as usize)),
            lookups: Arc::new(Semaphore::new(MAX_CONCURRENT_LOOKUPS)),
            guest_timeout,
            limits,
        }
    }

    /// Number of connections that are open or being opened.
    pub fn open(&self) -> usize {
        (self.limits.connections as usize).saturating_sub(self.connections.available_permits())
    }

    /// Sends a request if its destination is allowed and the connection limit is not reached. `options` can shorten the
    /// timeouts. The connection closes when the sender of `call_ended` is dropped.
    pub fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        call_ended: watch::Receiver<()>,
    ) -> IoFuture<Sent> {
        // Dropping it discards the rest of the body, also if the request is rejected.
        let request = request.map(|body| RequestBody::new(body, self.guest_timeout));
        let (destination, permit) = match self.admit(request.uri()) {
            Ok(admitted) => admitted,
            Err(error) => return Box::new(future::ready(Err(error))),
        };
        let is_name = destination.host.parse::<IpAddr>().is_err();
        let name = is_name.then_some((destination.host, destination.port));
        let exchange = Exchange {
            options: self.options(options.unwrap_or_default()),
            request,
            name,
            lookups: self.lookups.clone(),
            permit,
            call_ended,
        };
        let record = OutboundRecord {
            metrics: self.metrics.clone(),
            started: Instant::now(),
            outcome: Err("cancelled"),
        };
        Box::new(async move {
            // Moves all of the record: the block would otherwise capture the field `outcome` alone.
            let mut record = record;
            let sent = exchange.run().await;
            let outcome = sent.as_ref().map(|(response, _)| response.status());
            record.outcome = outcome.map_err(error_type);
            sent
        })
    }

    /// Returns the destination of a request and a permit for its connection.
    ///
    /// # Errors
    /// When the destination is not allowed, or `MAX_OUTBOUND_CONNECTIONS` is reached.
    fn admit<'a>(&self, uri: &'a Uri) -> Result<(Destination<'a>, OwnedSemaphorePermit), Error> {
        let allowed = Destination::of(uri)
            .filter(|to| self.limits.allowed.iter().any(|host| host.allows(to)));
        let Some(destination) = allowed else {
            let scheme = uri.scheme_str().unwrap_or_default().to_owned();
            let authority = uri.authority().map_or("", without_userinfo);
            let authority: String = authority.chars().take(MAX_LOGGED_CHARS).collect();
            self.metrics.rejected_outbound_requests.count("not_allowed");
            self.log.event_throttled("denied", move |count| {
                format!(
                    "denied {count} outbound requests, the last to {scheme}://{authority}: not in ALLOWED_OUTBOUND_HOSTS"
                )
            });
            return Err(Error::HttpRequestDenied);
        };
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            let rejected = &self.metrics.rejected_outbound_requests;
            rejected.count("max_connections");
            self.log.event_throttled("outbound limit", |count| {
                format!("outbound connection limit reached (MAX_OUTBOUND_CONNECTIONS): rejected {count} outbound requests")
            });
            return Err(Error::ConnectionLimitReached);
        };
        Ok((destination, permit))
    }

    /// Returns the timeouts of a request: those that the guest asks for, up to the limits.
    fn options(&self, requested: RequestOptions) -> RequestOptions {
        let at_most = |limit: Duration, requested: Option<Duration>| {
            Some(requested.map_or(limit, |requested| requested.min(limit)))
        };
        let limits = &self.limits;
        RequestOptions {
            connect_timeout: at_most(limits.connect_timeout, requested.connect_timeout),
            first_byte_timeout: at_most(limits.first_byte_timeout, requested.first_byte_timeout),
            between_bytes_timeout: at_most(limits.idle_timeout, requested.between_bytes_timeout),
        }
    }
}

/// A request that has been admitted.
struct Exchange {
    request: Request<RequestBody>,
    options: RequestOptions,
    /// Host name and port, unless the host is an IP address.
    name: Option<(String, u16)>,
    lookups: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
    call_ended: watch::Receiver<()>,
}

impl Exchange {
    async fn run(self) -> Result<Sent, Error> {
        let Self {
            request,
            options,
            name,
            lookups,
            permit,
            mut call_ended,
        } = self;
        let is_connected = request.body().is_connected();
        let deadline = pin!(sleep(options.connect_timeout.unwrap_or_default()));
        let mut connect_timeout = pin!(async {
            deadline.await;
            if is_connected.load(Ordering::Relaxed) {
                future::pending().await
            }
        });
        let lookup = match name {
            Some(name) => tokio::select! {
                biased;
                lookup = resolve(name, lookups) => Some(lookup?),
                () = &mut connect_timeout => return Err(Error::ConnectionTimeout),
            },
            None => None,
        };
        let (response, io) = tokio::select! {
            biased;
            sent = default_send_request(request, Some(options)) => sent?,
            () = connect_timeout => {
                // The library's lookup may go on, so that its permit is held for as long as it can take.
                tokio::spawn(async move {
                    sleep(LOOKUP_TIMEOUT).await;
                    drop(lookup);
                });
                return Err(Error::ConnectionTimeout);
            }
        };
        drop(lookup);
        let io: IoFuture<()> = Box::new(async move {
            let _permit = permit;
            // A guest that serves several requests may keep the response of an earlier one.
            tokio::select! {
                ended = io => ended,
                _ = call_ended.changed() => Err(Error::ConnectionTerminated),
            }
        });
        Ok((response.map(BodyExt::boxed_unsync), io))
    }
}

/// Resolves a name and returns the permit of the lookup. If this future is dropped, the blocking task keeps the permit
/// until the lookup ends.
///
/// # Errors
/// When the name has no address, or the system's resolver fails.
async fn resolve(
    name: (String, u16),
    lookups: Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit, Error> {
    let permit = lookups.acquire_owned().await;
    let permit = permit.map_err(|_| Error::InternalError(None))?;
    let found = spawn_blocking(move || name.to_socket_addrs().map(|_| permit)).await;
    // The error that the library returns to the guest, except for its I/O kind, which also stands for connections.
    found
        .map_err(|_| Error::InternalError(None))?
        .map_err(|_| Error::DnsError {
            rcode: Some("address not available".into()),
            info_code: None,
        })
}

/// Returns an authority for the log, without a possible password.
fn without_userinfo(authority: &Authority) -> &str {
    let whole = authority.as_str();
    whole.rsplit_once('@').map_or(whole, |(_, rest)| rest)
}

/// Records a request to another service when dropped, because its guest may end before the response.
struct OutboundRecord {
    metrics: Arc<Metrics>,
    started: Instant,
    outcome: Result<StatusCode, &'static str>,
}

impl Drop for OutboundRecord {
    fn drop(&mut self) {
        self.metrics
            .outbound_request(self.outcome, self.started.elapsed());
    }
}
