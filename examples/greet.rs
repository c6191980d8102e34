//! A component for WASI 0.3, on `spin-sdk`: what `examples/javascript` and `examples/python` are, in Rust.
//!
//!     cargo build --release --target wasm32-wasip2 --no-default-features --features spin --example greet
//!     cargo run --package server -- target/wasm32-wasip2/release/examples/greet.wasm
//!     curl --json '{"name": "Ferris"}' http://localhost:5000/

#![cfg(target_family = "wasm")]

use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use spin_sdk::http::Request;
use std::sync::atomic::{AtomicU32, Ordering};

/// `/count` requests to this instance.
static COUNT: AtomicU32 = AtomicU32::new(0);

#[spin_sdk::http_service]
async fn handle(request: Request) -> Response<String> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => text(StatusCode::OK, "Hello from Rust!"),
        (&Method::GET, "/health") => text(StatusCode::OK, "OK"),
        (&Method::GET, "/count") => {
            let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
            text(StatusCode::OK, &count.to_string())
        }
        (&Method::POST, "/") => greet(request).await,
        _ => text(StatusCode::NOT_FOUND, "Not Found"),
    }
}

async fn greet(request: Request) -> Response<String> {
    let Ok(body) = request.into_body().collect().await else {
        return text(StatusCode::BAD_REQUEST, "The body is not whole");
    };
    let Ok(value) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return text(StatusCode::BAD_REQUEST, "The body is not JSON");
    };
    let Some(name) = value["name"].as_str() else {
        return text(StatusCode::BAD_REQUEST, "The JSON has no string `name`");
    };
    let greeting = json!({"greeting": format!("Hello, {name}!")}).to_string();
    respond(StatusCode::OK, "application/json", greeting)
}

fn text(status: StatusCode, line: &str) -> Response<String> {
    respond(status, "text/plain; charset=utf-8", line.to_owned())
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert("content-type", content_type);
    response
}
