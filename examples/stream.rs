//! Sends server-sent events, each as it comes, until the client goes or the host's limit on the time of
//! a request is reached, after which a browser connects again.
//!
//!     cargo build --release --target wasm32-wasip2 --example stream
//!     cargo run --package server -- target/wasm32-wasip2/release/examples/stream.wasm
//!     curl --no-buffer http://localhost:5000/

#![cfg(target_family = "wasm")]

use futures_lite::stream;
use wstd::http::{Body, Request, Response, Result};
use wstd::time::{Duration, Timer};

const INTERVAL_MS: u64 = 250;

#[wstd::http_server]
async fn main(_: Request<Body>) -> Result<Response<Body>> {
    let events = stream::unfold(0_u64, async |count| {
        if count > 0 {
            Timer::after(Duration::from_millis(INTERVAL_MS))
                .wait()
                .await;
        }
        Some((event(count), count + 1))
    });
    Ok(Response::builder()
        .header("content-type", "text/event-stream")
        .header("cache-control", "no-store")
        .body(Body::from_stream(events))?)
}

/// An event in the format of the HTML standard, section 9.2.5. A client that has lost its connection
/// sends the last `id` with its next request.
fn event(count: u64) -> String {
    format!("id: {count}\ndata: {{\"count\": {count}}}\n\n")
}
