//! The management listener, and the health check that uses it.

mod harness;

use harness::frames::http2_preface;
use harness::http2::Http2;
use harness::{
    Connection, MANAGEMENT, NO_ACCESS_LOG, PROGRAM, RAW, Server, WASI, assert_error, command, get,
    listen, refusing_address, run, serialize_tests, wait_until,
};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Runs the health check as the image does: with the settings of the server and without arguments.
fn healthcheck(management: SocketAddr) -> bool {
    let env = [("MANAGEMENT_LISTEN", management.to_string())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    run(&["healthcheck"], &env).status.success()
}

#[test]
fn management_listener_separates_probes_from_service() {
    let mut server = Server::start(WASI, &[MANAGEMENT]);
    let address = server.management();
    for (path, status, body) in [
        ("/livez", 200, "OK"),
        ("/readyz", 200, "OK"),
        ("/livez?verbose", 200, "OK"),
        ("/", 404, "Not Found"),
        ("/health", 404, "Not Found"),
    ] {
        assert_eq!(get(address, path), (status, body.to_owned()), "{path}");
    }
    let response = Connection::open(address).request("POST", "/livez");
    assert_eq!(response.expect("a response").status, 405);
    // The server's own responses to HEAD have no body, over HTTP/2 as well (RFC 9110, section 9.3.2).
    let head = Http2::connect(address).request("HEAD", "/livez");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), ["2"]);
    assert!(head.body.is_empty());
    // The main listener has neither path, and the access log has only its requests.
    assert_eq!(get(server.address, "/livez").0, 404);
    assert!(server.line().contains(" GET /livez 404 "));
}

/// Responses of `/metrics` are not in the buffers that connections share.
#[test]
fn http2_connection_allows_one_stream() {
    let server = Server::start(WASI, &[NO_ACCESS_LOG, MANAGEMENT]);
    let mut connection = Connection::open(server.management());
    connection.send(http2_preface(&[])).expect("sent");
    // SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, section 6.5.2).
    let setting = connection.read_until(&[0, 3, 0, 0, 0, 1]);
    setting.expect("one stream at a time");
}

#[test]
fn management_listener_is_off_by_default() {
    let server = Server::start(WASI, &[NO_ACCESS_LOG]);
    assert!(!server.startup_line.contains("management"));
}

#[test]
fn address_in_use_exits_with_1() {
    let (_other, address) = listen();
    let mut command = command(PROGRAM);
    command.arg(WASI.cwasm()).args(["--listen", "127.0.0.1:0"]);
    let output = command
        .env("MANAGEMENT_LISTEN", address.to_string())
        .output();
    let line = format!(
        "cannot listen on {address}: the address is in use; choose another with MANAGEMENT_LISTEN"
    );
    assert_error(&output.expect("it runs"), 1, &line);
}

#[test]
fn drain_delay_ends_only_readiness() {
    let env = [NO_ACCESS_LOG, MANAGEMENT, ("DRAIN_DELAY", "1h")];
    let mut server = Server::start(WASI, &env);
    let address = server.management();
    server.signal(Signal::TERM);
    server.lines_until("SIGTERM: not ready, serving for another 3600s");
    wait_until("the server is not ready", || {
        get(address, "/readyz") == (503, "shutting down".into())
    });
    let response = Connection::open(address).request("GET", "/readyz");
    assert_eq!(response.expect("a response").header("retry-after"), ["1"]);
    assert_eq!(get(address, "/livez").0, 200);
    // On a new connection, which is kept open.
    let mut connection = Connection::open(server.address);
    let response = connection.request("GET", "/").expect("a response");
    assert_eq!(response.body, b"Hello from Docker!");
    assert!(response.header("connection").is_empty());
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn drain_follows_delay() {
    let env = [NO_ACCESS_LOG, ("DRAIN_DELAY", "50ms")];
    let mut server = Server::start(WASI, &env);
    let started = Instant::now();
    server.signal(Signal::TERM);
    server.lines_until("SIGTERM: not ready, serving for another 50ms");
    server.lines_until("SIGTERM: shutting down, 0 connections open");
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn drain_ends_readiness_but_not_liveness() {
    let env = [NO_ACCESS_LOG, MANAGEMENT, ("GUEST_TIMEOUT", "1h")];
    let mut server = Server::start(RAW, &env);
    let address = server.management();
    let mut connection = Connection::open(server.address);
    let sent = connection.send_request("GET", "/half-then-wait");
    sent.expect("sent");
    connection.wait_for_response().expect("a first byte");
    server.terminate();
    assert_eq!(get(address, "/readyz").0, 503);
    assert_eq!(get(address, "/livez").0, 200);
}

#[test]
fn load_does_not_affect_health() {
    let _guard = serialize_tests();
    // More connections than may be open.
    let server = Server::start(
        RAW,
        &[NO_ACCESS_LOG, MANAGEMENT, ("MAX_CONNECTIONS", "100")],
    );
    let _open: Vec<_> = (0..120).map(|_| Connection::open(server.address)).collect();
    assert_eq!(get(server.address, "/").0, 503);
    assert!(healthcheck(server.management()));

    // All sandboxes, by guests that compute or wait.
    for path in ["/loop", "/wait"] {
        let env = [NO_ACCESS_LOG, MANAGEMENT, ("GUEST_TIMEOUT", "1h")];
        let server = Server::start(RAW, &env);
        let mut busy = Vec::new();
        wait_until("no sandbox is left", || {
            // The request that checks takes a sandbox, too, so that one of the others may be rejected.
            for _ in 0..64 {
                let mut connection = Connection::open(server.address);
                connection.send_request("GET", path).expect("sent");
                busy.push(connection);
            }
            get(server.address, "/").0 == 503
        });
        // Orchestrators try three times. The test's machine may be busy for longer than one attempt waits.
        let attempts = |probe: &dyn Fn() -> bool| (0..3).any(|_| probe());
        let address = server.management();
        assert!(attempts(&|| healthcheck(address)), "{path}");
        assert!(attempts(&|| get(address, "/livez").0 == 200), "{path}");
    }
}

#[test]
fn healthcheck_uses_management_listener_or_given_address() {
    let server = Server::start(WASI, &[NO_ACCESS_LOG, MANAGEMENT]);
    let address = server.management();
    assert!(healthcheck(address));
    let listen = server.address.to_string();
    let given = run(&["healthcheck", "--listen", &listen], &[MANAGEMENT]);
    assert!(given.status.success());
    let (_socket, address) = refusing_address();
    let env = [("MANAGEMENT_LISTEN", &*address.to_string())];
    let line = format!("{address} is not healthy: Connection refused (os error 111)");
    assert_error(&run(&["healthcheck"], &env), 1, &line);
}
