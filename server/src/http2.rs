//! The streams of an HTTP/2 connection, by the frames that pass (RFC 9113, section 4.1).
//!
//! h2 takes in all requests that have come before any of them is served, and holds a stream until its client has taken the
//! whole response. So what streams take can only be bounded where their frames pass.

use std::collections::BTreeMap;
use tokio::time::Instant;

/// What a client begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// The streams of a connection, if it is one of HTTP/2.
#[derive(Default)]
pub struct Streams {
    begin: Begin,
    received: Frames,
    sent: Frames,
    open: BTreeMap<u32, Stream>,
    last: u32,
}

struct Stream {
    /// Bytes of its fields, as they are sent, trailers included.
    fields: usize,
    /// When the last frame passed since its response began.
    sent: Option<Instant>,
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
    fn new(fields: usize) -> Self {
        Self { fields, sent: None }
    }

    /// Bytes that it takes.
    fn cost(&self) -> usize {
        let short = self.fields.min(SHORT_FIELDS_BYTES);
        STREAM_BYTES + short * SHORT_FIELDS_FACTOR + (self.fields - short) * FIELDS_FACTOR
    }
}

#[derive(Default)]
enum Begin {
    #[default]
    Empty,
    /// As many bytes of the preface have come.
    Preface(usize),
    Http1,
    Http2,
}

/// Frames of one direction.
#[derive(Default)]
struct Frames {
    head: [u8; FRAME_HEAD_BYTES],
    filled: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl Frames {
    /// Passes on bytes; calls `each` with kind, flags, stream and length of each frame that begins in them.
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, u8, u32, usize)) {
        loop {
            let payload = self.payload.min(bytes.len());
            self.payload -= payload;
            bytes = bytes.get(payload..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            if let Some(place) = self.head.get_mut(self.filled) {
                *place = *byte;
            }
            self.filled += 1;
            bytes = rest;
            if self.filled == FRAME_HEAD_BYTES {
                self.filled = 0;
                let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = self.head;
                self.payload = u32::from_be_bytes([0, l1, l2, l3]) as usize;
                // The first bit is reserved.
                let stream = u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]);
                each(kind, flags, stream, self.payload);
            }
        }
    }
}

impl Streams {
    /// Returns true if this is a connection of HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.begin, Begin::Http2)
    }

    /// Returns the bytes that all streams take, but for a short one: that is part of what a connection takes at any rate.
    pub fn cost(&self) -> usize {
        let all: usize = self.open.values().map(Stream::cost).sum();
        all.saturating_sub(STREAM_BYTES)
    }

    /// Returns when the response that has waited longest had its last frame sent.
    pub fn oldest(&self) -> Option<Instant> {
        self.open.values().filter_map(|stream| stream.sent).min()
    }

    /// Takes note of what the client has sent.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        let matched = match self.begin {
            Begin::Http1 => return,
            Begin::Http2 => PREFACE.len(),
            Begin::Empty => 0,
            Begin::Preface(matched) => matched,
        };
        let rest = PREFACE.get(matched..).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        if rest.get(..length) != bytes.get(..length) {
            self.begin = Begin::Http1;
            return;
        }
        self.begin = match matched + length {
            0 => Begin::Empty,
            matched if matched == PREFACE.len() => Begin::Http2,
            matched => Begin::Preface(matched),
        };
        bytes = bytes.get(length..).unwrap_or_default();
        let Self { open, last, .. } = self;
        self.received
            .pass(bytes, |kind, _, stream, length| match kind {
                HEADERS if stream > *last => {
                    *last = stream;
                    open.insert(stream, Stream::new(length));
                }
                HEADERS | CONTINUATION => {
                    if let Some(stream) = open.get_mut(&stream) {
                        stream.fields += length;
                    }
                }
                // The response may wait for the rest of the request.
                DATA if length > 0 => {
                    let sent = open.get_mut(&stream).and_then(|it| it.sent.as_mut());
                    if let Some(sent) = sent {
                        *sent = Instant::now();
                    }
                }
                RST_STREAM => {
                    open.remove(&stream);
                }
                _ => {}
            });
    }

    /// Takes note of what has been sent to the client.
    pub fn send(&mut self, bytes: &[u8]) {
        if !self.is_http2() {
            return;
        }
        let open = &mut self.open;
        self.sent.pass(bytes, |kind, flags, stream, _| {
            let is_response = matches!(kind, DATA | HEADERS);
            if kind == RST_STREAM || is_response && flags & END_STREAM != 0 {
                open.remove(&stream);
            } else if is_response && let Some(stream) = open.get_mut(&stream) {
                stream.sent = Some(Instant::now());
            }
        });
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
            PREFACE.to_vec(),
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
            received.chunks(step).for_each(|it| streams.receive(it));
            assert!(streams.is_http2());
            assert_eq!(streams.open.len(), 3, "{step}");
            assert!(streams.oldest().is_none());
            sent.chunks(step).for_each(|it| streams.send(it));
            assert_eq!(streams.open.len(), 1, "{step}");
            let reset = frame(RST_STREAM, 0, 5, 4);
            reset.chunks(step).for_each(|it| streams.receive(it));
            assert_eq!(streams.open.len(), 0, "{step}");
        }
    }

    #[test]
    fn fields_cost_more_than_streams_and_the_first_short_one_nothing() {
        let mut streams = Streams::default();
        streams.receive(PREFACE);
        streams.receive(&frame(HEADERS, 4, 1, 0));
        assert_eq!(streams.cost(), 0);
        streams.receive(&frame(HEADERS, 4, 3, 20));
        assert_eq!(streams.cost(), STREAM_BYTES + 20 * SHORT_FIELDS_FACTOR);
        for _ in 0..100 {
            streams.receive(&frame(CONTINUATION, 0, 3, 100));
        }
        let short = SHORT_FIELDS_BYTES * SHORT_FIELDS_FACTOR;
        let long = (10_020 - SHORT_FIELDS_BYTES) * FIELDS_FACTOR;
        assert_eq!(streams.cost(), STREAM_BYTES + short + long);
    }

    #[test]
    fn response_that_stops_is_the_oldest() {
        let mut streams = Streams::default();
        streams.receive(PREFACE);
        for stream in [1, 3] {
            streams.receive(&frame(HEADERS, 5, stream, 0));
            streams.send(&frame(HEADERS, 4, stream, 0));
        }
        let first = streams.oldest();
        streams.send(&frame(DATA, 0, 3, 9));
        assert_eq!(streams.oldest(), first);
        streams.send(&frame(DATA, END_STREAM, 1, 0));
        assert!(streams.oldest() >= first && streams.oldest().is_some());
    }

    #[test]
    fn what_does_not_begin_with_the_preface_is_no_http2() {
        for bytes in ["GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n"] {
            let mut streams = Streams::default();
            streams.receive(bytes.as_bytes());
            streams.send(&frame(HEADERS, 5, 1, 9));
            assert!(!streams.is_http2() && streams.cost() == 0);
        }
    }
}
