//! The WASI 0.3 door: exports `wasi:http/handler`, by way of Spin's SDK.

use crate::routes;
use spin_sdk::http::{FullBody, IntoResponse, Request};
use spin_sdk::http_service;

#[http_service]
async fn handle(request: Request) -> impl IntoResponse {
    routes::respond(&request).map(FullBody::new)
}
