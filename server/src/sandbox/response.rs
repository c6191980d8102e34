//! A response on its way from the guest to the client.
//!
//! The host takes up to [`BUFFER_BYTES`] of a body at once, so that a guest with a response of ordinary size ends without
//! waiting for its client. With a larger one it waits, and needs a permit for a transfer (see [`crate::request_body`]).
//! While it waits, its time stands still.

use crate::connection::buffers::FREE_BYTES;
use crate::sandbox::error::HandleError;
use crate::sandbox::handler::{ComponentHandler, RequestState};
use crate::telemetry::trace::Trace;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep, timeout};
use wasmtime_wasi_http::{Error, WasiBody};

/// Bytes of a body that the host takes before the guest has to wait for the client.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes of a frame besides its data.
const FRAME_BYTES: usize = 128;

/// Time for which a guest may wait for a client without a permit, once its response has begun. A client that takes the
/// response as fast as the guest gives it needs none.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes that a guest may write of a body that nobody wants, such as that of a response to `HEAD`, and
/// the time that it may take. Then the guest ends, as the client has its response.
const MAX_DISCARDED_BYTES: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// A response's body: all of it, or one that is still to come.
pub type ResponseBody = Either<Full<Bytes>, WasiBody>;

/// A guest that serves a request, as a future that ends with it.
pub type Call = Pin<Box<dyn Future<Output = Result<(), HandleError>> + Send>>;

/// A response that the guest has begun, and what the host has taken of its body.
pub struct StartedResponse {
    head: Parts,
    body: WasiBody,
    taken: FrameBuffer,
}

/// Frames that wait for the client.
#[derive(Default)]
struct FrameBuffer {
    frames: VecDeque<Frame<Bytes>>,
    /// Bytes of their data.
    bytes: usize,
    /// Bytes of their trailers.
    trailers: usize,
    /// How the body has ended.
    end: Option<Result<(), Error>>,
    /// Set when the body has ended with an error.
    has_failed: bool,
}

impl FrameBuffer {
    /// Bytes that the frames take.
    fn cost(&self) -> usize {
        self.bytes + self.trailers + self.frames.len() * FRAME_BYTES
    }

    fn is_full(&self) -> bool {
        self.cost() >= BUFFER_BYTES
    }

    fn fail(&mut self, error: Error) {
        self.end = Some(Err(error));
        self.has_failed = true;
    }

    /// Adds a frame; returns false if there is nothing in it.
    fn push(&mut self, frame: Frame<Bytes>) -> bool {
        let bytes = frame.data_ref().map(Bytes::len);
        let is_empty = bytes == Some(0);
        if !is_empty {
            self.bytes += bytes.unwrap_or_default();
            self.trailers += frame.trailers_ref().map_or(0, size);
            self.frames.push_back(frame);
        }
        !is_empty
    }

    /// Takes what there is of a body, and no more than there is room for. Returns true if that was anything.
    fn fill(&mut self, body: &mut WasiBody, cx: &mut Context) -> bool {
        let mut is_anything = false;
        while !self.is_full()
            && self.end.is_none()
            && let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx)
        {
            is_anything |= match frame {
                Some(Ok(frame)) => self.push(frame),
                Some(Err(error)) => {
                    self.fail(error);
                    true
                }
                None => {
                    self.end = Some(Ok(()));
                    true
                }
            };
        }
        is_anything
    }
}

impl StartedResponse {
    pub fn new(response: Response<WasiBody>) -> Self {
        let (head, body) = response.into_parts();
        Self {
            head,
            body,
            taken: FrameBuffer::default(),
        }
    }

    /// Takes what there is of the body; returns true if that was anything.
    pub fn take(&mut self, cx: &mut Context) -> bool {
        self.taken.fill(&mut self.body, cx)
    }

    pub fn is_full(&self) -> bool {
        self.taken.is_full()
    }

    /// The response of a guest that has ended, with all of its body and how many bytes it has. `logged` says that the
    /// guest has written to its standard error.
    pub async fn whole(
        mut self,
        is_head: bool,
        logged: bool,
    ) -> Result<(Response<ResponseBody>, usize), HandleError> {
        if has_no_body(is_head, self.head.status) {
            // Its length, if it has one, is that of the body that is left out (RFC 9110, section 8.6).
            let empty = Either::Left(Full::default());
            let bytes = size(&self.head.headers);
            return Ok((Response::from_parts(self.head, empty), bytes));
        }
        drain(&mut self.body, &mut self.taken).await;
        match self.taken.end {
            Some(Err(error @ Error::InternalError(_))) => {
                return Err(HandleError::BodyFailed { error, logged });
            }
            Some(Err(error)) => return Err(HandleError::InvalidResponse(error)),
            Some(Ok(())) | None => {}
        }
        let FrameBuffer {
            frames,
            bytes,
            trailers,
            ..
        } = self.taken;
        let size = size(&self.head.headers) + bytes + trailers;
        if let Some(claimed) = self.head.headers.get(CONTENT_LENGTH)
            && number(claimed) != Some(bytes)
        {
            let length = Error::HttpResponseBodySize(Some(bytes as u64));
            return Err(HandleError::InvalidResponse(length));
        }
        let (body, trailers) = join(frames, bytes);
        let body = Full::new(body);
        let content = match trailers {
            None => Either::Left(body),
            Some(trailers) => {
                let trailers = std::future::ready(Some(Ok(trailers)));
                let body = body.with_trailers(trailers).map_err(Error::from);
                Either::Right(body.boxed_unsync())
            }
        };
        Ok((Response::from_parts(self.head, content), size))
    }

    /// The response of a guest that goes on. Its task ends with it, or when the client has gone.
    ///
    /// # Errors
    /// When there is more than the host takes at once, and no permit for a transfer.
    pub fn streaming(
        self,
        sandbox: Arc<ComponentHandler>,
        call: Call,
        state: Arc<RequestState>,
        transfer: Option<OwnedSemaphorePermit>,
        is_head: bool,
    ) -> Result<Response<ResponseBody>, HandleError> {
        let Self { head, body, taken } = self;
        if has_no_body(is_head, head.status) {
            let guest = spawn(sandbox, state.trace.clone(), async move {
                let _transfer = transfer;
                call.await
            });
            // The guest writes one all the same, and writing fails if nobody takes it.
            tokio::spawn(async move {
                if timeout(DISCARD_TIMEOUT, discard(body)).await != Ok(true) {
                    guest.abort();
                }
            });
            return Ok(Response::from_parts(head, Either::Left(Full::default())));
        }
        let is_large = taken.is_full() || size(&head.headers) > FREE_BYTES;
        let transfer = match transfer {
            None if is_large => Some(sandbox.transfer().ok_or(HandleError::Transfers)?),
            transfer => transfer,
        };
        let missing = head.headers.get(CONTENT_LENGTH).and_then(number);
        let pipe = Arc::new(Pipe(Mutex::new(PipeState {
            taken,
            permit: None,
            reader: None,
            writer: None,
        })));
        let trace = state.trace.clone();
        let run = serve(sandbox.clone(), call, state, transfer, body, pipe.clone());
        let guest = spawn(sandbox, trace, run);
        let body = StreamingBody {
            pipe,
            guest,
            missing,
            has_ended: false,
        };
        Ok(Response::from_parts(
            head,
            Either::Right(body.boxed_unsync()),
        ))
    }
}

/// Runs a guest whose response has started.
fn spawn(
    sandbox: Arc<ComponentHandler>,
    trace: Trace,
    run: impl Future<Output = Result<(), HandleError>> + Send + 'static,
) -> AbortHandle {
    let guest = tokio::spawn(async move {
        if let Err(failure) = run.await {
            sandbox.log_late(&failure, &trace);
        }
    });
    guest.abort_handle()
}

/// Runs the guest, and moves its body into the pipe.
async fn serve(
    sandbox: Arc<ComponentHandler>,
    mut call: Call,
    state: Arc<RequestState>,
    mut transfer: Option<OwnedSemaphorePermit>,
    mut body: WasiBody,
    pipe: Arc<Pipe>,
) -> Result<(), HandleError> {
    let mut pause: Option<Pin<Box<Sleep>>> = None;
    let ended = poll_fn(|cx| {
        loop {
            let (moved, is_full) = pipe.fill(&mut body, cx);
            if is_full && transfer.is_none() {
                transfer = sandbox.transfer();
            }
            match &transfer {
                None if is_full => {
                    let pause = pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
                    if pause.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(HandleError::Transfers));
                    }
                }
                _ => pause = None,
            }
            state.is_output_full.store(is_full, Ordering::Relaxed);
            if moved {
                state.has_progressed.store(true, Ordering::Relaxed);
            }
            state.yielded.store(false, Ordering::Relaxed);
            if let Poll::Ready(ended) = call.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            if !moved || state.yielded.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
    });
    let ended = ended.await;
    // The sandbox is free.
    drop(call);
    let mut rest = FrameBuffer::default();
    if pipe.state().taken.end.is_none() {
        if ended.is_err() {
            // Otherwise the client takes half a response for a whole one.
            pipe.fail();
            return ended;
        }
        drain(&mut body, &mut rest).await;
    }
    if ended.is_ok() && (rest.has_failed || pipe.state().taken.has_failed) {
        // The guest logs it itself.
        sandbox.shared().metrics.guest_failures.count("body_failed");
    }
    let bytes = pipe.state().taken.cost() + rest.cost();
    if bytes > FREE_BYTES && transfer.is_none() {
        transfer = sandbox.buffer(bytes);
        if transfer.is_none() {
            pipe.fail();
            return Err(HandleError::Buffers);
        }
    }
    pipe.end(rest, transfer);
    ended
}

/// Takes the rest of a body whose guest has ended. A guest that is kept for the next request may not have ended its
/// body.
async fn drain(body: &mut WasiBody, taken: &mut FrameBuffer) {
    while taken.end.is_none() {
        match timeout(DISCARD_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                taken.push(frame);
            }
            Ok(Some(Err(error))) => taken.fail(error),
            Ok(None) => taken.end = Some(Ok(())),
            Err(_) => taken.fail(Error::HttpResponseIncomplete),
        }
    }
}

/// Returns the data of frames in one piece, and the trailers.
fn join(mut frames: VecDeque<Frame<Bytes>>, bytes: usize) -> (Bytes, Option<HeaderMap>) {
    let mut trailers = None;
    if let Some(last) = frames.pop_back_if(|frame| frame.is_trailers()) {
        trailers = last.into_trailers().ok();
    }
    if frames.len() == 1 {
        let data = frames.pop_front().and_then(|frame| frame.into_data().ok());
        return (data.unwrap_or_default(), trailers);
    }
    let mut data = BytesMut::with_capacity(bytes);
    for frame in frames.iter().filter_map(Frame::data_ref) {
        data.extend_from_slice(frame);
    }
    (data.freeze(), trailers)
}

/// Returns the bytes of fields.
fn size(fields: &HeaderMap) -> usize {
    let sizes = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    sizes.sum()
}

fn number(value: &HeaderValue) -> Option<usize> {
    value.to_str().ok()?.parse().ok()
}

/// Returns true if the response has no body, whatever its fields say (RFC 9110, section 6.4.1).
fn has_no_body(is_head: bool, status: StatusCode) -> bool {
    is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Takes a body that nobody wants, up to [`MAX_DISCARDED_BYTES`]. Returns true if that was all of it.
async fn discard(mut body: WasiBody) -> bool {
    let mut bytes = 0;
    while bytes <= MAX_DISCARDED_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    bytes <= MAX_DISCARDED_BYTES
}

/// What the guest's task has taken of a body and the client has not.
struct Pipe(Mutex<PipeState>);

struct PipeState {
    taken: FrameBuffer,
    permit: Option<OwnedSemaphorePermit>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what there is of a body; returns true if that was anything, and true if there is no room for more.
    fn fill(&self, body: &mut WasiBody, cx: &mut Context) -> (bool, bool) {
        let mut state = self.state();
        let moved = state.taken.fill(body, cx);
        if moved && let Some(reader) = state.reader.take() {
            reader.wake();
        }
        let is_full = state.taken.is_full();
        if is_full {
            state.writer = Some(cx.waker().clone());
        }
        (moved, is_full)
    }

    /// Ends the body with an error. What the client has not taken is dropped.
    fn fail(&self) {
        let mut state = self.state();
        state.taken = FrameBuffer {
            end: Some(Err(Error::HttpResponseIncomplete)),
            ..FrameBuffer::default()
        };
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Adds the last frames and the end. The permit is for what the client has not taken.
    fn end(&self, rest: FrameBuffer, permit: Option<OwnedSemaphorePermit>) {
        let mut state = self.state();
        state.permit = permit;
        state.taken.bytes += rest.bytes;
        state.taken.trailers += rest.trailers;
        state.taken.frames.extend(rest.frames);
        // A body that has ended by itself is whole, whatever became of the guest since.
        if state.taken.end.is_none() {
            state.taken.end = rest.end;
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

/// The body of a response whose guest still runs. If it is dropped before its end, the client has
/// gone, and the guest ends without a word: it would take the missing reader for a failure of its own.
struct StreamingBody {
    pipe: Arc<Pipe>,
    guest: AbortHandle,
    /// Bytes that are to come by `content-length`; after them hyper does not ask for the end.
    missing: Option<usize>,
    /// Set when the end has come.
    has_ended: bool,
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        if !self.is_end_stream() && self.missing != Some(0) {
            self.guest.abort();
        }
    }
}

impl Body for StreamingBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.pipe.state();
        if let Some(frame) = state.taken.frames.pop_front() {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            state.taken.bytes -= bytes;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            drop(state);
            self.missing = self.missing.map(|missing| missing.saturating_sub(bytes));
            self.has_ended |= frame.is_trailers();
            return Poll::Ready(Some(Ok(frame)));
        }
        match state.taken.end.take() {
            Some(Ok(())) => {
                drop(state);
                self.has_ended = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let FrameBuffer { frames, end, .. } = &self.pipe.state().taken;
        self.has_ended || frames.is_empty() && matches!(end, Some(Ok(())))
    }

    fn size_hint(&self) -> SizeHint {
        let missing = self.missing.map(|missing| missing as u64);
        missing.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
