//! The limit: the same routes without a sandbox, in the same HTTP server. Everything else that
//! costs time is left out: no access log, no limits, no drain.
//!
//! `native ADDRESS` serves until it is told to end.

#[path = "../src/routes.rs"]
mod routes;
#[path = "../src/service.rs"]
mod service;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use server as _; // For its allocator.
use std::convert::Infallible;
use std::net::TcpListener;
use std::{env, io, thread};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> io::Result<()> {
    let address = env::args().nth(1);
    let address = address.ok_or_else(|| io::Error::other("usage: native ADDRESS"))?;
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    println!("listening on http://{}", listener.local_addr()?);
    // As in the server: a runtime for each core, so that no request changes its thread.
    for _ in 0..thread::available_parallelism()?.get() {
        let listener = listener.try_clone()?;
        let runtime = runtime()?;
        thread::spawn(move || runtime.block_on(serve(listener)));
    }
    runtime()?.block_on(async {
        signal(SignalKind::terminate())?.recv().await;
        Ok(())
    })
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            // An error is the client's.
            let _ = http
                .serve_connection(TokioIo::new(stream), service_fn(handle))
                .await;
        });
    }
}

async fn handle(mut request: Request<Incoming>) -> Result<Response<service::Body>, Infallible> {
    // Closing with unread input would reset the connection, and the client may lose the response.
    while let Some(Ok(_)) = request.body_mut().frame().await {}
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    Ok(service::handle(request).await)
}
