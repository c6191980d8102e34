//! One request's way: from hyper into the sandbox, and the answer back, with its line in the log.

use crate::connection::buffers::{Buffers, FREE_BYTES};
use crate::connection::in_flight::InFlightRequest;
use crate::connection::state::ConnectionState;
use crate::request::body::RequestBody;
use crate::request::endpoints::Endpoints;
use crate::request::page::Page;
use crate::request::shutdown::Shutdown;
use crate::request::validate;
use crate::sandbox::error::HandleError;
use crate::sandbox::handler::ComponentHandler;
use crate::sandbox::response::ResponseBody;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::client::{Client, TrustedProxies};
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What an access line shows when the client went before the answer was there: nginx's number for
/// it, as HTTP has none.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Bytes of a response that HTTP/2 may hold for each stream.
const HTTP2_PIECE_BYTES: usize = 4 << 10;

/// What responds to requests.
pub enum Handler {
    Guests(Arc<ComponentHandler>),
    Management(Arc<Endpoints>),
}

/// What all requests share.
pub struct Service {
    pub handler: Handler,
    pub log: Log,
    pub metrics: Arc<Metrics>,
    pub access_log: bool,
    pub trusted_proxies: TrustedProxies,
    /// Longest silence of a client within a request's body.
    pub body_timeout: Duration,
    /// What the connections share.
    pub buffers: Buffers,
    pub shutdown: Arc<Shutdown>,
}

impl Service {
    /// Responds to a request of the client at `peer`, whatever happens.
    pub async fn handle(
        self: &Arc<Self>,
        peer: SocketAddr,
        mut request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> Response<LoggedBody> {
        let is_http2 = request.version() == Version::HTTP_2;
        let is_head = request.method() == Method::HEAD;
        let mut open = InFlightRequest::start(connection);
        let trace = Trace::of(request.headers());
        let mut entry = RequestRecord::new(self, peer, &request, &trace);
        let keep_alive_header = request.version() <= Version::HTTP_11;
        let ends_with_connection = request.version() <= Version::HTTP_10;

        let checked = validate::check(&mut request);
        // Whoever sends such a request may see other bounds between requests than this server.
        let refused = checked.is_err();
        let response = match checked {
            Ok(()) => self.dispatch(request, &mut open, trace).await,
            Err((status, reason)) => Page::text(status, reason).into(),
        };
        let (mut head, mut body) = response.into_parts();
        if is_head && !body.is_end_stream() {
            // Only HTTP/1 leaves the body out by itself.
            let length = body.size_hint().exact().map(HeaderValue::from);
            length.map(|it| head.headers.insert(CONTENT_LENGTH, it));
            body = ResponseBody::Left(Full::default());
        }
        // Others wait for the few connections of the management listener.
        let is_only = matches!(self.handler, Handler::Management(_));
        let has_stalled = head.status == StatusCode::REQUEST_TIMEOUT;
        if keep_alive_header
            && (refused
                || is_only
                || has_stalled
                || self.shutdown.is_draining.load(Ordering::Relaxed))
        {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        entry.status = head.status.as_u16();
        let body = LoggedBody {
            body,
            piece: is_http2.then_some(HTTP2_PIECE_BYTES),
            rest: Bytes::new(),
            entry,
            open,
            ends_with_connection,
        };
        Response::from_parts(head, body)
    }

    /// Logs and counts a request of which no head has come that could be served.
    pub fn log_refused(&self, peer: SocketAddr, status: StatusCode, duration: Duration) {
        self.metrics.request(None, status.as_u16(), duration);
        if self.access_log {
            self.log.access(&AccessRecord {
                peer,
                client: peer.into(),
                trace: Trace::default(),
                method: None,
                path: "-".into(),
                status: status.as_u16(),
                bytes: 0,
                duration,
                is_cut: false,
            });
        }
    }

    /// Logs and counts that a connection was cut, as there is no memory for what it holds.
    pub fn log_cut(&self) {
        self.metrics.rejected_connections.count("buffers");
        self.log.event_throttled("connections cut", |count| {
            format!("the buffers of all connections are taken: {count} more connections cut")
        });
    }

    async fn dispatch(
        &self,
        request: Request<Incoming>,
        open: &mut InFlightRequest,
        trace: Trace,
    ) -> Response<ResponseBody> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let sandbox = match &self.handler {
            Handler::Guests(sandbox) => sandbox,
            Handler::Management(endpoints) => {
                return endpoints.respond(&request).await.into();
            }
        };
        let failure = match self.call(sandbox, request, open, &trace).await {
            Ok(response) => return response,
            Err(failure) => failure,
        };
        let status = failure.status();
        failure.count(&self.metrics);
        if let Some(lack) = failure.exhausted() {
            self.log.event_throttled(lack, move |count| {
                format!("{lack}: {count} more requests refused")
            });
        } else if !failure.is_already_logged() {
            let message = format_args!("{method} {}: {failure}", uri.path());
            self.log.request_event(failure.level(), &trace, message);
        }
        Page::text(status, status.canonical_reason().unwrap_or_default()).into()
    }

    /// Receives the request's body, as much as there has to be of it, and calls a guest.
    async fn call(
        &self,
        sandbox: &Arc<ComponentHandler>,
        request: Request<Incoming>,
        open: &mut InFlightRequest,
        trace: &Trace,
    ) -> Result<Response<ResponseBody>, HandleError> {
        let is_on_demand = request.headers().contains_key(EXPECT);
        let mut request = request
            .map(|body| RequestBody::new(body, is_on_demand, self.body_timeout, open.connection()));
        let body = request.body_mut();
        let transfer = body
            .receive(&sandbox.shared().permits, &self.buffers)
            .await?;
        let progress = body.progress();
        let (response, bytes) = sandbox
            .handle(request, progress, transfer, trace.clone())
            .await?;
        if bytes > FREE_BYTES {
            open.keep(
                sandbox
                    .shared()
                    .permits
                    .buffer(bytes)
                    .ok_or(HandleError::Buffers)?,
            );
        }
        Ok(response)
    }
}

/// An answer's body on its way to the client. When it has passed, or the client has gone, the
/// request's line is logged.
pub struct LoggedBody {
    body: ResponseBody,
    /// Bytes that go to HTTP/2 at a time: it takes them as soon as the client has room for one. `None` for HTTP/1.
    piece: Option<usize>,
    /// What is left of what the body has given.
    rest: Bytes,
    entry: RequestRecord,
    open: InFlightRequest,
    /// Set when the client may take the end of the connection for the end of the body.
    ends_with_connection: bool,
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        self.entry.is_cut = self.entry.is_cutting() && !self.is_end_stream();
    }
}

impl Body for LoggedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = match self.rest.is_empty() {
            true => Pin::new(&mut self.body).poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.rest))))),
        };
        let polled = polled.map_ok(|frame| match self.piece {
            Some(piece) => frame.map_data(|mut data| {
                if data.len() <= piece {
                    return data;
                }
                // A copy, as HTTP/2 would keep the whole for the sake of a part.
                let first = Bytes::copy_from_slice(&data.split_to(piece));
                self.rest = data;
                first
            }),
            None => frame,
        });
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            Poll::Ready(Some(Err(_))) if self.ends_with_connection => self.open.fail(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// Asked for before the first frame.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request that is under way. When dropped, it is counted and its line is logged.
struct RequestRecord {
    service: Arc<Service>,
    started: Instant,
    method: Method,
    status: u16,
    /// Bytes of the response's body that were passed on.
    bytes: u64,
    /// Set when the server has cut the response at the end of a drain.
    is_cut: bool,
    line: Option<Line>,
}

/// What the access log has of the request.
struct Line {
    peer: SocketAddr,
    client: Client,
    trace: Trace,
    path: String,
}

impl RequestRecord {
    fn new(
        service: &Arc<Service>,
        peer: SocketAddr,
        request: &Request<Incoming>,
        trace: &Trace,
    ) -> Self {
        service.shutdown.requests.fetch_add(1, Ordering::Relaxed);
        Self {
            service: service.clone(),
            started: Instant::now(),
            method: request.method().clone(),
            status: CLIENT_CLOSED_REQUEST,
            bytes: 0,
            is_cut: false,
            line: service.access_log.then(|| Line {
                peer,
                client: service.trusted_proxies.client(peer, request.headers()),
                trace: trace.clone(),
                // A target that is an authority has no path; the line still has its field.
                path: match request.uri().path() {
                    "" => "-".to_owned(),
                    path => path.to_owned(),
                },
            }),
        }
    }

    /// Returns true if the server cuts what has not ended.
    fn is_cutting(&self) -> bool {
        self.service.shutdown.is_cutting.load(Ordering::Relaxed)
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let service = &self.service;
        service.shutdown.requests.fetch_sub(1, Ordering::Relaxed);
        let duration = self.started.elapsed();
        if self.status == CLIENT_CLOSED_REQUEST && self.is_cutting() {
            self.is_cut = true;
            self.status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
        }
        let service = &self.service;
        service
            .metrics
            .request(Some(&self.method), self.status, duration);
        if let Some(line) = self.line.take() {
            service.log.access(&AccessRecord {
                peer: line.peer,
                client: line.client,
                trace: line.trace,
                method: Some(mem::take(&mut self.method)),
                path: line.path,
                status: self.status,
                bytes: self.bytes,
                duration,
                is_cut: self.is_cut,
            });
        }
    }
}
