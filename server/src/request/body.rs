//! A request's body on its way from the client to the guest.
//!
//! A slow client must not occupy a sandbox. So [`RequestBody::receive`] buffers a body before the guest starts, up to
//! [`BUFFER_BYTES`]. The guest starts with a part of the body if
//!
//! - the body is larger, or the client waits for `100 Continue`;
//! - the client pauses for [`PAUSE`], because it may wait for a response to what it has sent.
//!
//! It then needs a permit for a transfer, of which there are half as many as sandboxes. Without one, a large body is
//! rejected, and that of a client that pauses continues to be buffered. A client that is slower than `BODY_TIMEOUT` allows
//! fails the request, before the start of the guest and after it.

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

/// Bytes of a body that are buffered before the guest starts.
const BUFFER_BYTES: usize = 64 << 10;

/// Maximum growth of the buffer at a time.
const STEP_BYTES: usize = 16 << 10;

/// Time without data after which the guest may start with a part of the body.
const PAUSE: Duration = Duration::from_millis(100);

/// Time for which the rest of a body that the guest did not read is received and discarded. Closing with unread input resets the
/// connection, and the client may lose the response (RFC 9112, section 9.6).
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

pub struct RequestBody {
    /// Buffered for the guest, and not yet read by it.
    received: Bytes,
    /// Of the memory of `received`.
    reservation: Option<Reservation>,
    trailers: Option<HeaderMap>,
    /// The rest. `None` after the end.
    incoming: Option<(Incoming, ReceivingBody)>,
    /// Set until the first read if the client waits for `100 Continue`, which hyper sends at that read. The client does not
    /// send a body that is not read (RFC 9110, section 10.1.1).
    is_on_demand: bool,
    stall_timer: StallTimer,
    /// `None` if the request has no body.
    progress: Option<Arc<Progress>>,
}

/// The beginning of a body.
#[derive(Default)]
struct Prefix {
    bytes: Vec<u8>,
    reservation: Option<Reservation>,
}

impl Prefix {
    /// Copies the data, because a small slice may keep a large buffer of hyper's in memory.
    fn push(&mut self, data: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < data.len() {
            let step = self.bytes.len().clamp(1 << 10, STEP_BYTES);
            self.bytes.reserve_exact(data.len().max(step));
        }
        self.bytes.extend_from_slice(data);
    }

    /// Reserves memory once there are more than [`FREE_BYTES`]. Returns false if none is left.
    fn reserve_if_large(&mut self, buffers: &Buffers) -> bool {
        if self.bytes.len() > FREE_BYTES && self.reservation.is_none() {
            self.reservation = buffers.try_reserve(BUFFER_BYTES + STEP_BYTES);
            return self.reservation.is_some();
        }
        true
    }
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
            reservation: None,
            trailers: None,
            is_on_demand,
            stall_timer: StallTimer::new(limit),
            progress: incoming.as_ref().map(|_| Arc::new(Progress::new(limit))),
            incoming,
        }
    }

    /// Returns the progress of the body, for the guest's call; `None` if there is no body.
    pub fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }

    /// Receives what the guest must find when it starts. Returns the permit for the rest; `None` if there is no rest.
    ///
    /// # Errors
    /// When the body is incomplete or malformed, the client stalls, or there is no permit.
    pub async fn receive(
        &mut self,
        permits: &Permits,
        buffers: &Buffers,
    ) -> Result<Option<OwnedSemaphorePermit>, HandleError> {
        if self.incoming.is_none() {
            return Ok(None);
        }
        let transfer_or = |error| permits.transfer().map(Some).ok_or(error);
        if self.is_on_demand {
            return transfer_or(HandleError::Transfers);
        }
        let mut prefix = Prefix::default();
        let mut pause: Option<Pin<Box<Sleep>>> = None;
        let mut has_paused = false;
        let received = poll_fn(|cx| {
            loop {
                let Some((incoming, receiving)) = &mut self.incoming else {
                    return Poll::Ready(Ok(None));
                };
                if prefix.bytes.len() >= BUFFER_BYTES {
                    return Poll::Ready(transfer_or(HandleError::Transfers));
                }
                let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => frame,
                    Poll::Ready(Some(Err(_))) => {
                        self.incoming = None;
                        return Poll::Ready(Err(HandleError::IncompleteRequest));
                    }
                    Poll::Ready(None) => {
                        self.incoming = None;
                        continue;
                    }
                    Poll::Pending => {
                        let pause = pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
                        if !has_paused && pause.as_mut().poll(cx).is_ready() {
                            has_paused = true;
                            if let Some(permit) = permits.transfer() {
                                return Poll::Ready(Ok(Some(permit)));
                            }
                        }
                        ready!(self.stall_timer.poll_stalled(cx));
                        receiving.stall();
                        self.incoming = None;
                        return Poll::Ready(Err(HandleError::SlowRequest));
                    }
                };
                let is_last = incoming.is_end_stream();
                match frame.into_data() {
                    Ok(data) => {
                        self.stall_timer.record(data.len());
                        receiving.progress();
                        has_paused = false;
                        if let Some(pause) = &mut pause {
                            pause.as_mut().reset(Instant::now() + PAUSE);
                        }
                        if is_last && prefix.bytes.is_empty() {
                            self.received = data;
                        } else {
                            prefix.push(&data);
                        }
                        if !prefix.reserve_if_large(buffers) {
                            return Poll::Ready(transfer_or(HandleError::Buffers));
                        }
                    }
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                }
                if is_last {
                    self.incoming = None;
                }
            }
        });
        let permit = received.await?;
        if !prefix.bytes.is_empty() {
            self.received = prefix.bytes.into();
            self.reservation = prefix.reservation;
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
            stall_timer,
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
                stall_timer.record(frame.data_ref().map_or(0, Bytes::len));
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
                ready!(stall_timer.poll_stalled(cx));
                receiving.stall();
                // hyper closes the connection of a body that is dropped before its end.
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

/// Receives a body to its end.
async fn discard(mut body: Incoming, receiving: ReceivingBody) {
    while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        receiving.progress();
    }
}
