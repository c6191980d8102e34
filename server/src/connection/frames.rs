//! Splits a direction of an HTTP/2 connection into frames (RFC 9113, section 4.1), without a copy of their payloads.
//!
//! A frame may arrive in any number of pieces, so the readers keep what is needed to continue.

/// The client's connection preface (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of frames.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

const FRAME_HEADER_BYTES: usize = 9;

/// Tells HTTP/1 from HTTP/2 by the first bytes of a connection.
pub enum Protocol {
    /// As many bytes of the preface have arrived.
    Undecided(usize),
    Http1,
    Http2,
}

impl Protocol {
    /// Reads bytes that the client has sent. Returns those behind the preface; `None` for HTTP/1.
    pub fn read<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let matched = match self {
            Self::Http1 => return None,
            Self::Http2 => return Some(bytes),
            Self::Undecided(matched) => *matched,
        };
        let expected = PREFACE.get(matched..).unwrap_or_default();
        let length = expected.len().min(bytes.len());
        if expected.get(..length) != bytes.get(..length) {
            *self = Self::Http1;
            return None;
        }
        *self = match matched + length {
            matched if matched == PREFACE.len() => Self::Http2,
            matched => Self::Undecided(matched),
        };
        bytes.get(length..)
    }
}

/// A frame's header.
#[derive(Clone, Copy, Default)]
pub struct FrameHeader {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    /// Bytes of the payload.
    pub length: usize,
}

/// A part of a frame, in the order in which they arrive. There may be any number of payloads, or none.
pub enum FramePart<'a> {
    Header,
    Payload(&'a [u8]),
    End,
}

/// Reads the frames of one direction.
#[derive(Default)]
pub struct FrameReader {
    header: [u8; FRAME_HEADER_BYTES],
    /// Bytes of the next header that have arrived.
    filled: usize,
    frame: FrameHeader,
    /// Bytes of the payload that are still to arrive.
    left: usize,
}

impl FrameReader {
    /// Returns true if a frame has started and not ended. A payload of DATA does not count: bodies have timeouts of their
    /// own.
    pub fn is_incomplete(&self) -> bool {
        self.filled > 0 || self.left > 0 && self.frame.kind != DATA
    }

    /// Calls `visit` with each part of a frame in `bytes`, and with the header of that frame.
    pub fn read(&mut self, mut bytes: &[u8], mut visit: impl FnMut(FrameHeader, FramePart)) {
        loop {
            if self.left > 0 {
                let (payload, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= payload.len();
                bytes = rest;
                visit(self.frame, FramePart::Payload(payload));
                if self.left == 0 {
                    visit(self.frame, FramePart::End);
                }
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            if let Some(slot) = self.header.get_mut(self.filled) {
                *slot = *byte;
            }
            self.filled += 1;
            bytes = rest;
            if self.filled == FRAME_HEADER_BYTES {
                self.start_frame();
                visit(self.frame, FramePart::Header);
                if self.left == 0 {
                    visit(self.frame, FramePart::End);
                }
            }
        }
    }

    fn start_frame(&mut self) {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = self.header;
        self.filled = 0;
        self.left = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        self.frame = FrameHeader {
            kind,
            flags,
            // The first bit is reserved.
            stream: u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]),
            length: self.left,
        };
    }
}

/// Collects a field of a payload.
pub struct FieldReader<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for FieldReader<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            filled: 0,
        }
    }
}

impl<const N: usize> FieldReader<N> {
    /// Discards what has arrived of the field.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Adds a byte. Bytes beyond the field are ignored until [`Self::clear`].
    pub fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.filled) {
            *slot = byte;
            self.filled += 1;
        }
    }

    /// Returns the number of bytes that have arrived.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Returns the field. Bytes that have not arrived are those of the field before.
    pub fn bytes(&self) -> [u8; N] {
        self.bytes
    }
}
