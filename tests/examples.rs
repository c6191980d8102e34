//! The examples, on this server; or in `wasmtime serve` on PATH, if `EXAMPLES_HOST` is `wasmtime`.

mod harness;

use harness::{
    Connection, Guest, Killed, Server, TIMEOUT, get, listen, read_until, refusing_address,
};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

/// An example on a port of its own, served until it is dropped.
struct Example {
    _host: Host,
    address: SocketAddr,
}

enum Host {
    Server { _server: Server },
    Wasmtime { _process: Killed },
}

impl Example {
    fn serve(name: &str, env: &[(&str, &str)]) -> Self {
        let example = Guest::example(name);
        match env::var("EXAMPLES_HOST").as_deref() {
            Err(_) => Self::serve_on_server(example, env),
            Ok("wasmtime") => Self::serve_on_wasmtime(example, env),
            Ok(host) => panic!("EXAMPLES_HOST={host}: not wasmtime"),
        }
    }

    fn serve_on_server(example: Guest, env: &[(&str, &str)]) -> Self {
        let names: Vec<_> = env.iter().map(|(name, _)| *name).collect();
        let names = names.join(",");
        let granted = [
            ("GUEST_ENV", names.as_str()),
            ("ALLOWED_OUTBOUND_HOSTS", "http://127.0.0.1:*"),
        ];
        let mut server = Server::start(example, &[env, &granted].concat());
        server.discard_log();
        Self {
            address: server.address,
            _host: Host::Server { _server: server },
        }
    }

    fn serve_on_wasmtime(example: Guest, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new("wasmtime");
        command.args(["serve", "-Scli", "--addr", "127.0.0.1:0"]);
        for (name, value) in env {
            command.args(["--env", &format!("{name}={value}")]);
        }
        command.arg(example.wasm());
        let process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut process = process.expect("wasmtime is on PATH");
        let mut log = BufReader::new(process.stderr.take().expect("a pipe"));
        let mut line = String::new();
        log.read_line(&mut line).expect("the start-up line");
        let address = line.trim_end().strip_suffix('/');
        let address = address.and_then(|line| line.rsplit_once('/'));
        let address = address.and_then(|(_, address)| address.parse().ok());
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));
        Self {
            address: address.expect(&line),
            _host: Host::Wasmtime {
                _process: Killed(process),
            },
        }
    }

    fn post(&self, content_type: &str, body: impl AsRef<[u8]>) -> (u16, String) {
        let body = body.as_ref();
        let fields = format!(
            "Content-Type: {content_type}\r\nContent-Length: {}",
            body.len()
        );
        let head = format!("POST / HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n");
        let mut connection = Connection::open(self.address);
        connection.send(head).expect("sent");
        // A host may close once it has responded.
        let _ = connection.send(body);
        let response = connection.response("POST").expect("a response");
        (response.status, response.text())
    }

    fn get(&self, target: &str) -> (u16, String) {
        get(self.address, target)
    }
}

const JSON: &str = "application/json";

#[test]
fn echo_returns_json() {
    let echo = Example::serve("echo", &[]);
    for content_type in [JSON, "Application/JSON; charset=utf-8"] {
        let response = echo.post(content_type, r#" {"a": [1, "ü"]} "#);
        assert_eq!(response, (200, r#"{"a":[1,"ü"]}"#.into()));
    }
}

#[test]
fn echo_reports_invalid_requests() {
    let echo = Example::serve("echo", &[]);
    let line = "not JSON: EOF while parsing a value at line 1 column 0\n";
    assert_eq!(echo.post(JSON, ""), (400, line.into()));
    let line = "not JSON: key must be a string at line 1 column 2\n";
    assert_eq!(echo.post(JSON, "{a}"), (400, line.into()));
    let line = "send `content-type: application/json`\n";
    assert_eq!(echo.post("text/plain", "1"), (415, line.into()));
    assert_eq!(echo.get("/"), (415, line.into()));
}

#[test]
fn echo_limits_the_body() {
    let echo = Example::serve("echo", &[]);
    let string = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_eq!(echo.post(JSON, string(65_536)), (200, string(65_536)));
    let line = "the body has more than 65536 bytes\n";
    assert_eq!(echo.post(JSON, string(65_537)), (413, line.into()));
}

/// The parser calls itself for each level, on a stack of 64 KiB.
#[test]
fn echo_limits_json_depth() {
    let echo = Example::serve("echo", &[]);
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert_eq!(echo.post(JSON, nested(127)), (200, nested(127)));
    let (status, line) = echo.post(JSON, nested(10_000));
    assert_eq!(status, 400);
    assert!(
        line.starts_with("not JSON: recursion limit exceeded"),
        "{line}"
    );
}

/// The stream has no end, so that events are sent before it.
#[test]
fn stream_sends_events_immediately() {
    let stream = Example::serve("stream", &[]);
    let mut connection = Connection::open(stream.address);
    connection.send_request("GET", "/").expect("sent");
    let head = connection.read_until(b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(head).expect("ASCII").to_lowercase();
    assert!(
        head.contains("\r\ncontent-type: text/event-stream\r\n"),
        "{head}"
    );
    for count in 0..3 {
        let event = format!("id: {count}\ndata: {{\"count\": {count}}}\n\n\r\n");
        let received = connection.read_until(event.as_bytes()).expect("an event");
        let received = String::from_utf8(received).expect("ASCII");
        assert_eq!(received.matches("data").count(), 1, "{received}");
    }
}

#[test]
fn config_has_default_greeting() {
    let config = Example::serve("config", &[]);
    assert_eq!(config.get("/"), (200, "Hello from WebAssembly!\n".into()));
}

#[test]
fn config_reads_greeting_from_environment() {
    let config = Example::serve("config", &[("GREETING", "Ahoy")]);
    assert_eq!(config.get("/"), (200, "Ahoy from WebAssembly!\n".into()));
}

/// A listener, and its URL.
fn upstream() -> (TcpListener, String) {
    let (listener, address) = listen();
    (listener, format!("http://{address}/"))
}

#[test]
fn proxy_forwards_request_and_response() {
    let (listener, upstream) = upstream();
    let received = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        client.set_read_timeout(Some(TIMEOUT)).expect("set");
        let request = read_until(&mut client, b"\r\n\r\nfour").expect("a request");
        let response =
            "HTTP/1.1 418 I'm a teapot\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 5\r\n\r\nshort";
        client.write_all(response.as_bytes()).expect("sent");
        String::from_utf8(request).expect("ASCII").to_lowercase()
    });
    let proxy = Example::serve("proxy", &[("UPSTREAM", &upstream)]);
    let mut connection = Connection::open(proxy.address);
    let fields = "Host: test\r\nX-B: 3\r\nContent-Length: 4";
    connection
        .send(format!("PUT /a?b=c HTTP/1.1\r\n{fields}\r\n\r\nfour"))
        .expect("sent");
    let response = connection.response("PUT").expect("a response");
    assert_eq!(response.status, 418);
    assert_eq!(response.header("x-a"), ["1", "2"]);
    assert_eq!(response.body, b"short");
    let request = received.join().expect("a request");
    assert!(request.starts_with("put /a?b=c http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nx-b: 3\r\n"), "{request}");
    let host = format!(
        "\r\nhost: {}\r\n",
        upstream["http://".len()..].trim_end_matches('/')
    );
    assert!(request.contains(&host), "{request}");
}

#[test]
fn proxy_returns_502_if_upstream_fails() {
    let (_socket, closed) = refusing_address();
    let upstream = format!("http://{closed}/");
    let proxy = Example::serve("proxy", &[("UPSTREAM", &upstream)]);
    assert_eq!(proxy.get("/"), (502, "Bad Gateway\n".into()));
}

#[test]
fn proxy_returns_504_if_upstream_times_out() {
    // The system accepts connections, and no service responds.
    let (_listener, upstream) = upstream();
    let proxy = Example::serve("proxy", &[("UPSTREAM", &upstream)]);
    assert_eq!(proxy.get("/"), (504, "Gateway Timeout\n".into()));
}
