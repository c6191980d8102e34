//! What broken and hostile clients send, and how the server takes it.
//!
//! One row, one trial. All rows have one server, which must serve others after each, before the
//! row's connection is given up, and in the end have nothing to tell: what a client does wrong is
//! no failure of the server.

mod harness;

use harness::{Connection, Server, TIMEOUT, WASI};
use libtest_mimic::{Arguments, Trial};
use rustix::process::Signal;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut server = Server::start(WASI, &[("ACCESS_LOG", "off")]);
    let address = server.address;
    let mut trials = Vec::new();
    let mut add = |group: &str, name: &str, test: Box<dyn FnOnce() + Send>| {
        let name = format!("{group}: {name}");
        trials.push(Trial::test(name, || {
            test();
            Ok(())
        }));
    };
    for group in GROUPS {
        for &(name, bytes, expected) in group.rows {
            let bytes = [group.before, bytes, group.after].concat();
            let test = move || check_text(address, &bytes, expected);
            add(group.name, name, Box::new(test));
        }
    }
    for (name, bytes, expected) in sizes() {
        let test = move || check_text(address, &bytes, expected);
        add("sizes", name, Box::new(test));
    }
    for &(name, bytes, expected) in UNFINISHED {
        let test = move || check_unfinished(address, bytes, expected);
        add("broken off", name, Box::new(test));
    }
    let hello = frame(SETTINGS, 0, 0, b"");
    for (group, first, rows) in [
        ("h2 preface", &b""[..], prefaces()),
        ("h2 frames", &hello, frames()),
        ("h2 compression", &hello, compression()),
        ("h2 requests", &hello, requests()),
        ("h2 floods", &hello, floods()),
    ] {
        for (name, bytes, reply) in rows {
            let bytes = [PREFACE, first, &bytes].concat();
            add(group, name, Box::new(move || reply.check(address, &bytes)));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    server.signal(Signal::TERM);
    let line = server.line();
    assert!(line.contains("SIGTERM: shutting down"), "{line}");
    assert_eq!(server.wait().code(), Some(0));
    conclusion.exit_code()
}

fn check_health(address: SocketAddr) {
    let health = Connection::open(address).request("GET", "/health");
    let health = health.expect("the server serves others");
    assert_eq!((health.status, &health.body[..]), (200, &b"OK"[..]));
}

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
    stream
}

/// Sends as much as the server takes: it may well close before the end.
fn send(mut stream: &TcpStream, bytes: &[u8]) {
    if let Err(error) = stream.write_all(bytes) {
        assert!(is_closed(&error), "not read: {error}");
    }
}

/// Reads exactly so many bytes, or none when the connection has ended.
fn read(mut stream: &TcpStream, count: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    match stream.read_exact(&mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            assert!(is_closed(&error), "neither answered nor closed: {error}");
            None
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

// HTTP/1.

/// A name; the bytes; and the answers' statuses until the server closes, as alternatives, with `x`
/// for any digit. [`NEXT`] is answered with 404, so `405 404` is an answer with the connection
/// kept, `405` one with it closed. Nothing in these rows is worth a 2xx but well-formed requests.
type Row = (&'static str, &'static [u8], &'static str);

/// Rows that have the bytes around theirs in common.
struct Group {
    name: &'static str,
    before: &'static [u8],
    rows: &'static [Row],
    after: &'static [u8],
}

/// Follows the bytes of each row on the same connection: after a request whose end is in doubt,
/// it must not be answered (RFC 9112, section 11.2).
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

fn check_text(address: SocketAddr, bytes: &[u8], expected: &str) {
    let stream = open(address);
    send(&stream, &[bytes, NEXT].concat());
    check_statuses(&stream, expected);
    check_health(address);
}

/// The client closes its side in the middle.
fn check_unfinished(address: SocketAddr, bytes: &[u8], expected: &str) {
    let stream = open(address);
    send(&stream, bytes);
    stream.shutdown(Shutdown::Write).expect("connected");
    check_statuses(&stream, expected);
    check_health(address);
}

fn check_statuses(stream: &TcpStream, expected: &str) {
    let mut text = Vec::new();
    while let Some(byte) = read(stream, 1) {
        text.extend(byte);
    }
    let text = String::from_utf8(text).expect("text");
    // `HTTP/1.1 200 OK`; no body of ours has the separator.
    let answers: Vec<_> = text.split("HTTP/1.").skip(1).collect();
    let statuses: Vec<_> = answers.iter().map(|answer| &answer[2..5]).collect();
    let statuses = match statuses.join(" ") {
        none if none.is_empty() => "nothing".to_owned(),
        statuses => statuses,
    };
    let fits = |pattern: &str| {
        let same = |(p, s): (char, char)| p == s || p == 'x' && s.is_ascii_digit();
        pattern.len() == statuses.len() && pattern.chars().zip(statuses.chars()).all(same)
    };
    assert!(
        expected.split(" or ").any(fits),
        "{statuses}, not {expected}:\n{text}"
    );
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: test\r\n";
const CHUNKED: &[u8] = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";

#[rustfmt::skip] // A row is a line.
const GROUPS: &[Group] = &[
    // RFC 9112, section 6.3: a body has one length. With both fields the coding counts, or it is
    // 400; either way the connection ends (section 6.1).
    Group { name: "both lengths", before: POST, after: b"", rows: &[
        ("length, then coding", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("coding, then length", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("a request hidden behind the last chunk",
            b"Content-Length: 45\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\nX: 123456789\r\n\r\n", "400 or 405"),
        ("a request hidden in a chunk",
            b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1e\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("a length of none, then coding", b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("a broken length after the coding", b"Transfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("a broken length before the coding", b"Content-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("the coding between two lengths",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("length and a coding that is not last",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400 or 501"),
        ("length, coding and keep-alive",
            b"Connection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 or 405"),
        ("keep-alive after length and coding",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", "400 or 405"),
    ] },
    // RFC 9112, section 6.3: a length that is no number is 400; a list of the same number may pass.
    Group { name: "length", before: POST, after: b"\r\nhello", rows: &[
        ("given twice, the same", b"Content-Length: 5\r\nContent-Length: 5\r\n", "400 or 405 404"),
        ("a list of the same", b"Content-Length: 5, 5\r\n", "400 or 405 404"),
        ("given twice, not the same", b"Content-Length: 5\r\nContent-Length: 0\r\n", "400"),
        ("given twice, not the same, smaller first", b"Content-Length: 0\r\nContent-Length: 5\r\n", "400"),
        ("given twice in different case", b"CONTENT-LENGTH: 5\r\ncontent-length: 6\r\n", "400"),
        ("given thrice, the last another", b"Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 6\r\n", "400"),
        ("a list of not the same", b"Content-Length: 5, 6\r\n", "400"),
        ("a list with an empty end", b"Content-Length: 5,\r\n", "400 or 405 404"),
        ("more than 64 bits", b"Content-Length: 18446744073709551616\r\n", "400 or 413"),
        ("more than 64 bits that end like 5", b"Content-Length: 18446744073709551621\r\n", "400 or 413"),
        ("a hundred digits",
            b"Content-Length: 1000000000000000000000000000000000000000000000000000000000000000000000000000000000005\r\n", "400 or 413"),
        ("64 bits", b"Content-Length: 18446744073709551615\r\n", "400 or 413 or 431"),
        ("negative", b"Content-Length: -5\r\n", "400"),
        ("with a plus sign", b"Content-Length: +5\r\n", "400"),
        ("with an exponent", b"Content-Length: 5e0\r\n", "400"),
        ("hexadecimal", b"Content-Length: 0x5\r\n", "400"),
        ("with a fraction", b"Content-Length: 5.0\r\n", "400"),
        ("with an underscore", b"Content-Length: 0_5\r\n", "400"),
        ("in quotes", b"Content-Length: \"5\"\r\n", "400"),
        ("empty", b"Content-Length:\r\n", "400"),
        ("two numbers", b"Content-Length: 5 6\r\n", "400"),
        ("with a parameter", b"Content-Length: 5;a=b\r\n", "400"),
        ("full-width digits", b"Content-Length: \xef\xbc\x95\r\n", "400"),
        ("with a vertical tab", b"Content-Length: \x0b5\r\n", "400"),
        ("with a NUL", b"Content-Length: 5\0\r\n", "400"),
        ("with a space before the colon", b"Content-Length : 5\r\n", "400"),
        ("with a tab before the colon", b"Content-Length\t: 5\r\n", "400"),
        ("on a folded line", b"Content-Length:\r\n 5\r\n", "400 or 405 404"),
        ("with leading zeros is well-formed", b"Content-Length: 0005\r\n", "405 404"),
        ("with spaces and tabs around is well-formed", b"Content-Length: \t 5\t \r\n", "405 404"),
    ] },
    // RFC 9112, section 6.1: `chunked` is once and last, else 400; what is not known is 501.
    Group { name: "coding", before: POST, after: b"\r\n0\r\n\r\n", rows: &[
        ("in any case is well-formed", b"Transfer-Encoding: CHUNKed\r\n", "405 404"),
        ("with spaces and tabs around is well-formed", b"Transfer-Encoding: \tchunked \t\r\n", "405 404"),
        ("chunked, then identity", b"Transfer-Encoding: chunked, identity\r\n", "400 or 501"),
        ("chunked, then identity, on two lines", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "400 or 501"),
        ("identity, then chunked", b"Transfer-Encoding: identity, chunked\r\n", "400 or 501"),
        ("identity, then chunked, on two lines", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "400 or 501"),
        ("identity", b"Transfer-Encoding: identity\r\n", "400 or 501"),
        ("chunked twice", b"Transfer-Encoding: chunked, chunked\r\n", "400 or 501"),
        ("chunked twice, on two lines", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "400 or 501"),
        ("gzip, then chunked", b"Transfer-Encoding: gzip, chunked\r\n", "400 or 501"),
        ("gzip", b"Transfer-Encoding: gzip\r\n", "400 or 501"),
        ("a word that ends with chunked", b"Transfer-Encoding: xchunked\r\n", "400 or 501"),
        ("a word that begins with chunked", b"Transfer-Encoding: chunkedx\r\n", "400 or 501"),
        ("a made-up coding, then chunked", b"Transfer-Encoding: cow, chunked\r\n", "400 or 501"),
        ("chunked after a word", b"Transfer-Encoding: x chunked\r\n", "400 or 501"),
        ("chunked before a word", b"Transfer-Encoding: chunked x\r\n", "400 or 501"),
        ("with a parameter", b"Transfer-Encoding: chunked;q=1\r\n", "400 or 501"),
        ("in quotes", b"Transfer-Encoding: \"chunked\"\r\n", "400 or 501"),
        ("empty", b"Transfer-Encoding:\r\n", "400 or 501"),
        ("an empty end of the list", b"Transfer-Encoding: chunked,\r\n", "400 or 501 or 405 404"),
        ("an empty begin of the list", b"Transfer-Encoding: , chunked\r\n", "400 or 501 or 405 404"),
        ("with a vertical tab before", b"Transfer-Encoding: \x0bchunked\r\n", "400"),
        ("with a NUL", b"Transfer-Encoding: chunked\0\r\n", "400"),
        ("with a no-break space", b"Transfer-Encoding: \xa0chunked\r\n", "400 or 501"),
        ("with a space before the colon", b"Transfer-Encoding : chunked\r\n", "400"),
        ("with a tab before the colon", b"Transfer-Encoding\t: chunked\r\n", "400"),
        ("with a vertical tab before the colon", b"Transfer-Encoding\x0b: chunked\r\n", "400"),
        ("on a folded line", b"Transfer-Encoding:\r\n chunked\r\n", "400 or 405 404"),
        ("folded onto the line before", b"X: y\r\n Transfer-Encoding: chunked\r\n", "400 or 405 400"),
        ("behind a bare LF", b"X: y\nTransfer-Encoding: chunked\r\n", "400 or 405 404"),
        ("behind a bare CR", b"X: y\rTransfer-Encoding: chunked\r\n", "400"),
        ("behind an LF in its value", b"Transfer-Encoding:\n chunked\r\n", "400 or 405 404"),
    ] },
    // RFC 9112, section 6.1: in HTTP/1.0 a coding makes the framing faulty, and the connection ends.
    Group { name: "coding in HTTP/1.0", before: b"POST / HTTP/1.0\r\nHost: test\r\n", after: b"\r\n0\r\n\r\n", rows: &[
        ("alone", b"Transfer-Encoding: chunked\r\n", "400 or 405"),
        ("with keep-alive", b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", "400 or 405"),
        ("with a length", b"Connection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", "400 or 405"),
    ] },
    // RFC 9112, section 7.1. The answer may come before the body is read; what follows a broken
    // body is never answered.
    Group { name: "chunks", before: CHUNKED, after: b"", rows: &[
        ("in any case, with zeros, is well-formed", b"00A\r\n0123456789\r\n000\r\n\r\n", "405 404"),
        ("an extension is ignored", b"5;a=\"b;\";c\r\nhello\r\n0;d\r\n\r\n", "405 404"),
        ("a trailer is ignored", b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", "405 404"),
        ("a negative size", b"-5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a size with a plus sign", b"+5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a size that is no number", b"g\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("an empty size", b"\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("only an extension", b";a\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a size of 65 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a size of 300 digits", &[b'f'; 300], "400 or 405"),
        ("a space before the size", b" 5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a space in the size", b"0 5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a space after the size", b"5 \r\nhello\r\n0\r\n\r\n", "400 or 405 or 405 404"),
        ("an underscore in the size", b"0_5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("two sizes", b"5,5\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a NUL after the size", b"5\0\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a bare LF after the size", b"5\nhello\r\n0\r\n\r\n", "400 or 405 or 405 404"),
        ("a bare CR after the size", b"5\rhello\r\n0\r\n\r\n", "400 or 405"),
        ("a bare LF in an extension", b"5;a\nhello\r\n0\r\n\r\n", "400 or 405 or 405 404"),
        ("a bare CR in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("no line end after the data", b"5\r\nhello0\r\n\r\n", "400 or 405"),
        ("a bare LF after the data", b"5\r\nhello\n0\r\n\r\n", "400 or 405 or 405 404"),
        ("a bare CR after the data", b"5\r\nhello\r0\r\n\r\n", "400 or 405"),
        ("more data than the size says", b"3\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("less data than the size says", b"7\r\nhello\r\n0\r\n\r\n", "400 or 405"),
        ("a last chunk with text", b"0\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "400 or 405"),
        ("a trailer without a colon", b"0\r\ntrailer\r\n\r\n", "400 or 405"),
        ("a trailer with a space before the colon", b"0\r\nX : y\r\n\r\n", "400 or 405"),
        ("a trailer with a NUL", b"0\r\nX: \0\r\n\r\n", "400 or 405"),
        ("a folded trailer", b"0\r\nX: y\r\n z\r\n\r\n", "400 or 405 or 405 404"),
        ("a bare CR in a trailer", b"0\r\nX: y\rZ: 1\r\n\r\n", "400 or 405"),
        ("a length in the trailer is ignored", b"0\r\nContent-Length: 50\r\n\r\n", "400 or 405 or 405 404"),
        ("a coding in the trailer is ignored", b"0\r\nTransfer-Encoding: chunked\r\n\r\n", "400 or 405 or 405 404"),
        ("a host in the trailer is ignored", b"0\r\nHost: other\r\nHost: more\r\n\r\n", "400 or 405 or 405 404"),
    ] },
    // RFC 9112, section 5.2: a folded line is 400, or the fold is a space. Section 2.2: a bare CR
    // is 400, or a space; an LF may end a line, and an empty line before a request is ignored.
    Group { name: "lines", before: b"", after: b"", rows: &[
        ("folded with a space", b"GET / HTTP/1.1\r\nHost: test\r\nX: a\r\n b\r\n\r\n", "400 or 200 404"),
        ("folded with a tab", b"GET / HTTP/1.1\r\nHost: test\r\nX: a\r\n\tb\r\n\r\n", "400 or 200 404"),
        ("folded with nothing but a space", b"GET / HTTP/1.1\r\nHost: test\r\nX: a\r\n \r\n\r\n", "400 or 200 404"),
        ("a folded host", b"GET / HTTP/1.1\r\nHost:\r\n test\r\n\r\n", "400 or 200 404"),
        ("a space before the first field", b"GET / HTTP/1.1\r\n Host: test\r\n\r\n", "400"),
        ("a tab before the first field", b"GET / HTTP/1.1\r\n\tX: y\r\nHost: test\r\n\r\n", "400 or 200 404"),
        ("a space before the request", b" GET / HTTP/1.1\r\nHost: test\r\n\r\n", "400"),
        ("all end with a bare LF", b"GET / HTTP/1.1\nHost: test\n\n", "400 or 200 404"),
        ("the head ends with a bare LF", b"GET / HTTP/1.1\r\nHost: test\r\n\n", "400 or 200 404"),
        ("all end with a bare CR", b"GET / HTTP/1.1\rHost: test\r\r", "400"),
        ("a bare CR in a name", b"GET / HTTP/1.1\r\nHost: test\r\nX\rY: z\r\n\r\n", "400"),
        ("a bare CR in a value", b"GET / HTTP/1.1\r\nHost: test\r\nX: y\rz\r\n\r\n", "400 or 200 404"),
        ("a bare CR in the target", b"GET /\r HTTP/1.1\r\nHost: test\r\n\r\n", "400"),
        ("a bare CR after the version", b"GET / HTTP/1.1\r\r\nHost: test\r\n\r\n", "400"),
        ("a bare CR before a line's end", b"GET / HTTP/1.1\r\nHost: test\r\nX: y\r\r\n\r\n", "400 or 200 404"),
        ("a bare CR before the request", b"\rGET / HTTP/1.1\r\nHost: test\r\n\r\n", "400"),
        ("LF and CR in the wrong order", b"GET / HTTP/1.1\n\rHost: test\n\r\n\r", "400"),
        ("an empty line before", b"\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 404"),
        ("two empty lines before", b"\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "400 or 200 404"),
        ("an empty line between requests", b"GET / HTTP/1.1\r\nHost: test\r\n\r\n\r\n", "200 404"),
        ("a field without a colon", b"GET / HTTP/1.1\r\nHost: test\r\nX\r\n\r\n", "400"),
        ("a field without a name", b"GET / HTTP/1.1\r\nHost: test\r\n: x\r\n\r\n", "400"),
        ("a space before the colon", b"GET / HTTP/1.1\r\nHost: test\r\nX : y\r\n\r\n", "400"),
        ("a space in the name", b"GET / HTTP/1.1\r\nHost: test\r\nX Y: z\r\n\r\n", "400"),
        ("two spaces after the method", b"GET  / HTTP/1.1\r\nHost: test\r\n\r\n", "400 or 200 404"),
        ("two spaces before the version", b"GET /  HTTP/1.1\r\nHost: test\r\n\r\n", "400 or 200 404"),
        ("tabs for spaces", b"GET\t/\tHTTP/1.1\r\nHost: test\r\n\r\n", "400 or 200 404"),
        ("a space after the version", b"GET / HTTP/1.1 \r\nHost: test\r\n\r\n", "400 or 200 404"),
        ("only a method", b"GET\r\n\r\n", "400"),
        ("no method", b"/ HTTP/1.1\r\nHost: test\r\n\r\n", "400"),
        ("no target", b"GET HTTP/1.1\r\nHost: test\r\n\r\n", "400"),
        ("a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "400"),
    ] },
    // RFC 9110, section 5.6.2: a method is a token. An unknown one is 405 here.
    Group { name: "method", before: b"", after: b" / HTTP/1.1\r\nHost: test\r\n\r\n", rows: &[
        ("with a NUL", b"GE\0T", "400"),
        ("with a control character", b"GE\x1bT", "400"),
        ("with DEL", b"GE\x7fT", "400"),
        ("not ASCII", b"GE\xc3\x89T", "400"),
        ("with a separator", b"GE(T", "400"),
        ("with a colon", b"GET:", "400"),
        ("in quotes", b"\"GET\"", "400"),
        ("of marks is a token", b"!#$%&'*+-.^_`|~", "405 404"),
    ] },
    // RFC 9112, section 3.2: an invalid request line should be 400; nothing of ours has such a path.
    Group { name: "target", before: b"GET ", after: b" HTTP/1.1\r\nHost: test\r\n\r\n", rows: &[
        ("with a NUL", b"/health\0", "400"),
        ("with a control character", b"/health\x01", "400"),
        ("with DEL", b"/health\x7f", "400"),
        ("with a tab", b"/health\tx", "400"),
        ("with a space", b"/health x", "400"),
        ("with a bare LF", b"/health\n", "400"),
        ("not ASCII", b"/h\xc3\xa9alth", "400 or 404 404"),
        ("not UTF-8", b"/h\xe9alth", "400 or 404 404"),
        ("with quotes and brackets", b"/\"<>{}|^`\\", "400 or 404 404"),
        ("with a broken escape", b"/health%", "400 or 404 404"),
        ("with an escaped NUL", b"/health%00", "400 or 404 404"),
        ("with an escaped line end", b"/health%0d%0aX:%20y", "400 or 404 404"),
        ("with an escaped slash", b"/%2fhealth", "400 or 404 404"),
        ("with dots", b"/../../etc/passwd", "400 or 404 404"),
        ("with dots that lead to a route", b"/x/../health", "400 or 404 404"),
        // The parser drops a fragment before anybody sees it: no two readers here to disagree.
        ("with a fragment", b"/#x", "400 or 200 404"),
        ("two slashes", b"//test/", "400 or 404 404"),
        ("relative", b"health", "400"),
        ("only a query", b"?x", "400"),
        ("only a fragment", b"#x", "400"),
        ("a backslash", b"\\health", "400"),
        ("an asterisk", b"*", "400 or 404 404"),
        ("an asterisk and more", b"*/health", "400 or 404 404"),
        ("an authority", b"test:80", "400"),
        ("an authority with a path", b"test/health", "400"),
        // Section 3.2.2: the whole URI counts, whatever `Host` says.
        ("a whole URI of another host", b"http://other/", "400 or 421 or 421 404 or 200 404"),
        ("a whole URI without a path", b"http://test", "200 404"),
        ("a whole URI without a path, but a query", b"http://test?x", "400 or 200 404"),
        ("a whole URI in upper case", b"HTTP://TEST/", "200 404"),
        ("a whole URI without a host", b"http:///health", "400"),
        ("a whole URI with only a port", b"http://:80/health", "400 or 400 404"),
        ("a whole URI with a user", b"http://user:password@test/", "400 or 400 404"),
        ("a whole URI with a bad port", b"http://test:port/", "400 or 400 404"),
        ("a whole URI with a port too large", b"http://test:65536/", "400 or 400 404 or 200 404"),
        ("a whole URI with half an address", b"http://[::1/", "400 or 400 404"),
        // RFC 9110, section 7.4: rejected, but for a gateway that holds the certificate.
        ("a whole URI of https", b"https://test/", "400 or 421 or 421 404 or 200 404"),
        ("a whole URI of another scheme", b"ftp://test/", "400 or 400 404 or 421 or 421 404"),
        ("a URI with one slash", b"http:/health", "400 or 400 404"),
        ("a URI that is not of a host", b"urn:health", "400 or 400 404"),
        ("a file", b"file:///etc/passwd", "400 or 400 404"),
    ] },
    // RFC 9110, section 9.3.6 (CONNECT) and 9.3.7 (OPTIONS). No tunnels here.
    Group { name: "methods of their own", before: b"", after: b" HTTP/1.1\r\nHost: test\r\n\r\n", rows: &[
        ("OPTIONS of the server", b"OPTIONS *", "200 404 or 204 404 or 404 404"),
        ("CONNECT", b"CONNECT test:80", "4xx or 4xx 404 or 501 or 501 404"),
        ("CONNECT to a private address", b"CONNECT 127.0.0.1:22", "4xx or 4xx 404 or 501 or 501 404"),
        ("CONNECT without a port", b"CONNECT test", "4xx or 4xx 404 or 501 or 501 404"),
        ("CONNECT with an empty port", b"CONNECT test:", "4xx or 4xx 404 or 501 or 501 404"),
        ("CONNECT to a path", b"CONNECT /", "4xx or 4xx 404 or 501 or 501 404"),
        ("CONNECT to a whole URI", b"CONNECT http://test/", "4xx or 4xx 404 or 501 or 501 404"),
        ("PRI in the wrong version", b"PRI *", "4xx or 4xx 404 or 501"),
    ] },
    // RFC 9110, section 5.5: NUL, CR and LF are refused or replaced; other control characters are
    // invalid; bytes from 0x80 are opaque data. Section 5.6.2: a name is a token.
    Group { name: "fields", before: GET, after: b"\r\n", rows: &[
        ("a NUL in a name", b"X\0: y\r\n", "400"),
        ("a control character in a name", b"X\x01: y\r\n", "400"),
        ("DEL in a name", b"X\x7f: y\r\n", "400"),
        ("a name that is not ASCII", b"X\xc3\xa9: y\r\n", "400"),
        ("a separator in a name", b"X(y): z\r\n", "400"),
        ("a slash in a name", b"X/y: z\r\n", "400"),
        ("a name in quotes", b"\"X\": y\r\n", "400"),
        ("a NUL in a value", b"X: a\0b\r\n", "400 or 200 404"),
        ("a control character in a value", b"X: a\x01b\r\n", "400 or 200 404"),
        ("an escape character in a value", b"X: \x1b[2J\r\n", "400 or 200 404"),
        ("DEL in a value", b"X: a\x7fb\r\n", "400 or 200 404"),
        ("a value that is not ASCII is opaque", b"X: \xe9\xff\x80\r\n", "200 404"),
        ("an empty value is well-formed", b"X:\r\n", "200 404"),
        ("a tab in a value is well-formed", b"X: a\tb\r\n", "200 404"),
        ("a connection option that is not a token", b"Connection: close\xe9, @\r\n", "400 or 200 404"),
        ("a connection option that names the host", b"Connection: Host, Content-Length\r\n", "400 or 200 404"),
    ] },
    // RFC 9112, section 2.3: the version is exact, and its letters are capitals. RFC 9110, section
    // 2.5: a higher minor version may be taken for ours.
    Group { name: "version", before: b"GET /", after: b"\r\nHost: test\r\n\r\n", rows: &[
        ("missing", b"", "400"),
        ("missing after a space", b" ", "400"),
        ("HTTP/0.9", b" HTTP/0.9", "400 or 505"),
        ("HTTP/1.2", b" HTTP/1.2", "400 or 505 or 200 404"),
        ("HTTP/2.0", b" HTTP/2.0", "400 or 505"),
        ("HTTP/2", b" HTTP/2", "400 or 505"),
        ("HTTP/3", b" HTTP/3", "400 or 505"),
        ("HTTP/9.9", b" HTTP/9.9", "400 or 505"),
        ("lower case", b" http/1.1", "400 or 505"),
        ("no minor", b" HTTP/1", "400 or 505"),
        ("no number", b" HTTP/", "400 or 505"),
        ("two digits", b" HTTP/1.10", "400 or 505"),
        ("a leading zero", b" HTTP/01.1", "400 or 505"),
        ("a comma", b" HTTP/1,1", "400 or 505"),
        ("a space inside", b" HTTP /1.1", "400 or 505"),
        ("more after it", b" HTTP/1.1x", "400 or 505"),
        ("another protocol", b" RTSP/1.0", "400 or 505"),
        ("a NUL after it", b" HTTP/1.1\0", "400 or 505"),
    ] },
    // RFC 9112, section 3.2: `Host` is there, once, and a host with a port or without; else 400.
    // RFC 3986, section 3.2.2: what a host is.
    Group { name: "host", before: b"GET / HTTP/1.1\r\n", after: b"\r\n", rows: &[
        ("missing", b"", "400 or 400 404"),
        ("missing with a similar name", b"X-Host: test\r\n", "400 or 400 404"),
        ("twice", b"Host: test\r\nHost: other\r\n", "400 or 400 404"),
        ("twice the same", b"Host: test\r\nhost: test\r\n", "400 or 400 404"),
        ("with a space before the colon", b"Host : test\r\n", "400"),
        ("empty", b"Host:\r\n", "400 or 400 404 or 200 404"),
        ("with a space", b"Host: te st\r\n", "400 or 400 404"),
        ("with a tab", b"Host: te\tst\r\n", "400 or 400 404"),
        ("with a NUL", b"Host: te\0st\r\n", "400"),
        ("with a control character", b"Host: te\x01st\r\n", "400"),
        ("not ASCII", b"Host: t\xc3\xa9st\r\n", "400 or 400 404"),
        ("with a path", b"Host: test/health\r\n", "400 or 400 404"),
        ("with a query", b"Host: test?x\r\n", "400 or 400 404"),
        ("with a fragment", b"Host: test#x\r\n", "400 or 400 404"),
        ("with a backslash", b"Host: test\\x\r\n", "400 or 400 404"),
        ("with a user", b"Host: user@test\r\n", "400 or 400 404"),
        ("with a user and a password", b"Host: user:password@test\r\n", "400 or 400 404"),
        ("a whole URI", b"Host: http://test\r\n", "400 or 400 404"),
        ("in quotes", b"Host: \"test\"\r\n", "400 or 400 404"),
        ("a script", b"Host: <script>\r\n", "400 or 400 404"),
        ("with a broken escape", b"Host: te%zz\r\n", "400 or 400 404"),
        ("with a port that is no number", b"Host: test:port\r\n", "400 or 400 404"),
        ("with a negative port", b"Host: test:-1\r\n", "400 or 400 404"),
        ("with two ports", b"Host: test:80:80\r\n", "400 or 400 404"),
        ("with a port too large", b"Host: test:65536\r\n", "400 or 400 404 or 200 404"),
        ("with half an address", b"Host: [::1\r\n", "400 or 400 404"),
        ("with text after an address", b"Host: [::1]x\r\n", "400 or 400 404"),
        ("with brackets around what is no address", b"Host: [test]\r\n", "400 or 400 404"),
        ("an address without brackets", b"Host: ::1\r\n", "400 or 400 404"),
        ("two hosts in one", b"Host: test, other\r\n", "400 or 400 404"),
        ("with an empty port is well-formed", b"Host: test:\r\n", "200 404"),
        ("an address in brackets is well-formed", b"Host: [::1]:80\r\n", "200 404"),
        ("with an underscore is well-formed", b"Host: my_service:5000\r\n", "200 404"),
    ] },
    Group { name: "host in HTTP/1.0", before: b"GET / HTTP/1.0\r\n", after: b"\r\n", rows: &[
        ("may be missing", b"", "200"),
        ("twice", b"Host: test\r\nHost: other\r\n", "400"),
        ("with a space", b"Host: te st\r\n", "400"),
    ] },
    // RFC 9112, section 3.2.2: a whole URI needs `Host`, too.
    Group { name: "host beside a whole URI", before: b"GET http://test/ HTTP/1.1\r\n", after: b"\r\n", rows: &[
        ("missing", b"", "400 or 400 404"),
        ("twice", b"Host: test\r\nHost: test\r\n", "400 or 400 404"),
        ("with a space", b"Host: te st\r\n", "400 or 400 404"),
    ] },
    // RFC 9112, section 9.3: answers come in order, and none after what cannot be read.
    Group { name: "pipeline", before: GET, after: b"", rows: &[
        ("good, bad, good", b"\r\nGET /\0 HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 400"),
        ("good, good, bad, good",
            b"\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\nX : y\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 200 400"),
        ("good, two lengths, good",
            b"\r\nPOST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 400"),
        ("good, both lengths, good",
            b"\r\nPOST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\
            \r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 400 or 200 405"),
        ("good, a broken chunk, good",
            b"\r\nPOST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\
            \r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 400 or 200 405"),
        ("bad, good", b"X : y\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "400"),
        ("a body longer than its length", b"Content-Length: 3\r\n\r\nabc\0\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 400"),
        ("a body that looks like a request", b"Content-Length: 30\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200 404"),
        ("after the last", b"Connection: close\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "200"),
        ("after the last, which says keep-alive, too", b"Connection: close, keep-alive\r\n\r\n", "200"),
        ("after the last, whose body is missing", b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", "200"),
        ("HTTP/2's preface after a request", b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "200 or 200 400 or 200 505"),
        // The answer is on its way before the body comes: only the head is answered.
        ("a broken chunk of a GET", b"Transfer-Encoding: chunked\r\n\r\nx\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "400 or 200"),
    ] },
    // RFC 9110, section 10.1.1: an unknown expectation may be 417, or ignored; nobody waits for
    // 100 when there is no body. Section 7.8: an upgrade may be ignored.
    Group { name: "expectations and upgrades", before: b"", after: b"", rows: &[
        ("expects a banana", b"GET / HTTP/1.1\r\nHost: test\r\nExpect: banana\r\n\r\n", "417 or 417 404 or 200 404"),
        ("expects a banana, with a body",
            b"POST / HTTP/1.1\r\nHost: test\r\nExpect: banana\r\nContent-Length: 5\r\n\r\nhello", "417 or 417 404 or 405 or 405 404"),
        ("expects 100 without a body", b"GET / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n\r\n", "200 404 or 100 200 404"),
        ("expects 100 and does not wait",
            b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", "405 or 405 404 or 100 405 404"),
        ("expects 100, twice",
            b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n\
            Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", "405 or 405 404 or 100 405 404"),
        ("expects 100 in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", "405"),
        ("upgrades to h2c",
            b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
            Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200 404"),
        ("upgrades to a WebSocket",
            b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", "200 404"),
        ("upgrades to TLS", b"OPTIONS / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: TLS/1.3\r\n\r\n", "200 404 or 400"),
        ("upgrades without saying so", b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: h2c\r\n\r\n", "200 404"),
        ("upgrades with a body",
            b"POST / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello", "405 or 405 404"),
        ("upgrades to garbage", b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: @\xff,,\r\n\r\n", "400 or 200 404"),
        ("upgrades in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "200"),
    ] },
    // Nothing but HTTP is spoken here. RFC 9113, section 3.4: a preface that is not exact is none.
    Group { name: "other protocols", before: b"", after: b"", rows: &[
        ("TLS", b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0\0\x04\x13\x01\x13\x02\x01\0", "nothing or 400"),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n", "nothing or 400"),
        ("mail", b"EHLO test\r\nMAIL FROM:<a@test>\r\n", "nothing or 400"),
        ("Redis", b"*1\r\n$4\r\nPING\r\n", "nothing or 400"),
        ("memcached", b"stats\r\n", "nothing or 400"),
        ("SIP", b"OPTIONS sip:test SIP/2.0\r\n\r\n", "nothing or 400 or 505"),
        ("SOCKS 5", b"\x05\x01\0", "nothing or 400"),
        ("a proxy's line", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", "nothing or 400"),
        ("a proxy's binary line", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET / HTTP/1.1\r\nHost: test\r\n\r\n", "nothing or 400"),
        ("a remote desktop", b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0", "nothing or 400"),
        ("zeros", &[0; 5000], "nothing or 400"),
        ("ones", &[0xff; 5000], "nothing or 400"),
        ("random bytes", b"\xd7\x5a\x98\x01\x82\xb1\x0a\xb7\xd5\x4b\xfe\xd3\xc9\x64\x07\x3a", "nothing or 400"),
        ("a preface with a wrong letter", b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", "nothing or 400 or 505"),
        ("a preface with bare LF", b"PRI * HTTP/2.0\n\nSM\n\n", "nothing or 400 or 505"),
        ("a preface in lower case", b"pri * http/2.0\r\n\r\nsm\r\n\r\n", "nothing or 400 or 505"),
        ("a preface with a field", b"PRI * HTTP/2.0\r\nHost: test\r\n\r\nSM\r\n\r\n", "nothing or 400 or 505"),
        ("HTTP/2 without a preface", b"\0\0\0\x04\0\0\0\0\0", "nothing or 400"),
    ] },
];

/// The client closes its side after these. Whether what came before is still answered is the
/// server's choice (RFC 9112, section 9.6); no answer is due to half a head (section 8).
#[rustfmt::skip] // A row is a line.
const UNFINISHED: &[Row] = &[
    ("before the first byte", b"", "nothing"),
    ("after an empty line", b"\r\n", "nothing or 400"),
    ("after a letter", b"G", "nothing or 400"),
    ("after the request line", b"GET / HTTP/1.1\r\n", "nothing or 400"),
    ("in a field", b"GET / HTTP/1.1\r\nHost: te", "nothing or 400"),
    ("before the head's last line end", b"GET / HTTP/1.1\r\nHost: test\r\n", "nothing or 400"),
    ("in a body", b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhel", "nothing or 400 or 405"),
    ("in a body of 63 bits",
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9223372036854775807\r\n\r\nhel", "nothing or 400 or 405 or 413"),
    ("in a chunk", b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "nothing or 400 or 405"),
    ("in a chunk of 64 bits",
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nhel", "nothing or 400 or 405 or 413"),
    ("before the last chunk",
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "nothing or 400 or 405"),
    ("in the trailers", b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n", "nothing or 400 or 405"),
    ("before a body that it asked to send",
        b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", "nothing or 405 or 100 405"),
    ("in HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM", "nothing or 400 or 505"),
];

/// RFC 9110, section 5.4, RFC 6585, section 5: heads too large are 431. RFC 9112, section 3: a
/// target too long is 414, but lines of 8,000 bytes are to be served. Ours may have 100 fields
/// and 32 KiB.
#[rustfmt::skip] // A row is a line.
fn sizes() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let x = |count| "x".repeat(count);
    let get = |target: &str, fields: &str| format!("GET /{target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n").into_bytes();
    let chunks = |body: &str| [CHUNKED, body.as_bytes()].concat();
    vec![
        ("100 fields", get("", &"X: y\r\n".repeat(99)), "200 404"),
        ("101 fields", get("", &"X: y\r\n".repeat(100)), "431"),
        ("5,000 fields", get("", &"X: y\r\n".repeat(5000)), "431"),
        ("a target of 8,000 bytes", get(&x(8000), ""), "404 404"),
        ("a target of 40,000 bytes", get(&x(40_000), ""), "414 or 431"),
        ("a target of 100,000 bytes", get(&x(100_000), ""), "414 or 431"),
        ("a query of 40,000 bytes", get(&format!("?{}", x(40_000)), ""), "414 or 431"),
        ("a target that does not end", format!("GET /{}", x(200_000)).into_bytes(), "414 or 431"),
        ("a method of 40,000 bytes", format!("{} / HTTP/1.1\r\nHost: test\r\n\r\n", x(40_000)).into_bytes(), "400 or 431 or 501"),
        ("a field of 16,000 bytes", get("", &format!("X: {}\r\n", x(16_000))), "200 404"),
        ("a field of 40,000 bytes", get("", &format!("X: {}\r\n", x(40_000))), "431"),
        ("a field that does not end", get("", &format!("X: {}", x(200_000))), "431"),
        ("a name of 40,000 bytes", get("", &format!("{}: y\r\n", x(40_000))), "431"),
        ("a name of 200,000 bytes", get("", &format!("{}: y\r\n", x(200_000))), "431"),
        ("a host of 40,000 bytes", format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", x(40_000)).into_bytes(), "400 or 431"),
        ("fields of 40,000 bytes in all", get("", &format!("X: {}\r\n", x(1000)).repeat(40)), "431"),
        ("a length of 40,000 digits", get("", &format!("Content-Length: {}\r\n", "0".repeat(40_000))), "400 or 431"),
        ("40,000 spaces before a value", get("", &format!("X:{}y\r\n", " ".repeat(40_000))), "431"),
        ("100,000 empty lines before", [&b"\r\n".repeat(100_000), GET, b"\r\n"].concat(), "400 or 431 or 200 404"),
        ("a chunk's extension of 100,000 bytes", chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", x(100_000))), "400 or 405 or 413"),
        ("100,000 bytes of extensions in all",
            chunks(&format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", x(100)).repeat(1000))), "400 or 405 or 413"),
        ("a trailer of 100,000 bytes", chunks(&format!("0\r\nX: {}\r\n\r\n", x(100_000))), "400 or 405 or 431"),
        ("1,000 trailers", chunks(&format!("0\r\n{}\r\n", "X: y\r\n".repeat(1000))), "400 or 405 or 431"),
        ("20,000 chunks of a byte", chunks(&format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(20_000))), "405 404 or 405 or 413"),
    ]
}

// HTTP/2.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 9113, section 6: types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// RFC 9113, section 6: flags of frames.
const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const WEIGHED: u8 = 0x20;
const END: u8 = END_STREAM | END_HEADERS;

/// RFC 9113, section 7: codes of errors.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The stream of a good request that follows the bytes of each row. It is answered with 404.
const LAST: u32 = 1_000_001;

/// The fields of a good request, as [`block`] takes them.
const FIELDS: &str = ":method=GET|:scheme=http|:authority=test|:path=/";

/// A name, the bytes after the preface and mostly the first SETTINGS, and what is to come of them.
type Frames = (&'static str, Vec<u8>, Reply);

/// What RFC 9113 has a server do, with its latitude: any stream error may be a connection error
/// (section 5.4), GOAWAY need not come (5.4.1), a malformed request may get an answer (8.1.1).
/// The code is for people who look for the fault: `PROTOCOL_ERROR`, the general one, may stand for
/// any but `ENHANCE_YOUR_CALM`.
#[derive(Clone, Copy, Debug)]
enum Reply {
    /// A connection error with this code.
    Closed(u32),
    /// A stream error with this code on stream 1, or a refusal as answer.
    Refused(u32),
    /// One of these statuses on stream 1.
    Status(&'static [u16]),
    /// The connection goes on.
    Ignored,
    /// The connection goes on, and a PING is acknowledged.
    Acknowledged,
    /// The connection goes on, or ends with this code.
    Endured(u32),
}

impl Reply {
    fn check(self, address: SocketAddr, bytes: &[u8]) {
        let stream = open(address);
        let last = headers(LAST, END, &FIELDS.replace(":path=/", ":path=/next"));
        send(&stream, &[bytes, &last].concat());
        let answers = matches!(self, Self::Refused(_) | Self::Status(_));
        let seen = Seen::read(&stream, answers);
        assert!(self.fits(&seen), "{self:?} expected: {seen:?}");
        check_health(address);
    }

    fn fits(self, seen: &Seen) -> bool {
        let goes_on = seen.last == Some(404);
        let is = |code, seen: Option<u32>| {
            let stands_in = |seen| seen == PROTOCOL_ERROR && code != ENHANCE_YOUR_CALM;
            seen.is_none_or(|seen| seen == code || stands_in(seen))
        };
        let refused = |status| matches!(status, 400..=499 | 501);
        match self {
            Self::Closed(code) => {
                seen.closed && !goes_on && is(code, seen.goaway) && seen.status.is_none_or(refused)
            }
            Self::Refused(code) => match (seen.status, seen.reset) {
                (Some(status), _) => refused(status),
                (None, Some(reset)) => is(code, Some(reset)) && (goes_on || seen.closed),
                (None, None) => seen.closed && is(code, seen.goaway),
            },
            Self::Status(any) => seen.status.is_some_and(|s| any.contains(&s)) && goes_on,
            Self::Ignored => goes_on,
            Self::Acknowledged => goes_on && seen.ponged,
            Self::Endured(code) => goes_on || seen.closed && is(code, seen.goaway),
        }
    }
}

/// What came of a row.
#[derive(Debug, Default)]
struct Seen {
    /// Of stream 1.
    status: Option<u16>,
    /// Of stream 1.
    reset: Option<u32>,
    /// Of the stream [`LAST`].
    last: Option<u16>,
    goaway: Option<u32>,
    ponged: bool,
    closed: bool,
}

impl Seen {
    /// Reads until the connection is closed or the last stream, and if it has to be the first, is
    /// answered or reset.
    fn read(stream: &TcpStream, first: bool) -> Self {
        let mut seen = Self::default();
        while seen.last.is_none() || first && seen.status.is_none() && seen.reset.is_none() {
            let Some((kind, id, payload)) = read_frame(stream) else {
                seen.closed = true;
                break;
            };
            seen.ponged |= kind == PING && payload == b"12345678";
            match (kind, id) {
                (HEADERS, 1) => seen.status = seen.status.or(Some(status(&payload))),
                (HEADERS, LAST) => seen.last = Some(status(&payload)),
                (RST_STREAM, 1) => seen.reset = Some(number(&payload)),
                (RST_STREAM, LAST) => seen.last = Some(0),
                (GOAWAY, 0) => seen.goaway = Some(number(&payload[4..])),
                _ => {}
            }
        }
        seen
    }
}

fn read_frame(stream: &TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let head = read(stream, 9)?;
    let length = number(&[0, head[0], head[1], head[2]]);
    let payload = read(stream, length as usize)?;
    Some((head[3], number(&head[5..]), payload))
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// The status that a block of fields begins with: an entry of the static table, or text in
/// Huffman's code, where 4 is `011010` (RFC 7541, appendices A and B).
fn status(block: &[u8]) -> u16 {
    // A change of the table's size comes first.
    match *block.strip_prefix(&[0x20]).unwrap_or(block) {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48, 0x83, 0x68, 0x0d, 0xff, ..] => 405,
        [0x48, 0x83, 0x68, 0x2c, 0xff, ..] => 413,
        [0x48, 0x83, 0x68, 0x2d, 0x7f, ..] => 414,
        [0x48, 0x82, 0x68, 0x41, ..] => 421,
        [0x48, 0x83, 0x69, 0x90, 0xff, ..] => 431,
        [0x48, 0x82, 0x6c, 0x01, ..] => 501,
        [0x48, 0x82, 0x6c, 0x02, ..] => 502,
        ref other => panic!("which status is {other:02x?}?"),
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("24 bits").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

fn headers(stream: u32, flags: u8, fields: &str) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(fields))
}

/// Fields such as `name=value|name=value`, none of them compressed (RFC 7541, section 6.2.2).
fn block(fields: &str) -> Vec<u8> {
    let fields = fields.split('|').filter(|field| !field.is_empty());
    let fields = fields.map(|field| field.split_once('=').expect("name=value"));
    let literal = |(name, value): (&str, &str)| [vec![0], text(name), text(value)].concat();
    fields.flat_map(literal).collect()
}

/// RFC 7541, section 5.2: a length of 7 bits, continued when it has more, and the bytes.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![text.len().min(127) as u8];
    if let Some(mut rest) = text.len().checked_sub(127) {
        while rest >= 128 {
            bytes.push(rest as u8 | 128);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes.extend(text.as_bytes());
    bytes
}

/// RFC 9113, section 3.4: SETTINGS come first.
#[rustfmt::skip] // A row is a line.
fn prefaces() -> Vec<Frames> {
    use Reply::{Closed, Endured, Status};
    let get = headers(1, END, FIELDS);
    // Should be refused. h2 goes by the default settings until others come, which does no harm,
    // and tells nobody, so that nothing above h2 could refuse.
    let lenient = Endured(PROTOCOL_ERROR);
    vec![
        ("SETTINGS are well-formed", [&frame(SETTINGS, 0, 0, b""), &get[..]].concat(), Status(&[200])),
        ("a request for SETTINGS", get.clone(), lenient),
        ("PING for SETTINGS", [&frame(PING, 0, 0, b"12345678"), &get[..]].concat(), lenient),
        ("SETTINGS acknowledged for SETTINGS", [&frame(SETTINGS, ACK, 0, b""), &get[..]].concat(), lenient),
        ("the preface again", [PREFACE, &frame(SETTINGS, 0, 0, b""), &get].concat(), Closed(FRAME_SIZE_ERROR)),
        ("a request of HTTP/1", GET.to_vec(), Closed(FRAME_SIZE_ERROR)),
        ("TLS", b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03".to_vec(), Closed(FRAME_SIZE_ERROR)),
    ]
}

/// RFC 9113, sections 4 to 6: frames by themselves, and their order. All that `h2spec` sends here, but for what it sends
/// after it has the response.
#[rustfmt::skip] // A row is a line.
fn frames() -> Vec<Frames> {
    use Reply::{Acknowledged, Closed, Endured, Ignored, Refused, Status};
    let get = || headers(1, END, FIELDS);
    let post = &headers(1, END_HEADERS, &FIELDS.replace("GET", "POST"));
    let after = |begin: &[u8], kind, flags, stream, payload: &[u8]| [begin, &frame(kind, flags, stream, payload)].concat();
    let setting = |id: u16, value: u32| frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let padded = |kind, pad: u8, rest: &[u8]| frame(kind, END | PADDED, 1, &[&[pad], rest].concat());
    let open = &frame(HEADERS, END_STREAM, 1, &block(FIELDS)); // Its fields go on.
    vec![
        ("SETTINGS acknowledged", [frame(SETTINGS, ACK, 0, b""), get()].concat(), Status(&[200])),
        ("DATA of 16,384 bytes", after(post, DATA, END_STREAM, 1, &[0; 16_384]), Status(&[405])),
        ("DATA of 16,385 bytes", after(post, DATA, 0, 1, &[0; 16_385]), Closed(FRAME_SIZE_ERROR)),
        ("HEADERS of 16,385 bytes", frame(HEADERS, END, 1, &[0; 16_385]), Closed(FRAME_SIZE_ERROR)),
        ("an unknown frame of 16,385 bytes", frame(0xbe, 0, 0, &[0; 16_385]), Closed(FRAME_SIZE_ERROR)),
        ("a frame that says 16 MiB", b"\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec(), Closed(FRAME_SIZE_ERROR)),
        ("an unknown frame", [frame(0xbe, 0xff, 0, b"hello"), frame(0xef, 0, 9, b""), get()].concat(), Status(&[200])),
        ("unknown flags", headers(1, END | 0xc2, FIELDS), Status(&[200])),
        ("the reserved bit", headers(1 | 1 << 31, END, FIELDS), Status(&[200])),
        // Section 5.1.1: streams that a client opens are odd, and go up.
        ("HEADERS on stream 0", headers(0, END, FIELDS), Closed(PROTOCOL_ERROR)),
        ("HEADERS on stream 2", headers(2, END, FIELDS), Closed(PROTOCOL_ERROR)),
        ("HEADERS on a lower stream", [headers(5, END, FIELDS), headers(3, END, FIELDS)].concat(), Closed(STREAM_CLOSED)),
        ("HEADERS again", [post.clone(), after(b"", DATA, END_STREAM, 1, b""), get()].concat(), Refused(STREAM_CLOSED)),
        ("HEADERS after a reset", [after(post, RST_STREAM, 0, 1, b"\0\0\0\x08"), get()].concat(), Refused(STREAM_CLOSED)),
        ("HEADERS with padding", padded(HEADERS, 3, &[&block(FIELDS)[..], &[0; 3]].concat()), Status(&[200])),
        ("HEADERS with a priority", frame(HEADERS, END | WEIGHED, 1, &[&[0, 0, 0, 0, 255], &block(FIELDS)[..]].concat()), Status(&[200])),
        ("HEADERS with padding and a priority",
            frame(HEADERS, END | PADDED | WEIGHED, 1, &[&[1, 0, 0, 0, 0, 0], &block(FIELDS)[..], &[0]].concat()), Status(&[200])),
        ("HEADERS padded more than they have", padded(HEADERS, 200, &block(FIELDS)), Closed(PROTOCOL_ERROR)),
        ("HEADERS padded without the length", frame(HEADERS, END | PADDED, 1, b""), Closed(FRAME_SIZE_ERROR)),
        ("HEADERS with half a priority", frame(HEADERS, END | WEIGHED, 1, b"\0\0\0"), Closed(FRAME_SIZE_ERROR)),
        ("HEADERS that depend on themselves",
            frame(HEADERS, END | WEIGHED, 1, &[b"\0\0\0\x01\x0f", &block(FIELDS)[..]].concat()), Endured(PROTOCOL_ERROR)),
        ("HEADERS without fields", headers(1, END, ""), Refused(PROTOCOL_ERROR)),
        ("DATA on stream 0", frame(DATA, 0, 0, b"hello"), Closed(PROTOCOL_ERROR)),
        ("DATA on an idle stream", frame(DATA, END_STREAM, 1, b"hello"), Closed(PROTOCOL_ERROR)),
        ("DATA after the end",
            [post.clone(), frame(DATA, END_STREAM, 1, b"a"), frame(DATA, END_STREAM, 1, b"b")].concat(), Refused(STREAM_CLOSED)),
        ("DATA padded more than it has", [&post[..], &padded(DATA, 6, b"hello")].concat(), Closed(PROTOCOL_ERROR)),
        ("DATA padded without the length", after(post, DATA, PADDED, 1, b""), Closed(FRAME_SIZE_ERROR)),
        ("DATA padded to the last byte", [&post[..], &padded(DATA, 5, b"\0\0\0\0\0")].concat(), Status(&[405])),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, b"\0\0\0\x03\x0f"), Closed(PROTOCOL_ERROR)),
        ("PRIORITY of 4 bytes", after(post, PRIORITY, 0, 1, b"\0\0\0\0"), Refused(FRAME_SIZE_ERROR)),
        ("PRIORITY on an idle stream", [frame(PRIORITY, 0, 1, b"\0\0\0\0\0"), get()].concat(), Status(&[200])),
        ("PRIORITY after the end", [get(), frame(PRIORITY, 0, 1, b"\x80\0\0\0\xff")].concat(), Status(&[200])),
        ("PRIORITY that depends on itself", frame(PRIORITY, 0, 1, b"\0\0\0\x01\x0f"), Endured(PROTOCOL_ERROR)),
        ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, b"\0\0\0\x08"), Closed(PROTOCOL_ERROR)),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), Closed(PROTOCOL_ERROR)),
        ("RST_STREAM of 3 bytes", after(post, RST_STREAM, 0, 1, b"\0\0\0"), Closed(FRAME_SIZE_ERROR)),
        ("RST_STREAM of 5 bytes", after(post, RST_STREAM, 0, 1, b"\0\0\0\0\0"), Closed(FRAME_SIZE_ERROR)),
        ("RST_STREAM after the end", [get(), frame(RST_STREAM, 0, 1, b"\0\0\0\x08")].concat(), Ignored),
        ("RST_STREAM with an unknown code", after(post, RST_STREAM, 0, 1, b"\xff\xff\xff\xff"), Ignored),
        // Section 6.5.
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, b"\0\x03\0\0\0"), Closed(FRAME_SIZE_ERROR)),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), Closed(PROTOCOL_ERROR)),
        ("SETTINGS acknowledged with a payload", frame(SETTINGS, ACK, 0, b"\0\x03\0\0\0\0"), Closed(FRAME_SIZE_ERROR)),
        ("SETTINGS with a push of 2", setting(2, 2), Closed(PROTOCOL_ERROR)),
        ("SETTINGS with a window of 31 bits", setting(4, 1 << 31), Closed(FLOW_CONTROL_ERROR)),
        ("SETTINGS with frames of none", setting(5, 0), Closed(PROTOCOL_ERROR)),
        ("SETTINGS with frames of 16,383 bytes", setting(5, 16_383), Closed(PROTOCOL_ERROR)),
        ("SETTINGS with frames of 16 MiB", setting(5, 1 << 24), Closed(PROTOCOL_ERROR)),
        ("SETTINGS with an unknown one", [setting(0xbeef, 1), get()].concat(), Status(&[200])),
        ("SETTINGS with a window of a byte", [setting(4, 1), get()].concat(), Status(&[200])),
        ("SETTINGS with two windows",
            [frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\x64\0\x04\0\0\0\x01"), get()].concat(), Status(&[200])),
        ("SETTINGS with a window after a request", [setting(4, 0), get(), setting(4, 1)].concat(), Status(&[200])),
        ("SETTINGS that make a window negative",
            [setting(4, 3), get(), setting(4, 2), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x02")].concat(), Status(&[200])),
        ("SETTINGS with a table of none", [setting(1, 0), get()].concat(), Status(&[200])),
        ("SETTINGS with a table of 4 GiB", [setting(1, u32::MAX), get()].concat(), Status(&[200])),
        ("SETTINGS with a list of 1 byte", [setting(6, 1), get()].concat(), Status(&[200])),
        ("PUSH_PROMISE", after(post, PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &block(FIELDS)[..]].concat()), Closed(PROTOCOL_ERROR)),
        ("PING", frame(PING, 0, 0, b"12345678"), Acknowledged),
        ("PING of 7 bytes", frame(PING, 0, 0, b"1234567"), Closed(FRAME_SIZE_ERROR)),
        ("PING of 9 bytes", frame(PING, 0, 0, b"123456789"), Closed(FRAME_SIZE_ERROR)),
        ("PING on a stream", frame(PING, 0, 1, b"12345678"), Closed(PROTOCOL_ERROR)),
        ("PING acknowledged that nobody sent", frame(PING, ACK, 0, b"12345678"), Ignored),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, b"\0\0\0\0\0\0\0\0"), Closed(PROTOCOL_ERROR)),
        ("GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0"), Closed(FRAME_SIZE_ERROR)),
        ("GOAWAY with an unknown code", frame(GOAWAY, 0, 0, b"\0\0\0\0\xff\xff\xff\xff"), Endured(PROTOCOL_ERROR)),
        ("GOAWAY, then requests", [frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0hello"), get()].concat(), Endured(PROTOCOL_ERROR)),
        // Section 6.9.
        ("WINDOW_UPDATE of none", frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), Closed(PROTOCOL_ERROR)),
        ("WINDOW_UPDATE of none for a stream", after(post, WINDOW_UPDATE, 0, 1, b"\0\0\0\0"), Refused(PROTOCOL_ERROR)),
        ("WINDOW_UPDATE that overflows", frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), Closed(FLOW_CONTROL_ERROR)),
        ("WINDOW_UPDATE that overflows a stream", after(post, WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), Refused(FLOW_CONTROL_ERROR)),
        ("WINDOW_UPDATE after the end", [get(), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")].concat(), Status(&[200])),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01"), Closed(PROTOCOL_ERROR)),
        ("WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, b"\0\0\x01"), Closed(FRAME_SIZE_ERROR)),
        ("SETTINGS that overflow a stream's window",
            [post.clone(), frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\0\0"), setting(4, 0x7fff_ffff)].concat(), Closed(FLOW_CONTROL_ERROR)),
        // Section 6.10: nothing comes between HEADERS and their CONTINUATION.
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &block(FIELDS)), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION of HEADERS that ended", after(post, CONTINUATION, END_HEADERS, 1, &block("x=y")), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION of CONTINUATION that ended",
            [&open[..], &frame(CONTINUATION, END_HEADERS, 1, b""), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION of DATA",
            [post.clone(), frame(DATA, END_STREAM, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION after a reset",
            [after(post, RST_STREAM, 0, 1, b"\0\0\0\x08"), frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(STREAM_CLOSED)),
        ("CONTINUATION three times", [&open[..], &frame(CONTINUATION, 0, 1, &block("x=y")).repeat(2), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Status(&[200])),
        ("CONTINUATION after PRIORITY",
            [&open[..], &frame(PRIORITY, 0, 1, b"\0\0\0\0\0"), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION on stream 0", after(open, CONTINUATION, END_HEADERS, 0, &block("x=y")), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION on another stream", after(open, CONTINUATION, END_HEADERS, 3, &block("x=y")), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION after DATA",
            [&open[..], &frame(DATA, 0, 1, b"x"), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION after PING",
            [&open[..], &frame(PING, 0, 0, b"12345678"), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION after an unknown frame",
            [&open[..], &frame(0xbe, 0, 0, b""), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION after other HEADERS",
            [&open[..], &headers(3, END, FIELDS), &frame(CONTINUATION, END_HEADERS, 1, b"")].concat(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION that never comes", open.clone(), Closed(PROTOCOL_ERROR)),
        ("CONTINUATION that is empty", after(open, CONTINUATION, END_HEADERS, 1, b""), Status(&[200])),
    ]
}

/// RFC 7541. RFC 9113, section 4.3: fields that cannot be read end the connection.
#[rustfmt::skip] // A row is a line.
fn compression() -> Vec<Frames> {
    use Reply::{Closed, Status};
    let raw = |bytes: &[u8]| frame(HEADERS, END, 1, &[&block(FIELDS)[..], bytes].concat());
    let first = |bytes: &[u8]| frame(HEADERS, END, 1, &[bytes, &block(FIELDS)].concat());
    let broken = Closed(COMPRESSION_ERROR);
    vec![
        ("100 fields", headers(1, END, &format!("{FIELDS}{}", "|a=x".repeat(100))), Status(&[200])),
        ("101 fields", headers(1, END, &format!("{FIELDS}{}", "|a=x".repeat(101))), Status(&[431])),
        ("entries of the static table", frame(HEADERS, END, 1, b"\x82\x86\x84\x41\x04test"), Status(&[200])),
        ("entry 0", raw(b"\x80"), broken),
        ("entry 62 of an empty table", raw(b"\xbe"), broken),
        ("entry 1,000,000", raw(b"\xff\xc1\x83\x3d"), broken),
        ("an entry of 70 bits", raw(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), broken),
        ("an entry that does not end", raw(b"\xff\x80"), broken),
        ("a name of entry 62 of an empty table", raw(b"\x7e\x01x"), broken),
        ("a name that does not end", raw(b"\0\x7fabc"), broken),
        ("a value that does not end", raw(b"\0\x01x\x7fabc"), broken),
        ("no value", raw(b"\0\x01x"), broken),
        ("a value of 4 GiB", raw(b"\0\x01x\x7f\xff\xff\xff\xff\x0f"), broken),
        ("a table of the agreed size", first(b"\x3f\xe1\x1f"), Status(&[200])),
        ("a table larger than agreed", first(b"\x3f\xe2\x1f"), broken),
        ("a table of 4 GiB", first(b"\x3f\xe0\xff\xff\xff\x0f"), broken),
        ("a table resized after a field", raw(b"\x20"), broken),
        // Section 5.2: padding is all ones, and shorter than 8 bits; the end symbol is never coded.
        ("Huffman", raw(b"\0\x01x\x81\x1f"), Status(&[200])),
        ("Huffman's end symbol", raw(b"\0\x01x\x84\xff\xff\xff\xff"), broken),
        ("Huffman with a byte of padding", raw(b"\0\x01x\x82\x1f\xff"), broken),
        ("Huffman padded with zeros", raw(b"\0\x01x\x81\x18"), broken),
        ("Huffman that ends in a symbol", raw(b"\0\x01x\x82\xff\xf0"), broken),
    ]
}

/// RFC 9113, section 8: what is malformed is a stream error.
#[rustfmt::skip] // A row is a line.
fn requests() -> Vec<Frames> {
    use Reply::{Closed, Refused, Status};
    let malformed = Refused(PROTOCOL_ERROR);
    let tolerated = Status(&[200, 400]);
    let mut rows = Vec::new();
    // Section 8.2: fields. Behind those of a good request.
    for (name, field, reply) in [
        ("a name in upper case", "Upper=x", malformed),
        ("a name with a space", "a b=x", malformed),
        ("a name with a colon", "a:b=x", malformed),
        ("a name with a NUL", "a\0b=x", malformed),
        ("a name with a line end", "a\r\nb=x", malformed),
        ("a name that is not ASCII", "é=x", malformed),
        ("an empty name", "=x", malformed),
        ("a value with a NUL", "a=x\0y", malformed),
        ("a value with CR", "a=x\ry", malformed),
        ("a value with LF", "a=x\ny", malformed),
        ("a value with a request", "a=x\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", malformed),
        // Should be malformed (section 8.2.1), but h2 lets it pass: a space that frames nothing.
        ("a value that begins with a space", "a= x", Status(&[200, 400])),
        ("a connection option", "connection=close", malformed),
        ("a keep-alive", "keep-alive=timeout=5", malformed),
        ("a proxy's connection option", "proxy-connection=close", malformed),
        ("a coding", "transfer-encoding=chunked", malformed),
        ("an upgrade", "upgrade=websocket", malformed),
        ("te of gzip", "te=gzip", malformed),
        ("te of trailers is well-formed", "te=trailers", Status(&[200])),
        ("cookies apart are well-formed", "cookie=a=b|cookie=c=d", Status(&[200])),
        // Section 8.3: pseudo-fields.
        ("a pseudo-field after a field", "a=b|:path=/", malformed),
        ("a method twice", ":method=GET", malformed),
        ("a path twice", ":path=/health", malformed),
        ("a scheme twice", ":scheme=http", malformed),
        ("an authority twice", ":authority=test", malformed),
        ("an unknown pseudo-field", ":unknown=x", malformed),
        ("an answer's pseudo-field", ":status=200", malformed),
        ("a protocol", ":protocol=websocket", malformed),
        // Section 8.3.1: a host that is not the authority should be malformed.
        ("a host that is not the authority", "host=other", malformed),
        ("a host that is the authority", "host=test", Status(&[200])),
        ("a host with a space", "host=te st", malformed),
        ("two hosts", "host=test|host=other", malformed),
        // Section 8.1.1: a length that the body does not have.
        ("a length without a body", "content-length=5", malformed),
        ("a length that is no number", "content-length=x", malformed),
        ("a negative length", "content-length=-1", malformed),
        ("a length of 65 bits", "content-length=18446744073709551616", malformed),
        ("two lengths", "content-length=0|content-length=5", malformed),
        ("expecting a banana", "expect=banana", Status(&[200, 417])),
    ] {
        rows.push((name, headers(1, END, &format!("{FIELDS}|{field}")), reply));
    }
    for (name, fields, reply) in [
        ("no method", ":scheme=http|:authority=test|:path=/", malformed),
        ("no scheme", ":method=GET|:authority=test|:path=/", malformed),
        ("no path", ":method=GET|:scheme=http|:authority=test", malformed),
        ("nothing but a field", "a=b", malformed),
        ("no authority", ":method=GET|:scheme=http|:path=/", tolerated),
        ("a host for an authority", ":method=GET|:scheme=http|:path=/|host=test", Status(&[200])),
        ("a bad host for an authority", ":method=GET|:scheme=http|:path=/|host=a b", malformed),
        ("an empty authority", ":method=GET|:scheme=http|:authority=|:path=/", Refused(PROTOCOL_ERROR)),
        ("an authority with a space", ":method=GET|:scheme=http|:authority=a b|:path=/", malformed),
        ("an authority with a user", ":method=GET|:scheme=http|:authority=user@test|:path=/", malformed),
        ("an authority with a path", ":method=GET|:scheme=http|:authority=test/x|:path=/", malformed),
        ("an authority with a bad port", ":method=GET|:scheme=http|:authority=test:port|:path=/", malformed),
        ("an empty method", ":method=|:scheme=http|:authority=test|:path=/", malformed),
        ("a method with a space", ":method=GET /x|:scheme=http|:authority=test|:path=/", malformed),
        ("a method with a NUL", ":method=GET\0|:scheme=http|:authority=test|:path=/", malformed),
        ("an empty scheme", ":method=GET|:scheme=|:authority=test|:path=/", malformed),
        ("a broken scheme", ":method=GET|:scheme=1:|:authority=test|:path=/", malformed),
        ("another scheme", ":method=GET|:scheme=ftp|:authority=test|:path=/", malformed),
        // A gateway that takes TLS off may well say so.
        ("the scheme of a gateway", ":method=GET|:scheme=https|:authority=test|:path=/", Status(&[200, 400, 421])),
        ("an empty path", ":method=GET|:scheme=http|:authority=test|:path=", malformed),
        ("a path without a slash", ":method=GET|:scheme=http|:authority=test|:path=health", malformed),
        ("a path of a whole URI", ":method=GET|:scheme=http|:authority=test|:path=http://test/", malformed),
        ("a path of a query", ":method=GET|:scheme=http|:authority=test|:path=?x", malformed),
        ("a path with a space", ":method=GET|:scheme=http|:authority=test|:path=/ x", malformed),
        ("a path with a NUL", ":method=GET|:scheme=http|:authority=test|:path=/\0", malformed),
        ("a path with a request", ":method=GET|:scheme=http|:authority=test|:path=/ HTTP/1.1\r\nHost: test\r\n\r\n", malformed),
        ("a path of an asterisk", ":method=GET|:scheme=http|:authority=test|:path=*", malformed),
        // As in HTTP/1, the fragment is dropped before anybody sees it.
        ("a path with a fragment", ":method=GET|:scheme=http|:authority=test|:path=/#x", tolerated),
        ("OPTIONS of the server", ":method=OPTIONS|:scheme=http|:authority=test|:path=*", Status(&[200, 204, 404])),
        // Section 8.5, and RFC 8441, which is not on offer.
        ("CONNECT", ":method=CONNECT|:authority=test:80", malformed),
        ("CONNECT with a path", ":method=CONNECT|:scheme=http|:authority=test:80|:path=/", malformed),
        ("CONNECT without an authority", ":method=CONNECT", malformed),
        ("CONNECT without a port", ":method=CONNECT|:authority=test", malformed),
        ("CONNECT with a length", ":method=CONNECT|:authority=test:80|content-length=5", malformed),
        ("CONNECT to a protocol", ":method=CONNECT|:protocol=websocket|:scheme=http|:authority=test|:path=/", malformed),
    ] {
        rows.push((name, headers(1, END, fields), reply));
    }
    let post = |field: &str| headers(1, END_HEADERS, &FIELDS.replace("GET", &format!("POST{field}")));
    let length = |length| headers(1, END_HEADERS, &format!("{FIELDS}|content-length={length}"));
    let wide = |count| format!("{FIELDS}{}", format!("|a={}", "x".repeat(1000)).repeat(count));
    rows.extend([
        ("less DATA than the length", [length(5), frame(DATA, END_STREAM, 1, b"hell")].concat(), malformed),
        ("more DATA than the length", [length(5), frame(DATA, END_STREAM, 1, b"hello!")].concat(), malformed),
        ("more DATA than a length of none", [length(0), frame(DATA, END_STREAM, 1, b"x")].concat(), malformed),
        ("trailers are well-formed", [post(""), headers(1, END, "a=b")].concat(), Status(&[405])),
        ("trailers with a pseudo-field", [post(""), headers(1, END, ":path=/")].concat(), malformed),
        ("trailers without an end", [post(""), headers(1, END_HEADERS, "a=b")].concat(), malformed),
        ("trailers in upper case", [post(""), headers(1, END, "A=b")].concat(), malformed),
        // RFC 6585, section 5; the agreed limit is 32 KiB.
        ("fields of 12,000 bytes", headers(1, END, &wide(12)), Status(&[200])),
        ("fields of 40,000 bytes", continued(&block(&wide(40))), Refused(ENHANCE_YOUR_CALM)),
        ("fields of 200,000 bytes", continued(&block(&wide(200))), Closed(ENHANCE_YOUR_CALM)),
    ]);
    rows
}

/// HEADERS on stream 1, and as many CONTINUATION frames as it takes.
fn continued(block: &[u8]) -> Vec<u8> {
    let (first, rest) = block.split_at(16_384.min(block.len()));
    let mut frames = frame(HEADERS, END_STREAM, 1, first);
    for part in rest.chunks(16_384) {
        frames.extend(frame(CONTINUATION, 0, 1, part));
    }
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
    frames
}

/// RFC 9113, section 10.5: much work for few bytes.
#[rustfmt::skip] // A row is a line.
fn floods() -> Vec<Frames> {
    use Reply::{Closed, Endured, Ignored, Refused, Status};
    let calm = Closed(ENHANCE_YOUR_CALM);
    let bounded = Endured(ENHANCE_YOUR_CALM);
    let streams = |count: u32| (0..count).map(|n| 2 * n + 1);
    let post = &headers(1, END_HEADERS, &FIELDS.replace("GET", "POST"));
    let each = |count, bytes: &dyn Fn(u32) -> Vec<u8>| streams(count).flat_map(bytes).collect::<Vec<_>>();
    // Enters a field of 4,000 bytes into the table once, then names it with a byte each time.
    let bomb = [&block(FIELDS), &b"\x40"[..], &text("a"), &text(&"x".repeat(4000)), &b"\xbe".repeat(4000)].concat();
    let unending = [frame(HEADERS, END_STREAM, 1, &block(FIELDS)), frame(CONTINUATION, 0, 1, &block("a=b")).repeat(5000)].concat();
    let empty = [frame(HEADERS, END_STREAM, 1, &block(FIELDS)), frame(CONTINUATION, 0, 1, b"").repeat(5000)].concat();
    let window = |size: u32| frame(SETTINGS, 0, 0, &[b"\0\x04", &size.to_be_bytes()[..]].concat());
    vec![
        ("3,000 requests, each reset",
            each(3000, &|id| [headers(id, END, FIELDS), frame(RST_STREAM, 0, id, b"\0\0\0\x08")].concat()), calm),
        ("3,000 requests that the server has to reset",
            each(3000, &|id| [headers(id, END_HEADERS, FIELDS), frame(WINDOW_UPDATE, 0, id, b"\x7f\xff\xff\xff")].concat()), calm),
        ("3,000 malformed requests", each(3000, &|id| headers(id, END, "a=b")), calm),
        ("3,000 requests at a time", each(3000, &|id| headers(id, END, FIELDS)), bounded),
        ("3,000 requests that do not end", each(3000, &|id| headers(id, END_HEADERS, FIELDS)), bounded),
        ("fields that do not end", unending, calm),
        ("fields that do not end, and are empty", empty, calm),
        ("fields that unfold to 16 MB", frame(HEADERS, END, 1, &bomb), calm),
        ("10,000 SETTINGS", frame(SETTINGS, 0, 0, b"").repeat(10_000), bounded),
        ("10,000 SETTINGS with a new window", (0..10_000).flat_map(window).collect(), bounded),
        ("10,000 PING", frame(PING, 0, 0, b"12345678").repeat(10_000), bounded),
        ("10,000 PRIORITY", each(10_000, &|id| frame(PRIORITY, 0, id, b"\0\0\0\0\x0f")), bounded),
        ("10,000 WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01").repeat(10_000), bounded),
        ("10,000 unknown frames", frame(0xbe, 0, 0, b"").repeat(10_000), Ignored),
        ("10,000 empty DATA", [post.clone(), frame(DATA, 0, 1, b"").repeat(10_000)].concat(), bounded),
        ("10,000 DATA of padding", [post.clone(), frame(DATA, PADDED, 1, &[10; 11]).repeat(10_000)].concat(), bounded),
        ("10,000 DATA after a reset",
            [post.clone(), frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), frame(DATA, 0, 1, b"x").repeat(10_000)].concat(), bounded),
        ("DATA beyond the window", [post.clone(), frame(DATA, 0, 1, &[0; 16_384]).repeat(100)].concat(), Refused(FLOW_CONTROL_ERROR)),
        ("a window of none, never opened", [window(0), each(90, &|id| headers(id, END, FIELDS))].concat(), Status(&[200])),
    ]
}
