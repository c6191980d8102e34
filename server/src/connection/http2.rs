//! The streams of an HTTP/2 connection, by the frames that pass (RFC 9113, section 4.1).
//!
//! h2 takes in all requests that have come before any of them is served, and holds a stream until its client has taken the
//! whole response. It has no timeout for half a head, nor for a client that opens no window. So what streams take, and how
//! long they wait, can only be bounded where their frames pass.

use crate::connection::pace::STEADY_BYTES;
use http::StatusCode;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// What a client begins with (RFC 9113, section 3.4).
const CLIENT_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes of a setting, and of the increment of a window (RFC 9113, sections 6.5.1 and 6.9).
const SETTING_BYTES: usize = 6;
const INCREMENT_BYTES: usize = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// The last byte of the code by which a stream is declared unprocessed (RFC 9113, section 7).
const REFUSED_STREAM: u8 = 7;

/// Bytes of a window that nothing was said about (RFC 9113, section 6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;

/// The streams of a connection, if it is one of HTTP/2.
pub struct Streams {
    preface: Preface,
    received: Frames,
    sent: Frames,
    open: BTreeMap<u32, Stream>,
    last: u32,
    /// What the client takes of all responses.
    window: Window,
    /// What it takes of one that begins.
    initial_window: i64,
    /// What has come of a setting or an increment.
    field: [u8; SETTING_BYTES],
    field_filled: usize,
    /// The number of frames that have come, where those of a head are one.
    units: u64,
    /// Set while a head is to be continued.
    is_within_head: bool,
    /// When the frame or head began that has not come whole, and its number.
    incomplete: Option<(Instant, u64)>,
    /// The last byte of the code of the last reset that was sent.
    reset_code: u8,
    /// The last stream that GOAWAY allows, and what has been sent of it.
    last_allowed: u32,
    last_stream: [u8; 4],
    sent_filled: usize,
    /// The statuses of requests that h2 has refused, until they are logged.
    refused: Vec<StatusCode>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            preface: Preface::Empty,
            received: Frames::default(),
            sent: Frames::default(),
            open: BTreeMap::new(),
            last: 0,
            window: Window::new(DEFAULT_WINDOW),
            initial_window: DEFAULT_WINDOW,
            field: [0; SETTING_BYTES],
            field_filled: 0,
            units: 0,
            is_within_head: false,
            incomplete: None,
            reset_code: 0,
            last_allowed: u32::MAX,
            last_stream: [0; 4],
            sent_filled: 0,
            refused: Vec::new(),
        }
    }
}

struct Stream {
    /// Bytes of its fields, as they are sent, trailers included.
    fields: usize,
    window: Window,
    /// Set when the request has come to the service.
    is_served: bool,
    /// Set when the response has begun.
    has_response: bool,
}

/// What the client takes for now. While it takes nothing, its time passes.
struct Window {
    /// May be negative (RFC 9113, section 6.9.2).
    bytes: i64,
    /// Set while it is closed.
    closed: Option<Instant>,
    /// Since the client last was steady: the time that it was closed before, and the bytes sent.
    waited: Duration,
    sent: usize,
}

impl Window {
    fn new(bytes: i64) -> Self {
        let mut window = Self {
            bytes,
            closed: None,
            waited: Duration::ZERO,
            sent: 0,
        };
        window.change(0);
        window
    }

    fn change(&mut self, bytes: i64) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= 0 {
            self.closed.get_or_insert_with(Instant::now);
        } else if let Some(closed) = self.closed.take() {
            self.waited += closed.elapsed();
        }
    }

    /// Takes note of bytes that have been sent.
    fn send(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= STEADY_BYTES {
            self.restart();
        }
        self.change(-(bytes as i64));
    }

    /// The client has all of its time.
    fn restart(&mut self) {
        self.sent = 0;
        self.waited = Duration::ZERO;
        self.closed = self.closed.map(|_| Instant::now());
    }

    /// When the client will have had this time, unless it opens the window.
    fn stalls_at(&self, limit: Duration) -> Option<Instant> {
        let left = limit.saturating_sub(self.waited);
        self.closed.map(|closed| closed + left)
    }
}

/// Bytes that a stream with short fields and a short response takes: measured, 6 KiB, and 4 KiB of the response.
const STREAM_BYTES: usize = 10 << 10;

/// Bytes of fields that may be many fields.
const SHORT_FIELDS_BYTES: usize = 1 << 10;

/// What fields take for each byte that is sent of them: measured with 31 KB.
const FIELDS_FACTOR: usize = 3;

/// The same for the first bytes: a field without a value that HPACK has in its table is sent as one byte, and takes 72.
const SHORT_FIELDS_FACTOR: usize = 32;

impl Stream {
    fn new(fields: usize, window: i64) -> Self {
        Self {
            fields,
            window: Window::new(window),
            is_served: false,
            has_response: false,
        }
    }

    /// Bytes that it takes.
    fn cost(&self) -> usize {
        let short = self.fields.min(SHORT_FIELDS_BYTES);
        STREAM_BYTES + short * SHORT_FIELDS_FACTOR + (self.fields - short) * FIELDS_FACTOR
    }
}

enum Preface {
    Empty,
    /// As many bytes of the preface have come.
    Partial(usize),
    Http1,
    Http2,
}

/// Frames of one direction.
#[derive(Default)]
struct Frames {
    head: [u8; FRAME_HEADER_BYTES],
    filled: usize,
    frame: Frame,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

#[derive(Clone, Copy, Default)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Bytes of the payload.
    length: usize,
}

enum Part<'a> {
    Head,
    Payload(&'a [u8]),
    End,
}

impl Frames {
    /// Returns true if the last frame has not come whole.
    fn is_within(&self) -> bool {
        self.filled > 0 || self.payload > 0
    }

    /// Calls `each` with the parts of frames that are in these bytes.
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame, Part)) {
        loop {
            if self.payload > 0 {
                let (payload, rest) = bytes.split_at(self.payload.min(bytes.len()));
                self.payload -= payload.len();
                bytes = rest;
                each(self.frame, Part::Payload(payload));
                if self.payload == 0 {
                    each(self.frame, Part::End);
                }
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            if let Some(slot) = self.head.get_mut(self.filled) {
                *slot = *byte;
            }
            self.filled += 1;
            bytes = rest;
            if self.filled == FRAME_HEADER_BYTES {
                self.filled = 0;
                let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = self.head;
                self.payload = u32::from_be_bytes([0, l1, l2, l3]) as usize;
                self.frame = Frame {
                    kind,
                    flags,
                    // The first bit is reserved.
                    stream: u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]),
                    length: self.payload,
                };
                each(self.frame, Part::Head);
                if self.payload == 0 {
                    each(self.frame, Part::End);
                }
            }
        }
    }
}

impl Streams {
    /// Returns true if this is a connection of HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.preface, Preface::Http2)
    }

    /// Returns the bytes that all streams take, but for a short one: that is part of what a connection takes at any rate.
    pub fn cost(&self) -> usize {
        let all: usize = self.open.values().map(Stream::cost).sum();
        all.saturating_sub(STREAM_BYTES)
    }

    /// Returns true if there are responses that have not been sent whole.
    pub fn has_responses(&self) -> bool {
        self.open.values().any(|stream| stream.has_response)
    }

    /// Returns when a client has had this time to open its windows for a response that waits.
    pub fn stalls_at(&self, limit: Duration) -> Option<Instant> {
        let begun = self.open.values().filter(|stream| stream.has_response);
        let windows = begun.flat_map(|stream| [&stream.window, &self.window]);
        windows.filter_map(|window| window.stalls_at(limit)).min()
    }

    /// Returns since when the rest of a head is missing, or that of another frame than of a body.
    pub fn incomplete(&self) -> Option<Instant> {
        self.incomplete.map(|(since, _)| since)
    }

    /// Has that time begin now: the server has not read.
    pub fn restart_incomplete(&mut self) {
        if let Some((since, _)) = &mut self.incomplete {
            *since = Instant::now();
        }
    }

    /// Takes note of what the client has sent.
    pub fn on_read(&mut self, mut bytes: &[u8]) {
        let matched = match self.preface {
            Preface::Http1 => return,
            Preface::Http2 => CLIENT_PREFACE.len(),
            Preface::Empty => 0,
            Preface::Partial(matched) => matched,
        };
        let rest = CLIENT_PREFACE.get(matched..).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        if rest.get(..length) != bytes.get(..length) {
            self.preface = Preface::Http1;
            return;
        }
        self.preface = match matched + length {
            0 => Preface::Empty,
            matched if matched == CLIENT_PREFACE.len() => Preface::Http2,
            matched => Preface::Partial(matched),
        };
        bytes = bytes.get(length..).unwrap_or_default();
        let mut received = std::mem::take(&mut self.received);
        received.pass(bytes, |frame, part| match part {
            Part::Head => self.on_received_head(frame),
            Part::Payload(payload) => self.on_received_payload(frame, payload),
            Part::End => self.on_received_end(frame),
        });
        let is_within_body = received.filled == 0 && received.frame.kind == DATA;
        if self.is_within_head || received.is_within() && !is_within_body {
            let is_it = |(_, number): &(Instant, u64)| *number == self.units;
            let began = self.incomplete.filter(is_it);
            self.incomplete = Some(began.unwrap_or_else(|| (Instant::now(), self.units)));
        } else {
            self.incomplete = None;
        }
        self.received = received;
    }

    fn on_received_head(&mut self, frame: Frame) {
        self.field_filled = 0;
        match frame.kind {
            // What comes after GOAWAY is ignored by h2.
            HEADERS if frame.stream > self.last && frame.stream <= self.last_allowed => {
                self.last = frame.stream;
                let stream = Stream::new(frame.length, self.initial_window);
                self.open.insert(frame.stream, stream);
            }
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

    fn on_received_payload(&mut self, frame: Frame, payload: &[u8]) {
        let size = match frame.kind {
            SETTINGS => SETTING_BYTES,
            WINDOW_UPDATE => INCREMENT_BYTES,
            _ => return,
        };
        for byte in payload {
            if let Some(slot) = self.field.get_mut(self.field_filled) {
                *slot = *byte;
            }
            self.field_filled += 1;
            if self.field_filled == size {
                self.field_filled = 0;
                self.on_received_field(frame);
            }
        }
    }

    /// Takes note of a setting or an increment.
    fn on_received_field(&mut self, frame: Frame) {
        let [a, b, c, d, e, f] = self.field;
        if frame.kind == WINDOW_UPDATE {
            let more = i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
            match frame.stream {
                0 => self.window.change(more),
                stream => {
                    if let Some(stream) = self.open.get_mut(&stream) {
                        stream.window.change(more);
                    }
                }
            }
        } else if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
            let size = i64::from(u32::from_be_bytes([c, d, e, f]));
            let more = size - self.initial_window;
            self.initial_window = size;
            for stream in self.open.values_mut() {
                stream.window.change(more);
            }
        }
    }

    fn on_received_end(&mut self, frame: Frame) {
        if matches!(frame.kind, HEADERS | CONTINUATION) {
            self.is_within_head = frame.flags & END_HEADERS == 0;
        }
        if !self.is_within_head {
            self.units += 1;
        }
    }

    /// A request has come to the service. They come in the order of their streams, but for those that h2 has refused by then.
    pub fn start_request(&mut self) {
        let incomplete = self.is_within_head.then_some(self.last);
        let mut open = self.open.iter_mut();
        let next = open.find(|(id, stream)| !stream.is_served && Some(**id) != incomplete);
        if let Some((_, stream)) = next {
            stream.is_served = true;
        }
    }

    /// Returns the statuses of the requests that h2 has refused since the last call: it responds with 431, or resets the
    /// stream.
    pub fn take_refused(&mut self) -> Vec<StatusCode> {
        std::mem::take(&mut self.refused)
    }

    /// Takes note of what has been sent to the client.
    pub fn on_write(&mut self, bytes: &[u8]) {
        if !self.is_http2() {
            return;
        }
        let mut sent = std::mem::take(&mut self.sent);
        sent.pass(bytes, |frame, part| match part {
            Part::Head => {
                self.sent_filled = 0;
                self.on_sent_head(frame);
            }
            Part::Payload(bytes) if frame.kind == GOAWAY => {
                for (byte, slot) in bytes
                    .iter()
                    .zip(self.last_stream.iter_mut().skip(self.sent_filled))
                {
                    *slot = *byte;
                    self.sent_filled += 1;
                }
            }
            Part::Payload([.., last]) if frame.kind == RST_STREAM => self.reset_code = *last,
            Part::Payload(_) => {}
            Part::End => self.on_sent_end(frame),
        });
        self.sent = sent;
    }

    fn on_sent_head(&mut self, frame: Frame) {
        if frame.kind == DATA {
            self.window.send(frame.length);
        }
        let is_first = !self.has_responses();
        let Some(stream) = self.open.get_mut(&frame.stream) else {
            return;
        };
        match frame.kind {
            DATA => stream.window.send(frame.length),
            HEADERS if !stream.has_response => {
                if !stream.is_served {
                    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                    self.refused.push(status);
                }
                stream.has_response = true;
                stream.window.restart();
                if is_first {
                    self.window.restart();
                }
            }
            _ => {}
        }
    }

    fn on_sent_end(&mut self, frame: Frame) {
        if frame.kind == GOAWAY {
            self.last_allowed = u32::from_be_bytes(self.last_stream);
        }
        let is_response = matches!(frame.kind, DATA | HEADERS);
        if frame.kind != RST_STREAM && !(is_response && frame.flags & END_STREAM != 0) {
            return;
        }
        let Some(stream) = self.open.remove(&frame.stream) else {
            return;
        };
        if frame.kind == RST_STREAM && !stream.is_served {
            self.refused.push(match self.reset_code {
                REFUSED_STREAM => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_REQUEST,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
        frame.resize(frame.len() + usize::from(length), b'x');
        frame
    }

    #[test]
    fn streams_are_open_from_their_head_to_the_end_of_the_response() {
        let received = [
            CLIENT_PREFACE.to_vec(),
            frame(4, 0, 0, 6),
            frame(HEADERS, 4, 1, 20),
            frame(HEADERS, 5, 3, 200),
            frame(DATA, 0, 1, 30),
            // Trailers.
            frame(HEADERS, 5, 1, 3),
            frame(HEADERS, 5, 5, 0),
        ]
        .concat();
        let sent = [
            frame(4, 0, 0, 0),
            frame(HEADERS, 4, 1, 9),
            frame(DATA, 0, 1, 9),
            frame(HEADERS, 5, 3, 9),
            frame(DATA, END_STREAM, 1, 0),
        ]
        .concat();
        for step in [1, 7, 1000] {
            let mut streams = Streams::default();
            received.chunks(step).for_each(|it| streams.on_read(it));
            assert!(streams.is_http2());
            assert_eq!(streams.open.len(), 3, "{step}");
            assert!(streams.stalls_at(LIMIT).is_none());
            sent.chunks(step).for_each(|it| streams.on_write(it));
            assert_eq!(streams.open.len(), 1, "{step}");
            let reset = frame(RST_STREAM, 0, 5, 4);
            reset.chunks(step).for_each(|it| streams.on_read(it));
            assert_eq!(streams.open.len(), 0, "{step}");
        }
    }

    #[test]
    fn fields_cost_more_than_streams_and_the_first_short_one_nothing() {
        let mut streams = Streams::default();
        streams.on_read(CLIENT_PREFACE);
        streams.on_read(&frame(HEADERS, 4, 1, 0));
        assert_eq!(streams.cost(), 0);
        streams.on_read(&frame(HEADERS, 4, 3, 20));
        assert_eq!(streams.cost(), STREAM_BYTES + 20 * SHORT_FIELDS_FACTOR);
        for _ in 0..100 {
            streams.on_read(&frame(CONTINUATION, 0, 3, 100));
        }
        let short = SHORT_FIELDS_BYTES * SHORT_FIELDS_FACTOR;
        let long = (10_020 - SHORT_FIELDS_BYTES) * FIELDS_FACTOR;
        assert_eq!(streams.cost(), STREAM_BYTES + short + long);
    }

    fn increment(stream: u8, bytes: u8) -> Vec<u8> {
        [&frame(WINDOW_UPDATE, 0, stream, 0)[..], &[0, 0, 0, bytes]].concat()
    }

    fn settings(window: u8) -> Vec<u8> {
        [&frame(SETTINGS, 0, 0, 0)[..], &[0, 4, 0, 0, 0, window]].concat()
    }

    /// Gives a frame that was made without a payload the length of the one that follows it.
    fn with_payload(mut frame: Vec<u8>) -> Vec<u8> {
        frame[2] = frame.len() as u8 - 9;
        frame
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn client_has_its_time_while_its_window_is_closed() {
        let mut streams = Streams::default();
        streams.on_read(CLIENT_PREFACE);
        streams.on_read(&with_payload(settings(5)));
        streams.on_read(&frame(HEADERS, 5, 1, 0));
        streams.on_write(&frame(HEADERS, 4, 1, 0));
        assert!(streams.stalls_at(LIMIT).is_none());
        streams.on_write(&frame(DATA, 0, 1, 5));
        let end = streams.stalls_at(LIMIT).expect("it is closed");
        // A client that opens it byte by byte gets no more time, but for what the bytes take.
        for _ in 0..10 {
            for byte in with_payload(increment(1, 1)) {
                streams.on_read(&[byte]);
            }
            assert!(streams.stalls_at(LIMIT).is_none());
            streams.on_write(&frame(DATA, 0, 1, 1));
        }
        let opened = Instant::now();
        assert!(
            streams
                .stalls_at(LIMIT)
                .is_some_and(|it| it >= end && it < opened + LIMIT)
        );
        // One that takes 1 KiB does.
        for _ in 0..5 {
            streams.on_read(&with_payload(increment(1, 250)));
            streams.on_write(&frame(DATA, 0, 1, 250));
        }
        assert!(streams.stalls_at(LIMIT) >= Some(opened + LIMIT));
        // A setting opens it, and another closes it.
        streams.on_read(&with_payload(settings(100)));
        assert!(streams.stalls_at(LIMIT).is_none());
        streams.on_read(&with_payload(settings(0)));
        assert!(streams.stalls_at(LIMIT).is_some());
    }

    #[test]
    fn all_responses_wait_for_the_connections_window() {
        let mut streams = Streams::default();
        streams.on_read(CLIENT_PREFACE);
        for stream in [1, 3] {
            let more = [&frame(WINDOW_UPDATE, 0, stream, 0)[..], &[0, 1, 0, 0]].concat();
            streams.on_read(&frame(HEADERS, 5, stream, 0));
            streams.on_read(&with_payload(more));
        }
        streams.on_write(&frame(HEADERS, 4, 1, 0));
        for _ in 0..257 {
            streams.on_write(&frame(DATA, 0, 1, 255));
        }
        assert!(streams.stalls_at(LIMIT).is_some());
        streams.on_write(&frame(DATA, END_STREAM, 1, 0));
        // Nothing waits for it.
        assert!(streams.stalls_at(LIMIT).is_none());
        let begun = Instant::now();
        streams.on_write(&frame(HEADERS, 4, 3, 0));
        assert!(streams.stalls_at(LIMIT) >= Some(begun + LIMIT));
        streams.on_read(&with_payload(increment(0, 1)));
        assert!(streams.stalls_at(LIMIT).is_none());
    }

    #[test]
    fn streams_behind_goaway_are_none() {
        let mut streams = Streams::default();
        streams.on_read(CLIENT_PREFACE);
        streams.on_read(&frame(HEADERS, 5, 1, 0));
        for byte in with_payload([&frame(GOAWAY, 0, 0, 0)[..], &[0, 0, 0, 3, 0, 0, 0, 0]].concat())
        {
            streams.on_write(&[byte]);
        }
        for stream in [3, 5, 7] {
            streams.on_read(&frame(HEADERS, 5, stream, 0));
        }
        assert_eq!(streams.open.len(), 2);
    }

    #[test]
    fn head_is_incomplete_until_its_last_frame_has_come() {
        let mut streams = Streams::default();
        streams.on_read(CLIENT_PREFACE);
        assert!(streams.incomplete().is_none());
        let head = [frame(HEADERS, 1, 1, 9), frame(CONTINUATION, 4, 1, 9)].concat();
        let mut since = None;
        for (n, byte) in head.iter().enumerate() {
            streams.on_read(&[*byte]);
            let is_last = n + 1 == head.len();
            assert_eq!(streams.incomplete().is_none(), is_last, "{n}");
            since = since.or(streams.incomplete());
            assert!(is_last || streams.incomplete() == since, "{n}");
        }
        // Half a body has a timeout of its own.
        streams.on_read(&frame(DATA, 0, 1, 9)[..12]);
        assert!(streams.incomplete().is_none());
        // Each frame that is cut has a clock of its own.
        let rest = [&[b'x'; 6], &frame(DATA, 0, 1, 9)[..5]].concat();
        streams.on_read(&rest);
        let first = streams.incomplete();
        let rest = [&frame(DATA, 0, 1, 9)[5..], &frame(DATA, 0, 1, 9)[..5]].concat();
        streams.on_read(&rest);
        assert!(first.is_some() && streams.incomplete() > first);
    }

    #[test]
    fn request_that_does_not_come_to_the_service_is_refused() {
        let mut streams = Streams::default();
        streams.on_read(CLIENT_PREFACE);
        for stream in [1, 3, 5, 7] {
            streams.on_read(&frame(HEADERS, 5, stream, 0));
        }
        streams.start_request();
        streams.on_write(&with_payload(
            [&frame(RST_STREAM, 0, 3, 0)[..], &[0, 0, 0, 1]].concat(),
        ));
        streams.on_write(&frame(HEADERS, 5, 5, 0));
        streams.start_request();
        let refused = streams.take_refused();
        assert_eq!(
            refused.iter().map(StatusCode::as_u16).collect::<Vec<_>>(),
            [400, 431]
        );
        streams.on_read(&frame(HEADERS, 5, 9, 0));
        streams.on_write(&with_payload(
            [&frame(RST_STREAM, 0, 9, 0)[..], &[0, 0, 0, 7]].concat(),
        ));
        assert_eq!(streams.take_refused(), [StatusCode::SERVICE_UNAVAILABLE]);
        for stream in [1, 7] {
            streams.on_write(&frame(HEADERS, 5, stream, 0));
        }
        assert!(streams.take_refused().is_empty() && streams.open.is_empty());
    }

    #[test]
    fn what_does_not_begin_with_the_preface_is_no_http2() {
        for bytes in ["GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n"] {
            let mut streams = Streams::default();
            streams.on_read(bytes.as_bytes());
            streams.on_write(&frame(HEADERS, 5, 1, 9));
            assert!(!streams.is_http2() && streams.cost() == 0);
        }
    }
}
