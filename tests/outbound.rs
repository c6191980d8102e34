//! Requests of guests to other services: which are allowed, how many, and for how long. The guests are `fixtures/raw.rs` and, for
//! each entry point, `fixtures/service.rs`.

mod harness;

use harness::{
    Connection, Guest, NO_ACCESS_LOG, RAW, SERVICES, Server, TIMEOUT, listen, read_until,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

/// Another service, on a port of its own.
struct Upstream {
    listener: TcpListener,
    address: SocketAddr,
}

impl Upstream {
    fn new() -> Self {
        let (listener, address) = listen();
        Self { listener, address }
    }

    /// Sends this to every client that has sent a head, and leaves its connection open.
    fn respond(&self, response: &'static str) {
        let listener = self.listener.try_clone().expect("a listener");
        thread::spawn(move || {
            let mut open = Vec::new();
            for client in listener.incoming() {
                let mut client = client.expect("a connection");
                head(&mut client);
                client.write_all(response.as_bytes()).expect("sent");
                open.push(client);
            }
        });
    }

    /// Checks that there was no connection.
    #[track_caller]
    fn assert_no_connection(&self) {
        self.listener.set_nonblocking(true).expect("set");
        let error = self.listener.accept().expect_err("no connection");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

/// Receives the head of a request.
fn head(client: &mut TcpStream) -> String {
    client.set_read_timeout(Some(TIMEOUT)).expect("set");
    let head = read_until(client, b"\r\n\r\n").expect("a head");
    String::from_utf8(head).expect("ASCII").to_lowercase()
}

/// Has the raw guest send a request to where these fields say; returns its report.
fn outbound(server: &Server, path: &str, fields: &[(&str, &str)]) -> String {
    let fields = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let fields: String = fields.collect();
    let response = server.get_with(path, &fields);
    assert_eq!(response.status, 200);
    response.text()
}

/// The same with the service's guest.
fn fetch_via_guest(server: &Server, uri: &str) -> String {
    outbound(server, "/outbound", &[("x-uri", uri)])
}

const DENIED: &str = "ErrorCode::HttpRequestDenied";

#[test]
fn requests_are_denied_and_logged_by_default() {
    let upstream = Upstream::new();
    for service in SERVICES {
        let mut server = Server::start(service, &[NO_ACCESS_LOG]);
        let uri = format!("http://{}/", upstream.address);
        let error = fetch_via_guest(&server, &uri);
        assert!(
            error.contains("HttpRequestDenied"),
            "{}: {error}",
            service.entry
        );
        let line = server.line();
        let end = format!(
            " denied 1 outbound requests, the last to http://{}: not in ALLOWED_OUTBOUND_HOSTS",
            upstream.address
        );
        assert!(line.ends_with(&end), "{}: {line}", service.entry);
    }
    upstream.assert_no_connection();
}

/// `wstd` reports a write of the body that fails instead of the error of the request, so that the body has to be read.
#[test]
fn rejected_request_with_a_body_returns_its_own_error() {
    let env = [
        NO_ACCESS_LOG,
        ("GUEST_ENV", "UPSTREAM"),
        ("UPSTREAM", "http://example.com/"),
    ];
    let mut server = Server::start(Guest::example("proxy"), &env);
    server.lines_until("the component may use the variables UPSTREAM");
    for bytes in [1, 100, 50_000] {
        let mut connection = Connection::open(server.address);
        let head = format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {bytes}\r\n\r\n");
        connection.send(head).expect("sent");
        connection.send(vec![b'x'; bytes]).expect("sent");
        let response = connection.response("POST").expect("a response");
        assert_eq!(response.status, 502);
        server.lines_until("ErrorCode::HttpRequestDenied");
    }
}

#[test]
fn allowed_host_receives_request() {
    let upstream = Upstream::new();
    upstream.respond(RESPONSE);
    let uri = format!("http://{}/a?b=c", upstream.address);
    for service in SERVICES {
        let allowed = format!("http://127.0.0.1:{}", upstream.address.port());
        let mut server = Server::start(service, &[("ALLOWED_OUTBOUND_HOSTS", &allowed)]);
        let line = server.line();
        let end = format!(" the component may use outbound HTTP to {allowed}");
        assert!(line.ends_with(&end), "{line}");
        assert_eq!(fetch_via_guest(&server, &uri), "200", "{}", service.entry);
    }
}

/// Names are resolved by the system's resolver.
#[test]
fn allowed_name_is_resolved() {
    let upstream = Upstream::new();
    upstream.respond(RESPONSE);
    let port = upstream.address.port();
    let allowed = format!("http://localhost:{port}");
    let server = Server::start(RAW, &[("ALLOWED_OUTBOUND_HOSTS", &allowed)]);
    let authority = format!("localhost:{port}");
    let response = outbound(&server, "/outbound", &[("x-authority", &authority)]);
    assert_eq!(response, "200, 4 bytes");
    let authority = format!("LOCALHOST:{port}");
    let response = outbound(&server, "/outbound", &[("x-authority", &authority)]);
    assert_eq!(response, "200, 4 bytes");
}

/// Each is an attempt to reach `other` where only `allowed` is.
#[test]
fn allow_list_cannot_be_bypassed() {
    let (allowed, other) = (Upstream::new(), Upstream::new());
    allowed.respond(RESPONSE);
    let (to, port) = (allowed.address.to_string(), other.address.port());
    let list = format!("http://{to},https://*.example.com,http://10.0.0.0/8:*");
    let server = Server::start(RAW, &[NO_ACCESS_LOG, ("ALLOWED_OUTBOUND_HOSTS", &list)]);
    for authority in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("localhost:{}", allowed.address.port()),
        format!("{to}@127.0.0.1:{port}"),
        format!("user:password@{to}"),
        format!("@{to}"),
        format!("127.1:{}", allowed.address.port()),
        format!("2130706433:{}", allowed.address.port()),
        format!("0x7f.0.0.1:{}", allowed.address.port()),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("[127.0.0.1]:{}", allowed.address.port()),
        format!("127.0.0.1:0{}", allowed.address.port()) + "0",
        format!("127.0.0.1.:{}", allowed.address.port()),
        format!("10.1:{port}"),
        "127.0.0.1".to_owned(),
        "127.0.0.1:".to_owned(),
        format!("127.0.0.1:{port}.example.com"),
        format!("127.0.0.1:{port}#.example.com"),
        format!("127.0.0.1:{port}/.example.com"),
        format!("127.0.0.1:{port}\\.example.com"),
    ] {
        let response = outbound(&server, "/outbound", &[("x-authority", &authority)]);
        let errors = [
            DENIED,
            "authority refused",
            "ErrorCode::HttpRequestUriInvalid",
        ];
        assert!(
            errors.contains(&response.as_str()),
            "{authority}: {response}"
        );
    }
    // A scheme that is not in the list, and others than HTTP's.
    for scheme in ["https", "ftp", "HTTP+UNIX"] {
        let fields = [("x-authority", to.as_str()), ("x-scheme", scheme)];
        let response = outbound(&server, "/outbound", &fields);
        let errors = [DENIED, "scheme refused", "ErrorCode::HttpProtocolError"];
        assert!(errors.contains(&response.as_str()), "{scheme}: {response}");
    }
    other.assert_no_connection();
}

/// Neither what follows the authority nor other fields change the host of a request.
#[test]
fn path_and_fields_do_not_change_host() {
    let (allowed, other) = (Upstream::new(), Upstream::new());
    let to = allowed.address.to_string();
    let list = format!("http://{to}");
    let server = Server::start(RAW, &[NO_ACCESS_LOG, ("ALLOWED_OUTBOUND_HOSTS", &list)]);
    let elsewhere = other.address.to_string();
    let received = thread::spawn(move || {
        let heads = allowed.listener.incoming().take(2).map(|client| {
            let mut client = client.expect("a connection");
            let head = head(&mut client);
            client.write_all(RESPONSE.as_bytes()).expect("sent");
            head
        });
        heads.collect::<Vec<_>>()
    });
    for path in [format!("//{elsewhere}/"), format!("/@{elsewhere}")] {
        let fields = [("x-authority", to.as_str()), ("x-path", &path)];
        assert_eq!(outbound(&server, "/outbound", &fields), "200, 4 bytes");
    }
    for head in received.join().expect("heads") {
        assert!(head.starts_with("get /"), "{head}");
        assert_eq!(head.matches("host:").count(), 1, "{head}");
        assert!(head.contains(&format!("\r\nhost: {to}\r\n")), "{head}");
    }
    for path in [
        format!("http://{elsewhere}/"),
        format!("{elsewhere}/"),
        "*".to_owned(),
    ] {
        let fields = [("x-authority", to.as_str()), ("x-path", &path)];
        assert_eq!(outbound(&server, "/outbound", &fields), "path refused");
    }
    for field in [
        format!("host: {elsewhere}"),
        "transfer-encoding: chunked".to_owned(),
    ] {
        let fields = [("x-authority", to.as_str()), ("x-field", &field)];
        assert_eq!(
            outbound(&server, "/outbound", &fields),
            "HeaderError::Forbidden"
        );
    }
    other.assert_no_connection();
}

#[test]
fn redirect_is_not_followed() {
    let (allowed, other) = (Upstream::new(), Upstream::new());
    let location = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
        other.address
    );
    allowed.respond(Box::leak(location.into_boxed_str()));
    let (to, list) = (
        allowed.address.to_string(),
        format!("http://{}", allowed.address),
    );
    let server = Server::start(RAW, &[NO_ACCESS_LOG, ("ALLOWED_OUTBOUND_HOSTS", &list)]);
    let response = outbound(&server, "/outbound", &[("x-authority", &to)]);
    assert_eq!(response, "302, 0 bytes");
    other.assert_no_connection();
}

/// A server with these settings whose guest may call any host.
fn open_server(env: &[(&str, &str)]) -> Server {
    let all = [
        NO_ACCESS_LOG,
        ("ALLOWED_OUTBOUND_HOSTS", "*://*:*"),
        ("GUEST_TIMEOUT", "1h"),
    ];
    let mut server = Server::start(RAW, &[&all[..], env].concat());
    server.line(); // The grant.
    server
}

#[test]
fn timeout_settings_apply_to_each_wait() {
    let silent = Upstream::new();
    let half = Upstream::new();
    half.respond("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi");
    for (name, scheme, upstream, error) in [
        // The handshake of TLS gets no reply.
        (
            "OUTBOUND_CONNECT_TIMEOUT",
            "https",
            &silent,
            "ErrorCode::ConnectionTimeout",
        ),
        (
            "OUTBOUND_FIRST_BYTE_TIMEOUT",
            "http",
            &silent,
            "ErrorCode::ConnectionReadTimeout",
        ),
        (
            "OUTBOUND_IDLE_TIMEOUT",
            "http",
            &half,
            "connection read timeout",
        ),
    ] {
        // The other timeouts are longer than the test.
        let mut env = [
            ("OUTBOUND_CONNECT_TIMEOUT", "1h"),
            ("OUTBOUND_FIRST_BYTE_TIMEOUT", "1h"),
            ("OUTBOUND_IDLE_TIMEOUT", "1h"),
        ];
        for setting in &mut env {
            if setting.0 == name {
                setting.1 = "100ms";
            }
        }
        let server = open_server(&env);
        let to = upstream.address.to_string();
        let fields = [("x-authority", to.as_str()), ("x-scheme", scheme)];
        assert_eq!(outbound(&server, "/outbound", &fields), error, "{name}");
    }
}

#[test]
fn default_timeouts_apply_to_each_wait() {
    let silent = Upstream::new();
    let half = Upstream::new();
    half.respond("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi");
    let server = open_server(&[]);
    for (scheme, upstream, seconds, error) in [
        ("https", &silent, 2, "ErrorCode::ConnectionTimeout"),
        ("http", &silent, 4, "ErrorCode::ConnectionReadTimeout"),
        ("http", &half, 4, "connection read timeout"),
    ] {
        let to = upstream.address.to_string();
        let fields = [("x-authority", to.as_str()), ("x-scheme", scheme)];
        let timeout = Duration::from_secs(seconds);
        let is_in_time = || {
            let started = Instant::now();
            assert_eq!(outbound(&server, "/outbound", &fields), error);
            let took = started.elapsed();
            assert!(took >= timeout, "{error}: {took:?}");
            took < timeout + Duration::from_secs(2)
        };
        // One of three rounds counts, because other work on the machine can make one slow.
        assert!((0..3).any(|_| is_in_time()), "{error}: after {timeout:?}");
    }
}

#[test]
fn connections_are_limited_to_64_by_default() {
    let silent = Upstream::new();
    let server = open_server(&[
        ("MAX_REQUESTS", "65"),
        ("OUTBOUND_FIRST_BYTE_TIMEOUT", "1h"),
    ]);
    let _pending: Vec<_> = (0..64).map(|_| pending_request(&server, &silent)).collect();
    let to = silent.address.to_string();
    let another = outbound(&server, "/outbound", &[("x-authority", &to)]);
    assert_eq!(another, "ErrorCode::ConnectionLimitReached");
}

#[test]
fn guest_may_shorten_timeouts_but_not_extend_them() {
    let silent = Upstream::new();
    let to = silent.address.to_string();
    // The other timeout does not expire.
    const LONG: (&str, &str) = ("1h", "3600000");
    for short in [("1h", "100"), ("100ms", "3600000")] {
        for (scheme, connect, first_byte, error) in [
            ("https", short, LONG, "ErrorCode::ConnectionTimeout"),
            ("http", LONG, short, "ErrorCode::ConnectionReadTimeout"),
        ] {
            let env = [
                ("OUTBOUND_CONNECT_TIMEOUT", connect.0),
                ("OUTBOUND_FIRST_BYTE_TIMEOUT", first_byte.0),
            ];
            let fields = [
                ("x-authority", to.as_str()),
                ("x-scheme", scheme),
                ("x-connect-ms", connect.1),
                ("x-first-byte-ms", first_byte.1),
            ];
            assert_eq!(outbound(&open_server(&env), "/outbound", &fields), error);
        }
    }
}

#[test]
fn connection_over_limit_is_rejected() {
    let silent = Upstream::new();
    let fine = Upstream::new();
    fine.respond(RESPONSE);
    let mut server = open_server(&[
        ("MAX_OUTBOUND_CONNECTIONS", "1"),
        ("OUTBOUND_FIRST_BYTE_TIMEOUT", "1h"),
    ]);
    let (mut first, mut held) = pending_request(&server, &silent);
    let to = fine.address.to_string();
    let another = || outbound(&server, "/outbound", &[("x-authority", &to)]);
    assert_eq!(another(), "ErrorCode::ConnectionLimitReached");
    // A connection is available again after the first has ended.
    held.write_all(RESPONSE.as_bytes()).expect("sent");
    let response = first.response("GET").expect("a response");
    assert_eq!(response.body, b"200, 4 bytes");
    drop(held);
    harness::wait_until("the connection is free", || another() == "200, 4 bytes");
    let line = server.line();
    let end = "outbound connection limit reached (MAX_OUTBOUND_CONNECTIONS): rejected 1 outbound requests";
    assert!(line.ends_with(end), "{line}");
}

/// A guest that serves several requests may keep the response of one, and with it a connection.
#[test]
fn kept_response_releases_connection() {
    let upstream = Upstream::new();
    upstream.respond(RESPONSE);
    let to = upstream.address.to_string();
    let env = [
        NO_ACCESS_LOG,
        ("ALLOWED_OUTBOUND_HOSTS", "*://*:*"),
        ("REQUESTS_PER_SANDBOX", "1000000"),
        ("MAX_OUTBOUND_CONNECTIONS", "1"),
    ];
    let server = Server::start(RAW, &env);
    let fields = [("x-authority", to.as_str())];
    assert_eq!(outbound(&server, "/outbound-and-keep", &fields), "Ok(())");
    harness::wait_until("the connection is free", || {
        outbound(&server, "/outbound", &fields) == "200, 4 bytes"
    });
}

/// Has a guest call a service that does not respond; returns the guest's client and the service's connection.
fn pending_request(server: &Server, silent: &Upstream) -> (Connection, TcpStream) {
    let mut client = Connection::open(server.address);
    let request = format!(
        "GET /outbound HTTP/1.1\r\nHost: test\r\nx-authority: {}\r\n\r\n",
        silent.address
    );
    client.send(request).expect("sent");
    let (mut upstream, _) = silent.listener.accept().expect("a connection");
    head(&mut upstream);
    (client, upstream)
}

#[test]
fn client_disconnect_ends_outbound_request() {
    let silent = Upstream::new();
    let server = open_server(&[("OUTBOUND_FIRST_BYTE_TIMEOUT", "1h")]);
    let (client, mut upstream) = pending_request(&server, &silent);
    drop(client);
    assert_eq!(upstream.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn drain_timeout_ends_outbound_request() {
    let silent = Upstream::new();
    let env = [
        ("OUTBOUND_FIRST_BYTE_TIMEOUT", "1h"),
        ("DRAIN_TIMEOUT", "100ms"),
    ];
    let mut server = open_server(&env);
    let _pending = pending_request(&server, &silent);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
}

/// A certificate that no authority has signed.
#[test]
fn https_rejects_unknown_certificate_authority() {
    let (listener, address) = listen();
    let port = address.port();
    let certificate =
        rustls::pki_types::CertificateDer::from(&include_bytes!("fixtures/localhost.der")[..]);
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(
        &include_bytes!("fixtures/localhost.key.der")[..],
    );
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate], key.into());
    let config = std::sync::Arc::new(config.expect("a certificate"));
    let handshake = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        let mut tls = rustls::ServerConnection::new(config).expect("a connection");
        let ended = tls
            .complete_io(&mut client)
            .and_then(|_| tls.complete_io(&mut client));
        (
            tls.server_name().map(str::to_owned),
            ended.map(drop).map_err(|error| error.to_string()),
        )
    });
    let server = open_server(&[("OUTBOUND_CONNECT_TIMEOUT", "1h")]);
    let to = format!("localhost:{port}");
    let fields = [("x-authority", to.as_str()), ("x-scheme", "https")];
    assert_eq!(
        outbound(&server, "/outbound", &fields),
        "ErrorCode::TlsProtocolError"
    );
    let (name, ended) = handshake.join().expect("a handshake");
    assert_eq!(name.as_deref(), Some("localhost"));
    assert_eq!(ended, Err("received fatal alert: UnknownCA".into()));
}

#[test]
fn dns_failure_is_returned_to_guest() {
    let server = open_server(&[("OUTBOUND_CONNECT_TIMEOUT", "100ms")]);
    for name in 0..20 {
        let to = format!("no-such-host-{name}.invalid");
        let response = outbound(&server, "/outbound", &[("x-authority", &to)]);
        let failed = ["ErrorCode::ConnectionTimeout", "ErrorCode::DnsError("];
        let is_one = failed.iter().any(|error| response.starts_with(error));
        assert!(is_one, "{response}");
    }
}

/// Each list is rejected with one line.
#[test]
fn invalid_list_exits_with_2() {
    for (list, reason) in [
        (
            "example.com",
            "not scheme://host[:port] (such as https://api.example.com, https://*.example.com, http://10.0.0.0/8:8080 or *://*:*)",
        ),
        ("https://a.example,", "it has an empty item"),
        ("redis://localhost", "its scheme is not http, https or *"),
        ("https://{{ host }}", "templates are not supported"),
        (
            "http://self",
            "a server has no other components to call: name a host",
        ),
        (
            "http://other.spin.internal",
            "a server has no other components to call: name a host",
        ),
        (
            "https://*.spin.internal",
            "a server has no other components to call: name a host",
        ),
        ("*://example.com", "with the scheme *, name a port or *"),
        (
            "http://example.com:0",
            "its port is neither * nor a number from 1 to 65535",
        ),
        (
            "http://example.com:80..90",
            "its port is neither * nor a number from 1 to 65535",
        ),
        (
            "http://example.com/path",
            "not scheme://host[:port] (such as https://api.example.com, https://*.example.com, http://10.0.0.0/8:8080 or *://*:*)",
        ),
    ] {
        let mut command = harness::command(&harness::command_words()[0]);
        command.arg(RAW.cwasm()).env("ALLOWED_OUTBOUND_HOSTS", list);
        let line = format!("ALLOWED_OUTBOUND_HOSTS={list}: {reason}");
        harness::assert_error(&command.output().expect("it runs"), 2, &line);
    }
}
