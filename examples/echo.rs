//! Reads JSON and responds with it: a limit on the body's size, and an error that says what was wrong.
//!
//!     cargo build --release --target wasm32-wasip2 --example echo
//!     cargo run --package server -- target/wasm32-wasip2/release/examples/echo.wasm
//!     curl --json '{"name": "Ferris"}' http://localhost:5000/

#![cfg(target_family = "wasm")]

use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use wstd::http::{Body, HeaderMap, Request, Response, Result, StatusCode};

const MAX_BYTES: usize = 64 << 10;

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>> {
    if !is_json(request.headers()) {
        let line = "send `content-type: application/json`";
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, line);
    }
    let body = Limited::new(request.into_body().into_boxed_body(), MAX_BYTES);
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let line = format!("the body has more than {MAX_BYTES} bytes");
            return text(StatusCode::PAYLOAD_TOO_LARGE, &line);
        }
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("no body: {error:#}")),
    };
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) => Ok(Response::builder()
            .header("content-type", "application/json")
            .body(value.to_string().into())?),
        Err(error) => text(StatusCode::BAD_REQUEST, &format!("not JSON: {error}")),
    }
}

fn is_json(fields: &HeaderMap) -> bool {
    let value = fields
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    let media_type = value.and_then(|value| value.split(';').next());
    media_type.is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
}

fn text(status: StatusCode, line: &str) -> Result<Response<Body>> {
    let response = Response::builder().status(status);
    let response = response.header("content-type", "text/plain; charset=utf-8");
    Ok(response.body(format!("{line}\n").into())?)
}
