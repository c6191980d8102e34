//! What a route gets of a request: all of it, the same behind each entry point of the service.
//!
//! Runs against this workspace's server for each entry point, over HTTP/1.1; or against another host
//! that serves the guest `fixtures/service.rs`: `REQUESTS_URL` says where, such as
//! `http://127.0.0.1:5000`, and `REQUESTS_HOST` what it is, a name in [`DIFFERENCES`].

mod harness;

use harness::{Connection, FIXTURES, SERVICES, Server, resolve};
use libtest_mimic::{Arguments, Trial};
use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;

/// A request, and the lines that the route `/mirror` makes of it: method and URI, fields sorted by
/// name, body, trailers. `$HOST` stands for the server's address.
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
        name: "method of its own",
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
        name: "fields of the connection",
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
        name: "body in chunks",
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

/// Where another host is known to give a route something else: the host, the row, the lines.
const DIFFERENCES: &[(&str, &str, &[&str])] = &[];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let other = env::var("REQUESTS_URL").ok();
    let servers: Vec<_> = match other {
        Some(_) => Vec::new(),
        None => SERVICES
            .iter()
            .map(|service| Server::start(FIXTURES, &[*service]))
            .collect(),
    };
    let hosts: Vec<(String, SocketAddr)> = match &other {
        Some(url) => {
            let name = env::var("REQUESTS_HOST").expect("REQUESTS_HOST: the name of the host");
            vec![(name, resolve("REQUESTS_URL", url))]
        }
        None => SERVICES
            .iter()
            .zip(&servers)
            .map(|((_, name), server)| (name.to_string(), server.address))
            .collect(),
    };
    let trials = hosts.iter().flat_map(|(host, address)| {
        ROWS.iter().map(|row| {
            let (host, address) = (host.clone(), *address);
            Trial::test(format!("{host}: {}", row.name), move || {
                row.check(&host, address);
                Ok(())
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(servers);
    conclusion.exit_code()
}

impl Row {
    fn check(&self, host: &str, address: SocketAddr) {
        let with_address = |text: &str| text.replace("$HOST", &address.to_string());
        let mut connection = Connection::open(address);
        let sent = connection.send(with_address(self.request));
        sent.expect("sent");
        let response = connection.answer("GET").expect("a response");
        let body = String::from_utf8(response.body).expect("UTF-8");
        let difference = DIFFERENCES
            .iter()
            .find(|(of, row, _)| (*of, *row) == (host, self.name));
        let lines = difference.map_or(self.lines, |(_, _, lines)| lines);
        let expected: Vec<_> = lines.iter().map(|line| with_address(line)).collect();
        assert_eq!(body.lines().collect::<Vec<_>>(), expected);
    }
}
