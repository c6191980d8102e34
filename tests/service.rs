//! Errors of routes, large responses and clients that disconnect, through each entry point of the service. The routes are in
//! `fixtures/service.rs`.

mod harness;

use harness::http2::Http2;
use harness::{Connection, NO_ACCESS_LOG, SERVICES, Server, wait_until};
use std::io;
use std::net::SocketAddr;
use std::thread;

const MIB: usize = 1 << 20;

/// Runs a test for each entry point, with these settings.
fn for_each_entry_point(env: &[(&str, &str)], test: impl Fn(&str, &mut Server)) {
    for service in SERVICES {
        let mut server = Server::start(service, &[&[NO_ACCESS_LOG], env].concat());
        test(service.entry, &mut server);
    }
}

/// Shuts the server down; returns the messages of the rest of its log.
fn remaining_messages(server: &mut Server) -> Vec<String> {
    let lines = server.terminate().into_iter();
    let message = |line: String| line.splitn(3, ' ').nth(2).map(str::to_owned);
    lines
        .map(|line| message(line).expect("a time and a level"))
        .collect()
}

/// Checks that the client gets a 500 without details and the log one line, and that the next request is served.
#[track_caller]
fn assert_fails(path: &str, line: &str) {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        let response = connection.request("GET", path).expect("a response");
        assert_eq!(response.status, 500, "{entry}");
        assert_eq!(response.body, b"Internal Server Error", "{entry}");
        assert_eq!(
            response.header("content-type"),
            ["text/plain; charset=utf-8"],
            "{entry}"
        );
        let next = connection.request("GET", "/").expect("a response");
        assert_eq!(next.body, b"fine", "{entry}");
        assert_eq!(remaining_messages(server), [line], "{entry}");
    });
}

#[test]
fn error_returns_500_and_logs_causes() {
    assert_fails("/error?secret", "guest: GET /error: the error: the cause");
}

#[test]
fn multiline_error_is_logged_as_one_line() {
    assert_fails(
        "/error-of-two-lines",
        "guest: GET /error-of-two-lines: one  GET /forged",
    );
}

#[test]
fn long_error_is_logged_as_one_line() {
    let line = format!(
        "guest: GET /long-error: {}",
        "x".repeat(4000 - "GET /long-error: ".len())
    );
    assert_fails("/long-error", &line);
}

#[test]
fn forbidden_field_returns_500_and_logs_name() {
    assert_fails(
        "/forbidden-field",
        "guest: GET /forbidden-field: the response has the field `connection`, which only the host \
         may set",
    );
}

/// Nothing of the response has been sent at that time, so that the status can still be 500.
#[test]
fn body_error_before_first_wait_returns_500() {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        connection
            .send_request("GET", "/half-at-once")
            .expect("sent");
        let response = connection.response("GET").expect("a response");
        assert_eq!(response.status, 500, "{entry}");
        assert_eq!(response.body, b"Internal Server Error", "{entry}");
        let line = "guest: GET /half-at-once: the error: the cause";
        assert_eq!(remaining_messages(server), [line], "{entry}");
    });
}

/// A body without a length ends with the connection, so that an orderly close would make it look complete (RFC 9112, section 6.3).
#[test]
fn body_error_resets_http_1_0_connection() {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        let head = "POST /half HTTP/1.0\r\nContent-Length: 1\r\n\r\n";
        connection.send(head).expect("sent");
        connection.read_until(b"half").expect("half a response");
        connection.send("x").expect("sent");
        let end = connection.read_to_end().expect_err("no end");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{entry}");
        let line = "guest: POST /half: the error: the cause";
        assert_eq!(remaining_messages(server), [line], "{entry}");
    });
}

const HALVES: [(&str, &str); 2] = [
    ("/half", "guest: POST /half: the error: the cause"),
    (
        "/forbidden-trailer",
        "guest: POST /forbidden-trailer: the response has the field `connection`, which only the \
         host may set",
    ),
];

#[test]
fn body_error_closes_http_1_1_connection() {
    for (path, line) in HALVES {
        for_each_entry_point(&[], |entry, server| {
            let mut connection = Connection::open(server.address);
            let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n");
            connection.send(head).expect("sent");
            let half = connection.read_until(b"half\r\n").expect("half a response");
            assert!(half.starts_with(b"HTTP/1.1 200 OK\r\n"), "{entry}");
            connection.send("x").expect("sent");
            // The end of a chunked body would be another chunk (RFC 9112, section 7.1).
            let rest = connection.read_to_end().expect("the end");
            assert_eq!(String::from_utf8_lossy(&rest), "", "{entry}");
            assert_eq!(remaining_messages(server), [line], "{entry}");
        });
    }
}

#[test]
fn body_error_resets_http2_stream() {
    for (path, line) in HALVES {
        for_each_entry_point(&[], |entry, server| {
            let mut client = Http2::connect(server.address);
            let (response, mut request) = client.send("POST", path, false);
            let mut body = client.wait(response).expect("a response").into_body();
            let half = client.wait(body.data()).expect("a piece").expect("half");
            assert_eq!(half, "half", "{entry}");
            request.send_data("x".into(), true).expect("sent");
            let end = client.wait(body.data()).expect("not an end");
            assert!(end.is_err_and(|error| error.is_reset()), "{entry}");
            let (response, _) = client.send("GET", "/", true);
            assert_eq!(client.wait(response).expect("a response").status(), 200);
            assert_eq!(remaining_messages(server), [line], "{entry}");
        });
    }
}

/// Larger than what the host buffers before the guest has to wait.
const LARGE: [(&str, Option<usize>); 2] = [("/large", Some(MIB)), ("/large-in-pieces", None)];

#[test]
fn large_responses_are_complete() {
    for_each_entry_point(&[], |entry, server| {
        for (path, _) in LARGE {
            let mut client = Http2::connect(server.address);
            let (response, _) = client.send("GET", path, true);
            let response = client.wait(response).expect("a response");
            let bytes = client.read_to_end(response.into_body());
            assert_eq!(bytes.expect("a whole body"), MIB, "{entry} {path}");
        }
        let mut connection = Connection::open(server.address);
        let response = connection.request("GET", "/large").expect("a response");
        assert_eq!(response.body.len(), MIB, "{entry}");
        // In pieces of the size that the host reads, which is the first line of each chunk (RFC 9112, section 7.1).
        connection
            .send_request("GET", "/large-in-pieces")
            .expect("sent");
        let response = connection.read_until(b"\r\n0\r\n\r\n").expect("a response");
        let chunks = response.windows(8).filter(|it| it == b"\r\n4000\r\n");
        assert_eq!(chunks.count(), MIB >> 14, "{entry}");
        assert!(remaining_messages(server).is_empty(), "{entry}");
    });
}

#[test]
fn head_response_has_no_body() {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        let mut http2 = Http2::connect(server.address);
        for (path, length) in LARGE {
            let length: Vec<_> = length.iter().map(ToString::to_string).collect();
            let response = connection.request("HEAD", path).expect("a response");
            assert_eq!(response.status, 200, "{entry} {path}");
            assert_eq!(response.header("content-length"), length, "{entry} {path}");
            // An unexpected body would be read as the head of this response.
            let next = connection.request("GET", "/").expect("a response");
            assert_eq!(next.body, b"fine", "{entry} {path}");

            let (response, _) = http2.send("HEAD", path, true);
            let (head, body) = http2.wait(response).expect("a response").into_parts();
            let values = head.headers.get_all("content-length").iter();
            let values: Vec<_> = values.map(|value| value.to_str().expect("ASCII")).collect();
            assert_eq!(values, length, "{entry} {path}");
            assert_eq!(
                http2.read_to_end(body).expect("an end"),
                0,
                "{entry} {path}"
            );
        }
        assert!(remaining_messages(server).is_empty(), "{entry}");
    });
}

/// The guest does not have to write all of a body that is discarded.
#[test]
fn head_of_endless_response_ends_guest_without_error() {
    assert_ends_without_error(|server| {
        let mut connection = Connection::open(server.address);
        let response = connection.request("HEAD", "/endless").expect("a response");
        assert_eq!(response.status, 200);
        wait_until_served(server.address);
    });
}

#[test]
fn content_length_without_body_is_accepted() {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        for (method, status) in [("HEAD", 200), ("GET", 304)] {
            connection
                .send_request(method, "/length-without-body")
                .expect("sent");
            let response = connection.response("HEAD").expect("a response");
            assert_eq!(response.status, status, "{entry}");
        }
        assert_eq!(remaining_messages(server), [""; 0], "{entry}");
    });
}

/// Its writes fail, which is not logged as an error.
#[test]
fn client_disconnect_ends_guest_without_error() {
    for path in ["/large", "/large-in-pieces", "/endless"] {
        assert_ends_without_error(|server| {
            let mut connection = Connection::open(server.address);
            connection.send_request("GET", path).expect("sent");
            connection.read_until(b"\r\n\r\n").expect("a head");
            drop(connection);
            wait_until_served(server.address);
        });
        assert_ends_without_error(|server| {
            let mut client = Http2::connect(server.address);
            let (response, _) = client.send("GET", path, true);
            let mut body = client.wait(response).expect("a response").into_body();
            client.wait(body.data()).expect("a piece").expect("a piece");
            drop(body); // Resets the stream alone.
            client.wait_until(|| is_served(server.address));
        });
    }
}

/// A guest that reads the request body gets no error.
#[test]
fn client_disconnect_during_upload_ends_guest_without_error() {
    let head = |path: &str| {
        let fields = "Host: test\r\nTransfer-Encoding: chunked";
        format!("POST {path} HTTP/1.1\r\n{fields}\r\n\r\n4\r\npart\r\n")
    };
    // Before the response.
    assert_ends_without_error(|server| {
        let mut connection = Connection::open(server.address);
        connection.send(head("/collect")).expect("sent");
        server.lines_until("guest: collecting");
        drop(connection);
        wait_until_served(server.address);
    });
    assert_ends_without_error(|server| {
        let mut client = Http2::connect(server.address);
        let (_response, mut request) = client.send("POST", "/collect", false);
        request.send_data("part".into(), false).expect("sent");
        thread::scope(|scope| {
            let log = scope.spawn(|| server.lines_until("guest: collecting"));
            // The connection sends only while its runtime runs.
            client.wait_until(|| log.is_finished());
        });
        drop(client);
        wait_until_served(server.address);
    });
    // After the response has started.
    assert_ends_without_error(|server| {
        let mut connection = Connection::open(server.address);
        connection.send(head("/echo")).expect("sent");
        connection.read_until(b"part\r\n").expect("a piece");
        drop(connection);
        wait_until_served(server.address);
    });
    assert_ends_without_error(|server| {
        let mut client = Http2::connect(server.address);
        let (response, mut request) = client.send("POST", "/echo", false);
        request.send_data("part".into(), false).expect("sent");
        let mut body = client.wait(response).expect("a response").into_body();
        client.wait(body.data()).expect("a piece").expect("a piece");
        drop(client);
        wait_until_served(server.address);
    });
}

/// A truncated or malformed body is an error of the client.
#[test]
fn incomplete_request_gets_400() {
    for_each_entry_point(&[], |entry, server| {
        for rest in [
            "Content-Length: 9\r\n\r\nhalf",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n4\r\n",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nno size\r\n",
        ] {
            let head = format!("POST /collect HTTP/1.1\r\nHost: test\r\n{rest}");
            let mut connection = Connection::open(server.address);
            connection.send_last(&head).expect("sent");
            let response = connection.response("POST").expect("a response");
            assert_eq!(response.status, 400, "{entry}: {rest}");
        }
        // No guest has started.
        assert_eq!(remaining_messages(server), [""; 0], "{entry}");
    });
}

/// A guest starts with a part of the body if the client pauses. It is ended without an error.
#[test]
fn incomplete_request_gets_400_while_guest_reads() {
    for_each_entry_point(&[], |entry, server| {
        for (part, rest) in [
            ("Content-Length: 9\r\n\r\nhalf", ""),
            ("Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "4\r\n"),
            (
                "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
                "no size\r\n",
            ),
        ] {
            let mut connection = Connection::open(server.address);
            let head = format!("POST /collect HTTP/1.1\r\nHost: test\r\n{part}");
            connection.send(head).expect("sent");
            server.lines_until("guest: collecting");
            connection.send(rest).expect("sent");
            connection.shutdown_write().expect("shut down");
            let response = connection.response("POST").expect("a response");
            assert_eq!(response.status, 400, "{entry}: {rest}");
        }
        assert_eq!(remaining_messages(server), [""; 0], "{entry}");
    });
}

/// Runs a test in which a client disconnects, on a server for one request at a time, which rejects others until the guest has
/// ended. Checks that the server logs nothing else.
fn assert_ends_without_error(test: impl Fn(&mut Server)) {
    for_each_entry_point(
        &[("MAX_REQUESTS", "1"), ("GUEST_TIMEOUT", "1h")],
        |entry, server| {
            test(server);
            assert_eq!(log_without_rejections(server), [""; 0], "{entry}");
        },
    );
}

/// The rest of the log, without the rejections of other requests.
fn log_without_rejections(server: &mut Server) -> Vec<String> {
    let mut log = remaining_messages(server);
    log.retain(|line| !line.starts_with("request limit reached"));
    log
}

/// Returns true if the server has room for another request.
fn is_served(address: SocketAddr) -> bool {
    let response = Connection::open(address).request("GET", "/");
    response.expect("a response").status == 200
}

fn wait_until_served(address: SocketAddr) {
    wait_until("the guest has ended", || is_served(address));
}

#[test]
fn bodies_stream_in_both_directions() {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        connection
            .send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
            .expect("sent");
        for piece in ["4\r\nping\r\n", "4\r\npong\r\n"] {
            connection.send(piece).expect("sent");
            let received = connection.read_until(piece.as_bytes());
            received.expect("the piece, before the request has ended");
        }
        connection.send("0\r\n\r\n").expect("sent");
        let end = connection.read_until(b"0\r\n\r\n").expect("the end");
        assert_eq!(end, b"0\r\n\r\n", "{entry}");
    });
}

#[test]
fn no_content_response_has_no_content_length() {
    for_each_entry_point(&[], |entry, server| {
        let mut connection = Connection::open(server.address);
        let response = connection
            .request("GET", "/no-content")
            .expect("a response");
        assert_eq!(response.status, 204, "{entry}");
        // RFC 9110, section 8.6.
        assert!(response.header("content-length").is_empty(), "{entry}");
        let next = connection.request("GET", "/").expect("a response");
        assert_eq!(next.body, b"fine", "{entry}");
    });
}
