//! The HTTP contract, the same through every entry point and on every host.
//!
//! Runs against this workspace's server with a component for each version of WASI, or against
//! `CONTRACT_URL`, such as `http://127.0.0.1:5000`: over HTTP/1.1 and HTTP/2, unless `CONTRACT_HTTP2` is `off`.

mod harness;

use harness::http2::Http2;
use harness::{CHUNKED_POST, Connection, Response, SPIN, Server, WASI, resolve, run_trials};
use libtest_mimic::{Arguments, Trial};
use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let servers = servers();
    let hosts = match env::var("CONTRACT_URL") {
        Ok(url) => vec![(url.clone(), resolve("CONTRACT_URL", &url))],
        Err(_) => servers
            .iter()
            .map(|(entry, server)| (entry.to_string(), server.address))
            .collect(),
    };
    let trials = hosts
        .iter()
        .flat_map(|(host, address)| trials(host, *address))
        .collect();
    run_trials(
        &arguments,
        trials,
        servers.into_iter().map(|(_, server)| server),
    )
}

fn servers() -> Vec<(&'static str, Server)> {
    if env::var_os("CONTRACT_URL").is_some() {
        return Vec::new();
    }
    [WASI, SPIN]
        .map(|guest| (guest.entry, Server::start(guest, &[])))
        .into()
}

fn trials(host: &str, address: SocketAddr) -> Vec<Trial> {
    let trial = |name: String, test: Box<dyn Fn(SocketAddr) + Send>| {
        Trial::test(format!("{host}: {name}"), move || {
            test(address);
            Ok(())
        })
    };
    let rows = table()
        .into_iter()
        .map(|row| trial(row.name(), Box::new(move |at| row.check(at))));
    let is_http2 = env::var("CONTRACT_HTTP2").as_deref() != Ok("off");
    let http2_rows = table().into_iter().filter(|_| is_http2).map(|row| {
        let name = format!("{} over HTTP/2", row.name());
        trial(name, Box::new(move |at| row.check_over_http2(at)))
    });
    let connection_tests = CONNECTION_TESTS
        .iter()
        .map(|(name, test)| trial(name.to_string(), Box::new(test)));
    rows.chain(http2_rows).chain(connection_tests).collect()
}

/// A row of the contract.
#[derive(Clone, Copy)]
struct Row {
    method: &'static str,
    target: &'static str,
    status: u16,
    body: &'static str,
}

/// The contract.
fn table() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |method, target, status, body| {
        rows.push(Row {
            method,
            target,
            status,
            body,
        });
    };
    for (target, body) in [
        ("/", "Hello from Docker!"),
        ("/?x=1", "Hello from Docker!"),
        ("/?", "Hello from Docker!"),
        ("/health", "OK"),
        ("/health?a=/b", "OK"),
    ] {
        row("GET", target, 200, body);
        row("HEAD", target, 200, body);
        row("OPTIONS", target, 200, "");
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "get"] {
            row(method, target, 405, "Method Not Allowed");
        }
    }
    for target in [
        "/health/",
        "//",
        "/HEALTH",
        "/index.html",
        "/%2F",
        "/hello?x=/health",
    ] {
        for method in ["GET", "HEAD", "OPTIONS", "POST", "BREW"] {
            row(method, target, 404, "Not Found");
        }
    }
    rows
}

impl Row {
    fn name(&self) -> String {
        format!("{} {} is {}", self.method, self.target, self.status)
    }

    fn check(&self, address: SocketAddr) {
        let mut connection = Connection::open(address);
        let response = connection
            .request(self.method, self.target)
            .expect("a response");
        self.check_response(&response);
        // An unexpected body would be read as the head of this response.
        let next = connection
            .request("GET", "/health")
            .expect("a second response");
        assert_eq!(next.body, b"OK");
    }

    fn check_over_http2(&self, address: SocketAddr) {
        let mut client = Http2::connect(address);
        self.check_response(&client.request(self.method, self.target));
        assert_eq!(client.request("GET", "/health").body, b"OK");
    }

    fn check_response(&self, response: &Response) {
        let body = if self.method == "HEAD" { "" } else { self.body };
        assert_eq!(response.status, self.status);
        assert_eq!(String::from_utf8_lossy(&response.body), body);
        assert_eq!(
            response.header("content-length"),
            [self.body.len().to_string()]
        );
        let only_if = |is, value: &'static str| if is { vec![value] } else { vec![] };
        let has_body = !self.body.is_empty();
        let lists_methods = self.status == 405 || self.method == "OPTIONS" && self.status == 200;
        for (name, values) in [
            ("transfer-encoding", vec![]),
            ("x-content-type-options", vec!["nosniff"]),
            (
                "content-type",
                only_if(has_body, "text/plain; charset=utf-8"),
            ),
            ("allow", only_if(lists_methods, "GET, HEAD, OPTIONS")),
            ("cache-control", only_if(self.body == "OK", "no-store")),
        ] {
            assert_eq!(response.header(name), values, "{name}");
        }
    }
}

const HELLO: Row = Row {
    method: "GET",
    target: "/",
    status: 200,
    body: "Hello from Docker!",
};
const NO_POST: Row = Row {
    method: "POST",
    target: "/",
    status: 405,
    body: "Method Not Allowed",
};

/// A name, and a test that panics if it fails.
type ConnectionTest = (&'static str, fn(SocketAddr));

/// Behaviour over HTTP/1.1 that does not depend on routes.
const CONNECTION_TESTS: &[ConnectionTest] = &[
    ("a connection serves many requests", |address| {
        let mut connection = Connection::open(address);
        for _ in 0..100 {
            HELLO.check_response(&connection.request("GET", "/").expect("a response"));
        }
    }),
    ("pipelined requests are served in order", |address| {
        let mut connection = Connection::open(address);
        connection
            .send("GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(20))
            .expect("sent");
        for _ in 0..20 {
            HELLO.check_response(&connection.response("GET").expect("a response"));
        }
    }),
    ("an unexpected body is not an error", |address| {
        let mut connection = Connection::open(address);
        let body = "x".repeat(10_000);
        let fields = format!("Host: test\r\nContent-Length: {}", body.len());
        for (row, method) in [(HELLO, "GET"), (NO_POST, "POST")] {
            connection
                .send(format!("{method} / HTTP/1.1\r\n{fields}\r\n\r\n{body}"))
                .expect("sent");
            let response = connection.response(method).expect("a response");
            row.check_response(&response);
            // Some hosts close the connection instead of reading the body.
            if response.header("connection") == ["close"] {
                connection = Connection::open(address);
            }
        }
    }),
    (
        "a large unread body does not lose the response",
        |address| {
            let mut connection = Connection::open(address);
            connection.send(CHUNKED_POST).expect("head sent");
            // A host may close once it has responded (RFC 9112, section 9.6); the response can still be read.
            let _ = connection.send_16_chunks();
            NO_POST.check_response(&connection.response("POST").expect("a response"));
        },
    ),
    (
        "a client that expects 100-continue gets the response",
        |address| {
            let mut connection = Connection::open(address);
            let head = "Host: test\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
            connection
                .send(format!("POST / HTTP/1.1\r\n{head}"))
                .expect("head sent");
            let mut response = connection.response("POST").expect("a response");
            if response.status == 100 {
                connection.send("123456789").expect("body sent");
                response = connection.response("POST").expect("a second response");
            }
            NO_POST.check_response(&response);
        },
    ),
    ("the target may be an absolute URI", |address| {
        let mut connection = Connection::open(address);
        // With the target's authority in `Host` (RFC 9112, section 3.2).
        let request = format!("GET http://{address}/?x=1 HTTP/1.1\r\nHost: {address}\r\n\r\n");
        connection.send(request).expect("sent");
        HELLO.check_response(&connection.response("GET").expect("a response"));
    }),
    ("Connection: close closes the connection", |address| {
        let mut connection = Connection::open(address);
        let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        connection.send(request).expect("sent");
        HELLO.check_response(&connection.response("GET").expect("a response"));
        assert_eq!(connection.read_to_end().expect("the end"), b"");
    }),
    ("HTTP/1.0 is served", |address| {
        let mut connection = Connection::open(address);
        connection
            .send("GET / HTTP/1.0\r\nHost: test\r\n\r\n")
            .expect("sent");
        HELLO.check_response(&connection.response("GET").expect("a response"));
        assert_eq!(connection.read_to_end().expect("the end"), b"");
    }),
];
