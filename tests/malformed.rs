//! Malformed and hostile requests: runs the cases of `malformed/http1.rs` and `malformed/http2.rs`, each as one trial.
//!
//! Each case is sent to a server with the component for WASI 0.2, and to one with that for WASI 0.3. The server has to serve
//! another client after each case, while the case's connection is still open. In the end it has to have logged nothing: an
//! invalid request is not a failure of the server.

mod harness;
mod malformed {
    #[rustfmt::skip] // A case is a line.
    pub mod http1;
    #[rustfmt::skip]
    pub mod http2;
    pub mod outcome;
}

use harness::frames::{END, headers};
use harness::{Connection, NO_ACCESS_LOG, SPIN, Server, TIMEOUT, WASI};
use libtest_mimic::{Arguments, Failed, Trial};
use malformed::{http1, http2, outcome};
use rustix::process::Signal;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut servers = Vec::new();
    let mut trials = Vec::new();
    for guest in [WASI, SPIN] {
        let server = Server::start(guest, &[NO_ACCESS_LOG]);
        let address = server.address;
        trials.extend(cases().map(|case| {
            let name = format!("{}: {}", guest.entry, case.name);
            Trial::test(name, move || case.run(address))
        }));
        servers.push(server);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        servers.iter_mut().for_each(Server::print_log);
        return conclusion.exit_code();
    }
    for server in &mut servers {
        server.signal(Signal::TERM);
        assert_eq!(server.lines_until("SIGTERM: shutting down"), [""; 0]);
        assert_eq!(server.wait().code(), Some(0));
    }
    conclusion.exit_code()
}

struct Case {
    name: String,
    rule: &'static str,
    sent: Vec<Vec<u8>>,
    /// Set when the client shuts down its side after it has sent this.
    is_truncated: bool,
    expected: Expected,
}

enum Expected {
    Http1(&'static str),
    Http2(http2::Expected),
}

fn cases() -> impl Iterator<Item = Case> {
    let http1 = http1::GROUPS.iter().flat_map(|group| {
        group.cases.iter().map(|(name, bytes, expected)| Case {
            name: format!("{}: {name}", group.name),
            rule: group.rule,
            sent: vec![
                [group.before, bytes, group.after].concat(),
                http1::NEXT.into(),
            ],
            is_truncated: false,
            expected: Expected::Http1(expected),
        })
    });
    let truncated = http1::TRUNCATED.iter().map(|(name, bytes, expected)| Case {
        name: format!("truncated: {name}"),
        rule: http1::TRUNCATED_RULE,
        sent: vec![bytes.to_vec()],
        is_truncated: true,
        expected: Expected::Http1(expected),
    });
    let sizes = http1::sizes().into_iter();
    let sizes = sizes.map(|(name, bytes, expected)| Case {
        name: format!("size: {name}"),
        rule: http1::SIZES_RULE,
        sent: vec![bytes, http1::NEXT.into()],
        is_truncated: false,
        expected: Expected::Http1(expected),
    });
    let http2 = http2::groups().into_iter().flat_map(|group| {
        let cases = group.cases.into_iter();
        cases.map(move |(name, frames, expected)| {
            let path = http2::FIELDS.replace(":path=/", ":path=/next");
            let next = headers(http2::NEXT_STREAM, END, &path);
            Case {
                name: format!("HTTP/2 {}: {name}", group.name),
                rule: group.rule,
                sent: [vec![group.preface.clone()], frames, vec![next]].concat(),
                is_truncated: false,
                expected: Expected::Http2(expected),
            }
        })
    });
    http1.chain(truncated).chain(sizes).chain(http2)
}

impl Case {
    fn run(&self, address: SocketAddr) -> Result<(), Failed> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let outcome = self.send(&stream).and_then(|()| match self.expected {
            Expected::Http1(expected) => outcome::check_statuses(&stream, expected),
            Expected::Http2(expected) => outcome::check_frames(&stream, expected),
        });
        if let Err(received) = outcome {
            return Err(format!("{}\nsent: {}\n{received}", self.rule, self.excerpt()).into());
        }
        let health = Connection::open(address).request("GET", "/health")?;
        assert_eq!((health.status, &health.body[..]), (200, &b"OK"[..]));
        Ok(())
    }

    /// What the client sends, escaped: of many frames the first ones, and of long ones the first bytes.
    fn excerpt(&self) -> String {
        let mut lines: Vec<_> = self
            .sent
            .iter()
            .take(10)
            .map(|bytes| {
                let first = bytes[..bytes.len().min(300)].escape_ascii();
                match bytes.len() {
                    ..=300 => first.to_string(),
                    length => format!("{first}... ({length} bytes)"),
                }
            })
            .collect();
        if self.sent.len() > lines.len() {
            lines.push(format!("... ({} in all)", self.sent.len()));
        }
        lines.join("\n      ")
    }

    /// Sends as much as the server receives: it may close the connection before the end.
    fn send(&self, mut stream: &TcpStream) -> Result<(), String> {
        match stream.write_all(&self.sent.concat()) {
            Err(error) if !is_closed(&error) => return Err(format!("not read: {error}")),
            _ => {}
        }
        if self.is_truncated {
            stream
                .shutdown(Shutdown::Write)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
