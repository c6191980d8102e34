//! An HTTP/2 client.

use super::{Response, TIMEOUT};
use std::net::SocketAddr;
use std::time::Duration;

/// A connection with its runtime. It sends and receives only while a method runs.
pub struct Http2 {
    runtime: tokio::runtime::Runtime,
    client: h2::client::SendRequest<bytes::Bytes>,
}

pub type PendingResponse = h2::client::ResponseFuture;

impl Http2 {
    pub fn connect(address: SocketAddr) -> Self {
        let runtime = runtime();
        let client = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await;
            let handshake = h2::client::handshake(stream.expect("connected"));
            let (client, connection) = handshake.await.expect("HTTP/2");
            tokio::spawn(connection);
            client
        });
        Self { runtime, client }
    }

    /// Sends a request; `end_stream` says that it has no body.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        end_stream: bool,
    ) -> (PendingResponse, h2::SendStream<bytes::Bytes>) {
        self.send_with(method, path, &[], end_stream)
    }

    fn send_with(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        end_stream: bool,
    ) -> (PendingResponse, h2::SendStream<bytes::Bytes>) {
        let ready = self.runtime.block_on(self.client.clone().ready());
        self.client = ready.expect("an open connection");
        let request = http::Request::builder().method(method);
        let request = request.uri(format!("http://test{path}"));
        let request = fields
            .iter()
            .fold(request, |it, (name, value)| it.header(*name, *value));
        let request = request.body(());
        let sent = self
            .client
            .send_request(request.expect("a request"), end_stream);
        sent.expect("sent")
    }

    /// Waits for a future, while the connection sends and receives.
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
    pub fn request(&mut self, method: &str, path: &str) -> Response {
        self.request_with(method, path, &[])
    }

    /// Sends a request with fields and without a body, and receives its response.
    pub fn request_with(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
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
        Response {
            status: head.status.as_u16(),
            headers: fields
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body,
        }
    }

    /// Reads a body; returns its length in bytes.
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

/// A runtime of one thread.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().expect("a runtime")
}
