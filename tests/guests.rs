//! Guests that misbehave: `fixtures/raw.rs`.

mod harness;

use harness::{Connection, NO_ACCESS_LOG, RAW, Server};
use std::thread;
use std::time::{Duration, Instant};

/// Shuts the server down; returns the rest of its log, without lines of guests.
fn remaining_server_lines(server: &mut Server) -> Vec<String> {
    let mut lines = server.terminate();
    lines.retain(|line| !line.contains(" guest: "));
    lines
}

/// For guests that are to time out beside others that are not, on a busy machine.
const SHORT_TIMEOUT: (&str, &str) = ("GUEST_TIMEOUT", "2s");

/// For guests that are not to time out.
const NO_TIMEOUT: (&str, &str) = ("GUEST_TIMEOUT", "1h");

/// Checks that a guest that fails on `path` gives its client `status` and the log one line with `reason`, and affects neither a
/// response that is being sent nor the next request.
#[track_caller]
fn assert_contained(path: &str, status: u16, reason: &str) {
    let (timeout, slow) = match status {
        504 => (SHORT_TIMEOUT, "/for-3s"),
        _ => (NO_TIMEOUT, "/slow"),
    };
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG, timeout]);
    let mut neighbour = Connection::open(server.address);
    neighbour
        .send(format!(
            "GET {slow} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        ))
        .expect("sent");
    neighbour.wait_for_response().expect("its start");
    let mut connection = Connection::open(server.address);
    let response = connection.request("GET", path).expect("a response");
    assert_eq!(response.status, status);
    assert_eq!(
        response.header("content-type"),
        ["text/plain; charset=utf-8"]
    );
    let next = connection.request("GET", "/").expect("a response");
    assert_eq!(next.body, b"fine");

    let slow = neighbour.read_to_end().expect("a whole response");
    let slow = String::from_utf8(slow).expect("ASCII");
    assert!(slow.starts_with("HTTP/1.1 200 OK\r\n"), "{slow}");
    assert!(slow.ends_with("1\r\nx\r\n0\r\n\r\n"), "{slow}");
    let log = remaining_server_lines(&mut server);
    let [line] = &log[..] else {
        panic!("not one line of log: {log:?}");
    };
    assert!(line.contains(&format!("GET {path}: {reason}")), "{line}");
}

#[test]
fn trapping_guest_returns_500() {
    assert_contained(
        "/trap",
        500,
        "the guest trapped: wasm trap: wasm `unreachable`",
    );
    assert_contained("/head-then-trap", 500, "the guest trapped: ");
    assert_contained("/respond-then-trap", 500, "the guest trapped: ");
}

#[test]
fn exhausted_memory_or_stack_returns_500() {
    assert_contained("/memory", 500, "the guest trapped: ");
    // The stack is at the start of the memory.
    assert_contained(
        "/stack",
        500,
        "the guest trapped: memory fault at wasm address 0x",
    );
}

#[test]
fn guest_memory_setting_limits_memory() {
    for (env, mib) in [
        (&[NO_TIMEOUT][..], 64),
        (&[NO_TIMEOUT, ("GUEST_MEMORY", "5MiB")], 5),
        (
            &[
                NO_TIMEOUT,
                ("GUEST_MEMORY", "1GiB"),
                ("GUEST_MEMORY_TOTAL", "2GiB"),
            ],
            1024,
        ),
    ] {
        let server = Server::start(RAW, env);
        for _ in 0..2 {
            let mut connection = Connection::open(server.address);
            let response = connection.request("GET", "/pages").expect("a response");
            assert_eq!(response.body, (16 * mib).to_string().as_bytes());
        }
    }
}

#[test]
fn exiting_guest_returns_500() {
    assert_contained("/exit", 500, "the guest exited with status 1");
}

#[test]
fn endless_guest_returns_504() {
    assert_contained("/loop", 504, "the guest timed out (GUEST_TIMEOUT)");
    assert_contained("/wait", 504, "the guest timed out (GUEST_TIMEOUT)");
    assert_contained(
        "/respond-then-loop",
        504,
        "the guest timed out (GUEST_TIMEOUT)",
    );
}

#[test]
fn guest_without_response_returns_502() {
    assert_contained("/silent", 502, "the guest returned no response");
    assert_contained("/refuse", 502, "the guest returned an error: ");
}

#[test]
fn wrong_content_length_returns_502() {
    assert_contained("/short", 502, "the guest's response is invalid: ");
    assert_contained("/long", 502, "the guest's response is invalid: ");
}

/// A guest has no directories, and each socket call returns an error. The log has a line for each guest that called one.
#[test]
fn files_and_sockets_return_errors() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    let mut get = |path| {
        let response = connection.request("GET", path).expect("a response");
        response.text()
    };
    let files = get("/files");
    assert!(files.contains("NotFound"), "{files}");
    for _ in 0..2 {
        for line in get("/sockets").lines() {
            assert!(line.starts_with("Err("), "{line}");
            assert!(
                line.contains("PermissionDenied") || line.contains("resolution"),
                "{line}"
            );
        }
    }
    let log = remaining_server_lines(&mut server);
    assert_eq!(log.len(), 2, "{log:?}");
    for line in log {
        assert!(
            line.contains(" denied a guest wasi:sockets/tcp-create-socket@0.2."),
            "{line}"
        );
        assert!(
            line.ends_with("#create-tcp-socket: no guest gets sockets"),
            "{line}"
        );
    }
}

#[test]
fn guest_sees_granted_variables() {
    for (env, variables, config) in [
        (&[][..], "[]", "[] [Ok(None), Ok(None)]"),
        (
            &[
                ("A", "1"),
                ("B", ""),
                ("C", "3"),
                ("GUEST_ENV", "B,A,MISSING"),
            ],
            r#"[("A", "1"), ("B", "")]"#,
            r#"[("A", "1"), ("B", "")] [Ok(Some("1")), Ok(None)]"#,
        ),
    ] {
        let server = Server::start(RAW, env);
        let mut connection = Connection::open(server.address);
        for (path, expected) in [("/variables", variables), ("/config", config)] {
            let response = connection.request("GET", path).expect("a response");
            assert_eq!(String::from_utf8_lossy(&response.body), expected);
        }
    }
}

#[test]
fn guest_sees_no_environment_or_arguments() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let response = server.get("/environment");
    assert_eq!(response.expect("a response").body, b"0");
}

#[test]
fn guest_that_waits_after_response_does_not_delay_client() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG, SHORT_TIMEOUT]);
    let mut connection = Connection::open(server.address);
    connection
        .send("GET /respond-then-wait HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let response = connection.read_to_end().expect("a whole response");
    assert!(response.ends_with(b"\r\n\r\n4\r\nfine\r\n0\r\n\r\n"));
    let line = server.line();
    assert!(
        line.ends_with("after the response started: the guest timed out (GUEST_TIMEOUT)"),
        "{line}"
    );
    let next = server.get("/");
    assert_eq!(next.expect("a response").body, b"fine");
}

#[test]
fn not_modified_is_forwarded() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    for path in ["/not-modified", "/not-modified-then-wait"] {
        connection.send_request("GET", path).expect("sent");
        let response = connection.response("HEAD").expect("a response");
        assert_eq!(response.status, 304, "{path}");
        let next = connection.request("GET", "/").expect("a response");
        assert_eq!(next.body, b"fine", "{path}");
    }
    // The guest continues after its response.
    assert!(server.line().ends_with(" guest: done"));
}

#[test]
fn truncated_response_never_looks_complete() {
    for (path, reason) in [
        (
            "/half-then-trap",
            "after the response started: the guest trapped",
        ),
        (
            "/half-then-exit",
            "after the response started: the guest exited with status 1",
        ),
        (
            "/half-then-wait",
            "after the response started: the guest timed out (GUEST_TIMEOUT)",
        ),
    ] {
        let mut server = Server::start(RAW, &[NO_ACCESS_LOG, SHORT_TIMEOUT]);
        let mut connection = Connection::open(server.address);
        connection.send_request("GET", path).expect("sent");
        let response = connection.read_to_end().expect("the end");
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{path}");
        // The end of a chunked body (RFC 9112, section 7.1) is missing.
        assert!(!response.ends_with(b"0\r\n\r\n"), "{path}");
        let log = remaining_server_lines(&mut server);
        assert!(
            matches!(&log[..], [line] if line.contains(reason)),
            "{log:?}"
        );
    }
}

/// The responses of `/count` to a number of requests, one after the other.
fn counts(connection: &mut Connection, requests: usize) -> Vec<String> {
    let mut count = || {
        let response = connection.request("GET", "/count").expect("a response");
        response.text()
    };
    (0..requests).map(|_| count()).collect()
}

#[test]
fn every_request_gets_fresh_guest() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = Connection::open(server.address);
    assert_eq!(counts(&mut connection, 3), ["1", "1", "1"]);
}

#[test]
fn requests_per_sandbox_reuses_guest() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG, ("REQUESTS_PER_SANDBOX", "3")]);
    let mut connection = Connection::open(server.address);
    assert_eq!(
        counts(&mut connection, 7),
        ["1", "2", "3", "1", "2", "3", "1"]
    );
}

#[test]
fn failed_guest_is_not_reused() {
    let env = [NO_ACCESS_LOG, SHORT_TIMEOUT, ("REQUESTS_PER_SANDBOX", "9")];
    let server = Server::start(RAW, &env);
    let mut connection = Connection::open(server.address);
    for (path, status) in [
        ("/trap", 500),
        ("/silent", 502),
        ("/wait", 504),
        ("/loop", 504),
        ("/stack", 500),
    ] {
        assert_eq!(counts(&mut connection, 2), ["1", "2"]);
        let response = connection.request("GET", path).expect("a response");
        assert_eq!(response.status, status);
    }
    assert_eq!(counts(&mut connection, 1), ["1"]);
}

#[test]
fn client_disconnect_ends_guest() {
    let env = [
        NO_ACCESS_LOG,
        ("MAX_REQUESTS", "1"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &env);
    let connection = server.waiting_request("/wait");
    let status = || server.get("/").expect("a response").status;
    assert_eq!(status(), 503);
    drop(connection);
    harness::wait_until("the guest has ended", || status() == 200);
}

#[test]
fn client_disconnect_during_response_ends_guest() {
    let env = [
        NO_ACCESS_LOG,
        ("MAX_REQUESTS", "1"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let server = Server::start(RAW, &env);
    let mut connection = Connection::open(server.address);
    connection
        .send_request("GET", "/half-then-wait")
        .expect("sent");
    connection.read_until(b"half\r\n").expect("half a response");
    drop(connection);
    harness::wait_until("the guest has ended", || {
        let next = server.get("/");
        next.expect("a response").status == 200
    });
}

/// A guest is dropped before it has no handles left for a request.
#[test]
fn guest_that_leaks_handles_fails_no_request() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG, ("REQUESTS_PER_SANDBOX", "1000000")]);
    let mut connection = Connection::open(server.address);
    let mut max = 0;
    for _ in 0..2000 {
        let response = connection
            .request("GET", "/keep-a-handle")
            .expect("a response");
        assert_eq!(response.status, 200);
        let count = response.text();
        max = max.max(count.parse().expect("a number"));
    }
    assert!((100..1024).contains(&max), "{max}");
}

/// A guest that has polled the request's body without waiting for it does not wait for its client.
#[test]
fn guest_that_does_not_wait_for_client_returns_504() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG, SHORT_TIMEOUT]);
    let mut connection = Connection::open(server.address);
    let head = "POST /peek-and-wait HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf";
    let started = Instant::now();
    connection.send(head).expect("sent");
    let response = connection.response("POST").expect("a response");
    assert_eq!(response.status, 504);
    // Not after BODY_TIMEOUT, which is 10 s.
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

/// Empty writes fill no buffer and do not count as progress.
#[test]
fn empty_writes_time_out_and_take_no_memory() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG, SHORT_TIMEOUT]);
    let mut connection = Connection::open(server.address);
    let before = server.resident_memory();
    connection
        .send_request("GET", "/empty-writes")
        .expect("sent");
    let line = server.line();
    assert!(
        line.ends_with("after the response started: the guest timed out (GUEST_TIMEOUT)"),
        "{line}"
    );
    let grown = server.resident_memory().saturating_sub(before) >> 20;
    assert!(grown < 20, "{grown} MiB more");
}

#[test]
fn refused_memory_is_left_for_other_guests() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let mut connection = server.waiting_request("/grow-too-far");
    let mut other = Connection::open(server.address);
    let taken = other.request("GET", "/take-30-mib").expect("a response");
    assert_eq!(taken.body, b"taken");
    assert_eq!(
        connection.response("GET").expect("a response").body,
        b"true"
    );
}

/// The next request gets a fresh guest.
#[test]
fn guest_without_host_memory_is_not_reused() {
    let env = [
        NO_ACCESS_LOG,
        ("REQUESTS_PER_SANDBOX", "100"),
        ("GUEST_MEMORY_TOTAL", "8MiB"),
    ];
    let server = Server::start(RAW, &env);
    let mut connection = Connection::open(server.address);
    assert_eq!(counts(&mut connection, 2), ["1", "2"]);
    let response = connection
        .request("GET", "/take-handles-and-drop")
        .expect("a response");
    assert_eq!(response.status, 200);
    assert_ne!(response.body, b"900", "no allocation was refused");
    assert_eq!(counts(&mut connection, 2), ["1", "2"]);
}

#[test]
fn guest_output_is_logged_by_line() {
    let mut server = Server::start(RAW, &[NO_ACCESS_LOG]);
    let response = server.get("/log");
    assert_eq!(response.expect("a response").status, 200);
    assert!(server.line().ends_with(" guest: a line"));
    assert!(server.line().ends_with(r" guest: forged \u{1b}[31mline"));
}

#[test]
fn silent_upload_times_out() {
    let server = Server::start(RAW, &[NO_ACCESS_LOG, ("BODY_TIMEOUT", "100ms")]);
    let mut connection = Connection::open(server.address);
    connection
        .send("POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf")
        .expect("sent");
    let response = connection.read_to_end().expect("an response, and the end");
    let response = String::from_utf8(response).expect("ASCII");
    assert!(response.contains("connection read timeout"), "{response}");
}

#[test]
fn failing_guests_leak_nothing() {
    /// Requests in all. Failures that take time are less frequent.
    const ROUNDS: usize = 10_000;
    const CLIENTS: usize = 8;
    const KINDS: [(&str, &[u16]); 10] = [
        ("/trap", &[500]),
        ("/silent", &[502]),
        ("/refuse", &[502]),
        ("/short", &[502]),
        ("/long", &[502]),
        ("/stack", &[500]),
        ("/files", &[200]),
        ("/sockets", &[200]),
        ("/outbound", &[200]),
        ("/head-then-trap", &[500]),
    ];
    /// A guest that allocates memory may time out first.
    const SLOW: [(&str, &[u16]); 3] = [
        ("/memory", &[500, 504]),
        ("/loop", &[504]),
        ("/wait", &[504]),
    ];
    // As many sandboxes as clients, so that each has been used before memory is measured.
    let env = [NO_ACCESS_LOG, SHORT_TIMEOUT, ("MAX_REQUESTS", "8")];
    let mut server = Server::start(RAW, &env);
    let address = server.address;
    let rounds = |rounds: usize| {
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                scope.spawn(move || {
                    let mut connection = Connection::open(address);
                    for round in 0..rounds / CLIENTS {
                        let (path, expected) = match round % 500 {
                            0 => SLOW[(round / 500 + client) % SLOW.len()],
                            _ => KINDS[(round + client) % KINDS.len()],
                        };
                        let response = connection.request("GET", path).expect("a response");
                        assert!(expected.contains(&response.status), "{path}: {response:?}");
                    }
                });
            }
        });
    };
    server.discard_log();
    rounds(ROUNDS / 2);
    let (memory, files) = (server.resident_memory(), server.open_fds());
    rounds(ROUNDS / 2);
    harness::wait_until("every connection is closed", || server.open_fds() <= files);
    let grown = server.resident_memory().saturating_sub(memory) >> 10;
    println!("{} KiB, then {grown} KiB more", memory >> 10);
    assert!(
        grown <= 2048,
        "{grown} KiB more after {} rounds",
        ROUNDS / 2
    );
}
