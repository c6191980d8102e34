//! HTTP/2 for the tests: a client, and frames as they are sent.

use super::{Answer, TIMEOUT};
use std::net::SocketAddr;
use std::time::Duration;

/// An HTTP/2 connection, with the runtime that it needs.
pub struct Http2 {
    runtime: tokio::runtime::Runtime,
    client: h2::client::SendRequest<bytes::Bytes>,
}

pub type Response = h2::client::ResponseFuture;

impl Http2 {
    pub fn connect(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        let client = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await;
            let handshake = h2::client::handshake(stream.expect("connected"));
            let (client, connection) = handshake.await.expect("HTTP/2");
            tokio::spawn(connection);
            client
        });
        Self { runtime, client }
    }

    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        whole: bool,
    ) -> (Response, h2::SendStream<bytes::Bytes>) {
        self.send_with(method, path, &[], whole)
    }

    fn send_with(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        whole: bool,
    ) -> (Response, h2::SendStream<bytes::Bytes>) {
        let ready = self.runtime.block_on(self.client.clone().ready());
        self.client = ready.expect("an open connection");
        let request = http::Request::builder().method(method);
        let request = request.uri(format!("http://test{path}"));
        let request = fields
            .iter()
            .fold(request, |it, (name, value)| it.header(*name, *value));
        let request = request.body(());
        let sent = self.client.send_request(request.expect("a request"), whole);
        sent.expect("sent")
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(TIMEOUT, future).await };
        self.runtime.block_on(limited).expect("in time")
    }

    /// Waits until a condition holds, while the connection sends and receives.
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        self.wait(async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    /// Sends a request without a body, and receives its response.
    pub fn request(&mut self, method: &str, path: &str) -> Answer {
        self.request_with(method, path, &[])
    }

    /// The same with fields.
    pub fn request_with(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let (response, _) = self.send_with(method, path, fields, true);
        let (head, mut body) = self.wait(response).expect("a response").into_parts();
        let body = self.wait(async {
            let mut bytes = Vec::new();
            while let Some(piece) = body.data().await {
                bytes.extend_from_slice(&piece.expect("a whole body"));
            }
            bytes
        });
        let text = |value: &http::HeaderValue| value.to_str().expect("ASCII").to_owned();
        let fields = head.headers.iter();
        Answer {
            status: head.status.as_u16(),
            headers: fields
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body,
        }
    }

    /// The number of bytes that a body has.
    pub fn read_to_end(&self, mut body: h2::RecvStream) -> Result<usize, h2::Error> {
        self.wait(async {
            let mut bytes = 0;
            while let Some(piece) = body.data().await {
                let piece = piece?;
                bytes += piece.len();
                body.flow_control().release_capacity(piece.len())?;
            }
            Ok(bytes)
        })
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let head = [
        &length.to_be_bytes()[1..],
        &[kind, flags],
        &stream.to_be_bytes(),
    ]
    .concat();
    [&head, payload].concat()
}

/// The begin of an HTTP/2 connection, with these settings (RFC 9113, section 3.4).
pub fn http2_preface(settings: &[u8]) -> Vec<u8> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    [preface, &frame(4, 0, 0, settings)[..]].concat()
}

/// The begin of an HTTP/2 connection whose streams have a window of no bytes, with requests for `/`.
pub fn http2_without_window(requests: u32) -> Vec<u8> {
    let mut bytes = http2_preface(&[0, 4, 0, 0, 0, 0]);
    for request in 0..requests {
        // GET, http, / and the authority `test` (RFC 7541, appendix A), with END_STREAM and END_HEADERS.
        bytes.extend(frame(1, 5, 1 + 2 * request, b"\x82\x86\x84\x41\x04test"));
    }
    bytes
}

/// Fields of a request (RFC 7541, appendix A): the method's index, http, a path and the authority `test`.
pub fn http2_head(method: u8, path: &str) -> Vec<u8> {
    let path = [&[0x44, path.len() as u8], path.as_bytes()].concat();
    [&[method, 0x86], &path[..], b"\x41\x04test"].concat()
}
