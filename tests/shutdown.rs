//! Graceful shutdown under load: no request is lost, over HTTP/1.1 and HTTP/2.

mod harness;

use harness::frames::{END, HEADERS, METHOD_GET, WINDOW_UPDATE, frame, http2_head, http2_preface};
use harness::http2::runtime;
use harness::{Connection, NO_ACCESS_LOG, RAW, Server, TIMEOUT, WASI, serialize_tests, wait_until};
use rustix::process::Signal;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long idle connections stay open when the server shuts down.
const IDLE_GRACE_PERIOD: Duration = Duration::from_millis(300);

/// Sends a request after each response, until a response says that the connection closes. Reports the first response. Returns
/// false if the connection may have been idle when the server closed it.
fn request_until_closed(address: SocketAddr, served: &mpsc::Sender<()>) -> bool {
    let mut connection = Connection::open(address);
    // The server has not been idle for longer: it responded after that request was sent.
    let mut last_request = Instant::now();
    for round in 0.. {
        let request = Instant::now();
        let sent = connection.send_request("GET", "/");
        let pause = last_request.elapsed();
        let response = match sent.and_then(|()| connection.response("GET")) {
            // This client had to wait for the CPU for so long that its connection was idle.
            Err(error) if pause >= IDLE_GRACE_PERIOD => {
                let kinds = [
                    io::ErrorKind::UnexpectedEof,
                    io::ErrorKind::ConnectionReset,
                    io::ErrorKind::BrokenPipe,
                ];
                assert!(kinds.contains(&error.kind()), "{error}");
                return false;
            }
            response => response.expect("every request is served"),
        };
        last_request = request;
        assert_eq!(response.body, b"Hello from Docker!");
        if response.header("connection") == ["close"] {
            assert_eq!(connection.read_to_end().expect("a clean end"), b"");
            return true;
        }
        if round == 0 {
            served.send(()).expect("a receiver");
        }
    }
    unreachable!("the server closes the connection")
}

#[test]
fn shutdown_drops_no_request() {
    let _guard = serialize_tests();
    const CLIENTS: usize = 64;
    const ROUNDS: usize = 20;
    let mut busy = 0;
    for _ in 0..ROUNDS {
        let mut server = Server::start(WASI, &[NO_ACCESS_LOG]);
        let address = server.address;
        let idle: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let mut connection = Connection::open(address);
                if client % 2 == 0 {
                    connection.request("GET", "/").expect("a response");
                }
                connection
            })
            .collect();
        let (served, first_responses) = mpsc::channel();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let served = served.clone();
                    scope.spawn(move || request_until_closed(address, &served))
                })
                .collect();
            for _ in 0..CLIENTS {
                let first = first_responses.recv_timeout(TIMEOUT);
                first.expect("every client is served");
            }
            server.terminate();
            assert!(
                Connection::try_open(address).is_err(),
                "the server still listens"
            );
            for mut connection in idle {
                assert_eq!(connection.read_to_end().expect("a clean end"), b"");
            }
            for client in clients {
                busy += usize::from(client.join().expect("every request is served"));
            }
        });
        assert_eq!(server.wait().code(), Some(0));
    }
    assert!(busy > ROUNDS * CLIENTS / 2, "most clients were idle");
}

#[test]
fn idle_client_is_served_during_grace_period() {
    let _guard = serialize_tests();
    // The client can have to wait for the CPU for so long that it is late.
    wait_until("the client sends during the grace period", || {
        let mut server = Server::start(WASI, &[NO_ACCESS_LOG]);
        let mut connection = Connection::open(server.address);
        connection.request("GET", "/").expect("a response");
        let started = Instant::now();
        server.terminate();
        let sent = connection.send_request("GET", "/");
        if started.elapsed() >= IDLE_GRACE_PERIOD {
            return false;
        }
        sent.expect("sent");
        let response = connection.response("GET").expect("a response");
        assert_eq!(response.status, 200);
        assert_eq!(response.header("connection"), ["close"]);
        true
    });
}

#[test]
fn shutdown_completes_response() {
    let _guard = serialize_tests();
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    connection.send_request("GET", "/for-3s").expect("sent");
    connection.wait_for_response().expect("a first byte");
    server.signal(Signal::TERM);
    let response = connection.read_to_end().expect("the response, and the end");
    assert!(response.ends_with(b"\r\n1\r\nx\r\n0\r\n\r\n"));
    assert_eq!(server.wait().code(), Some(0));
}

/// The response to the first request starts before the signal, so that it does not say that the connection closes. That to the
/// second says so, and what follows is not processed (RFC 9112, section 9.6).
#[test]
fn shutdown_serves_pipelined_requests_until_connection_close() {
    let _guard = serialize_tests();
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    connection.send_request("GET", "/for-3s").expect("sent");
    for _ in 0..4 {
        connection.send_request("GET", "/").expect("sent");
    }
    connection.wait_for_response().expect("a first byte");
    server.signal(Signal::TERM);
    let first = connection.response("GET").expect("a response");
    assert_eq!(first.body, b"xxxxxxxxxx");
    assert!(first.header("connection").is_empty());
    let second = connection.response("GET").expect("a response");
    assert_eq!(second.body, b"fine");
    assert_eq!(second.header("connection"), ["close"]);
    assert_eq!(connection.read_to_end().expect("a clean end"), b"");
    assert_eq!(server.wait().code(), Some(0));
}

/// Half of its next request is there when the server shuts down.
#[test]
fn shutdown_serves_request_with_incomplete_head() {
    let _guard = serialize_tests();
    let mut server = Server::start(WASI, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    connection.request("GET", "/").expect("a response");
    connection.send("GET / HTTP/1.1\r\nHo").expect("sent");
    server.terminate();
    thread::sleep(2 * IDLE_GRACE_PERIOD);
    connection.send("st: test\r\n\r\n").expect("sent");
    let response = connection.response("GET").expect("a response");
    assert_eq!(response.header("connection"), ["close"]);
    assert_eq!(server.wait().code(), Some(0));
}

/// A client whose connection is idle, and which does not read meanwhile, acknowledges no GOAWAY.
#[test]
fn idle_http2_client_does_not_delay_shutdown() {
    let _guard = serialize_tests();
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    let get = frame(HEADERS, END, 1, &http2_head(METHOD_GET, "/"));
    connection
        .send([http2_preface(&[]), get].concat())
        .expect("sent");
    connection.read_until(b"fine").expect("a response");
    server.signal(Signal::TERM);
    let started = Instant::now();
    assert_eq!(server.wait().code(), Some(0));
    // Not DRAIN_TIMEOUT, which is 8 s.
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
}

/// Sends requests over one HTTP/2 connection, several at a time, until the server sends GOAWAY. Each gets its response, or is
/// reported as unprocessed (RFC 9113, section 6.8).
async fn request_until_goaway(address: SocketAddr, served: mpsc::Sender<()>) {
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
                let Ok((response, _)) = client.send_request(request.expect("a request"), true)
                else {
                    return;
                };
                let response = match response.await {
                    Err(error) if error.is_go_away() && error.is_remote() => {
                        assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
                        return;
                    }
                    response => response.expect("every request is served"),
                };
                let mut body = response.into_body();
                let data = body.data().await.expect("a body").expect("a whole body");
                assert_eq!(data, "Hello from Docker!");
                if round == 0 {
                    served.send(()).expect("a receiver");
                }
            }
        });
    }
    drop(client);
    while let Some(ended) = streams.join_next().await {
        ended.expect("every request is served");
    }
    let end = connection.await.expect("a task");
    end.expect("a clean end");
}

#[test]
fn shutdown_drops_no_http2_request() {
    let _guard = serialize_tests();
    const CLIENTS: usize = 16;
    for _ in 0..5 {
        let mut server = Server::start(WASI, &[NO_ACCESS_LOG]);
        let address = server.address;
        let (served, first_responses) = mpsc::channel();
        let clients = thread::spawn(move || {
            runtime().block_on(async {
                let mut clients = tokio::task::JoinSet::new();
                for _ in 0..CLIENTS {
                    clients.spawn(request_until_goaway(address, served.clone()));
                }
                while let Some(ended) = clients.join_next().await {
                    ended.expect("every request is served");
                }
            });
        });
        for _ in 0..CLIENTS * 4 {
            let first = first_responses.recv_timeout(TIMEOUT);
            first.expect("every client is served");
        }
        server.signal(Signal::TERM);
        clients.join().expect("every request is served");
        assert_eq!(server.wait().code(), Some(0));
    }
}

/// A part of the response waits for the window, for longer than the grace period of idle connections.
#[test]
fn drain_completes_http2_response_without_window() {
    let _guard = serialize_tests();
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    let get = frame(HEADERS, END, 1, &http2_head(METHOD_GET, "/"));
    // A window of one byte, for a body of four.
    let begin = http2_preface(&[0, 4, 0, 0, 0, 1]);
    connection.send([begin, get].concat()).expect("sent");
    connection
        .read_until(b"\0\0\x01\0\0\0\0\0\x01f")
        .expect("a byte");
    server.terminate();
    thread::sleep(Duration::from_secs(4));
    let more = frame(WINDOW_UPDATE, 0, 1, &3_u32.to_be_bytes());
    connection.send(more).expect("sent");
    connection
        .read_until(b"\0\0\x03\0\x01\0\0\0\x01ine")
        .expect("the rest");
    assert_eq!(server.wait().code(), Some(0));
}
