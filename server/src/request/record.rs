//! The record of a request: counted, and logged if the access log is on, when the response has been sent or the client has
//! disconnected.
//!
//! hyper then drops the response's body or, if there is no response yet, its future. So [`RequestRecord`]'s `drop` writes
//! the record. Its status is 499 until there is a response.

use crate::connection::in_flight::InFlightRequest;
use crate::request::service::Service;
use crate::sandbox::response::ResponseBody;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::client::Client;
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

/// Status of a request whose client disconnects before there is a response: nginx's, because HTTP defines none.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A request in progress.
pub struct RequestRecord {
    service: Arc<Service>,
    start: Instant,
    method: Method,
    pub status: u16,
    /// Bytes of the response's body that were sent.
    bytes: u64,
    /// Set when the end of a drain cuts the response.
    is_cut: bool,
    /// `None` if the access log is off.
    origin: Option<Origin>,
}

/// The part of the record for the access log alone.
struct Origin {
    peer: SocketAddr,
    client: Client,
    trace: Trace,
    path: String,
}

impl RequestRecord {
    pub fn new(
        service: &Arc<Service>,
        peer: SocketAddr,
        request: &Request<Incoming>,
        trace: &Trace,
    ) -> Self {
        service.shutdown.requests.fetch_add(1, Ordering::Relaxed);
        Self {
            service: service.clone(),
            start: Instant::now(),
            method: request.method().clone(),
            status: CLIENT_CLOSED_REQUEST,
            bytes: 0,
            is_cut: false,
            origin: service.access_log.then(|| Origin {
                peer,
                client: service.trusted_proxies.client(peer, request.headers()),
                trace: trace.clone(),
                // A target that is an authority has no path, and each line has the field.
                path: match request.uri().path() {
                    "" => "-".to_owned(),
                    path => path.to_owned(),
                },
            }),
        }
    }

    /// Returns true if the server cuts all that has not ended.
    fn is_cutting(&self) -> bool {
        self.service.shutdown.is_cutting.load(Ordering::Relaxed)
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let duration = self.start.elapsed();
        if self.status == CLIENT_CLOSED_REQUEST && self.is_cutting() {
            self.is_cut = true;
            self.status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
        }
        let Service {
            log,
            metrics,
            shutdown,
            ..
        } = &*self.service;
        shutdown.requests.fetch_sub(1, Ordering::Relaxed);
        metrics.request(Some(&self.method), self.status, duration);
        if let Some(origin) = self.origin.take() {
            log.access(&AccessRecord {
                peer: origin.peer,
                client: origin.client,
                trace: origin.trace,
                method: Some(mem::take(&mut self.method)),
                path: origin.path,
                status: self.status,
                bytes: self.bytes,
                duration,
                is_cut: self.is_cut,
            });
        }
    }
}

/// A response's body, with the record of its request.
pub struct RecordedBody {
    pub body: ResponseBody,
    /// Maximum size of a piece; `None` for HTTP/1.
    pub max_piece: Option<usize>,
    /// The part of a frame that exceeded it.
    pub rest: Bytes,
    pub record: RequestRecord,
    pub in_flight: InFlightRequest,
    /// Set when the client may take the end of the connection for the end of the body, as in HTTP/1.0.
    pub ends_with_connection: bool,
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        self.record.is_cut = self.record.is_cutting() && !self.is_end_stream();
    }
}

impl Body for RecordedBody {
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
        let polled = polled.map_ok(|frame| match self.max_piece {
            Some(max) => frame.map_data(|mut data| {
                if data.len() <= max {
                    return data;
                }
                // Copied, because a slice would keep the whole frame in memory.
                let piece = Bytes::copy_from_slice(&data.split_to(max));
                self.rest = data;
                piece
            }),
            None => frame,
        });
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.record.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            Poll::Ready(Some(Err(_))) if self.ends_with_connection => self.in_flight.fail(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// hyper calls it before the first frame.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
