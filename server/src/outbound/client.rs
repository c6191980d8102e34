//! HTTP requests of guests to other services: which hosts are allowed, how many connections, for how long.
//!
//! `wasmtime-wasi-http` sends them, each over a connection of its own, by HTTP/1.1, and HTTPS with Mozilla's root
//! certificates. What it leaves open is bounded here:
//!
//! - Its timeout for connecting does not cover TLS.
//! - A connection whose response nobody reads stays open.
//! - A look-up of a name goes on when nobody waits for it any more, on a thread of the runtime, and the next ones queue up
//!   behind it. So a name is looked up here first, and by the library only once it has resolved; both hold a permit.

use crate::telemetry::log::Log;
use crate::telemetry::metrics::{self, Metrics};
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use ipnet::IpNet;
use std::fmt;
use std::future;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, default_send_request};

/// Destinations that guests may send requests to, as in Spin's `allowed_outbound_hosts`: `scheme://host[:port]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowedHost {
    /// As it was given.
    text: String,
    /// Both if not set.
    scheme: Option<Scheme>,
    host: Host,
    /// All if not set.
    port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Host {
    Any,
    /// A name, in lower case.
    Name(String),
    /// What a name ends with, in lower case, such as `.example.com`.
    Suffix(String),
    Address(IpAddr),
    Network(IpNet),
}

/// Where a request goes.
struct Destination<'a> {
    scheme: &'a Scheme,
    /// In lower case; an IPv6 address without its brackets.
    host: String,
    port: u16,
}

impl AllowedHost {
    /// Reads `scheme://host[:port]`.
    ///
    /// # Errors
    /// What the value has to be.
    pub fn parse(value: &str) -> Result<Self, String> {
        let expected = || {
            "not scheme://host[:port] (such as https://api.example.com, https://*.example.com, http://10.0.0.0/8:8080 \
             or *://*:*)"
        };
        let (scheme, rest) = value.split_once("://").ok_or_else(expected)?;
        let scheme = match scheme {
            "http" => Some(Scheme::HTTP),
            "https" => Some(Scheme::HTTPS),
            "*" => None,
            _ => return Err("its scheme is not http, https or *".into()),
        };
        if rest.contains(['{', '}']) {
            return Err("templates are not supported".into());
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // The colons of an IPv6 address are not those of a port.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let lower = host.to_lowercase();
        if lower == "self" || lower == "spin.internal" || lower.ends_with(".spin.internal") {
            return Err("a server has no other components to call: name a host".into());
        }
        let host = Host::parse(host).ok_or_else(expected)?;
        let port = match (port, &scheme) {
            (Some("*"), _) => None,
            (Some(port), _) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse().ok().filter(|&number| digits && number != 0);
                Some(number.ok_or("its port is neither * nor a number from 1 to 65535")?)
            }
            (None, Some(scheme)) => Some(default_port(scheme)),
            (None, None) => return Err("with the scheme *, name a port or *".into()),
        };
        Ok(Self {
            text: value.to_owned(),
            scheme,
            host,
            port,
        })
    }

    fn allows(&self, destination: &Destination) -> bool {
        let scheme = self.scheme.as_ref();
        scheme.is_none_or(|scheme| scheme == destination.scheme)
            && self.port.is_none_or(|port| port == destination.port)
            && self.host.allows(&destination.host)
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Host {
    fn parse(host: &str) -> Option<Self> {
        if host == "*" {
            return Some(Self::Any);
        }
        if let Some(domain) = host.strip_prefix("*.") {
            return is_name(domain).then(|| Self::Suffix(format!(".{}", domain.to_lowercase())));
        }
        // An IPv6 address is in brackets, and nothing else is.
        let bare = without_brackets(host);
        let is_v6 = bare.is_some();
        let bare = bare.unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return (address.is_ipv6() == is_v6).then_some(Self::Address(address));
        }
        if let Ok(network) = bare.parse::<IpNet>() {
            let is_network_v6 = matches!(network, IpNet::V6(_));
            return (is_network_v6 == is_v6).then_some(Self::Network(network));
        }
        is_name(host).then(|| Self::Name(host.to_lowercase()))
    }

    fn allows(&self, host: &str) -> bool {
        // An IPv4 address that is written as one of IPv6 leads to the former.
        let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
        match (self, address) {
            (Self::Any, _) => true,
            (Self::Name(name), Err(_)) => host == name,
            (Self::Suffix(suffix), Err(_)) => host.ends_with(suffix),
            (Self::Address(allowed), Ok(address)) => allowed.to_canonical() == address,
            (Self::Network(network), Ok(address)) => network.contains(&address),
            _ => false,
        }
    }
}

/// What is between the brackets of an IPv6 address or network.
fn without_brackets(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// Returns true for names of letters, digits and what else container networks have in names. The last part is no number:
/// the C library takes 127.1 and 0x7f000001 for addresses.
fn is_name(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default().to_lowercase();
    if last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.split('.').all(is_label)
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

impl<'a> Destination<'a> {
    /// Returns where a request with this URI goes; `None` if that is not plain, as with userinfo in it.
    fn of(uri: &'a Uri) -> Option<Self> {
        let (scheme, authority) = (uri.scheme()?, uri.authority()?);
        if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
            return None;
        }
        // What `default_send_request` connects to is the authority as a whole. It has to be this and nothing else.
        let plain = match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        };
        if *authority != *plain {
            return None;
        }
        let host = match without_brackets(authority.host()) {
            Some(address) => address.parse::<Ipv6Addr>().ok()?.to_string(),
            None => authority.host().to_lowercase(),
        };
        if host.is_empty() {
            return None;
        }
        Some(Self {
            scheme,
            host,
            port: authority.port_u16().unwrap_or_else(|| default_port(scheme)),
        })
    }
}

/// Names that are looked up at a time, for guests on all threads.
const MAX_CONCURRENT_LOOKUPS: usize = 32;

/// The limit time that the system's resolver is assumed to take: musl's makes two attempts of 5 s each.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Characters of a destination that a line of the log has.
const MAX_LOGGED_CHARS: usize = 256;

/// What guests may ask of other services.
#[derive(Clone, Debug)]
pub struct Limits {
    pub allowed: Vec<AllowedHost>,
    /// Connections of all guests at a time.
    pub connections: u32,
    /// Time to resolve a name, connect, and negotiate TLS.
    pub connect_timeout: Duration,
    /// Time from then to the head of the response.
    pub first_byte_timeout: Duration,
    /// Time between two pieces of the response's body.
    pub idle_timeout: Duration,
}

/// Sends the requests of guests.
pub struct Outbound {
    limits: Limits,
    /// The limit time that the rest of a failed request's body is taken for.
    longest: Duration,
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    log: Log,
    metrics: Arc<Metrics>,
}

/// A future as `wasmtime-wasi-http` has it.
pub type IoFuture<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

/// A response, and what has to be driven for its body to arrive.
pub type Sent = (Response<WasiBody>, IoFuture<()>);

impl Outbound {
    /// `guest_timeout` is the time that a guest has for a request.
    pub fn new(limits: Limits, guest_timeout: Duration, log: Log, metrics: Arc<Metrics>) -> Self {
        if !limits.allowed.is_empty() {
            metrics.expect_outbound_requests();
        }
        Self {
            log,
            metrics,
            connections: Arc::new(Semaphore::new(limits.connections as usize)),
            lookups: Arc::new(Semaphore::new(MAX_CONCURRENT_LOOKUPS)),
            longest: guest_timeout,
            limits,
        }
    }

    /// Connections that are open, or that are being opened.
    pub fn open(&self) -> usize {
        (self.limits.connections as usize).saturating_sub(self.connections.available_permits())
    }

    /// Sends a request if its destination is allowed, and a connection is to be had. A guest may ask for shorter
    /// timeouts. The connection is closed when the other end of `is_over` is dropped.
    pub fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        mut is_over: watch::Receiver<()>,
    ) -> IoFuture<Sent> {
        let request = request.map(|body| RequestBody {
            body: Some(body),
            is_sent: Arc::default(),
            longest: self.longest,
        });
        let refused = |error| -> IoFuture<Sent> { Box::new(future::ready(Err(error))) };
        let uri = request.uri();
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
            return refused(Error::HttpRequestDenied);
        };
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            let rejected = &self.metrics.rejected_outbound_requests;
            rejected.count("max_connections");
            self.log.event_throttled("outbound limit", |count| {
                format!("outbound connection limit reached (MAX_OUTBOUND_CONNECTIONS): rejected {count} outbound requests")
            });
            return refused(Error::ConnectionLimitReached);
        };
        let options = self.options(options.unwrap_or_default());
        let connect_timeout = options.connect_timeout.unwrap_or_default();
        let is_sent = request.body().is_sent.clone();
        let is_name = destination.host.parse::<IpAddr>().is_err();
        let name = is_name.then_some((destination.host, destination.port));
        let lookups = self.lookups.clone();
        let sending = async move {
            let deadline = pin!(sleep(connect_timeout));
            let mut no_connection = pin!(async {
                deadline.await;
                if is_sent.load(Ordering::Relaxed) {
                    future::pending().await
                }
            });
            let lookup = match name {
                Some(name) => tokio::select! {
                    biased;
                    lookup = resolve(name, lookups) => Some(lookup?),
                    () = &mut no_connection => return Err(Error::ConnectionTimeout),
                },
                None => None,
            };
            let (response, io) = tokio::select! {
                biased;
                sent = default_send_request(request, Some(options)) => sent?,
                () = no_connection => {
                    // The library's look-up may go on.
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
                // A guest that serves several requests may hold on to the response of one.
                tokio::select! {
                    ended = io => ended,
                    _ = is_over.changed() => Err(Error::ConnectionTerminated),
                }
            });
            Ok((response.map(BodyExt::boxed_unsync), io))
        };
        let recorded = OutboundRecord {
            metrics: self.metrics.clone(),
            started: Instant::now(),
            outcome: Err("cancelled"),
        };
        Box::new(async move {
            // All of it: otherwise the outcome alone is moved.
            let mut recorded = recorded;
            let sent = sending.await;
            let outcome = sent.as_ref().map(|(response, _)| response.status());
            recorded.outcome = outcome.map_err(metrics::error_type);
            sent
        })
    }

    fn options(&self, requested: RequestOptions) -> RequestOptions {
        let least = |requested: Option<Duration>, limit| {
            Some(requested.map_or(limit, |requested| requested.min(limit)))
        };
        RequestOptions {
            connect_timeout: least(requested.connect_timeout, self.limits.connect_timeout),
            first_byte_timeout: least(requested.first_byte_timeout, self.limits.first_byte_timeout),
            between_bytes_timeout: least(requested.between_bytes_timeout, self.limits.idle_timeout),
        }
    }
}

/// Looks up a name; returns the permit for it. The permit stays with the look-up if nobody waits for that any more, so
/// that there are never more of them than [`MAX_CONCURRENT_LOOKUPS`].
///
/// # Errors
/// When the name has no address, or the system denies one.
async fn resolve(
    name: (String, u16),
    lookups: Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit, Error> {
    let permit = lookups.acquire_owned().await;
    let permit = permit.map_err(|_| Error::InternalError(None))?;
    let found = spawn_blocking(move || name.to_socket_addrs().map(|_| permit)).await;
    // As the library says it, for the guest, though not by the type that also stands for connections.
    found
        .map_err(|_| Error::InternalError(None))?
        .map_err(|_| Error::DnsError {
            rcode: Some("address not available".into()),
            info_code: None,
        })
}

/// An authority for the log, without what may be a password.
fn without_userinfo(authority: &Authority) -> &str {
    let whole = authority.as_str();
    whole.rsplit_once('@').map_or(whole, |(_, rest)| rest)
}

/// A request to another service, which is recorded when dropped: its guest may end before the response.
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

/// A request's body on its way to another service.
struct RequestBody {
    /// FrameBuffer at the end.
    body: Option<WasiBody>,
    /// Set when the body is first requested about, which hyper does when the connection is there, TLS included.
    is_sent: Arc<AtomicBool>,
    /// The limit time that a guest writes to it.
    longest: Duration,
}

impl RequestBody {
    fn body(&self) -> Option<&WasiBody> {
        self.is_sent.store(true, Ordering::Relaxed);
        self.body.as_ref()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    /// Discards the rest of a body whose request has failed. Otherwise the guest's next write fails, and `wstd` takes
    /// that for the reason rather than the error of the request.
    fn drop(&mut self) {
        if let (Some(mut body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            let discard = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(timeout(self.longest, discard));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, uri: &str) -> bool {
        let host = AllowedHost::parse(list).expect(list);
        let uri = uri.parse().expect(uri);
        Destination::of(&uri).is_some_and(|destination| host.allows(&destination))
    }

    #[test]
    fn list_allows_what_it_names() {
        for (list, uri) in [
            ("http://example.com", "http://example.com/path?query"),
            ("http://example.com", "http://EXAMPLE.com:80/"),
            ("http://Example.COM/", "http://example.com/"),
            ("https://example.com", "https://example.com:443/"),
            ("https://example.com:8443", "https://example.com:8443/"),
            ("*://example.com:8080", "http://example.com:8080/"),
            ("*://example.com:*", "https://example.com/"),
            ("https://*.example.com", "https://a.b.example.com/"),
            ("*://*:*", "http://[::1]:8080/"),
            ("http://*:*", "http://example.com/"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("http://10.0.0.0/8:8080", "http://10.255.0.1:8080/"),
            ("http://10.1.2.3/8", "http://10.9.9.9/"),
            ("http://[::1]", "http://[::1]/"),
            ("http://[::1]:81", "http://[0:0:0:0:0:0:0:1]:81/"),
            ("http://[fd00::/8]:81", "http://[fd12::1]:81/"),
            ("http://under_score", "http://under_score/"),
            ("http://127.0.0.1", "http://[::ffff:127.0.0.1]/"),
            ("http://[::ffff:127.0.0.1]", "http://127.0.0.1/"),
        ] {
            assert!(allows(list, uri), "{list} and {uri}");
        }
    }

    #[test]
    fn what_may_be_an_address_is_no_name() {
        for list in [
            "http://127.1",
            "http://*.0.0.1",
            "http://0x7f000001",
            "http://256.256.256.256",
            "http://::1",
            "http://fd00::/8:81",
            "http://[127.0.0.1]",
            "http://a:+80",
            "http://SELF",
            "http://Other.Spin.Internal",
        ] {
            AllowedHost::parse(list).expect_err(list);
        }
    }

    #[test]
    fn list_allows_nothing_else() {
        for (list, uri) in [
            ("http://example.com", "https://example.com/"),
            ("http://example.com", "http://example.com:8080/"),
            ("http://example.com", "http://example.com.evil.example/"),
            ("http://example.com", "http://example.com./"),
            ("http://example.com", "http://a.example.com/"),
            ("https://*.example.com", "https://example.com/"),
            ("https://*.example.com", "https://evilexample.com/"),
            ("https://*.example.com", "https://a.example.com:444/"),
            ("http://*:80", "http://example.com:81/"),
            ("*://*:*", "ftp://example.com/"),
            ("*://*:*", "http://user@example.com/"),
            ("*://*:*", "http://user:password@example.com/"),
            ("*://*:*", "http://example.com:/"),
            ("http://127.0.0.1", "http://127.1/"),
            ("http://127.0.0.1", "http://2130706433/"),
            ("http://127.0.0.0/8", "http://128.0.0.1/"),
            ("http://[::/0]", "http://[::ffff:127.0.0.1]/"),
            ("http://localhost", "http://[localhost]/"),
            ("*://*:*", "http://[127.0.0.1]/"),
            ("http://127.0.0.0/8", "http://127.0.0.1.example.com/"),
            ("http://0.0.0.0/0", "http://example.com/"),
            ("http://[::/0]", "http://127.0.0.1/"),
        ] {
            assert!(!allows(list, uri), "{list} and {uri}");
        }
    }
}
