//! The limits at their defaults, on one core and in 512 MB, with guests that use all that they may and as many clients as may
//! connect. CI runs them in a container with the limits of `compose.yaml` (see `SERVER`).
//!
//! Tests that load the machine or measure it are serialized. Tests that only wait run at the same time.

mod harness;

use harness::frames::{
    CANCEL, CONTINUATION, DATA, END, END_HEADERS, GET_ROOT, HEADERS, METHOD_GET, METHOD_POST,
    RST_STREAM, frame, http2_head, http2_without_window,
};
use harness::{Connection, RAW, Server, established, raise_fd_limit, serialize_tests, wait_until};
use rustix::process::Signal;
use std::env;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// The limit of the server's memory. The rest of the 512 MB of compose.yaml is for the rest of the container. Outside of one, a
/// debug build takes more for more connections.
fn max_memory(server: &Server) -> u64 {
    match server.is_contained() {
        true => 400 << 20,
        false => 512 << 20,
    }
}

/// The limit of a healthy client's wait for a response (p99).
const MAX_P99: Duration = Duration::from_millis(50);

/// The 99th percentile of the time that a client waits for a response.
fn client_p99(address: SocketAddr) -> Duration {
    let mut client = Connection::open(address);
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let started = Instant::now();
            let response = client.request("GET", "/").expect("a response");
            assert_eq!(response.body, b"fine");
            started.elapsed()
        })
        .collect();
    times.sort();
    times[197]
}

/// Checks that a client on a new connection is served in time, and never rejected. One of three rounds counts, because other work
/// on the machine can make one slow.
#[track_caller]
fn assert_served(address: SocketAddr) {
    let p99 = (0..3).map(|_| client_p99(address)).min();
    println!("p99 of a healthy client: {p99:?}");
    assert!(p99 < Some(MAX_P99), "{p99:?}");
}

#[test]
fn computing_guest_is_preempted_and_times_out() {
    let _guard = serialize_tests();
    let server = Server::on_one_core(RAW);
    const LIMIT: Duration = Duration::from_secs(5);
    let round = || {
        let mut looping = Connection::open(server.address);
        let started = Instant::now();
        looping.send_request("GET", "/loop").expect("sent");
        let p99 = client_p99(server.address);
        // Otherwise the guest ended before the others were served.
        let overlapped = started.elapsed() < LIMIT;
        let response = looping.response("GET").expect("a response");
        assert_eq!(response.status, 504);
        let took = started.elapsed();
        assert!(
            (LIMIT..LIMIT + Duration::from_secs(2)).contains(&took),
            "{took:?}"
        );
        println!("p99 of a healthy client: {p99:?}, overlapped: {overlapped}");
        overlapped && p99 < MAX_P99
    };
    // As other work on the machine can make a round slow.
    assert!((0..3).any(|_| round()));
}

/// A short request does not wait for others once it has an instance, so that 32 times `MAX_REQUESTS` at once need no more than
/// that. One of three rounds counts, because other work on the machine can suspend the server.
#[test]
fn burst_of_short_requests_is_served() {
    let _guard = serialize_tests();
    raise_fd_limit(2048);
    let server = Server::on_one_core(RAW);
    let round = || {
        let (bodies, _) = concurrent_requests(&server, "/60k", 2048);
        let served = bodies
            .iter()
            .filter(|it| it.as_ref().is_ok_and(|body| body.len() == 60_000));
        let rejected = bodies.len() - served.count();
        println!("{rejected} of 2048 rejected");
        rejected == 0
    };
    assert!((0..3).any(|_| round()));
}

/// Sends a request over each of `clients` connections at the same time. Returns the responses' bodies, or their statuses if not 200,
/// and the maximum of the server's memory meanwhile.
fn concurrent_requests(
    server: &Server,
    path: &str,
    clients: usize,
) -> (Vec<Result<String, u16>>, u64) {
    let response = |mut connection: Connection| {
        let response = connection.response("GET").expect("a response");
        if response.status == 503 {
            assert_eq!(response.header("retry-after"), ["1"]);
        }
        match response.status {
            200 => Ok(response.text()),
            status => Err(status),
        }
    };
    let address = server.address;
    let responses = || {
        let mut connections: Vec<_> = (0..clients).map(|_| Connection::open(address)).collect();
        for connection in &mut connections {
            connection.send_request("GET", path).expect("sent");
        }
        connections.into_iter().map(response).collect()
    };
    thread::scope(|scope| {
        let responses = scope.spawn(responses);
        let mut max = 0;
        while !responses.is_finished() {
            max = max.max(server.memory());
            thread::sleep(Duration::from_millis(20));
        }
        (responses.join().expect("responses"), max)
    })
}

#[test]
fn guests_share_memory_total() {
    let _guard = serialize_tests();
    let server = Server::on_one_core(RAW);
    for _ in 0..2 {
        let started = Instant::now();
        let (responses, max) = concurrent_requests(&server, "/take-30-mib", 40);
        // Each keeps its memory for 2 s. On a busy machine, some start when the first have ended.
        let waves = (started.elapsed().as_secs() as usize / 2).max(1);
        let count = |of: Result<&str, u16>| {
            let responses = responses.iter();
            responses
                .filter(|it| it.as_deref().map_err(|it| *it) == of)
                .count()
        };
        // 8 × 30 MiB and what all start with are less than 256 MiB, 9 are more.
        let (taken, none, rejected) = (count(Ok("taken")), count(Ok("none left")), count(Err(503)));
        println!(
            "{taken} took 30 MiB, {none} found none, {rejected} did not start; {} MiB",
            max >> 20
        );
        assert!((6..=8 * waves).contains(&taken), "{responses:?}");
        assert_eq!(taken + none + rejected, 40, "{responses:?}");
        assert!(max < max_memory(&server), "{max}");
    }
    // All of it is released.
    assert_served(server.address);
}

#[test]
fn host_memory_for_guests_is_bounded() {
    let _guard = serialize_tests();
    for path in ["/take-fields", "/take-handles"] {
        let server = Server::on_one_core(RAW);
        let (responses, max) = concurrent_requests(&server, path, 60);
        println!("{path}: {responses:?}; {} MiB", max >> 20);
        // What each guest gets depends on when the others end. All of them together take a large part of the total.
        assert!(max > 64 << 20, "{path}: guests took only {max}");
        assert!(max < max_memory(&server), "{path}: {max}");
        assert_served(server.address);
    }
}

#[test]
fn drain_completes_request_within_guest_timeout() {
    let mut server = Server::on_one_core(RAW);
    let mut connection = Connection::open(server.address);
    connection.send_request("GET", "/3s").expect("sent");
    // The server has the request when it has served a later one.
    Connection::open(server.address)
        .request("GET", "/")
        .expect("a response");
    server.signal(Signal::TERM);
    let response = connection.response("GET").expect("a response");
    assert_eq!(response.body, b"fine");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn active_event_stream_outlives_guest_timeout() {
    let server = Server::on_one_core(RAW);
    let mut connection = Connection::open(server.address);
    let started = Instant::now();
    let response = connection.request("GET", "/every-2s").expect("a response");
    assert_eq!(response.body, b"xxxx");
    assert!(started.elapsed() > Duration::from_secs(6));
}

/// The clients send or read at least 1 KiB in each timeout, for longer than `GUEST_TIMEOUT`.
#[test]
fn steady_client_outlives_guest_timeout() {
    let server = Server::on_one_core(RAW);
    const PIECES: usize = 30;
    let piece = vec![b'x'; 8 << 10];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = Connection::open(server.address);
            let length = PIECES * piece.len();
            let head =
                format!("POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
            connection.send(head).expect("sent");
            for _ in 0..PIECES {
                thread::sleep(Duration::from_millis(250));
                connection.send(&piece).expect("sent");
            }
            let response = connection.response("POST").expect("a response");
            assert_eq!(response.body, length.to_string().as_bytes());
        });
        // HEADER_TIMEOUT of the next request starts only after the response.
        scope.spawn(|| {
            let mut connection = Connection::open_with_small_buffer(server.address);
            let post = "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nfour";
            let get = "GET /60k HTTP/1.1\r\nHost: test\r\n\r\n";
            connection.send(format!("{get}{post}")).expect("sent");
            // Longer than HEADER_TIMEOUT.
            for _ in 0..24 {
                connection.read_some(1 << 10).expect("a piece");
                thread::sleep(Duration::from_millis(500));
            }
            connection
                .read_until(b"\r\n\r\n4")
                .expect("the rest, and a response");
        });
        scope.spawn(|| {
            let mut connection = Connection::open(server.address);
            connection.send_request("GET", "/large").expect("sent");
            let mut left = 1 << 20;
            for _ in 0..PIECES {
                thread::sleep(Duration::from_millis(250));
                left -= connection.read_some(8 << 10).expect("a piece");
            }
            let rest = connection.read_until(b"0\r\n\r\n").expect("the rest");
            // Heads of response and chunks come on top of the body.
            assert!(rest.len() >= left, "{} of {left}", rest.len());
        });
    });
}

/// The client sends less than 1 KiB in each timeout, but never stops.
#[test]
fn slow_upload_is_closed() {
    let server = Server::on_one_core(RAW);
    let head =
        |length| format!("POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    // Before and after its guest has started.
    for begin in [head(1000), head(100_000) + &"x".repeat(70_000)] {
        let mut connection = Connection::open(server.address);
        connection.send(&begin).expect("sent");
        let started = Instant::now();
        // Until the server closes the connection.
        while connection.send("x").is_ok() && connection.is_open() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "the connection stays open"
            );
            thread::sleep(Duration::from_millis(200));
        }
        assert!(
            started.elapsed() > Duration::from_secs(9),
            "{:?}",
            started.elapsed()
        );
    }
}

/// The clients read less than 1 KiB in each `WRITE_TIMEOUT`, or nothing of one of several responses.
#[test]
fn unread_response_is_closed() {
    let server = Server::on_one_core(RAW);
    let address = server.address;
    let started = Instant::now();
    let is_cut = || {
        let took = started.elapsed();
        assert!(
            (Duration::from_secs(29)..Duration::from_secs(45)).contains(&took),
            "{took:?}"
        );
    };
    thread::scope(|scope| {
        for bytes in [0, 1] {
            scope.spawn(move || {
                let mut connection = Connection::open_with_small_buffer(address);
                connection.send_request("GET", "/large").expect("sent");
                while established(address).contains(&connection.local_port()) {
                    assert!(
                        started.elapsed() < Duration::from_secs(60),
                        "the connection stays open"
                    );
                    thread::sleep(Duration::from_millis(500));
                    connection.read_some(bytes).expect("a byte");
                }
                is_cut();
            });
        }
        // One stream has no window, while others come and go.
        scope.spawn(move || {
            let mut connection = Connection::open(address);
            connection.send(http2_without_window(1)).expect("sent");
            for stream in 1.. {
                if !established(address).contains(&connection.local_port()) {
                    break;
                }
                assert!(
                    started.elapsed() < Duration::from_secs(60),
                    "the connection stays open"
                );
                let stream = 1 + 2 * stream;
                let head = frame(HEADERS, END, stream, GET_ROOT);
                let reset = frame(RST_STREAM, 0, stream, CANCEL);
                // Fails when the connection is closed.
                let _ = connection.send([head, reset].concat());
                thread::sleep(Duration::from_millis(400));
            }
            is_cut();
        });
    });
}

/// The bytes that each kind of slow client sends, by protocol.
fn slow_clients() -> [Vec<Vec<u8>>; 2] {
    let post = "POST /body HTTP/1.1\r\nHost: test\r\nContent-Length";
    let http1 = [
        String::new(),
        "GET / HTTP/1.1\r\nHost: te".into(),
        format!("{post}: 9\r\n\r\nhalf"),
        format!("{post}: 1000000\r\n\r\n{}", "x".repeat(100 << 10)),
        "GET /huge HTTP/1.1\r\nHost: test\r\n\r\n".into(),
    ];
    let http2 = [
        http2_without_window(0),
        http2_half_head(),
        http2_upload(4),
        http2_upload(65_535),
        http2_without_window_get("/huge"),
    ];
    [http1.map(String::into_bytes).to_vec(), http2.to_vec()]
}

#[test]
fn slow_clients_leave_sandboxes_for_others() {
    let _guard = serialize_tests();
    const EACH: usize = 1500;
    for kinds in slow_clients() {
        raise_fd_limit((kinds.len() * EACH) as u64);
        let server = Server::on_one_core(RAW);
        let address = server.address;
        let slow: Vec<_> = (0..kinds.len() * EACH)
            .map(|n| {
                let mut connection = Connection::open(address);
                // What the server does not take at once is not sent.
                let _ = connection.send_some(&kinds[n % kinds.len()]);
                connection
            })
            .collect();
        wait_until("the server has read them", || {
            let mut client = Connection::open(address);
            let started = Instant::now();
            client.request("GET", "/").expect("a response");
            started.elapsed() < MAX_P99
        });
        assert_served(address);
        let held = count_open(address, &slow);
        println!("{held} connections, {} MiB", server.memory() >> 20);
        // Over HTTP/2, some find no buffers.
        assert!(held > EACH / 2, "only {held} connections are open");
    }
}

/// Counts the connections that the server has not closed.
fn count_open<'a>(
    address: SocketAddr,
    connections: impl IntoIterator<Item = &'a Connection>,
) -> usize {
    let open = established(address);
    let is_open = |it: &&Connection| open.contains(&it.local_port());
    connections.into_iter().filter(is_open).count()
}

/// A preface by which streams have a window of no bytes, and a request for this path.
fn http2_without_window_get(path: &str) -> Vec<u8> {
    [
        http2_without_window(0),
        frame(HEADERS, END, 1, &http2_head(METHOD_GET, path)),
    ]
    .concat()
}

/// A connection that sends this number of bytes of a body, and not its end.
fn http2_upload(bytes: usize) -> Vec<u8> {
    let mut upload = [
        http2_without_window(0),
        frame(HEADERS, END_HEADERS, 1, &http2_head(METHOD_POST, "/body")),
    ]
    .concat();
    for piece in vec![b'x'; bytes].chunks(1 << 14) {
        upload.extend(frame(DATA, 0, 1, piece));
    }
    upload
}

/// Half a head of 31 KB over HTTP/2: the rest of the frames is missing.
fn http2_half_head() -> Vec<u8> {
    let value = [&b"\x00\x01x\x7f\x81\xf1\x01"[..], &[b'x'; 16_000]].concat();
    let head = [GET_ROOT, &value[..]].concat();
    [
        http2_without_window(0),
        frame(HEADERS, 0, 1, &head),
        frame(CONTINUATION, 0, 1, &[b'x'; 15_000]),
    ]
    .concat()
}

/// The bytes that each kind of client sends, which then neither sends nor reads.
fn worst_clients() -> Vec<Vec<u8>> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    let post = |length: usize, sent: usize| {
        let fields = format!("Host: test\r\nContent-Length: {length}");
        format!(
            "POST /body HTTP/1.1\r\n{fields}\r\n\r\n{}",
            "x".repeat(sent)
        )
    };
    let half_head = |length| format!("GET / HTTP/1.1\r\nHost: test\r\nx: {}", "x".repeat(length));
    vec![
        Vec::new(),
        get("/").into(),
        half_head(10).into(),
        half_head(31_000).into(),
        post(9, 4).into(),
        post(60_000, 59_000).into(),
        post(10_000_000, 1_000_000).into(),
        get("/60k").into(),
        get("/large").into(),
        http2_without_window(0),
        http2_without_window(1),
        http2_without_window(100),
        http2_half_head(),
    ]
}

/// All connections of a server but 16. Outside of a container the server is built without optimization, and takes seconds for the
/// requests that all clients send at once, while a healthy client waits behind them: there, a tenth of the connections.
fn worst_client_count(server: &Server) -> usize {
    let (_, rest) = server
        .startup_line
        .split_once("MAX_CONNECTIONS=")
        .expect("sizes");
    let max = rest.split_once(',').and_then(|(it, _)| it.parse().ok());
    let max: usize = max.expect("a number");
    match server.is_contained() {
        true => max - 16,
        false => max / 10,
    }
}

/// Such clients reconnect when they are closed, for WORST_SECONDS.
#[test]
fn healthy_client_is_served_among_worst_clients() {
    let _guard = serialize_tests();
    let seconds = env::var("WORST_SECONDS").map_or(10, |text| text.parse().expect("seconds"));
    let server = Server::on_one_core(RAW);
    let connections = worst_client_count(&server);
    raise_fd_limit(connections as u64);
    let address = server.address;
    // The first request opens the descriptors that all requests share.
    assert_served(address);
    let own_fds = server.open_fds();
    let kinds = worst_clients();
    let open = |n: usize| {
        let mut connection = Connection::open_with_small_buffer(address);
        let bytes = &kinds[n % kinds.len()];
        let sent = connection.send_some(bytes).unwrap_or(bytes.len());
        (connection, &bytes[sent..])
    };
    let mut clients: Vec<_> = (0..connections).map(open).collect();
    let started = Instant::now();
    let (mut max, mut reopened) = (0, 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        let established = established(address);
        // The server may be about to close some that the client has lost.
        let mut room = (own_fds + connections).saturating_sub(server.open_fds());
        for (n, client) in clients.iter_mut().enumerate() {
            if !established.contains(&client.0.local_port()) {
                if room > 0 {
                    *client = open(n);
                    reopened += 1;
                    room -= 1;
                }
            } else if !client.1.is_empty() {
                let sent = client.0.send_some(client.1).unwrap_or(client.1.len());
                client.1 = &client.1[sent..];
            }
        }
        let mut client = Connection::open(address);
        let response = client.request("GET", "/").expect("a response");
        let text = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(text, "fine", "after {:?}", started.elapsed());
        max = max.max(server.memory());
    }
    let held = count_open(address, clients.iter().map(|it| &it.0));
    println!(
        "{} MiB for {held} of {connections} connections, {reopened} of them reopened",
        max >> 20
    );
    assert!(held > connections / 4, "only {held} connections are open");
    assert!(max < max_memory(&server), "{max}");
}
