//! Each timeout at its default, over each protocol: for the first request of a connection and for a later one, whatever else
//! happens on the connection meanwhile.

mod harness;

use harness::http2::{Http2, frame, http2_head, http2_preface, http2_without_window};
use harness::{Connection, RAW, Server};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

const IDLE: u64 = 75;
const HEADER: u64 = 10;
const BODY: u64 = 10;
const WRITE: u64 = 30;
const GUEST: u64 = 5;
const DRAIN: u64 = 8;

/// What other work on the machine may take of a timeout's precision.
const LATE: u64 = 3;

/// The time between two things that happen meanwhile.
const MEANWHILE: Duration = Duration::from_millis(400);

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A name for the failure of a case.
type Case = &'static str;

#[track_caller]
fn assert_took(case: Case, begun: Instant, limit: u64, late: u64) {
    let took = begun.elapsed();
    // The clock of the server has started after this one.
    let limits = Duration::from_secs(limit)..Duration::from_secs(limit + late + LATE);
    assert!(limits.contains(&took), "{case}: {took:?}, not {limit} s");
}

/// Waits for the server to close the connection, which it does at the limit. Returns what it has sent.
fn await_end(
    case: Case,
    (mut connection, begun): (Connection, Instant),
    meanwhile: impl Fn(u32) -> Vec<u8>,
    limit: u64,
    late: u64,
) -> Vec<u8> {
    let mut received = Vec::new();
    let mut times = 0;
    while connection.receive(&mut received) {
        assert!(
            begun.elapsed() < Duration::from_secs(limit + late + LATE),
            "{case}: it stays"
        );
        if begun.elapsed() > MEANWHILE * (times + 1) {
            times += 1;
            // Fails if the connection is closed.
            let _ = connection.send(meanwhile(times));
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert_took(case, begun, limit, late);
    received
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

/// Three connections on which these bytes are sent: as the first request, after another, and behind another; and when that
/// was.
fn connections(address: SocketAddr, bytes: &str) -> [(Case, (Connection, Instant)); 3] {
    let open = || Connection::open_narrow(address);
    let begun = Instant::now();
    let (mut first, mut later, mut pipelined) = (open(), open(), open());
    first.send(bytes).expect("sent");
    later.send(GET).expect("sent");
    assert_eq!(later.answer("GET").expect("a response").body, b"fine");
    later.send(bytes).expect("sent");
    pipelined.send(format!("{GET}{bytes}")).expect("sent");
    assert_eq!(pipelined.answer("GET").expect("a response").body, b"fine");
    [("first", first), ("later", later), ("pipelined", pipelined)]
        .map(|(case, it)| (case, (it, begun)))
}

#[test]
fn timeouts_hold_over_http1() {
    let server = Server::start(RAW, &[]);
    let address = server.address;
    thread::scope(|scope| {
        for (case, connection) in connections(address, "") {
            scope.spawn(move || await_end(case, connection, nothing, IDLE, 0));
        }
        for (case, connection) in connections(address, "GET / HTTP/1.1\r\nx: ") {
            scope.spawn(move || await_end(case, connection, nothing, HEADER, 0));
        }
        for (case, connection) in connections(address, "GET / HTTP/1.1\r\nx: ") {
            scope.spawn(move || await_end(case, connection, |_| b"x".to_vec(), HEADER, 0));
        }
        for (case, connection) in connections(address, "GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
        {
            scope.spawn(move || {
                let (connection, begun) = connection;
                // `await_end` would take the response.
                while harness::established(address).contains(&connection.port()) {
                    assert!(
                        begun.elapsed() < Duration::from_secs(WRITE + LATE),
                        "{case}: it stays"
                    );
                    thread::sleep(Duration::from_millis(100));
                }
                assert_took(case, begun, WRITE, 0);
            });
        }
        let half_body = "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf";
        let wait = "GET /wait HTTP/1.1\r\nHost: test\r\n\r\n";
        // The guest has started with the half that was there, and responds with its error.
        let stalled = (half_body, BODY, "connection read timeout");
        for (bytes, limit, text) in [stalled, (wait, GUEST, "Gateway Timeout")] {
            for (case, (mut connection, begun)) in connections(address, bytes) {
                scope.spawn(move || {
                    let response = connection.answer("GET").expect("a response");
                    let body = String::from_utf8_lossy(&response.body);
                    assert!(body.contains(text), "{case}: {body}");
                    assert_took(case, begun, limit, 0);
                });
            }
        }
        // A body that comes after its response is no head.
        let mut connection = Connection::open(address);
        let begun = Instant::now();
        scope.spawn(move || {
            connection
                .send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nx")
                .expect("sent");
            assert_eq!(connection.answer("POST").expect("a response").body, b"fine");
            let rest = |time| if time <= 3 { b"x".to_vec() } else { Vec::new() };
            await_end("late body", (connection, begun), rest, IDLE, 0);
        });
    });
}

#[test]
fn drain_timeout_cuts_what_does_not_end() {
    let mut server = Server::start(RAW, &[("HEADER_TIMEOUT", "1m")]);
    let mut connection = Connection::open(server.address);
    connection.send("GET / HTTP/1.1\r\n").expect("sent");
    // It has come when a later one has been served.
    Connection::open(server.address)
        .request("GET", "/")
        .expect("a response");
    let begun = Instant::now();
    server.signal(Signal::TERM);
    server.lines_until("out of time: 0 requests on 1 connection cut");
    assert_took("drain", begun, DRAIN, 0);
    assert_eq!(server.end().code(), Some(0));
}

/// A request for `/` and its reset, on a stream of its own.
fn http2_request_and_reset(time: u32) -> Vec<u8> {
    let stream = 1001 + 2 * time;
    let get = frame(1, 5, stream, &http2_head(0x82, "/"));
    [get, frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
}

fn http2_ping(_: u32) -> Vec<u8> {
    frame(6, 0, 0, b"whatever")
}

/// A byte more for the stream that is first or later.
fn http2_increments(_: u32) -> Vec<u8> {
    let more = 1_u32.to_be_bytes();
    [frame(8, 0, 101, &more), frame(8, 0, 0, &more)].concat()
}

/// Whether GOAWAY is among these frames (RFC 9113, section 6.8).
fn has_goaway(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = frames {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if *kind == 7 {
            return true;
        }
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

/// What is sent at the begin of a connection, for the first request or a later one, and meanwhile; and the timeout.
type Http2Case<'a> = (Case, &'a [u8], &'a [u8], fn(u32) -> Vec<u8>, u64);

#[test]
fn timeouts_hold_over_http2() {
    let server = Server::start(RAW, &[]);
    let address = server.address;
    let preface = http2_without_window(0);
    let get = |path: &str| frame(1, 5, 101, &http2_head(0x82, path));
    let head = get("/");
    let open_head = frame(1, 1, 101, &http2_head(0x82, "/"));
    let large = get("/large");
    // Streams have 1 GiB each, and the connection 64 KiB.
    let window = http2_preface(&[0, 4, 0x40, 0, 0, 0]);
    let cases: [Http2Case; 11] = [
        ("idle", &preface, b"", nothing, IDLE),
        ("idle with pings", &preface, b"", http2_ping, IDLE),
        ("half a frame's head", &preface, &head[..5], nothing, HEADER),
        ("half a head", &preface, &head[..15], nothing, HEADER),
        (
            "head to be continued",
            &preface,
            &open_head,
            nothing,
            HEADER,
        ),
        ("no window", &preface, &large, nothing, WRITE),
        (
            "no window beside others",
            &preface,
            &large,
            http2_request_and_reset,
            WRITE,
        ),
        (
            "window of a byte",
            &preface,
            &large,
            http2_increments,
            WRITE,
        ),
        (
            "no window of the connection",
            &window,
            &large,
            nothing,
            WRITE,
        ),
        (
            "the same beside others",
            &window,
            &large,
            http2_request_and_reset,
            WRITE,
        ),
        (
            "the same byte by byte",
            &window,
            &large,
            http2_increments,
            WRITE,
        ),
    ];
    thread::scope(|scope| {
        for (case, begin, bytes, meanwhile, limit) in cases {
            for is_first in [true, false] {
                let begun = Instant::now();
                let mut connection = Connection::open(address);
                connection.send(begin).expect("sent");
                if !is_first {
                    // A response without a body, which needs no window.
                    connection
                        .send(frame(1, 5, 1, &http2_head(0x82, "/not-modified")))
                        .expect("sent");
                    let mut received = Vec::new();
                    harness::await_that("there is a response", || {
                        connection.receive(&mut received);
                        received
                            .windows(9)
                            .any(|it| it[3] == 1 && it[4] == 5 && it[5..] == [0, 0, 0, 1])
                    });
                }
                connection.send(bytes).expect("sent");
                scope.spawn(move || {
                    // Others on the connection have so much longer.
                    let received = await_end(case, (connection, begun), meanwhile, limit, GUEST);
                    assert!(has_goaway(&received), "{case}: no GOAWAY");
                });
            }
        }
        // Each stream has its own.
        for is_first in [true, false] {
            let stalled = ("/body", BODY, "connection read timeout");
            for (path, limit, text) in [stalled, ("/wait", GUEST, "Gateway Timeout")] {
                scope.spawn(move || {
                    let mut client = Http2::connect(address);
                    if !is_first {
                        let (response, _) = client.send("GET", "/", true);
                        client.wait(response).expect("a response");
                    }
                    let begun = Instant::now();
                    let (response, mut request) = client.send("POST", path, path == "/wait");
                    if path == "/body" {
                        request.send_data("half".into(), false).expect("sent");
                    }
                    let mut response = std::pin::pin!(response);
                    loop {
                        let waited =
                            async { tokio::time::timeout(MEANWHILE, response.as_mut()).await };
                        if let Ok(response) = client.wait(waited) {
                            let mut body = response.expect("a response").into_body();
                            let body = client.wait(body.data()).expect("a body").expect("a piece");
                            let body = String::from_utf8_lossy(&body);
                            assert!(body.contains(text), "{path}: {body}");
                            break;
                        }
                        // Dropped, it is reset.
                        drop(client.send("GET", "/", true));
                    }
                    assert_took(path, begun, limit, 0);
                });
            }
        }
    });
}
