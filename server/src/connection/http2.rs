//! The streams of an HTTP/2 connection, from the frames that pass in both directions.
//!
//! h2 accepts all requests that have arrived before it hands out the first, and keeps a stream until the client has received
//! the whole response. It has no timeout for an incomplete head or for a client that keeps its window closed, and does not
//! report either. So what streams cost, and how long they wait, is read from the frames themselves:
//!
//! - A stream is open from its HEADERS to the END_STREAM of the response or a RST_STREAM. h2 ignores those behind GOAWAY.
//! - Requests reach the service in the order of their streams. One whose response or reset passes before that was
//!   rejected by h2, and is logged from here.
//! - A response waits while its stream's window or the connection's is closed. The time before it started does not count.
//! - A frame, or a head of several frames, is incomplete from its first byte to its last.

use crate::connection::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FieldReader, FrameHeader, FramePart, FrameReader,
    GOAWAY, HEADERS, Protocol, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::connection::stream::{STREAM_BYTES, Stream};
use crate::connection::window::{DEFAULT_WINDOW_BYTES, Window};
use http::StatusCode;
use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of a setting (RFC 9113, section 6.5.1).
const SETTING_BYTES: usize = 6;

/// Bytes of a window's increment (RFC 9113, section 6.9).
const INCREMENT_BYTES: usize = 4;

/// Identifier of the setting for the initial window of streams (RFC 9113, section 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Last byte of the error code of a stream that was not processed (RFC 9113, section 7).
const REFUSED_STREAM: u8 = 7;

/// The open streams of a connection. Empty for HTTP/1.
pub struct Streams {
    protocol: Protocol,
    received: FrameReader,
    sent: FrameReader,
    open: BTreeMap<u32, Stream>,
    last_opened: u32,
    /// What the client is ready to receive of all responses.
    window: Window,
    /// The same for a new stream.
    initial_window: i64,
    /// A received setting or increment.
    field: FieldReader<SETTING_BYTES>,
    /// Number of complete frames received, counting the frames of a head as one.
    complete: u64,
    /// Set between the frames of a head.
    is_within_head: bool,
    /// When the frame or head started that is incomplete, and its number.
    incomplete: Option<(Instant, u64)>,
    /// Last byte of the error code of the last RST_STREAM that was sent.
    reset_code: u8,
    /// The last stream that a sent GOAWAY allows, and the field that it is read from.
    last_allowed: u32,
    last_stream: FieldReader<4>,
    /// Statuses of the requests that h2 has rejected, until they are logged.
    rejected: Vec<StatusCode>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            protocol: Protocol::Undecided(0),
            received: FrameReader::default(),
            sent: FrameReader::default(),
            open: BTreeMap::new(),
            last_opened: 0,
            window: Window::new(DEFAULT_WINDOW_BYTES),
            initial_window: DEFAULT_WINDOW_BYTES,
            field: FieldReader::default(),
            complete: 0,
            is_within_head: false,
            incomplete: None,
            reset_code: 0,
            last_allowed: u32::MAX,
            last_stream: FieldReader::default(),
            rejected: Vec::new(),
        }
    }
}

impl Streams {
    /// Returns true if this is an HTTP/2 connection.
    pub fn is_http2(&self) -> bool {
        matches!(self.protocol, Protocol::Http2)
    }

    /// Returns the number of open streams.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Returns the bytes of memory that all streams take beyond one short one, which every connection may have.
    pub fn cost(&self) -> usize {
        let all: usize = self.open.values().map(Stream::cost).sum();
        all.saturating_sub(STREAM_BYTES)
    }

    /// Returns true if a response has started and not ended.
    pub fn has_responses(&self) -> bool {
        self.open.values().any(|stream| stream.has_response)
    }

    /// Returns when the client will have kept a response waiting for `limit`, unless it opens its windows.
    pub fn stall_deadline(&self, limit: Duration) -> Option<Instant> {
        let responding = self.open.values().filter(|stream| stream.has_response);
        let windows = responding.flat_map(|stream| [&stream.window, &self.window]);
        windows
            .filter_map(|window| window.stall_deadline(limit))
            .min()
    }

    /// Returns when the head, or other frame than DATA, started that is incomplete.
    pub fn incomplete_since(&self) -> Option<Instant> {
        self.incomplete.map(|(since, _)| since)
    }

    /// Restarts the clock of an incomplete frame: the server has not read.
    pub fn restart_incomplete(&mut self) {
        if let Some((since, _)) = &mut self.incomplete {
            *since = Instant::now();
        }
    }

    /// Records that a request has reached the service.
    pub fn on_request(&mut self) {
        let incomplete = self.is_within_head.then_some(self.last_opened);
        let mut open = self.open.iter_mut();
        let next = open.find(|(id, stream)| !stream.is_served && Some(**id) != incomplete);
        if let Some((_, stream)) = next {
            stream.is_served = true;
        }
    }

    /// Returns the statuses of the requests that h2 has rejected since the last call: by a response with 431, or by a reset
    /// of the stream.
    pub fn drain_rejected(&mut self) -> Vec<StatusCode> {
        mem::take(&mut self.rejected)
    }

    /// Records bytes that the client has sent.
    pub fn on_read(&mut self, bytes: &[u8]) {
        let Some(frames) = self.protocol.read(bytes) else {
            return;
        };
        let mut received = mem::take(&mut self.received);
        received.read(frames, |frame, part| match part {
            FramePart::Header => self.on_received_header(frame),
            FramePart::Payload(payload) => self.on_received_payload(frame, payload),
            FramePart::End => self.on_received_end(frame),
        });
        self.incomplete = (self.is_within_head || received.is_incomplete()).then(|| {
            let current = self.incomplete.filter(|(_, n)| *n == self.complete);
            current.unwrap_or_else(|| (Instant::now(), self.complete))
        });
        self.received = received;
    }

    fn on_received_header(&mut self, frame: FrameHeader) {
        self.field.clear();
        match frame.kind {
            HEADERS if frame.stream > self.last_opened && frame.stream <= self.last_allowed => {
                self.last_opened = frame.stream;
                let stream = Stream::new(frame.length, self.initial_window);
                self.open.insert(frame.stream, stream);
            }
            // Trailers are fields of the same stream.
            HEADERS | CONTINUATION => {
                if let Some(stream) = self.open.get_mut(&frame.stream) {
                    stream.fields += frame.length;
                }
            }
            RST_STREAM => {
                self.open.remove(&frame.stream);
            }
            _ => {}
        }
    }

    fn on_received_payload(&mut self, frame: FrameHeader, payload: &[u8]) {
        let size = match frame.kind {
            SETTINGS => SETTING_BYTES,
            WINDOW_UPDATE => INCREMENT_BYTES,
            _ => return,
        };
        for byte in payload {
            self.field.push(*byte);
            if self.field.filled() == size {
                self.field.clear();
                self.on_received_field(frame);
            }
        }
    }

    fn on_received_field(&mut self, frame: FrameHeader) {
        let [a, b, c, d, e, f] = self.field.bytes();
        if frame.kind == WINDOW_UPDATE {
            // The first bit is reserved.
            let increment = i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
            match frame.stream {
                0 => self.window.change(increment),
                stream => {
                    if let Some(stream) = self.open.get_mut(&stream) {
                        stream.window.change(increment);
                    }
                }
            }
        } else if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
            let size = i64::from(u32::from_be_bytes([c, d, e, f]));
            let change = size - self.initial_window;
            self.initial_window = size;
            for stream in self.open.values_mut() {
                stream.window.change(change);
            }
        }
    }

    fn on_received_end(&mut self, frame: FrameHeader) {
        if matches!(frame.kind, HEADERS | CONTINUATION) {
            self.is_within_head = frame.flags & END_HEADERS == 0;
        }
        if !self.is_within_head {
            self.complete += 1;
        }
    }

    /// Records bytes that have been sent to the client.
    pub fn on_write(&mut self, bytes: &[u8]) {
        if !self.is_http2() {
            return;
        }
        let mut sent = mem::take(&mut self.sent);
        sent.read(bytes, |frame, part| match part {
            FramePart::Header => self.on_sent_header(frame),
            FramePart::Payload(payload) if frame.kind == GOAWAY => {
                payload.iter().for_each(|byte| self.last_stream.push(*byte));
            }
            FramePart::Payload([.., last]) if frame.kind == RST_STREAM => self.reset_code = *last,
            FramePart::Payload(_) => {}
            FramePart::End => self.on_sent_end(frame),
        });
        self.sent = sent;
    }

    fn on_sent_header(&mut self, frame: FrameHeader) {
        self.last_stream.clear();
        if frame.kind == DATA {
            self.window.on_sent(frame.length);
        }
        let is_only_response = !self.has_responses();
        let Some(stream) = self.open.get_mut(&frame.stream) else {
            return;
        };
        match frame.kind {
            DATA => stream.window.on_sent(frame.length),
            HEADERS if !stream.has_response => {
                if !stream.is_served {
                    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                    self.rejected.push(status);
                }
                stream.has_response = true;
                stream.window.reset_stall();
                if is_only_response {
                    self.window.reset_stall();
                }
            }
            _ => {}
        }
    }

    fn on_sent_end(&mut self, frame: FrameHeader) {
        if frame.kind == GOAWAY {
            self.last_allowed = u32::from_be_bytes(self.last_stream.bytes());
        }
        let is_response = matches!(frame.kind, DATA | HEADERS);
        if frame.kind != RST_STREAM && !(is_response && frame.flags & END_STREAM != 0) {
            return;
        }
        let Some(stream) = self.open.remove(&frame.stream) else {
            return;
        };
        if frame.kind == RST_STREAM && !stream.is_served {
            self.rejected.push(match self.reset_code {
                REFUSED_STREAM => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_REQUEST,
            });
        }
    }
}
