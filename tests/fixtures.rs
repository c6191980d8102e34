//! Guests that misbehave, one for each path: what the server makes of them is in `guests.rs`.

#![cfg(target_family = "wasm")]

#[path = "../src/stdio.rs"]
mod stdio;

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use wasi::clocks::monotonic_clock::subscribe_duration;
use wasi::exports::http::incoming_handler::Guest;
use wasi::http::outgoing_handler;
use wasi::http::types::{
    ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasi::io::streams::StreamError;

struct Fixtures;
wasi::http::proxy::export!(Fixtures);

/// Requests that this instance has seen.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Guest for Fixtures {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        match request.path_with_query().unwrap_or_default().as_str() {
            "/count" => answer(out, &[], count.to_string().as_bytes()),
            "/trap" => panic!("on purpose"),
            "/loop" => spin(),
            "/wait" => {
                println!("waiting");
                wait(3_600_000);
            }
            "/memory" => eat_memory(),
            "/stack" => println!("{}", overflow(1)),
            "/silent" => {}
            "/refuse" => ResponseOutparam::set(out, Err(ErrorCode::ConfigurationError)),
            "/answer-then-trap" => {
                answer(out, &[], b"fine");
                panic!("on purpose");
            }
            "/answer-then-loop" => {
                answer(out, &[], b"fine");
                spin();
            }
            "/answer-then-wait" => {
                answer(out, &[], b"fine");
                wait(3_600_000);
            }
            "/half-then-trap" => {
                let _body = half(out);
                panic!("on purpose");
            }
            "/half-then-wait" => {
                let _body = half(out);
                wait(3_600_000);
            }
            "/head-then-trap" => {
                ResponseOutparam::set(out, Ok(OutgoingResponse::new(Fields::new())));
                panic!("on purpose");
            }
            "/slow" => stream(out, 10, 20),
            "/endless" => stream(out, u32::MAX, 5),
            "/huge" => stream(out, u32::MAX, 0),
            "/short" => answer(out, &[("content-length", "100")], b"short"),
            "/long" => answer(out, &[("content-length", "2")], b"much longer"),
            "/files" => answer(
                out,
                &[],
                format!("{:?}", std::fs::read("/etc/passwd")).as_bytes(),
            ),
            "/sockets" => {
                let connection = std::net::TcpStream::connect("127.0.0.1:80");
                answer(out, &[], format!("{connection:?}").as_bytes());
            }
            "/outbound" => answer(out, &[], format!("{:?}", outbound()).as_bytes()),
            "/environment" => {
                let seen = std::env::vars().count() + std::env::args().count();
                answer(out, &[], seen.to_string().as_bytes());
            }
            "/body" => answer(out, &[], body(request).as_bytes()),
            "/log" => {
                println!("a line\nforged \x1b[31mline");
                answer(out, &[], b"fine");
            }
            _ => answer(out, &[], b"fine"),
        }
    }
}

fn spin() -> ! {
    loop {
        black_box(());
    }
}

fn wait(ms: u64) {
    subscribe_duration(ms * 1_000_000).block();
}

fn eat_memory() {
    let mut eaten = Vec::new();
    loop {
        eaten.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[allow(unconditional_recursion, reason = "that is the point")]
fn overflow(depth: u64) -> u64 {
    black_box(depth) + overflow(black_box(depth + 1))
}

/// Sends a head; returns the body to write to.
fn head(out: ResponseOutparam, headers: &[(&str, &str)]) -> OutgoingBody {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).expect("a field");
    }
    let response = OutgoingResponse::new(fields);
    let body = response.body().expect("a first body");
    ResponseOutparam::set(out, Ok(response));
    body
}

fn write(body: &OutgoingBody, bytes: &[u8]) -> Result<(), StreamError> {
    let stream = body.write().expect("one stream at a time");
    bytes
        .chunks(4096)
        .try_for_each(|chunk| stream.blocking_write_and_flush(chunk))
}

fn answer(out: ResponseOutparam, headers: &[(&str, &str)], bytes: &[u8]) {
    let body = head(out, headers);
    let _ = write(&body, bytes);
    let _ = OutgoingBody::finish(body, None);
}

/// An answer whose end is missing.
fn half(out: ResponseOutparam) -> OutgoingBody {
    let body = head(out, &[]);
    let _ = write(&body, b"half");
    // The client has it by then.
    wait(50);
    body
}

/// An answer in so many pieces, with so many milliseconds after each.
fn stream(out: ResponseOutparam, pieces: u32, ms: u64) {
    let body = head(out, &[]);
    let stream = body.write().expect("one stream at a time");
    for _ in 0..pieces {
        let piece = if ms == 0 { &[b'x'; 4096][..] } else { b"x" };
        if stream.blocking_write_and_flush(piece).is_err() {
            return;
        }
        if ms > 0 {
            wait(ms);
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

fn outbound() -> Result<(), ErrorCode> {
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some("127.0.0.1:80"));
    let answer = outgoing_handler::handle(request, None)?;
    answer.subscribe().block();
    Ok(())
}

/// Reads the request's body; says how long it is, or how it failed.
fn body(request: IncomingRequest) -> String {
    let body = request.consume().expect("a body");
    let stream = body.stream().expect("a first stream");
    let mut length = 0;
    loop {
        match stream.blocking_read(1 << 16) {
            Ok(bytes) => length += bytes.len(),
            Err(StreamError::Closed) => return length.to_string(),
            Err(StreamError::LastOperationFailed(error)) => return error.to_debug_string(),
        }
    }
}
