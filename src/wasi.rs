//! The WASI 0.2 door: exports `wasi:http/incoming-handler`.
//!
//! It stands on the bare bindings: `wstd` adds 128 KB, most of it `anyhow`'s backtraces.

use crate::routes;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use wasi::exports::http::incoming_handler::Guest;
use wasi::http::types::{
    ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Door;
wasi::http::proxy::export!(Door);

impl Guest for Door {
    fn handle(incoming: IncomingRequest, out: ResponseOutparam) {
        let answer = request(incoming).map(|request| routes::respond(&request));
        match answer.and_then(Outgoing::new) {
            Ok(outgoing) => outgoing.send(out),
            Err(error) => ResponseOutparam::set(out, Err(error)),
        }
    }
}

/// The request as routes know it; its body stays with the host until `IncomingRequest::consume`.
fn request(incoming: IncomingRequest) -> Result<Request<IncomingRequest>, ErrorCode> {
    let target = incoming.path_with_query().unwrap_or_default();
    let uri = Uri::try_from(target).map_err(|_| ErrorCode::HttpRequestUriInvalid)?;
    let method = method(incoming.method())?;
    let fields = incoming.headers().entries();

    let mut request = Request::new(incoming);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    for (name, value) in fields {
        let name = HeaderName::try_from(name).map_err(|_| ErrorCode::HttpProtocolError)?;
        let value = HeaderValue::try_from(value).map_err(|_| ErrorCode::HttpProtocolError)?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

fn method(method: Method) -> Result<http::Method, ErrorCode> {
    Ok(match method {
        Method::Get => http::Method::GET,
        Method::Head => http::Method::HEAD,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Delete => http::Method::DELETE,
        Method::Connect => http::Method::CONNECT,
        Method::Options => http::Method::OPTIONS,
        Method::Trace => http::Method::TRACE,
        Method::Patch => http::Method::PATCH,
        Method::Other(name) => http::Method::from_bytes(name.as_bytes())
            .map_err(|_| ErrorCode::HttpRequestMethodInvalid)?,
    })
}

/// An answer in the host's terms: the head, the handle that its body is written to, the body.
struct Outgoing {
    head: OutgoingResponse,
    sink: OutgoingBody,
    body: Bytes,
}

impl Outgoing {
    fn new(answer: Response<Bytes>) -> Result<Self, ErrorCode> {
        let (parts, body) = answer.into_parts();
        let fields = Fields::new();
        for (name, value) in &parts.headers {
            fields
                .append(name.as_str(), value.as_bytes())
                .map_err(|_| ErrorCode::HttpProtocolError)?;
        }
        let head = OutgoingResponse::new(fields);
        // It begins with 200, and each call of the host's costs as much as a thousand instructions.
        if parts.status != StatusCode::OK {
            head.set_status_code(parts.status.as_u16())
                .map_err(|()| ErrorCode::HttpProtocolError)?;
        }
        let sink = head.body().map_err(|()| ErrorCode::HttpProtocolError)?;
        Ok(Self { head, sink, body })
    }

    /// Sends the head first, as the host takes no more of a body than it can pass on.
    fn send(self, out: ResponseOutparam) {
        ResponseOutparam::set(out, Ok(self.head));
        let Ok(stream) = self.sink.write() else {
            return;
        };
        // `blocking-write-and-flush` takes 4,096 bytes at most (wasi:io 0.2). It fails when the
        // client has gone or wants no body (HEAD): either way nobody is left to tell.
        let mut chunks = self.body.chunks(4096);
        let sent = chunks.all(|chunk| stream.blocking_write_and_flush(chunk).is_ok());
        drop(stream);
        if sent {
            let _ = OutgoingBody::finish(self.sink, None);
        }
    }
}
