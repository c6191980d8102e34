//! Each timeout at its default, over each protocol, for the first request of a connection and for a later one, while other things
//! happen on the connection.

mod harness;

use harness::frames::{
    CANCEL, END, END_STREAM, GOAWAY, HEADERS, METHOD_GET, PING, RST_STREAM, WINDOW_UPDATE, frame,
    http2_head, http2_preface, http2_without_window, read_frame,
};
use harness::http2::Http2;
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

/// By how much a timeout may be late because of other work on the machine, in seconds.
const TOLERANCE: u64 = 3;

/// The time between two other things on the connection.
const INTERVAL: Duration = Duration::from_millis(400);

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// The name of a case, for its failure.
type Case = &'static str;

#[track_caller]
fn assert_took(case: Case, started: Instant, limit: u64, late: u64) {
    let took = started.elapsed();
    // The server's timer starts after this one.
    let limits = Duration::from_secs(limit)..Duration::from_secs(limit + late + TOLERANCE);
    assert!(limits.contains(&took), "{case}: {took:?}, not {limit} s");
}

/// Waits for the server to close the connection, which it does at the limit. Returns the bytes that it has sent.
fn wait_for_close(
    case: Case,
    (mut connection, started): (Connection, Instant),
    meanwhile: impl Fn(u32) -> Vec<u8>,
    limit: u64,
    late: u64,
) -> Vec<u8> {
    let mut received = Vec::new();
    let mut times = 0;
    while connection.receive(&mut received) {
        assert!(
            started.elapsed() < Duration::from_secs(limit + late + TOLERANCE),
            "{case}: the connection stays open"
        );
        if started.elapsed() > INTERVAL * (times + 1) {
            times += 1;
            // Fails if the connection is closed.
            let _ = connection.send(meanwhile(times));
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert_took(case, started, limit, late);
    received
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

/// Three connections on which these bytes are sent, and the start time: as the first request, after a response, and
/// pipelined.
fn connections(address: SocketAddr, bytes: &str) -> [(Case, (Connection, Instant)); 3] {
    let open = || Connection::open_with_small_buffer(address);
    let started = Instant::now();
    let (mut first, mut later, mut pipelined) = (open(), open(), open());
    first.send(bytes).expect("sent");
    later.send(GET).expect("sent");
    assert_eq!(later.response("GET").expect("a response").body, b"fine");
    later.send(bytes).expect("sent");
    pipelined.send(format!("{GET}{bytes}")).expect("sent");
    assert_eq!(pipelined.response("GET").expect("a response").body, b"fine");
    [("first", first), ("later", later), ("pipelined", pipelined)]
        .map(|(case, it)| (case, (it, started)))
}

#[test]
fn timeouts_apply_over_http1() {
    let server = Server::start(RAW, &[]);
    let address = server.address;
    thread::scope(|scope| {
        for (case, connection) in connections(address, "") {
            scope.spawn(move || wait_for_close(case, connection, nothing, IDLE, 0));
        }
        for (case, connection) in connections(address, "GET / HTTP/1.1\r\nx: ") {
            scope.spawn(move || wait_for_close(case, connection, nothing, HEADER, 0));
        }
        for (case, connection) in connections(address, "GET / HTTP/1.1\r\nx: ") {
            scope.spawn(move || wait_for_close(case, connection, |_| b"x".to_vec(), HEADER, 0));
        }
        for (case, connection) in connections(address, "GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
        {
            scope.spawn(move || {
                let (connection, started) = connection;
                // `wait_for_close` would read the response.
                while harness::established(address).contains(&connection.local_port()) {
                    assert!(
                        started.elapsed() < Duration::from_secs(WRITE + TOLERANCE),
                        "{case}: the connection stays open"
                    );
                    thread::sleep(Duration::from_millis(100));
                }
                assert_took(case, started, WRITE, 0);
            });
        }
        let half_body = "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf";
        let wait = "GET /wait HTTP/1.1\r\nHost: test\r\n\r\n";
        // The guest starts with the half that has arrived, and responds with its error.
        let stalled = (half_body, BODY, "connection read timeout");
        for (bytes, limit, text) in [stalled, (wait, GUEST, "Gateway Timeout")] {
            for (case, (mut connection, started)) in connections(address, bytes) {
                scope.spawn(move || {
                    let response = connection.response("GET").expect("a response");
                    let body = String::from_utf8_lossy(&response.body);
                    assert!(body.contains(text), "{case}: {body}");
                    assert_took(case, started, limit, 0);
                });
            }
        }
        // The rest of a body after its response is not the head of a request.
        let mut connection = Connection::open(address);
        let started = Instant::now();
        scope.spawn(move || {
            connection
                .send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nx")
                .expect("sent");
            assert_eq!(
                connection.response("POST").expect("a response").body,
                b"fine"
            );
            let rest = |time| if time <= 3 { b"x".to_vec() } else { Vec::new() };
            wait_for_close("late body", (connection, started), rest, IDLE, 0);
        });
    });
}

#[test]
fn drain_timeout_closes_open_connection() {
    let mut server = Server::start(RAW, &[("HEADER_TIMEOUT", "1m")]);
    let mut connection = Connection::open(server.address);
    connection.send("GET / HTTP/1.1\r\n").expect("sent");
    // The server has it when it has served a later one.
    Connection::open(server.address)
        .request("GET", "/")
        .expect("a response");
    let started = Instant::now();
    server.signal(Signal::TERM);
    server.lines_until("drain timed out (DRAIN_TIMEOUT): closing 1 connection with 0 requests");
    assert_took("drain", started, DRAIN, 0);
    assert_eq!(server.wait().code(), Some(0));
}

/// A request for `/` and its reset, on a stream of its own.
fn http2_request_and_reset(time: u32) -> Vec<u8> {
    let stream = 1001 + 2 * time;
    let get = frame(HEADERS, END, stream, &http2_head(METHOD_GET, "/"));
    [get, frame(RST_STREAM, 0, stream, CANCEL)].concat()
}

fn http2_ping(_: u32) -> Vec<u8> {
    frame(PING, 0, 0, b"whatever")
}

/// A byte more for the window of the stream and of the connection.
fn http2_increments(_: u32) -> Vec<u8> {
    let more = 1_u32.to_be_bytes();
    [
        frame(WINDOW_UPDATE, 0, 101, &more),
        frame(WINDOW_UPDATE, 0, 0, &more),
    ]
    .concat()
}

/// Returns true if GOAWAY is among these frames (RFC 9113, section 6.8).
fn has_goaway(mut frames: &[u8]) -> bool {
    let mut kinds = std::iter::from_fn(|| read_frame(&mut frames).ok().map(|(kind, ..)| kind));
    kinds.any(|kind| kind == GOAWAY)
}

/// A name; what is sent at the start of the connection, as the request, and at each interval; and the timeout.
type Http2Case<'a> = (Case, &'a [u8], &'a [u8], fn(u32) -> Vec<u8>, u64);

#[test]
fn timeouts_apply_over_http2() {
    let server = Server::start(RAW, &[]);
    let address = server.address;
    let preface = http2_without_window(0);
    let get = |path: &str| frame(HEADERS, END, 101, &http2_head(METHOD_GET, path));
    let head = get("/");
    let open_head = frame(HEADERS, END_STREAM, 101, &http2_head(METHOD_GET, "/"));
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
                let started = Instant::now();
                let mut connection = Connection::open(address);
                connection.send(begin).expect("sent");
                if !is_first {
                    // A response without a body, which needs no window.
                    connection
                        .send(frame(
                            HEADERS,
                            END,
                            1,
                            &http2_head(METHOD_GET, "/not-modified"),
                        ))
                        .expect("sent");
                    let mut received = Vec::new();
                    harness::wait_until("there is a response", || {
                        connection.receive(&mut received);
                        received
                            .windows(9)
                            .any(|it| it[3] == 1 && it[4] == 5 && it[5..] == [0, 0, 0, 1])
                    });
                }
                connection.send(bytes).expect("sent");
                scope.spawn(move || {
                    // Other streams of the connection may take so much longer.
                    let received =
                        wait_for_close(case, (connection, started), meanwhile, limit, GUEST);
                    assert!(has_goaway(&received), "{case}: no GOAWAY");
                });
            }
        }
        // Each stream has its own timeout.
        for is_first in [true, false] {
            let stalled = ("/body", BODY, "connection read timeout");
            for (path, limit, text) in [stalled, ("/wait", GUEST, "Gateway Timeout")] {
                scope.spawn(move || {
                    let mut client = Http2::connect(address);
                    if !is_first {
                        let (response, _) = client.send("GET", "/", true);
                        client.wait(response).expect("a response");
                    }
                    let started = Instant::now();
                    let (response, mut request) = client.send("POST", path, path == "/wait");
                    if path == "/body" {
                        request.send_data("half".into(), false).expect("sent");
                    }
                    let mut response = std::pin::pin!(response);
                    loop {
                        let waited =
                            async { tokio::time::timeout(INTERVAL, response.as_mut()).await };
                        if let Ok(response) = client.wait(waited) {
                            let mut body = response.expect("a response").into_body();
                            let body = client.wait(body.data()).expect("a body").expect("a piece");
                            let body = String::from_utf8_lossy(&body);
                            assert!(body.contains(text), "{path}: {body}");
                            break;
                        }
                        // Dropping it resets the stream.
                        drop(client.send("GET", "/", true));
                    }
                    assert_took(path, started, limit, 0);
                });
            }
        }
    });
}
