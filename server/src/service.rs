//! One request's way: from hyper into the sandbox, and the answer back, with its line in the log.

use crate::log::{Access, Log, Often};
use crate::sandbox::{Content, Failure, Sandbox};
use crate::transport::{Activity, Open};
use crate::validate;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, EXPECT, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
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
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use wasmtime_wasi_http::Error;

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
    /// Longest silence of a client within a request's body.
    pub body_timeout: Duration,
    /// Requests that found all sandboxes taken.
    pub refused: Often,
    /// Set when the server shuts down: from then on every answer ends its connection.
    pub draining: AtomicBool,
}

impl Service {
    /// Answers a request of the client at `peer`, whatever happens.
    pub async fn answer(
        &self,
        peer: SocketAddr,
        mut request: Request<Incoming>,
        activity: &Arc<Activity>,
    ) -> Response<Answer> {
        let open = activity.begin(request.version() == Version::HTTP_2);
        let mut entry = self
            .access_log
            .then(|| Entry::new(&self.log, peer, &request));
        let keep_alive_header = request.version() <= Version::HTTP_11;
        let ends_with_connection = request.version() <= Version::HTTP_10;

        let checked = validate::check(&mut request);
        // Whoever sends such a request may see other bounds between requests than this server.
        let refused = checked.is_err();
        let response = match checked {
            Ok(()) => self.ask(request).await,
            Err((status, reason)) => plain(status, reason),
        };
        let (mut head, body) = response.into_parts();
        if keep_alive_header && (refused || self.draining.load(Ordering::Relaxed)) {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(entry) = &mut entry {
            entry.access.status = head.status.as_u16();
        }
        let body = Answer {
            body,
            entry,
            open,
            ends_with_connection,
        };
        Response::from_parts(head, body)
    }

    async fn ask(&self, request: Request<Incoming>) -> Response<Content> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let has_body = !request.body().is_end_stream();
        let body_failed = has_body.then(Arc::<Notify>::default);
        let request = Upload::of(request, self.body_timeout, body_failed.clone());
        let failure = match self.sandbox.answer(request, body_failed).await {
            Ok(response) => return response,
            Err(failure) => failure,
        };
        let status = failure.status();
        let mut response = plain(status, status.canonical_reason().unwrap_or_default());
        if let Failure::Busy = failure {
            let soon = HeaderValue::from(1);
            response.headers_mut().insert(RETRY_AFTER, soon);
            self.log.often(&self.refused, |count| {
                format!("{failure}: {count} more requests refused")
            });
        } else if !failure.is_quiet() {
            let path = uri.path();
            self.log.event(format_args!("{method} {path}: {failure}"));
        }
        response
    }
}

/// An answer of the server's own: one line of text.
fn plain(status: StatusCode, line: &'static str) -> Response<Content> {
    let mut response = Response::new(Content::Left(Full::from(line)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A request's body on its way to the guest, which may leave some or all of it unread.
struct Upload {
    body: Option<Incoming>,
    /// The client waits for word before it sends the body. Silence keeps it from sending one that
    /// nobody wants (RFC 9110, section 10.1.1).
    on_demand: bool,
    patience: Duration,
    /// Runs while the client is silent.
    silence: Option<Pin<Box<Sleep>>>,
    /// Notified if the client goes or sends what is no body. The guest would take that for a failure of
    /// its own.
    failed: Option<Arc<Notify>>,
}

impl Upload {
    fn of(
        request: Request<Incoming>,
        patience: Duration,
        failed: Option<Arc<Notify>>,
    ) -> Request<Self> {
        let on_demand = request.headers().contains_key(EXPECT);
        request.map(|body| Self {
            body: Some(body),
            on_demand,
            patience,
            silence: None,
            failed,
        })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Self {
            body,
            on_demand,
            patience,
            silence,
            failed,
        } = &mut *self;
        *on_demand = false;
        let Some(incoming) = body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) {
            *silence = None;
            if let (Some(Err(_)), Some(failed)) = (&frame, failed) {
                *body = None;
                failed.notify_one();
                return Poll::Pending;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        let silence = silence.get_or_insert_with(|| Box::pin(sleep(*patience)));
        silence.as_mut().poll(cx).map(|()| {
            // Gone unread, it ends the connection.
            *body = None;
            Some(Err(Error::ConnectionReadTimeout))
        })
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
    body: Content,
    entry: Option<Entry>,
    open: Open,
    /// Set when the client may take the end of the connection for the end of the body.
    ends_with_connection: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = <Content as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.open.progress();
                if let Some(entry) = &mut self.entry {
                    entry.access.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
            }
            Poll::Ready(Some(Err(_))) if self.ends_with_connection => self.open.fail(),
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
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
        // A target that is an authority has no path; the line still has its field.
        let path = Some(request.uri().path()).filter(|path| !path.is_empty());
        Self {
            log: log.clone(),
            begun: Instant::now(),
            access: Access {
                peer,
                method: request.method().clone(),
                path: path.unwrap_or("-").to_owned(),
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
