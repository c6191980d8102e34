//! The server at its limits, and under load for a long time.

mod harness;

use harness::frames::{END, HEADERS, METHOD_GET, frame, http2_head, http2_preface};
use harness::{
    Connection, NO_ACCESS_LOG, RAW, Server, WASI, command_words, raise_fd_limit, serialize_tests,
    wait_until,
};
use std::env;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Opens connections at the same time, each of which is served or rejected; returns the number of those rejected.
fn rejected_of(connections: usize, address: SocketAddr) -> usize {
    let crowd: Vec<_> = (0..connections)
        .map(|_| Connection::open(address))
        .collect();
    let mut rejected = 0;
    for mut connection in crowd.into_iter().rev() {
        if connection.send_request("GET", "/").is_err() {
            rejected += 1;
            continue;
        }
        match connection.response("GET") {
            Ok(response) if response.status == 200 => {}
            Ok(response) => {
                assert_eq!(response.status, 503);
                assert_eq!(response.header("retry-after"), ["1"]);
                rejected += 1;
            }
            Err(_) => rejected += 1,
        }
    }
    wait_until("the server serves again", || {
        let response = Connection::open(address).request("GET", "/health");
        response.is_ok_and(|response| response.status == 200)
    });
    rejected
}

/// The command of a server with this limit of file descriptors.
fn with_fd_limit(limit: u64) -> Command {
    let mut limited = Command::new("sh");
    let script = format!("ulimit -n {limit} && exec \"$@\"");
    limited.env_clear().args(["-c", &script, "sh"]);
    limited.args(command_words()).arg(WASI.cwasm());
    limited
}

#[test]
fn fd_limit_lowers_connection_limit() {
    let _guard = serialize_tests();
    let mut server = Server::spawn(with_fd_limit(200), &[NO_ACCESS_LOG]);
    let line = server.line();
    let (_, room) = line.split_once("leaves room for ").expect(&line);
    let (room, _) = room.split_once(" connections, ").expect(&line);
    let room: usize = room.parse().expect(&line);
    assert!((10..150).contains(&room), "{line}");
    let rejected = rejected_of(300, server.address);
    assert_eq!(rejected, 300 - room);
    let lines = server.terminate();
    let is_expected = |line: &String| line.contains("connection limit reached (MAX_CONNECTIONS): ");
    assert!(lines.iter().all(is_expected), "{lines:?}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn too_low_fd_limit_exits_with_1() {
    let _guard = serialize_tests();
    // With the lowest limits, workers have no runtime, and the component cannot be opened.
    for limit in [10, 15, 20, 40] {
        let mut limited = with_fd_limit(limit);
        let output = limited.args(["--listen", "127.0.0.1:0"]).output();
        let output = output.expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        let line =
            format!("error: the limit of {limit} file descriptors is too low: the server needs ");
        assert!(
            error.starts_with(&line) && error.lines().count() == 1,
            "{error}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
}

/// The limit can be lowered while the server runs, and the whole system can run out.
#[test]
fn survives_fd_exhaustion() {
    let _guard = serialize_tests();
    let mut server = Server::start(WASI, &[NO_ACCESS_LOG]);
    let started = Instant::now();
    let room = server.open_fds() as u64 + 40;
    server.limit_fds(room);
    // Clients for whom there is no descriptor are rejected and do not wait.
    let rejected = rejected_of(300, server.address);
    assert!((180..300).contains(&rejected), "{rejected} of 300 rejected");
    let lines = server.terminate();
    let warnings = lines.iter().filter(|line| {
        line.contains("cannot accept connections: ") && line.contains("(os error 24)")
    });
    let warnings = warnings.count();
    assert!(warnings >= 1, "{lines:?}");
    assert!(
        warnings as u64 <= 1 + started.elapsed().as_secs(),
        "{lines:?}"
    );
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn connection_over_limit_gets_503() {
    let _guard = serialize_tests();
    let mut server = Server::start(WASI, &[NO_ACCESS_LOG, ("MAX_CONNECTIONS", "10")]);
    let mut open: Vec<_> = (0..10)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.request("GET", "/").expect("a response");
            connection
        })
        .collect();
    let mut eleventh = Connection::open(server.address);
    let response = eleventh.request("GET", "/").expect("a response");
    assert_eq!(response.status, 503);
    assert_eq!(response.header("retry-after"), ["1"]);
    assert_eq!(response.header("connection"), ["close"]);
    assert_eq!(eleventh.read_to_end().expect("a clean end"), b"");
    let line = server.line();
    assert!(
        line.ends_with("connection limit reached (MAX_CONNECTIONS): rejected 1 connections"),
        "{line}"
    );
    open.pop();
    wait_until("the limit is no longer reached", || {
        let response = server.get("/");
        response.is_ok_and(|response| response.status == 200)
    });
    for mut connection in open {
        let response = connection.request("GET", "/").expect("a response");
        assert_eq!(response.status, 200);
    }
}

#[test]
fn request_over_limit_gets_503() {
    let _guard = serialize_tests();
    let env = [
        NO_ACCESS_LOG,
        ("MAX_REQUESTS", "2"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &env);
    let mut waiting: Vec<_> = (0..2).map(|_| server.waiting_request("/wait")).collect();
    let mut connection = Connection::open(server.address);
    for _ in 0..2 {
        let response = connection.request("GET", "/").expect("a response");
        assert_eq!(response.status, 503);
        assert_eq!(response.header("retry-after"), ["1"]);
    }
    // At once, and the other one a second later.
    for _ in 0..2 {
        let line = server.line();
        let end = "request limit reached (MAX_REQUESTS): rejected 1 requests";
        assert!(line.ends_with(end), "{line}");
    }
    waiting.pop();
    wait_until("the limit is no longer reached", || {
        let response = connection.request("GET", "/").expect("a response");
        response.status == 200
    });
}

/// One client has the only transfer. Another that reads a large response as fast as it is sent needs none.
#[test]
fn fast_client_needs_no_transfer() {
    let _guard = serialize_tests();
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG, ("MAX_REQUESTS", "2")]);
    let mut stalled = Connection::open_with_small_buffer(server.address);
    stalled.send_request("GET", "/huge").expect("sent");
    // The response is larger than what the host buffers, so that it has the transfer.
    stalled.wait_for_response().expect("a response");
    let mut fast = Connection::open(server.address);
    let response = fast.request("GET", "/large").expect("a response");
    assert_eq!(response.status, 503);
    // This client can wait too long for the CPU.
    wait_until("the whole response comes", || {
        let response = server.get("/late-large");
        response.is_ok_and(|response| response.body.len() == 1 + (1 << 20))
    });
    let mut slow = Connection::open_with_small_buffer(server.address);
    slow.send_request("GET", "/late-large").expect("sent");
    server
        .lines_until("after the response started: transfer limit reached (half of MAX_REQUESTS, ");
}

#[test]
fn request_over_memory_total_gets_503() {
    let _guard = serialize_tests();
    // One guest starts with more than 1 MiB, and two do not fit.
    let env = [
        NO_ACCESS_LOG,
        ("GUEST_MEMORY_TOTAL", "2MiB"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &env);
    let waiting = server.waiting_request("/wait");
    let mut connection = Connection::open(server.address);
    let response = connection.request("GET", "/").expect("a response");
    assert_eq!(response.status, 503);
    assert_eq!(response.header("retry-after"), ["1"]);
    let line = server.line();
    let end = "guest memory exhausted (GUEST_MEMORY_TOTAL): rejected 1 requests";
    assert!(line.ends_with(end), "{line}");
    drop(waiting);
    wait_until("the limit is no longer reached", || {
        let response = connection.request("GET", "/").expect("a response");
        response.status == 200
    });
}

/// The buffers of all connections hold 64 long heads here. A short one needs none of them.
#[test]
fn long_head_without_buffer_gets_503() {
    let _guard = serialize_tests();
    let mut server = Server::start(WASI, &[NO_ACCESS_LOG, ("MAX_CONNECTIONS", "400")]);
    let long = "x".repeat(20_000);
    let long = format!("GET / HTTP/1.1\r\nHost: test\r\nx: {long}");
    let mut open: Vec<_> = (0..70)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.send(&long).expect("sent");
            connection
        })
        .collect();
    let lines = server
        .lines_until("connection buffers exhausted (5 KiB for each of MAX_CONNECTIONS): closed ");
    assert!(lines.is_empty(), "{lines:?}");
    let response = server.get("/");
    assert_eq!(response.expect("a response").status, 200);
    let mut rejected = 0;
    for connection in &mut open {
        // Fails where the server has rejected it.
        let _ = connection.send("\r\n\r\n");
        let response = connection.response("GET").expect("a response");
        if response.status != 200 {
            assert_eq!(response.status, 503);
            assert_eq!(response.header("retry-after"), ["1"]);
            rejected += 1;
        }
    }
    assert_eq!(rejected, 70 - 64);
}

/// 2 MiB of buffers and 32 transfers are too few for 60 responses of 60 KB whose guests have ended.
#[test]
fn response_without_buffer_is_aborted() {
    let _guard = serialize_tests();
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG, ("MAX_CONNECTIONS", "16")]);
    let mut connection = Connection::open(server.address);
    // No window, so that the client reads none of them.
    let mut begin = http2_preface(&[0, 4, 0, 0, 0, 0]);
    for request in 0..60 {
        begin.extend(frame(
            HEADERS,
            END,
            1 + 2 * request,
            &http2_head(METHOD_GET, "/late-60k"),
        ));
    }
    connection.send(begin).expect("sent");
    server.lines_until("after the response started: connection buffers exhausted");
    let response = server.get("/");
    assert_eq!(response.expect("a response").body, b"fine");
}

/// Guests that wait for their next request are dropped if another one grows.
#[test]
fn idle_guests_release_memory() {
    let _guard = serialize_tests();
    let env = [
        NO_ACCESS_LOG,
        ("GUEST_MEMORY_TOTAL", "40MiB"),
        ("REQUESTS_PER_SANDBOX", "100"),
    ];
    let mut server = Server::start(RAW, &env);
    // Eight at a time, so that eight are kept.
    let mut waiting: Vec<_> = (0..8)
        .map(|_| server.waiting_request("/log-and-wait"))
        .collect();
    for connection in &mut waiting {
        let response = connection.response("GET").expect("a response");
        assert_eq!(response.body, b"fine");
    }
    let response = server.get("/take-30-mib");
    assert_eq!(response.expect("a response").body, b"taken");
}

#[test]
fn ten_thousand_connections_take_bounded_memory() {
    let _guard = serialize_tests();
    const CONNECTIONS: u64 = 10_000;
    raise_fd_limit(CONNECTIONS);
    let server = Server::start(WASI, &[NO_ACCESS_LOG, ("IDLE_TIMEOUT", "1h")]);
    let before = server.resident_memory();
    let mut open: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.request("GET", "/").expect("a response");
            connection
        })
        .collect();
    let each = (server.resident_memory() - before) / CONNECTIONS;
    println!("{each} bytes of resident memory for each of {CONNECTIONS} connections");
    // One more is over the limit.
    let mut another = Connection::open(server.address);
    let response = another.request("GET", "/").expect("a response");
    assert_eq!(response.status, 503);
    // hyper's buffers and state: 24 KB with glibc's allocator, 19 KB with the shipped binary's.
    assert!(each < 32 << 10, "{each} bytes each");
    for connection in open.iter_mut().step_by(1000) {
        let response = connection.request("GET", "/").expect("a response");
        assert_eq!(response.status, 200);
    }
}

/// Full load for SOAK_SECONDS: not one failed request, and no more memory than after warming up.
#[test]
fn soak_leaks_no_memory() {
    let _guard = serialize_tests();
    const CLIENTS: usize = 16;
    let seconds = env::var("SOAK_SECONDS").map_or(4, |text| text.parse().expect("seconds"));
    let server = Server::start(WASI, &[NO_ACCESS_LOG]);
    let address = server.address;
    let load = |time: Duration| {
        let end = Instant::now() + time;
        let requests = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(move || soak(address, end)))
                .collect();
            let requests = clients.into_iter().map(|client| client.join());
            requests.sum::<Result<u64, _>>().expect("no request fails")
        });
        (requests, server.resident_memory())
    };
    let (_, warm) = load(Duration::from_secs(seconds) / 4);
    let (requests, after) = load(Duration::from_secs(seconds));
    let grown = after.saturating_sub(warm) >> 10;
    println!(
        "{requests} requests in {seconds} s; {} KiB, then {grown} KiB more",
        warm >> 10
    );
    assert!(grown <= 2048, "{grown} KiB more");
}

/// Requests of many kinds, over connections of a hundred requests each. Returns how many.
fn soak(address: SocketAddr, end: Instant) -> u64 {
    let mut requests = 0;
    while Instant::now() < end {
        let mut connection = Connection::open(address);
        for _ in 0..20 {
            for (method, path, status) in [
                ("GET", "/", 200),
                ("GET", "/health", 200),
                ("HEAD", "/", 200),
                ("OPTIONS", "/health", 200),
                ("POST", "/missing", 404),
            ] {
                let response = connection.request(method, path).expect("a response");
                assert_eq!(response.status, status);
                requests += 1;
            }
        }
    }
    requests
}
