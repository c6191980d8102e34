//! Passes requests on to another service, and its responses back.
//!
//!     cargo build --release --target wasm32-wasip2 --example proxy
//!     GUEST_ENV=UPSTREAM UPSTREAM=http://localhost:8000 ALLOWED_OUTBOUND_HOSTS=http://localhost:8000 \
//!       cargo run --package server -- target/wasm32-wasip2/release/examples/proxy.wasm
//!     curl http://localhost:5000/

#![cfg(target_family = "wasm")]

use std::env;
use wstd::http::error::{Context, ErrorCode};
use wstd::http::{Body, Client, Error, Method, Request, Response, Result, StatusCode, Uri};
use wstd::time::Duration;

/// How long the other service may take to accept a connection, to respond, and between two pieces of
/// its response.
const TIMEOUT_S: u64 = 2;

#[wstd::http_server]
async fn main(mut request: Request<Body>) -> Result<Response<Body>> {
    let upstream = env::var("UPSTREAM").context("UPSTREAM")?;
    let mut uri = upstream.parse::<Uri>().context("UPSTREAM")?.into_parts();
    uri.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(uri).context("UPSTREAM")?;
    let is_head = request.method() == Method::HEAD;

    let mut client = Client::new();
    client.set_connect_timeout(Duration::from_secs(TIMEOUT_S));
    client.set_first_byte_timeout(Duration::from_secs(TIMEOUT_S));
    client.set_between_bytes_timeout(Duration::from_secs(TIMEOUT_S));
    match client.send(request).await {
        Ok(mut response) => {
            // The length of a body that is left out, which the host would miss.
            if is_head || response.status() == StatusCode::NOT_MODIFIED {
                response.headers_mut().remove("content-length");
            }
            Ok(response)
        }
        Err(error) => {
            eprintln!("{upstream}: {error:#}");
            let status = failure(&error);
            let line = format!("{}\n", status.canonical_reason().unwrap_or_default());
            Ok(Response::builder().status(status).body(line.into())?)
        }
    }
}

fn failure(error: &Error) -> StatusCode {
    match error.downcast_ref() {
        Some(
            ErrorCode::DnsTimeout
            | ErrorCode::ConnectionTimeout
            | ErrorCode::ConnectionReadTimeout
            | ErrorCode::ConnectionWriteTimeout
            | ErrorCode::HttpResponseTimeout,
        ) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}
