//! One request's way: from hyper into the sandbox, and the answer back, with its line in the log.

use crate::log::{Access, Log};
use crate::sandbox::{Failure, Sandbox};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use wasmtime_wasi_http::{Error, WasiBody};

/// How long the rest of a request's body is taken in and thrown away when the guest did not want
/// it. Without, the connection would break under the client's feet, and the answer be lost.
const DISCARD: Duration = Duration::from_secs(5);

/// What an access line shows when the client went before the answer was there: nginx's number for
/// it, as HTTP has none.
const CLIENT_GONE: u16 = 499;

/// What all requests share.
pub struct Service {
    pub sandbox: Arc<Sandbox>,
    pub log: Log,
    pub access_log: bool,
    /// Set when the server shuts down: from then on every answer ends its connection.
    pub draining: AtomicBool,
}

impl Service {
    /// Answers a request of the client at `peer`, whatever happens.
    pub async fn answer(
        &self,
        peer: SocketAddr,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let mut entry = self
            .access_log
            .then(|| Entry::new(&self.log, peer, &request));
        let keep_alive_header = request.version() <= Version::HTTP_11;

        let response = match check_host(&mut request) {
            Ok(()) => self.ask(request).await,
            Err(reason) => plain(StatusCode::BAD_REQUEST, reason),
        };
        let (mut head, body) = response.into_parts();
        if keep_alive_header && self.draining.load(Ordering::Relaxed) {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(entry) = &mut entry {
            entry.access.status = head.status.as_u16();
        }
        Response::from_parts(head, Answer { body, entry })
    }

    async fn ask(&self, request: Request<Incoming>) -> Response<WasiBody> {
        let answer = self.sandbox.answer(Upload::of(request)).await;
        answer.unwrap_or_else(|failure| {
            self.log.event(format_args!("{failure}"));
            let status = failure.status();
            let mut response = plain(status, status.canonical_reason().unwrap_or_default());
            if let Failure::Busy = failure {
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from(1));
            }
            response
        })
    }
}

/// An answer of the server's own: one line of text.
fn plain(status: StatusCode, line: &'static str) -> Response<WasiBody> {
    let body = Full::from(line).map_err(Error::from).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Checks `Host` as RFC 9112, section 3.2, asks for: one, and well-formed, in HTTP/1.1. A request
/// that may lack it gets one, because `wasi:http` has no requests without authority.
fn check_host(request: &mut Request<Incoming>) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err("More than one Host header"),
        (Some(host), None) if host.to_str().is_err() => Err("Malformed Host header"),
        (Some(_), None) => Ok(()),
        (None, _) if request.version() == Version::HTTP_11 => Err("No Host header"),
        (None, _) => {
            let host = HeaderValue::from_static("localhost");
            request.headers_mut().insert(HOST, host);
            Ok(())
        }
    }
}

/// A request's body on its way to the guest, which may leave some or all of it unread.
struct Upload {
    body: Option<Incoming>,
    /// The client waits for word before it sends the body. Silence keeps it from sending one that
    /// nobody wants (RFC 9110, section 10.1.1).
    on_demand: bool,
}

impl Upload {
    fn of(request: Request<Incoming>) -> Request<Self> {
        let on_demand = request.headers().contains_key(EXPECT);
        request.map(|body| Self {
            body: Some(body),
            on_demand,
        })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.on_demand = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_end_stream() || self.on_demand {
            return;
        }
        if let (Some(mut body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            let discard = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(tokio::time::timeout(DISCARD, discard));
        }
    }
}

/// An answer's body on its way to the client. When it has passed, or the client has gone, the
/// request's line is logged.
pub struct Answer {
    body: WasiBody,
    entry: Option<Entry>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(entry), Poll::Ready(Some(Ok(frame)))) = (&mut self.entry, &polled) {
            entry.access.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
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

/// A line of the log in the making, written when dropped.
struct Entry {
    log: Log,
    begun: Instant,
    access: Access,
}

impl Entry {
    fn new(log: &Log, peer: SocketAddr, request: &Request<Incoming>) -> Self {
        Self {
            log: log.clone(),
            begun: Instant::now(),
            access: Access {
                peer,
                method: request.method().clone(),
                path: request.uri().path().to_owned(),
                status: CLIENT_GONE,
                bytes: 0,
                took: Duration::ZERO,
            },
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.access.took = self.begun.elapsed();
        self.log.access(&self.access);
    }
}
