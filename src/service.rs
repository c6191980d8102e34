//! Calls the routes, and turns an error of theirs into a response and a line of the log.

use crate::routes;
use anyhow::{Error, Result, bail};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use std::pin::Pin;
use std::task::{Context, Poll};

/// The body of a request or a response: pieces of data, then perhaps trailers, each as it comes.
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// Fields that a response must not have, in its header or its trailers, because the host frames the
/// message. `wasi:http` leaves the list to the host; this is Wasmtime's, `DEFAULT_FORBIDDEN_HEADERS`.
const FORBIDDEN_FIELDS: [&str; 9] = [
    "connection",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];

/// Handles a request. If its route fails, the client gets a 500 that does not show the error, and the
/// log one line that does. If the response's body fails later, that is logged and passed on, so that
/// the host breaks the connection.
pub async fn handle(request: Request<Body>) -> Response<Body> {
    let request_line = RequestLine {
        method: request.method().clone(),
        uri: request.uri().clone(),
    };
    // Hides the size hint, which differs between the entry points. `content-length` does not.
    let request = request.map(|body| StreamBody::new(BodyStream::new(body)).boxed_unsync());
    let response = routes::respond(request).await.and_then(|response| {
        check_fields(response.headers())?;
        Ok(response)
    });
    let mut response = response.unwrap_or_else(|error| {
        request_line.log(&error);
        text(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
    });
    set_length(&request_line.method, &mut response);
    response.map(|body| LoggedBody { body, request_line }.boxed_unsync())
}

/// Sets `content-length`, so that no host falls back to chunked encoding.
fn set_length(method: &Method, response: &mut Response<Body>) {
    let Some(bytes) = response.body().size_hint().exact() else {
        return;
    };
    // RFC 9110, section 8.6.
    let is_left_out = method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED;
    let has_length = !matches!(response.status().as_u16(), 100..=199 | 204 | 304);
    let fields = response.headers_mut();
    match fields.get(CONTENT_LENGTH) {
        // The length of the omitted body: `wasi:http` would compare it with the empty one.
        Some(length) if is_left_out && *length != HeaderValue::from(bytes) => {
            fields.remove(CONTENT_LENGTH);
        }
        None if has_length => {
            fields.insert(CONTENT_LENGTH, bytes.into());
        }
        Some(_) | None => {}
    }
}

fn check_fields(fields: &HeaderMap) -> Result<()> {
    match fields
        .keys()
        .find(|name| FORBIDDEN_FIELDS.contains(&name.as_str()))
    {
        Some(name) => bail!("the response has the field `{name}`, which only the host may set"),
        None => Ok(()),
    }
}

/// Makes a response of plain text; with an empty text, one without a body.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let text = text.into();
    let has_body = !text.is_empty();
    let body = Full::new(text).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if has_body {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        fields.insert(CONTENT_TYPE, plain);
    }
    response
}

/// A request as a log line names it.
struct RequestLine {
    method: Method,
    uri: Uri,
}

impl RequestLine {
    /// Logs an error with the chain of its causes, in one line whatever is in it. A line of over 4 KiB
    /// would be several in the server's log.
    fn log(&self, error: &Error) {
        let mut line = format!("{} {}: {error:#}", self.method, self.uri.path());
        line.truncate(line.floor_char_boundary(4000));
        eprintln!("{}", line.replace(['\n', '\r'], " "));
    }
}

/// A response's body that logs its error.
struct LoggedBody {
    body: Body,
    request_line: RequestLine,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map(|frame| {
            let frame = frame?.and_then(|frame| {
                frame.trailers_ref().map_or(Ok(()), check_fields)?;
                Ok(frame)
            });
            Some(frame.inspect_err(|error| self.request_line.log(error)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
