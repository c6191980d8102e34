//! Reads what the server does with a case, and compares it with what is expected. An error says what was expected and received.

use super::http2::{ENHANCE_YOUR_CALM, Expected, NEXT_STREAM, PROTOCOL_ERROR};
use crate::harness::frames::{GOAWAY, HEADERS, PING, RST_STREAM, number, read_frame, status};
use crate::is_closed;
use std::io::{self, Read};
use std::net::TcpStream;

/// Reads the responses until the server closes the connection.
pub fn check_statuses(mut stream: &TcpStream, expected: &str) -> Result<(), String> {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).err();
    let end = end.filter(|error| !is_closed(error));
    let text = String::from_utf8_lossy(&bytes);
    // `HTTP/1.1 200 OK`; no body of the service has the separator.
    let responses = text.split("HTTP/1.").skip(1);
    let statuses: Vec<_> = responses.filter_map(|text| text.get(2..5)).collect();
    let statuses = match &statuses[..] {
        [] => "nothing".to_owned(),
        statuses => statuses.join(" "),
    };
    let fits = |pattern: &str| {
        let pattern = pattern.replace("next", "404");
        let same = |(p, s): (char, char)| p == s || p == 'x' && s.is_ascii_digit();
        pattern.len() == statuses.len() && pattern.chars().zip(statuses.chars()).all(same)
    };
    if end.is_none() && expected.split(" or ").any(fits) {
        return Ok(());
    }
    let end = end.map_or("closed".to_owned(), |error| format!("not closed: {error}"));
    Err(format!(
        "expected: {expected}\nreceived: {statuses}\n{}\n{end}",
        bytes.escape_ascii()
    ))
}

/// Reads frames until the server closes the connection, or has responded to the last request and, if `expected` is about
/// stream 1, to that.
pub fn check_frames(stream: &TcpStream, expected: Expected) -> Result<(), String> {
    let mut outcome = Outcome::default();
    let is_of_stream = matches!(expected, Expected::StreamError(_) | Expected::Status(_));
    let end = outcome.read(stream, is_of_stream);
    if end.is_ok() && outcome.fits(expected) {
        return Ok(());
    }
    let end = end.map_or_else(|error| format!(", not closed: {error}"), |()| String::new());
    Err(format!(
        "expected: {expected:?}\nreceived: {outcome:?}{end}"
    ))
}

#[derive(Debug, Default)]
struct Outcome {
    /// The status of stream 1.
    status: Option<u16>,
    /// The error code of stream 1.
    reset: Option<u32>,
    /// The status of the last request, or 0 if its stream is reset.
    next: Option<u16>,
    /// The error code of the connection.
    goaway: Option<u32>,
    has_ping_ack: bool,
    is_closed: bool,
}

impl Outcome {
    fn read(&mut self, stream: &TcpStream, is_of_stream: bool) -> io::Result<()> {
        while self.next.is_none() || is_of_stream && self.status.is_none() && self.reset.is_none() {
            let (kind, id, payload) = match read_frame(stream) {
                Ok(frame) => frame,
                Err(error) if is_closed(&error) => {
                    self.is_closed = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            self.has_ping_ack |= kind == PING && payload == b"12345678";
            match (kind, id) {
                (HEADERS, 1) => self.status = self.status.or(Some(status(&payload))),
                (HEADERS, NEXT_STREAM) => self.next = Some(status(&payload)),
                (RST_STREAM, 1) => self.reset = Some(number(&payload)),
                (RST_STREAM, NEXT_STREAM) => self.next = Some(0),
                (GOAWAY, 0) => self.goaway = Some(number(&payload[4..])),
                _ => {}
            }
        }
        Ok(())
    }

    fn fits(&self, expected: Expected) -> bool {
        let is_open = self.next == Some(404);
        let is_rejection = |status| matches!(status, 400..=499 | 501);
        let is_closed_with =
            |code| self.is_closed && self.goaway.is_none_or(|seen| stands_for(seen, code));
        match expected {
            Expected::ConnectionError(code) => {
                is_closed_with(code) && !is_open && self.status.is_none_or(is_rejection)
            }
            Expected::StreamError(code) => match (self.status, self.reset) {
                (Some(status), _) => is_rejection(status),
                (None, Some(reset)) => stands_for(reset, code) && (is_open || self.is_closed),
                (None, None) => is_closed_with(code),
            },
            Expected::Status(statuses) => {
                is_open && self.status.is_some_and(|status| statuses.contains(&status))
            }
            Expected::Open => is_open,
            Expected::PingAck => is_open && self.has_ping_ack,
            Expected::OpenOrError(code) => is_open || is_closed_with(code),
        }
    }
}

/// Returns true if an error code may come where another is expected.
fn stands_for(code: u32, expected: u32) -> bool {
    code == expected || code == PROTOCOL_ERROR && expected != ENHANCE_YOUR_CALM
}
