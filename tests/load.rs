//! What the server keeps up under load, at its limits, and at its end.

mod harness;

use harness::http2::{frame, http2_head, http2_preface};
use harness::{
    Connection, QUIET, RAW, Server, TIMEOUT, WASI, allow_files, alone, await_that, words,
};
use rustix::process::Signal;
use std::env;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long idle connections stay open when the server shuts down.
const LINGER: Duration = Duration::from_millis(300);

/// A client in a tight loop: asks again as soon as it is answered, until it is told that the
/// connection closes. Speaks up once it is served. Returns false if it was idle when the server closed the connection.
fn keep_busy(address: SocketAddr, served: &mpsc::Sender<()>) -> bool {
    let mut connection = Connection::open(address);
    let mut answered = Instant::now();
    for round in 0.. {
        let sent = connection.send_request("GET", "/");
        let pause = answered.elapsed();
        let answer = match sent.and_then(|()| connection.answer("GET")) {
            // The machine had other work for so long that this client was an idle one.
            Err(error) if pause >= LINGER => {
                let kinds = [
                    io::ErrorKind::UnexpectedEof,
                    io::ErrorKind::ConnectionReset,
                    io::ErrorKind::BrokenPipe,
                ];
                assert!(kinds.contains(&error.kind()), "{error}");
                return false;
            }
            answer => answer.expect("no request is cut"),
        };
        answered = Instant::now();
        assert_eq!(answer.body, b"Hello from Docker!");
        if answer.header("connection") == ["close"] {
            assert_eq!(connection.rest().expect("a clean end"), b"");
            return true;
        }
        if round == 0 {
            served.send(()).expect("the test waits");
        }
    }
    unreachable!("it does not end by itself")
}

#[test]
fn no_request_is_cut_at_the_end() {
    let _alone = alone();
    const CLIENTS: usize = 64;
    for _ in 0..20 {
        let mut server = Server::start(WASI, &[QUIET]);
        let address = server.address;
        let idle: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let mut connection = Connection::open(address);
                if client % 2 == 0 {
                    connection.request("GET", "/").expect("an answer");
                }
                connection
            })
            .collect();
        let (served, first_answers) = mpsc::channel();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let served = served.clone();
                    scope.spawn(move || keep_busy(address, &served))
                })
                .collect();
            for _ in 0..CLIENTS {
                let first = first_answers.recv_timeout(TIMEOUT);
                first.expect("every client is served");
            }
            server.signal(Signal::TERM);
            server.lines_until("SIGTERM: shutting down");
            assert!(Connection::try_open(address).is_err(), "it still listens");
            for mut connection in idle {
                assert_eq!(connection.rest().expect("a clean end"), b"");
            }
            let told = clients.into_iter().map(|client| client.join());
            let told = told.filter(|told| *told.as_ref().expect("no request is cut"));
            assert!(told.count() > CLIENTS / 2, "most clients were idle");
        });
        assert_eq!(server.end().code(), Some(0));
    }
}

#[test]
fn an_idle_client_that_comes_back_during_the_linger_is_answered() {
    let _alone = alone();
    // The machine can have other work for so long that the client comes too late.
    await_that("the client comes back during the linger", || {
        let mut server = Server::start(WASI, &[QUIET]);
        let mut connection = Connection::open(server.address);
        connection.request("GET", "/").expect("an answer");
        let begun = Instant::now();
        server.signal(Signal::TERM);
        server.lines_until("SIGTERM: shutting down");
        let sent = connection.send_request("GET", "/");
        if begun.elapsed() >= LINGER {
            return false;
        }
        sent.expect("sent");
        let answer = connection.answer("GET").expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection"), ["close"]);
        true
    });
}

#[test]
fn what_is_under_way_at_the_end_is_finished() {
    let _alone = alone();
    let mut server = Server::start(RAW, &[QUIET]);
    let mut connection = Connection::open(server.address);
    connection.send_request("GET", "/slow").expect("sent");
    connection.first_byte().expect("the answer has begun");
    server.signal(Signal::TERM);
    let answer = connection.rest().expect("the answer, and the end");
    assert!(answer.ends_with(b"\r\n1\r\nx\r\n0\r\n\r\n"));
    assert_eq!(server.end().code(), Some(0));
}

/// The response to the first request began before the signal, so that it does not say that the connection closes. That to the
/// second does, and what follows it is not processed (RFC 9112, section 9.6).
#[test]
fn pipelined_requests_are_served_until_a_response_says_that_the_connection_closes() {
    let _alone = alone();
    let mut server = Server::start(RAW, &[QUIET]);
    let mut connection = Connection::open(server.address);
    connection.send_request("GET", "/for-1s").expect("sent");
    for _ in 0..4 {
        connection.send_request("GET", "/").expect("sent");
    }
    connection.first_byte().expect("the response has begun");
    server.signal(Signal::TERM);
    let first = connection.answer("GET").expect("a response");
    assert_eq!(first.body, b"xxxxxxxxxx");
    assert!(first.header("connection").is_empty());
    let second = connection.answer("GET").expect("a response");
    assert_eq!(second.body, b"fine");
    assert_eq!(second.header("connection"), ["close"]);
    assert_eq!(connection.rest().expect("a clean end"), b"");
    assert_eq!(server.end().code(), Some(0));
}

/// Half of its next request is there when the server shuts down.
#[test]
fn request_whose_head_has_begun_is_served_at_the_end() {
    let _alone = alone();
    let mut server = Server::start(WASI, &[QUIET]);
    let mut connection = Connection::open(server.address);
    connection.request("GET", "/").expect("a response");
    connection.send("GET / HTTP/1.1\r\nHo").expect("sent");
    server.signal(Signal::TERM);
    server.lines_until("SIGTERM: shutting down");
    thread::sleep(2 * LINGER);
    connection.send("st: test\r\n\r\n").expect("sent");
    let response = connection.answer("GET").expect("a response");
    assert_eq!(response.header("connection"), ["close"]);
    assert_eq!(server.end().code(), Some(0));
}

/// A client whose connection is idle, and which does not read meanwhile, acknowledges no GOAWAY.
#[test]
fn idle_http2_client_that_does_not_read_does_not_delay_the_end() {
    let _alone = alone();
    let mut server = Server::start(RAW, &[QUIET]);
    let mut connection = Connection::open(server.address);
    let get = frame(1, 5, 1, &http2_head(0x82, "/"));
    connection
        .send([http2_preface(&[]), get].concat())
        .expect("sent");
    connection.read_until(b"fine").expect("a response");
    server.signal(Signal::TERM);
    let begun = Instant::now();
    assert_eq!(server.end().code(), Some(0));
    // Not DRAIN_TIMEOUT, which is 8 s.
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

/// Requests over one HTTP/2 connection, several at a time, until the server says that it goes. Each
/// is answered, or the server says that it has not touched it (RFC 9113, section 6.8).
async fn keep_busy_over_http2(address: SocketAddr, served: mpsc::Sender<()>) {
    let stream = tokio::net::TcpStream::connect(address).await;
    let (client, connection) = h2::client::handshake(stream.expect("connected"))
        .await
        .expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (client, served) = (client.clone(), served.clone());
        streams.spawn(async move {
            for round in 0.. {
                // An error here means that nothing was sent.
                let Ok(mut client) = client.clone().ready().await else {
                    return;
                };
                let request = http::Request::get("http://test/").body(());
                let Ok((answer, _)) = client.send_request(request.expect("a request"), true) else {
                    return;
                };
                let answer = match answer.await {
                    Err(error) if error.is_go_away() && error.is_remote() => {
                        assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
                        return;
                    }
                    answer => answer.expect("no request is cut"),
                };
                let mut body = answer.into_body();
                let data = body
                    .data()
                    .await
                    .expect("a body")
                    .expect("no answer is cut");
                assert_eq!(data, "Hello from Docker!");
                if round == 0 {
                    served.send(()).expect("the test waits");
                }
            }
        });
    }
    drop(client);
    while let Some(ended) = streams.join_next().await {
        ended.expect("no request is cut");
    }
    let end = connection.await.expect("a task");
    end.expect("a clean end");
}

#[test]
fn no_http2_request_is_cut_at_the_end() {
    let _alone = alone();
    const CLIENTS: usize = 16;
    for _ in 0..5 {
        let mut server = Server::start(WASI, &[QUIET]);
        let address = server.address;
        let (served, first_answers) = mpsc::channel();
        let clients = thread::spawn(move || {
            runtime().block_on(async {
                let mut clients = tokio::task::JoinSet::new();
                for _ in 0..CLIENTS {
                    clients.spawn(keep_busy_over_http2(address, served.clone()));
                }
                while let Some(ended) = clients.join_next().await {
                    ended.expect("no request is cut");
                }
            });
        });
        for _ in 0..CLIENTS * 4 {
            let first = first_answers.recv_timeout(TIMEOUT);
            first.expect("every client is served");
        }
        server.signal(Signal::TERM);
        clients.join().expect("no request is cut");
        assert_eq!(server.end().code(), Some(0));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

/// Opens connections until so many of them have been turned away; the others are served. Returns how many were, of these
/// `connections`.
fn turned_away(address: SocketAddr, connections: usize) -> usize {
    let crowd: Vec<_> = (0..connections)
        .map(|_| Connection::open(address))
        .collect();
    let mut turned_away = 0;
    for mut connection in crowd.into_iter().rev() {
        if connection.send_request("GET", "/").is_err() {
            turned_away += 1;
            continue;
        }
        match connection.answer("GET") {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => {
                assert_eq!(answer.status, 503);
                assert_eq!(answer.header("retry-after"), ["1"]);
                turned_away += 1;
            }
            Err(_) => turned_away += 1,
        }
    }
    await_that("it serves again", || {
        let answer = Connection::open(address).request("GET", "/health");
        answer.is_ok_and(|answer| answer.status == 200)
    });
    turned_away
}

/// A server that may have this many file descriptors.
fn with_files(files: u64) -> Command {
    let mut limited = Command::new("sh");
    let script = format!("ulimit -n {files} && exec \"$@\"");
    limited.env_clear().args(["-c", &script, "sh"]);
    limited.args(words()).arg(WASI.cwasm());
    limited
}

#[test]
fn few_file_descriptors_leave_room_for_fewer_connections() {
    let _alone = alone();
    let mut server = Server::spawn(with_files(100), &[QUIET]);
    let line = server.line();
    let (_, room) = line.split_once("leaves room for ").expect(&line);
    let (room, _) = room.split_once(" connections, ").expect(&line);
    let room: usize = room.parse().expect(&line);
    assert!((10..50).contains(&room), "{line}");
    let turned_away = turned_away(server.address, 300);
    assert_eq!(turned_away, 300 - room);
    server.signal(Signal::TERM);
    let lines = server.lines_until("shutting down");
    let is_expected = |line: &String| line.contains("MAX_CONNECTIONS are open: ");
    assert!(lines.iter().all(is_expected), "{lines:?}");
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn too_few_file_descriptors_end_it_with_what_it_needs() {
    let _alone = alone();
    // With the fewest, workers have no runtime, and a component cannot be opened.
    for files in [10, 15, 20, 40] {
        let mut limited = with_files(files);
        let output = limited.args(["--listen", "127.0.0.1:0"]).output();
        let output = output.expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        let line =
            format!("error: the limit of {files} file descriptors is too low: the server needs ");
        assert!(
            error.starts_with(&line) && error.lines().count() == 1,
            "{error}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
}

/// The limit can sink while the server runs, and the whole system can run out.
#[test]
fn it_outlives_a_lack_of_file_descriptors() {
    let _alone = alone();
    let mut server = Server::start(WASI, &[QUIET]);
    let begun = Instant::now();
    let room = server.files() as u64 + 40;
    server.limit_files(room);
    // Those for whom there is no descriptor are told so, and not kept waiting.
    let turned_away = turned_away(server.address, 300);
    assert!(
        (180..300).contains(&turned_away),
        "{turned_away} of 300 turned away"
    );
    server.signal(Signal::TERM);
    let lines = server.lines_until("shutting down");
    let complaints = lines.iter().filter(|line| {
        line.contains("cannot accept connections: ") && line.contains("(os error 24)")
    });
    let complaints = complaints.count();
    assert!(complaints >= 1, "{lines:?}");
    assert!(
        complaints as u64 <= 1 + begun.elapsed().as_secs(),
        "{lines:?}"
    );
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn at_max_connections_it_says_so() {
    let _alone = alone();
    let mut server = Server::start(WASI, &[QUIET, ("MAX_CONNECTIONS", "10")]);
    let mut open: Vec<_> = (0..10)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.request("GET", "/").expect("an answer");
            connection
        })
        .collect();
    let mut eleventh = Connection::open(server.address);
    let answer = eleventh.request("GET", "/").expect("an answer");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), ["1"]);
    assert_eq!(answer.header("connection"), ["close"]);
    assert_eq!(eleventh.rest().expect("a clean end"), b"");
    let line = server.line();
    assert!(
        line.ends_with("MAX_CONNECTIONS are open: 1 more turned away"),
        "{line}"
    );
    open.pop();
    await_that("there is room again", || {
        let answer = Connection::open(server.address).request("GET", "/");
        answer.is_ok_and(|answer| answer.status == 200)
    });
    for mut connection in open {
        let answer = connection.request("GET", "/").expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn at_max_requests_it_says_so() {
    let _alone = alone();
    let env = [QUIET, ("MAX_REQUESTS", "2"), ("GUEST_TIMEOUT", "1h")];
    let mut server = Server::start(RAW, &env);
    let mut waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.send_request("GET", "/wait").expect("sent");
            server.lines_until("guest: waiting");
            connection
        })
        .collect();
    let mut connection = Connection::open(server.address);
    for _ in 0..2 {
        let answer = connection.request("GET", "/").expect("an answer");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), ["1"]);
    }
    // At once, and the other one a second later.
    for _ in 0..2 {
        let line = server.line();
        let end = "MAX_REQUESTS are in the component: 1 more requests refused";
        assert!(line.ends_with(end), "{line}");
    }
    waiting.pop();
    await_that("there is room again", || {
        let answer = connection.request("GET", "/").expect("an answer");
        answer.status == 200
    });
}

/// Half of a response waits in HTTP/2, for longer than an idle client has, and comes when the client opens its window.
#[test]
fn http2_response_that_waits_for_its_window_ends_in_a_drain() {
    let _alone = alone();
    let mut server = Server::start(RAW, &[QUIET]);
    let mut connection = Connection::open(server.address);
    let get = frame(1, 5, 1, &http2_head(0x82, "/"));
    // A window of one byte, for a body of four.
    let begin = http2_preface(&[0, 4, 0, 0, 0, 1]);
    connection.send([begin, get].concat()).expect("sent");
    connection
        .read_until(b"\0\0\x01\0\0\0\0\0\x01f")
        .expect("a byte");
    server.signal(Signal::TERM);
    server.lines_until("SIGTERM: shutting down");
    thread::sleep(Duration::from_secs(4));
    let more = frame(8, 0, 1, &3_u32.to_be_bytes());
    connection.send(more).expect("sent");
    connection
        .read_until(b"\0\0\x03\0\x01\0\0\0\x01ine")
        .expect("the rest");
    assert_eq!(server.end().code(), Some(0));
}

/// One client has the only transfer. Another that takes a large response as fast as it comes needs none.
#[test]
fn fast_client_needs_no_transfer_once_its_response_has_begun() {
    let _alone = alone();
    let mut server = Server::start(RAW, &[QUIET, ("MAX_REQUESTS", "2")]);
    let mut stalled = Connection::open_narrow(server.address);
    stalled.send_request("GET", "/huge").expect("sent");
    // More than the host takes at once has come of it, so that it has the transfer.
    stalled.first_byte().expect("a response");
    let mut fast = Connection::open(server.address);
    let response = fast.request("GET", "/large").expect("a response");
    assert_eq!(response.status, 503);
    // This client can wait too long for its turn on the CPU.
    await_that("the whole response comes", || {
        let response = Connection::open(server.address).request("GET", "/late-large");
        response.is_ok_and(|response| response.body.len() == 1 + (1 << 20))
    });
    let mut slow = Connection::open_narrow(server.address);
    slow.send_request("GET", "/late-large").expect("sent");
    server.lines_until("after the response started: half of MAX_REQUESTS have large bodies");
}

#[test]
fn at_guest_memory_total_it_says_so() {
    let _alone = alone();
    // One guest starts with more than 1 MiB, and two do not fit.
    let env = [
        QUIET,
        ("GUEST_MEMORY_TOTAL", "2MiB"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &env);
    let mut waiting = Connection::open(server.address);
    waiting.send_request("GET", "/wait").expect("sent");
    server.lines_until("guest: waiting");
    let mut connection = Connection::open(server.address);
    let answer = connection.request("GET", "/").expect("an answer");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), ["1"]);
    let line = server.line();
    let end = "no memory is left in GUEST_MEMORY_TOTAL: 1 more requests refused";
    assert!(line.ends_with(end), "{line}");
    drop(waiting);
    await_that("there is room again", || {
        let answer = connection.request("GET", "/").expect("an answer");
        answer.status == 200
    });
}

/// The buffers of all connections hold 64 long heads here. A short one needs none of them.
#[test]
fn long_head_for_which_no_buffer_is_left_gets_503() {
    let _alone = alone();
    let mut server = Server::start(WASI, &[QUIET, ("MAX_CONNECTIONS", "400")]);
    let long = "x".repeat(20_000);
    let long = format!("GET / HTTP/1.1\r\nHost: test\r\nx: {long}");
    let mut open: Vec<_> = (0..70)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.send(&long).expect("sent");
            connection
        })
        .collect();
    let lines = server.lines_until("the buffers of all connections are taken: ");
    assert!(lines.is_empty(), "{lines:?}");
    let answer = Connection::open(server.address).request("GET", "/");
    assert_eq!(answer.expect("an answer").status, 200);
    let mut rejected = 0;
    for connection in &mut open {
        // Fails where the server has rejected it.
        let _ = connection.send("\r\n\r\n");
        let answer = connection.answer("GET").expect("an answer");
        if answer.status != 200 {
            assert_eq!(answer.status, 503);
            assert_eq!(answer.header("retry-after"), ["1"]);
            rejected += 1;
        }
    }
    assert_eq!(rejected, 70 - 64);
}

/// 2 MiB of buffers and 32 transfers are too few for 60 responses of 60 KB whose guests have ended.
#[test]
fn response_for_which_no_buffer_is_left_breaks_off() {
    let _alone = alone();
    let mut server = Server::start(RAW, &[QUIET, ("MAX_CONNECTIONS", "16")]);
    let mut connection = Connection::open(server.address);
    // No window, so that none of them is taken.
    let mut begin = http2_preface(&[0, 4, 0, 0, 0, 0]);
    for request in 0..60 {
        begin.extend(frame(1, 5, 1 + 2 * request, &http2_head(0x82, "/late-60k")));
    }
    connection.send(begin).expect("sent");
    server.lines_until("after the response started: the buffers of all connections are taken");
    let response = Connection::open(server.address).request("GET", "/");
    assert_eq!(response.expect("a response").body, b"fine");
}

/// Guests that are kept for their next request give way to one that grows.
#[test]
fn idle_guests_do_not_keep_memory_from_others() {
    let _alone = alone();
    let env = [
        QUIET,
        ("GUEST_MEMORY_TOTAL", "40MiB"),
        ("REQUESTS_PER_SANDBOX", "100"),
    ];
    let mut server = Server::start(RAW, &env);
    // Eight at a time, who are all kept.
    let mut waiting: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection
                .send_request("GET", "/log-and-wait")
                .expect("sent");
            server.lines_until("guest: waiting");
            connection
        })
        .collect();
    for connection in &mut waiting {
        let answer = connection.answer("GET").expect("an answer");
        assert_eq!(answer.body, b"fine");
    }
    let answer = Connection::open(server.address).request("GET", "/take-30-mib");
    assert_eq!(answer.expect("an answer").body, b"taken");
}

#[test]
fn ten_thousand_open_connections_take_bounded_memory() {
    let _alone = alone();
    const CONNECTIONS: u64 = 10_000;
    allow_files(CONNECTIONS);
    let server = Server::start(WASI, &[QUIET]);
    let before = server.resident();
    let mut open: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.request("GET", "/").expect("an answer");
            connection
        })
        .collect();
    let each = (server.resident() - before) / CONNECTIONS;
    println!("{each} bytes of resident memory for each of {CONNECTIONS} connections");
    // One more is too many.
    let mut another = Connection::open(server.address);
    let answer = another.request("GET", "/").expect("an answer");
    assert_eq!(answer.status, 503);
    // hyper's buffers and state: 24 KB with glibc's allocator, 20 KB with the shipped binary's.
    assert!(each < 32 << 10, "{each} bytes each");
    for connection in open.iter_mut().step_by(1000) {
        let answer = connection.request("GET", "/").expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

/// Full load for SOAK_SECONDS: not one failed request, and no more memory than after warming up.
#[test]
fn a_soak_changes_nothing() {
    let _alone = alone();
    const CLIENTS: usize = 16;
    let seconds = env::var("SOAK_SECONDS").map_or(4, |text| text.parse().expect("seconds"));
    let server = Server::start(WASI, &[QUIET]);
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
        (requests, server.resident())
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
                let answer = connection.request(method, path).expect("an answer");
                assert_eq!(answer.status, status);
                requests += 1;
            }
        }
    }
    requests
}
