//! A stream of an HTTP/2 connection: what it takes, and how far its request and response are.

use crate::connection::window::Window;

/// Bytes that a stream with short fields and a short response takes: measured, 6 KiB, and 4 KiB of the response.
pub const STREAM_BYTES: usize = 10 << 10;

/// Bytes of encoded fields that [`SHORT_FIELDS_FACTOR`] holds for.
pub const SHORT_FIELDS_BYTES: usize = 1 << 10;

/// Bytes that short fields take for each encoded byte. HPACK encodes a field of its table that has no value as one byte, and
/// `http` takes 72 bytes for it.
pub const SHORT_FIELDS_FACTOR: usize = 32;

/// Bytes that the rest of long fields takes for each encoded byte: measured with 31 KB.
pub const FIELDS_FACTOR: usize = 3;

pub struct Stream {
    /// Encoded bytes of the request's fields, including trailers.
    pub fields: usize,
    /// What the client is ready to receive of the response.
    pub window: Window,
    /// Set when h2 has handed the request to the service.
    pub is_served: bool,
    /// Set when the response has started.
    pub has_response: bool,
}

impl Stream {
    pub fn new(fields: usize, window: i64) -> Self {
        Self {
            fields,
            window: Window::new(window),
            is_served: false,
            has_response: false,
        }
    }

    /// Returns the bytes of memory that the stream takes.
    pub fn cost(&self) -> usize {
        let short = self.fields.min(SHORT_FIELDS_BYTES);
        STREAM_BYTES + short * SHORT_FIELDS_FACTOR + (self.fields - short) * FIELDS_FACTOR
    }
}
