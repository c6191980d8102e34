//! Handles a request, from hyper to the guest and back.
//!
//! 1. The request is recorded, so that it is logged and counted whatever happens.
//! 2. [`validate`] rejects requests that hyper accepts and that the RFCs require a server to reject.
//! 3. The request's body is received, as much of it as the guest must find, and a guest is called.
//! 4. Every failure of that becomes a response, and is logged here if the guest has not logged it.
//! 5. Over HTTP/1, the response ends its connection (`Connection: close`) where the next request could not be served.

use crate::connection::buffers::FREE_BYTES;
use crate::connection::in_flight::InFlightRequest;
use crate::connection::state::ConnectionState;
use crate::request::body::RequestBody;
use crate::request::page::Page;
use crate::request::record::{RecordedBody, RequestRecord};
use crate::request::service::{Handler, Service};
use crate::request::validate;
use crate::sandbox::error::HandleError;
use crate::sandbox::handler::ComponentHandler;
use crate::sandbox::response::ResponseBody;
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Maximum size of a piece of a body that h2 receives. h2 buffers a whole piece as soon as the stream's window has room for
/// one byte.
const HTTP2_PIECE_BYTES: usize = 4 << 10;

impl Service {
    /// Responds to a request of the client at `peer`.
    pub async fn handle(
        self: &Arc<Self>,
        peer: SocketAddr,
        mut request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> Response<RecordedBody> {
        let is_http2 = request.version() == Version::HTTP_2;
        let is_head = request.method() == Method::HEAD;
        let ends_with_connection = request.version() <= Version::HTTP_10;
        let mut in_flight = InFlightRequest::start(connection);
        let trace = Trace::of(request.headers());
        let mut record = RequestRecord::new(self, peer, &request, &trace);

        let validated = validate::check(&mut request);
        let is_rejected = validated.is_err();
        let response = match validated {
            Ok(()) => self.dispatch(request, &mut in_flight, trace).await,
            Err((status, reason)) => Page::text(status, reason).into(),
        };
        let (mut head, mut body) = response.into_parts();
        if is_head && !body.is_end_stream() {
            // Only HTTP/1 omits the body by itself.
            if let Some(length) = body.size_hint().exact() {
                head.headers.insert(CONTENT_LENGTH, length.into());
            }
            body = ResponseBody::Left(Full::default());
        }
        let closes = || {
            // The client may disagree with this server on where the request ends (request smuggling).
            is_rejected
                // Other clients wait for one of the few connections.
                || matches!(self.handler, Handler::Management(_))
                // The rest of the request's body is missing.
                || head.status == StatusCode::REQUEST_TIMEOUT
                || self.shutdown.is_draining.load(Ordering::Relaxed)
        };
        if !is_http2 && closes() {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.status = head.status.as_u16();
        let body = RecordedBody {
            body,
            max_piece: is_http2.then_some(HTTP2_PIECE_BYTES),
            rest: Bytes::new(),
            record,
            in_flight,
            ends_with_connection,
        };
        Response::from_parts(head, body)
    }

    async fn dispatch(
        &self,
        request: Request<Incoming>,
        in_flight: &mut InFlightRequest,
        trace: Trace,
    ) -> Response<ResponseBody> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let handler = match &self.handler {
            Handler::Guests(handler) => handler,
            Handler::Management(endpoints) => return endpoints.respond(&request).await.into(),
        };
        let error = match self.call(handler, request, in_flight, &trace).await {
            Ok(response) => return response,
            Err(error) => error,
        };
        let status = error.status();
        error.count(&self.metrics);
        if let Some(resource) = error.exhausted() {
            self.log.event_throttled(resource, move |count| {
                format!("{resource}: rejected {count} requests")
            });
        } else if !error.is_already_logged() {
            let message = format_args!("{method} {}: {error}", uri.path());
            self.log.request_event(error.level(), &trace, message);
        }
        Page::text(status, status.canonical_reason().unwrap_or_default()).into()
    }

    async fn call(
        &self,
        handler: &Arc<ComponentHandler>,
        request: Request<Incoming>,
        in_flight: &mut InFlightRequest,
        trace: &Trace,
    ) -> Result<Response<ResponseBody>, HandleError> {
        let is_on_demand = request.headers().contains_key(EXPECT);
        let connection = in_flight.connection();
        let mut request =
            request.map(|body| RequestBody::new(body, is_on_demand, self.body_timeout, connection));
        let body = request.body_mut();
        let permits = &handler.shared().permits;
        let transfer = body.receive(permits, &self.buffers).await?;
        let progress = body.progress();
        let (response, bytes) = handler
            .handle(request, progress, transfer, trace.clone())
            .await?;
        if bytes > FREE_BYTES {
            in_flight.keep(permits.buffer(bytes).ok_or(HandleError::Buffers)?);
        }
        Ok(response)
    }
}
