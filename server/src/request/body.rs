//! A request's body on its way from the client to the guest.
//!
//! A slow client does not hold a sandbox: [`RequestBody::receive`] takes in up to [`BUFFER_BYTES`] before the guest
//! starts. A body that is larger needs a permit for a transfer, of which there are half as many as sandboxes. So does one
//! whose client pauses for [`PAUSE`]: it may wait for a response to what it has sent. Without a permit, that one waits.

use crate::connection::buffers::{Buffers, FREE_BYTES, Reservation};
use crate::connection::in_flight::ReceivingBody;
use crate::connection::stall::StallTimer;
use crate::connection::state::ConnectionState;
use crate::sandbox::error::HandleError;
use crate::sandbox::permits::Permits;
use crate::sandbox::progress::Progress;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::Error;

/// Bytes of a body that are received before the guest starts.
pub const BUFFER_BYTES: usize = 64 << 10;

/// Most bytes by which the buffer grows.
const STEP_BYTES: usize = 16 << 10;

/// Silence of a client within a body after which the guest may start with a part of it.
const PAUSE: Duration = Duration::from_millis(100);

/// Time for which the rest of a body that the guest did not read is received and dropped. Closing with unread input
/// resets the connection, and the client may lose the response (RFC 9112, section 9.6).
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

pub struct RequestBody {
    /// Received, and not yet given to the guest.
    received: Bytes,
    /// FrameBuffer for it.
    part: Option<Reservation>,
    trailers: Option<HeaderMap>,
    /// What is still to come. `None` after the end.
    incoming: Option<(Incoming, ReceivingBody)>,
    /// Set when the client waits for `100 Continue`, which hyper sends when the body is first read. It does not send a
    /// body that nobody reads (RFC 9110, section 10.1.1).
    is_on_demand: bool,
    pace: StallTimer,
    /// `None` if there is no body.
    progress: Option<Arc<Progress>>,
}

impl RequestBody {
    /// `limit` is `BODY_TIMEOUT`.
    pub fn new(
        incoming: Incoming,
        is_on_demand: bool,
        limit: Duration,
        connection: &Arc<ConnectionState>,
    ) -> Self {
        let incoming = Some(incoming).filter(|incoming| !incoming.is_end_stream());
        let incoming = incoming.map(|incoming| (incoming, ReceivingBody::start(connection)));
        Self {
            received: Bytes::new(),
            part: None,
            trailers: None,
            is_on_demand,
            pace: StallTimer::new(limit),
            progress: incoming.as_ref().map(|_| Arc::new(Progress::new(limit))),
            incoming,
        }
    }

    /// Returns what the guest's call has to see of the body; `None` if there is none.
    pub fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }

    /// Receives what the guest has to find when it starts. Returns the permit that it has for the rest; `None` if that
    /// was all.
    ///
    /// # Errors
    /// When the body is not whole or malformed, the client stalls, or there is no permit.
    pub async fn receive(
        &mut self,
        permits: &Permits,
        buffers: &Buffers,
    ) -> Result<Option<OwnedSemaphorePermit>, HandleError> {
        if self.incoming.is_none() {
            return Ok(None);
        }
        if self.is_on_demand {
            return permits.transfer().map(Some).ok_or(HandleError::Transfers);
        }
        let mut buffer = Vec::new();
        let mut part = None;
        let mut pause: Option<Pin<Box<Sleep>>> = None;
        let mut has_paused = false;
        let received = poll_fn(|cx| {
            loop {
                let Some((incoming, receiving)) = &mut self.incoming else {
                    return Poll::Ready(Ok(None));
                };
                if buffer.len() >= BUFFER_BYTES {
                    return Poll::Ready(permits.transfer().map(Some).ok_or(HandleError::Transfers));
                }
                match Pin::new(&mut *incoming).poll_frame(cx) {
                    Poll::Ready(None) => self.incoming = None,
                    Poll::Ready(Some(Err(_))) => {
                        self.incoming = None;
                        return Poll::Ready(Err(HandleError::IncompleteRequest));
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        let is_last = incoming.is_end_stream();
                        match frame.into_data() {
                            Ok(data) => {
                                self.pace.record(data.len());
                                receiving.progress();
                                has_paused = false;
                                if let Some(pause) = &mut pause {
                                    pause.as_mut().reset(Instant::now() + PAUSE);
                                }
                                if is_last && buffer.is_empty() {
                                    self.received = data;
                                } else {
                                    // Copied, as a small piece may keep a large buffer of hyper's.
                                    if buffer.capacity() - buffer.len() < data.len() {
                                        let step = buffer.len().clamp(1 << 10, STEP_BYTES);
                                        buffer.reserve_exact(data.len().max(step));
                                    }
                                    buffer.extend_from_slice(&data);
                                }
                                if buffer.len() > FREE_BYTES && part.is_none() {
                                    part = buffers.try_reserve(BUFFER_BYTES + STEP_BYTES);
                                    if part.is_none() {
                                        let permit = permits.transfer().map(Some);
                                        return Poll::Ready(permit.ok_or(HandleError::Buffers));
                                    }
                                }
                            }
                            Err(frame) => self.trailers = frame.into_trailers().ok(),
                        }
                        if is_last {
                            self.incoming = None;
                        }
                    }
                    Poll::Pending => {
                        let pause = pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
                        if !has_paused && pause.as_mut().poll(cx).is_ready() {
                            has_paused = true;
                            if let Some(permit) = permits.transfer() {
                                return Poll::Ready(Ok(Some(permit)));
                            }
                        }
                        if self.pace.poll_stalled(cx).is_ready() {
                            receiving.stall();
                            self.incoming = None;
                            return Poll::Ready(Err(HandleError::SlowRequest));
                        }
                        return Poll::Pending;
                    }
                }
            }
        });
        let permit = received.await?;
        if !buffer.is_empty() {
            self.received = buffer.into();
            self.part = part;
        }
        Ok(permit)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Self {
            received,
            trailers,
            incoming,
            is_on_demand,
            pace,
            progress,
            ..
        } = &mut *self;
        if !received.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(received)))));
        }
        let Some((body, receiving)) = incoming else {
            return Poll::Ready(trailers.take().map(|it| Ok(Frame::trailers(it))));
        };
        *is_on_demand = false;
        let polled = Pin::new(body).poll_frame(cx);
        if let Some(progress) = &*progress {
            progress.record_poll(polled.is_pending(), cx.waker());
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                receiving.progress();
                pace.record(frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                *incoming = None;
                if let Some(progress) = progress {
                    progress.failed.notify_one();
                }
                Poll::Pending
            }
            Poll::Ready(None) => {
                *incoming = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(pace.poll_stalled(cx));
                receiving.stall();
                // Dropped unread, it ends the connection.
                *incoming = None;
                if let Some(progress) = progress {
                    progress.is_awaited.store(false, Ordering::Relaxed);
                }
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let incoming = self.incoming.as_ref();
        let has_ended = incoming.is_none_or(|(rest, _)| rest.is_end_stream());
        has_ended && self.received.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let received = self.received.len() as u64;
        let rest = self.incoming.as_ref().map(|(rest, _)| rest.size_hint());
        let rest = rest.unwrap_or_else(|| SizeHint::with_exact(0));
        let mut hint = SizeHint::new();
        hint.set_lower(received + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(received + upper);
        }
        hint
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.is_awaited.store(false, Ordering::Relaxed);
        }
        if self.is_on_demand {
            return;
        }
        if let (Some((rest, receiving)), Ok(runtime)) =
            (self.incoming.take(), Handle::try_current())
            && !rest.is_end_stream()
        {
            runtime.spawn(timeout(DISCARD_TIMEOUT, discard(rest, receiving)));
        }
    }
}

/// Takes a body to its end and drops it.
async fn discard(mut body: Incoming, receiving: ReceivingBody) {
    while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        receiving.progress();
    }
}
