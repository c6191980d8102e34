//! Greets with what the environment says, or with a default.
//!
//!     cargo build --release --target wasm32-wasip2 --example config
//!     GUEST_ENV=GREETING GREETING=Ahoy \
//!       cargo run --package server -- target/wasm32-wasip2/release/examples/config.wasm
//!     curl http://localhost:5000/

#![cfg(target_family = "wasm")]

use std::env::{self, VarError};
use wstd::http::error::Context;
use wstd::http::{Body, Request, Response, Result};

#[wstd::http_server]
async fn main(_: Request<Body>) -> Result<Response<Body>> {
    let greeting = match env::var("GREETING") {
        Err(VarError::NotPresent) => "Hello".to_owned(),
        greeting => greeting.context("GREETING")?,
    };
    Ok(Response::builder()
        .header("content-type", "text/plain; charset=utf-8")
        .body(format!("{greeting} from WebAssembly!\n").into())?)
}
