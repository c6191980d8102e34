//! A response that the host buffers, until its guest finishes or waits for its client.

use crate::sandbox::error::HandleError;
use crate::sandbox::frame_buffer::{FrameBuffer, fields_bytes};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use std::task::Context;
use wasmtime_wasi_http::{Error, WasiBody};

/// A response's body: complete, or streamed.
pub type ResponseBody = Either<Full<Bytes>, WasiBody>;

/// A response whose head the guest has sent, with the buffered part of its body.
pub struct StartedResponse {
    pub head: Parts,
    pub body: WasiBody,
    pub buffer: FrameBuffer,
}

impl StartedResponse {
    pub fn new(response: Response<WasiBody>) -> Self {
        let (head, body) = response.into_parts();
        Self {
            head,
            body,
            buffer: FrameBuffer::default(),
        }
    }

    /// Reads the available part of the body; returns true if there was any.
    pub fn fill(&mut self, cx: &mut Context) -> bool {
        self.buffer.fill(&mut self.body, cx)
    }

    pub fn is_full(&self) -> bool {
        self.buffer.is_full()
    }

    /// Returns true if the response has no body, whatever its fields say (RFC 9110, section 6.4.1).
    pub fn has_no_body(&self, is_head: bool) -> bool {
        is_head
            || matches!(
                self.head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            )
    }

    /// Returns the complete response of a guest that has finished, and the size of its fields and body in bytes. `logged` is
    /// set when the guest has written to its standard error.
    ///
    /// # Errors
    /// When the body has ended with an error, or its length differs from `content-length`.
    pub async fn finish(
        mut self,
        is_head: bool,
        logged: bool,
    ) -> Result<(Response<ResponseBody>, usize), HandleError> {
        let head_bytes = fields_bytes(&self.head.headers);
        if self.has_no_body(is_head) {
            // A content-length is that of the body that is left out (RFC 9110, section 8.6).
            let empty = Either::Left(Full::default());
            return Ok((Response::from_parts(self.head, empty), head_bytes));
        }
        self.buffer.read_to_end(&mut self.body).await;
        match self.buffer.end.take() {
            Some(Err(error @ Error::InternalError(_))) => {
                return Err(HandleError::BodyFailed { error, logged });
            }
            Some(Err(error)) => return Err(HandleError::InvalidResponse(error)),
            Some(Ok(())) | None => {}
        }
        let FrameBuffer {
            bytes, trailers, ..
        } = self.buffer;
        if let Some(claimed) = self.head.headers.get(CONTENT_LENGTH)
            && parse_length(claimed) != Some(bytes)
        {
            let length = Error::HttpResponseBodySize(Some(bytes as u64));
            return Err(HandleError::InvalidResponse(length));
        }
        let size = head_bytes + bytes + trailers;
        let (data, trailers) = self.buffer.into_data();
        let body = Full::new(data);
        let body = match trailers {
            None => Either::Left(body),
            Some(trailers) => {
                let trailers = std::future::ready(Some(Ok(trailers)));
                let body = body.with_trailers(trailers).map_err(Error::from);
                Either::Right(body.boxed_unsync())
            }
        };
        Ok((Response::from_parts(self.head, body), size))
    }
}

/// Parses a `content-length`.
pub fn parse_length(value: &HeaderValue) -> Option<usize> {
    value.to_str().ok()?.parse().ok()
}
