//! The baseline: the same routes without a sandbox, in the same HTTP server. Everything else that
//! costs time is left out: no access log, no limits, no drain. It also has the routes of
//! the other workloads: `POST /echo` of `examples/echo.rs`, `/large` of `tests/fixtures/service.rs`,
//! and `/events` of `examples/stream.rs`.
//!
//! `native ADDRESS` serves until SIGTERM.

#[path = "../src/routes.rs"]
mod routes;
#[path = "../src/service.rs"]
mod service;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Value;
use server as _; // For its allocator.
use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{env, io, thread};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Sleep, sleep};

const EVENT_INTERVAL: Duration = Duration::from_millis(250);

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
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/echo") => return Ok(echo(request).await),
        (&Method::GET, "/large") => return Ok(service::text(StatusCode::OK, vec![b'x'; 1 << 20])),
        (&Method::GET, "/events") => return Ok(events()),
        _ => {}
    }
    // Closing with unread input would reset the connection, and the client may lose the response.
    while let Some(Ok(_)) = request.body_mut().frame().await {}
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    Ok(service::handle(request).await)
}

async fn echo(request: Request<Incoming>) -> Response<service::Body> {
    let bytes = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return service::text(StatusCode::BAD_REQUEST, format!("no body: {error}")),
    };
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) => {
            let mut response = service::text(StatusCode::OK, value.to_string());
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }
        Err(error) => service::text(StatusCode::BAD_REQUEST, format!("not JSON: {error}")),
    }
}

fn events() -> Response<service::Body> {
    let events = Events {
        count: 0,
        timer: Box::pin(sleep(Duration::ZERO)),
    };
    let mut response = Response::new(events.map_err(|never| match never {}).boxed_unsync());
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A body that never ends: an event at once, and then one in each interval.
struct Events {
    count: u64,
    timer: Pin<Box<Sleep>>,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        ready!(self.timer.as_mut().poll(context));
        self.timer.as_mut().reset(Instant::now() + EVENT_INTERVAL);
        let event = format!("id: {0}\ndata: {{\"count\": {0}}}\n\n", self.count);
        self.count += 1;
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}
