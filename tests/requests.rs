//! Requests as a route receives them: complete, and the same through each entry point of the service.
//!
//! Runs against this workspace's server for each entry point; or against another host that serves the
//! guest `fixtures/service.rs`: `REQUESTS_URL` says where, such as `http://127.0.0.1:5000`, and
//! `REQUESTS_HOST` what it is, a name in [`HOSTS`].

mod harness;

use harness::{Connection, SERVICES, Server, resolve, run_trials};
use libtest_mimic::{Arguments, Trial};
use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;

/// A request, and the lines that the route `/mirror` returns for it: method and URI, fields sorted by name, body, trailers.
/// `$HOST` stands for the server's address.
struct Row {
    name: &'static str,
    request: &'static str,
    lines: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        name: "path, query and host",
        request: "GET /mirror?a=b&c&%20=/? HTTP/1.1\r\nHost: example.org:8080\r\n\r\n",
        lines: &["GET http://example.org:8080/mirror?a=b&c&%20=/?", "body "],
    },
    Row {
        name: "method",
        request: "PATCH /mirror HTTP/1.1\r\nHost: $HOST\r\nContent-Length: 0\r\n\r\n",
        lines: &[
            "PATCH http://$HOST/mirror",
            "field content-length: 0",
            "body ",
        ],
    },
    Row {
        name: "unknown method",
        request: "BREW /mirror HTTP/1.1\r\nHost: $HOST\r\n\r\n",
        lines: &["BREW http://$HOST/mirror", "body "],
    },
    Row {
        name: "target with scheme and authority",
        request: "GET http://example.org/mirror HTTP/1.1\r\nHost: $HOST\r\n\r\n",
        lines: &["GET http://example.org/mirror", "body "],
    },
    Row {
        name: "scheme of a target",
        request: "GET https://example.org/mirror HTTP/1.1\r\nHost: example.org\r\n\r\n",
        lines: &["GET https://example.org/mirror", "body "],
    },
    Row {
        name: "HTTP/1.0 without a host",
        request: "GET /mirror HTTP/1.0\r\n\r\n",
        lines: &["GET http://localhost/mirror", "body "],
    },
    Row {
        name: "empty host",
        request: "GET /mirror HTTP/1.1\r\nHost:\r\n\r\n",
        lines: &["GET http://localhost/mirror", "body "],
    },
    Row {
        name: "repeated fields",
        request: "GET /mirror HTTP/1.1\r\nHost: $HOST\r\nX-B: 1\r\nx-a: 2\r\nX-A: 3, 4\r\nx-b: 5\r\n\r\n",
        lines: &[
            "GET http://$HOST/mirror",
            "field x-a: 2",
            "field x-a: 3, 4",
            "field x-b: 1",
            "field x-b: 5",
            "body ",
        ],
    },
    Row {
        name: "connection fields",
        request: "GET /mirror HTTP/1.1\r\nHost: $HOST\r\nConnection: keep-alive\r\nUpgrade: x\r\n\r\n",
        lines: &["GET http://$HOST/mirror", "body "],
    },
    Row {
        name: "body",
        request: "POST /mirror HTTP/1.1\r\nHost: $HOST\r\nContent-Length: 4\r\n\r\nfour",
        lines: &[
            "POST http://$HOST/mirror",
            "field content-length: 4",
            "body four",
        ],
    },
    Row {
        name: "chunked body",
        request: "POST /mirror HTTP/1.1\r\nHost: $HOST\r\nTransfer-Encoding: chunked\r\n\r\n\
                  2\r\nfo\r\n2\r\nur\r\n0\r\n\r\n",
        lines: &["POST http://$HOST/mirror", "body four"],
    },
    Row {
        name: "trailers",
        request: "POST /mirror HTTP/1.1\r\nHost: $HOST\r\nTransfer-Encoding: chunked\r\n\
                  Trailer: x-t\r\n\r\n4\r\nfour\r\n0\r\nX-T: 1\r\nx-t: 2\r\n\r\n",
        lines: &[
            "POST http://$HOST/mirror",
            "field trailer: x-t",
            "body four",
            "trailer x-t: 1",
            "trailer x-t: 2",
        ],
    },
];

/// How other hosts are known to change requests. They have to forward the rest as this server does.
const HOSTS: &[(&str, &[Rule])] = &[
    (
        "Wasmtime, wasi",
        &[
            Rule::SchemeIsHttp,
            Rule::OnlyLastTrailer,
            Rule::Rejects(&["HTTP/1.0 without a host", "empty host"]),
        ],
    ),
    (
        "Wasmtime, spin",
        &[Rule::UriIsTarget, Rule::OnlyLastTrailer],
    ),
    (
        "jco, wasi",
        &[
            Rule::HostIsAddress,
            Rule::NoTrailers,
            Rule::AddsFields(&["transfer-encoding", "upgrade"]),
            Rule::Rejects(&["unknown method"]),
            Rule::Breaks(&["target with scheme and authority", "scheme of a target"]),
        ],
    ),
    (
        "Spin, spin",
        &[
            Rule::SchemeIsHttp,
            Rule::OnlyLastTrailer,
            Rule::AddsFields(&["host", "spin-", "transfer-encoding", "upgrade"]),
            Rule::Rejects(&[
                "HTTP/1.0 without a host",
                "empty host",
                "target with scheme and authority",
            ]),
        ],
    ),
];

enum Rule {
    /// The scheme is `http` even if the target says otherwise.
    SchemeIsHttp,
    /// The URI is the target: without scheme and authority, if that is a path.
    UriIsTarget,
    /// A request without a host has the server's address as host.
    HostIsAddress,
    /// Fields are added whose names begin with these.
    AddsFields(&'static [&'static str]),
    /// Of several trailers of one name only the last is forwarded.
    OnlyLastTrailer,
    NoTrailers,
    /// These rows get no response, or an error.
    Rejects(&'static [&'static str]),
    /// These rows crash the host, so that they are not sent.
    Breaks(&'static [&'static str]),
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut servers = Vec::new();
    let mut trials = Vec::new();
    if let Ok(url) = env::var("REQUESTS_URL") {
        let name = env::var("REQUESTS_HOST").unwrap_or_default();
        let host = HOSTS.iter().find(|(known, _)| *known == name);
        let (name, rules) = host.unwrap_or_else(|| panic!("REQUESTS_HOST={name}: not in HOSTS"));
        trials.extend(self::trials(name, resolve("REQUESTS_URL", &url), rules));
    } else {
        for service in SERVICES {
            let server = Server::start(service, &[]);
            trials.extend(self::trials(service.entry, server.address, &[]));
            servers.push(server);
        }
    }
    run_trials(&arguments, trials, servers)
}

fn trials(
    host: &'static str,
    address: SocketAddr,
    rules: &'static [Rule],
) -> impl Iterator<Item = Trial> {
    let rows = ROWS.iter().filter(|row| {
        !rules
            .iter()
            .any(|rule| matches!(rule, Rule::Breaks(rows) if rows.contains(&row.name)))
    });
    rows.map(move |row| {
        Trial::test(format!("{host}: {}", row.name), move || {
            row.check(address, rules);
            Ok(())
        })
    })
}

impl Row {
    fn check(&self, address: SocketAddr, rules: &[Rule]) {
        let with_address = |text: &str| text.replace("$HOST", &address.to_string());
        let mut connection = Connection::open(address);
        let sent = connection.send(with_address(self.request));
        sent.expect("sent");
        let response = connection.response("GET");
        let mut expected: Vec<_> = self.lines.iter().map(|line| with_address(line)).collect();
        let mut added: &[&str] = &[];
        for rule in rules {
            match rule {
                Rule::SchemeIsHttp => expected[0] = expected[0].replace("https://", "http://"),
                Rule::UriIsTarget => {
                    let words: Vec<_> = self.request.splitn(3, ' ').take(2).collect();
                    expected[0] = words.join(" ");
                }
                Rule::HostIsAddress => {
                    let host = format!("http://{}/", address.ip());
                    expected[0] = expected[0].replace("http://localhost/", &host);
                }
                Rule::AddsFields(names) => added = names,
                Rule::OnlyLastTrailer => {
                    if expected.iter().any(|line| line.starts_with("trailer ")) {
                        expected.remove(expected.len() - 2);
                    }
                }
                Rule::NoTrailers => expected.retain(|line| !line.starts_with("trailer ")),
                Rule::Rejects(rows) if rows.contains(&self.name) => {
                    assert!(response.is_err() || response.is_ok_and(|it| it.status >= 400));
                    return;
                }
                Rule::Rejects(_) | Rule::Breaks(_) => {}
            }
        }
        let body = response.expect("a response").text();
        let is_added = |line: &str| {
            let name = line.strip_prefix("field ");
            name.is_some_and(|name| added.iter().any(|prefix| name.starts_with(prefix)))
        };
        let lines: Vec<_> = body.lines().filter(|line| !is_added(line)).collect();
        assert_eq!(lines, expected);
    }
}
