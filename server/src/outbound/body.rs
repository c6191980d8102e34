//! The body of a request to another service.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, WasiBody};

/// A request's body on its way from a guest to another service.
pub struct RequestBody {
    /// `None` after the end of the body.
    body: Option<WasiBody>,
    /// Set when hyper first reads the body or its size, which is after the connection and TLS are established.
    is_connected: Arc<AtomicBool>,
    /// Maximum time to discard the rest of the body.
    discard_timeout: Duration,
}

impl RequestBody {
    pub fn new(body: WasiBody, discard_timeout: Duration) -> Self {
        Self {
            body: Some(body),
            is_connected: Arc::default(),
            discard_timeout,
        }
    }

    /// Returns the flag that is set once the connection is established.
    pub fn is_connected(&self) -> Arc<AtomicBool> {
        self.is_connected.clone()
    }

    /// Returns the body to hyper, which asks for it once the connection is established.
    fn connected_body(&self) -> Option<&WasiBody> {
        self.is_connected.store(true, Ordering::Relaxed);
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
        self.connected_body().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.connected_body()
            .map(Body::size_hint)
            .unwrap_or_default()
    }
}

impl Drop for RequestBody {
    /// Discards the rest of a body whose request has failed. Otherwise the guest's next write fails, and `wstd` reports
    /// that failure instead of the error of the request.
    fn drop(&mut self) {
        if let (Some(mut body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            let discard = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(timeout(self.discard_timeout, discard));
        }
    }
}
