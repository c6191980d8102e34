//! Greets with what the environment says, or with a default.
//!
//!     cargo build --release --target wasm32-wasip2 --example config
//!     wasmtime serve -Scli --env GREETING=Ahoy target/wasm32-wasip2/release/examples/config.wasm
//!     curl http://localhost:8080/

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
