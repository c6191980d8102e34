//! Frames of a response's body that the host has read from the guest and the client has not read yet.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, WasiBody};

/// Cost of the buffered frames at which the guest has to wait for the client.
const BUFFER_BYTES: usize = 64 << 10;

/// Cost of a frame without its data.
const FRAME_BYTES: usize = 128;

/// Time for a body to end after its guest has finished.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Buffered frames of a body, and its end.
#[derive(Default)]
pub struct FrameBuffer {
    pub frames: VecDeque<Frame<Bytes>>,
    /// Size of their data.
    pub bytes: usize,
    /// Size of their trailers.
    pub trailers: usize,
    /// End of the body. `None` before it, and after the client has received it.
    pub end: Option<Result<(), Error>>,
    /// Set when the body has ended with an error.
    pub has_failed: bool,
}

impl FrameBuffer {
    /// Returns an empty buffer of a body that has ended with this error.
    pub fn failed(error: Error) -> Self {
        Self {
            end: Some(Err(error)),
            ..Self::default()
        }
    }

    /// Returns the memory of the frames, in bytes.
    pub fn cost(&self) -> usize {
        self.bytes + self.trailers + self.frames.len() * FRAME_BYTES
    }

    pub fn is_full(&self) -> bool {
        self.cost() >= BUFFER_BYTES
    }

    /// Reads available frames until the buffer is full. Returns true if there was a frame or the end.
    pub fn fill(&mut self, body: &mut WasiBody, cx: &mut Context) -> bool {
        let mut has_progressed = false;
        while !self.is_full()
            && self.end.is_none()
            && let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx)
        {
            has_progressed |= match frame {
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
        has_progressed
    }

    /// Reads the rest of a body whose guest has finished. A guest that serves several requests may leave its body open.
    pub async fn read_to_end(&mut self, body: &mut WasiBody) {
        while self.end.is_none() {
            match timeout(END_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    self.push(frame);
                }
                Ok(Some(Err(error))) => self.fail(error),
                Ok(None) => self.end = Some(Ok(())),
                Err(_) => self.fail(Error::HttpResponseIncomplete),
            }
        }
    }

    /// Appends the rest of the body.
    pub fn append(&mut self, rest: Self) {
        self.bytes += rest.bytes;
        self.trailers += rest.trailers;
        self.frames.extend(rest.frames);
        // A body that has ended is complete, even if its guest has failed since.
        if self.end.is_none() {
            self.end = rest.end;
        }
    }

    /// Returns the data in one piece, and the trailers.
    pub fn into_data(self) -> (Bytes, Option<HeaderMap>) {
        let mut frames = self.frames;
        let mut trailers = None;
        if let Some(last) = frames.pop_back_if(|frame| frame.is_trailers()) {
            trailers = last.into_trailers().ok();
        }
        if frames.len() == 1 {
            let data = frames.pop_front().and_then(|frame| frame.into_data().ok());
            return (data.unwrap_or_default(), trailers);
        }
        let mut data = BytesMut::with_capacity(self.bytes);
        for frame in frames.iter().filter_map(Frame::data_ref) {
            data.extend_from_slice(frame);
        }
        (data.freeze(), trailers)
    }

    fn fail(&mut self, error: Error) {
        self.end = Some(Err(error));
        self.has_failed = true;
    }

    /// Adds a frame; returns false if it is empty.
    fn push(&mut self, frame: Frame<Bytes>) -> bool {
        let bytes = frame.data_ref().map(Bytes::len);
        let is_empty = bytes == Some(0);
        if !is_empty {
            self.bytes += bytes.unwrap_or_default();
            self.trailers += frame.trailers_ref().map_or(0, fields_bytes);
            self.frames.push_back(frame);
        }
        !is_empty
    }
}

/// Returns the size of all names and values.
pub fn fields_bytes(fields: &HeaderMap) -> usize {
    let sizes = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    sizes.sum()
}
