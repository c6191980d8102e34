//! The entry points: what the host calls, one for each version of `wasi:http`.

#[cfg(all(feature = "wasi", not(feature = "spin")))]
mod wasi {
    use crate::service;
    use http_body_util::BodyExt;
    use std::process;
    use wstd::http::{Body, Request, Response, Result};

    #[wstd::http_server]
    async fn main(request: Request<Body>) -> Result<Response<Body>> {
        let response = service::handle(request.map(Body::into_boxed_body)).await;
        // A body's error is logged by now. `wstd` would panic on it; exiting breaks the connection, too,
        // and adds nothing to the log.
        let exit = |_| -> anyhow::Error { process::exit(1) };
        Ok(response.map(|body| Body::from_http_body(body.map_err(exit))))
    }
}

#[cfg(all(feature = "spin", not(feature = "wasi")))]
mod spin {
    use crate::service::{self, Body};
    use spin_sdk::http::{Request, box_body};

    #[spin_sdk::http_service]
    async fn handle(request: Request) -> http::Response<Body> {
        service::handle(request.map(box_body)).await
    }
}
