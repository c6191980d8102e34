//! The pipe between a guest that still runs and its client: the guest's task writes the response's body into it, and the
//! connection reads it.

use crate::sandbox::frame_buffer::FrameBuffer;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use wasmtime_wasi_http::{Error, WasiBody};

/// Part of a body that the client has not read.
pub struct Pipe(Mutex<PipeState>);

struct PipeState {
    buffer: FrameBuffer,
    /// Permit for the buffer of a guest that has finished.
    permit: Option<OwnedSemaphorePermit>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl PipeState {
    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Pipe {
    pub fn new(buffer: FrameBuffer) -> Self {
        Self(Mutex::new(PipeState {
            buffer,
            permit: None,
            reader: None,
            writer: None,
        }))
    }

    /// Moves available frames of a body into the pipe. Returns true if there were any, and true if the pipe is full.
    pub fn fill(&self, body: &mut WasiBody, cx: &mut Context) -> (bool, bool) {
        let mut state = self.state();
        let has_progressed = state.buffer.fill(body, cx);
        if has_progressed {
            state.wake_reader();
        }
        let is_full = state.buffer.is_full();
        if is_full {
            state.writer = Some(cx.waker().clone());
        }
        (has_progressed, is_full)
    }

    /// Returns true if the pipe has the end of the body.
    pub fn has_end(&self) -> bool {
        self.state().buffer.end.is_some()
    }

    /// Returns true if the body has ended with an error.
    pub fn has_failed(&self) -> bool {
        self.state().buffer.has_failed
    }

    /// Returns the memory of the buffered frames, in bytes.
    pub fn cost(&self) -> usize {
        self.state().buffer.cost()
    }

    /// Ends the body with an error, and drops the buffered frames.
    pub fn fail(&self) {
        let mut state = self.state();
        state.buffer = FrameBuffer::failed(Error::HttpResponseIncomplete);
        state.wake_reader();
    }

    /// Adds the last frames and the end of the body. The permit is held until the client has read them.
    pub fn end(&self, rest: FrameBuffer, permit: Option<OwnedSemaphorePermit>) {
        let mut state = self.state();
        state.permit = permit;
        state.buffer.append(rest);
        state.wake_reader();
    }

    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a response whose guest still runs. Dropping it before its end aborts the guest: the client has
/// disconnected, and the guest would report the missing reader as a failure of its own.
pub struct StreamingBody {
    pipe: Arc<Pipe>,
    guest: AbortHandle,
    /// Remaining bytes by `content-length`. After the last one, hyper does not poll for the end.
    remaining: Option<usize>,
    /// Set when the end has been read.
    has_ended: bool,
}

impl StreamingBody {
    pub fn new(pipe: Arc<Pipe>, guest: AbortHandle, length: Option<usize>) -> Self {
        Self {
            pipe,
            guest,
            remaining: length,
            has_ended: false,
        }
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        if !self.is_end_stream() && self.remaining != Some(0) {
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
        if let Some(frame) = state.buffer.frames.pop_front() {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            state.buffer.bytes -= bytes;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            drop(state);
            self.remaining = self.remaining.map(|left| left.saturating_sub(bytes));
            self.has_ended |= frame.is_trailers();
            return Poll::Ready(Some(Ok(frame)));
        }
        match state.buffer.end.take() {
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
        let FrameBuffer { frames, end, .. } = &self.pipe.state().buffer;
        self.has_ended || frames.is_empty() && matches!(end, Some(Ok(())))
    }

    fn size_hint(&self) -> SizeHint {
        let remaining = self.remaining.map(|bytes| bytes as u64);
        remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
