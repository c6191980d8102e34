//! HTTP/2 frames as bytes (RFC 9113), with fields (RFC 7541).

use std::io::{self, Read};

/// The client's connection preface, without its SETTINGS (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

// Flags (RFC 9113, section 6).
pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
/// The flag PRIORITY of HEADERS.
pub const HAS_PRIORITY: u8 = 0x20;
/// The flags of HEADERS that are a whole request.
pub const END: u8 = END_STREAM | END_HEADERS;

/// The payload of RST_STREAM with the code CANCEL (RFC 9113, section 7).
pub const CANCEL: &[u8] = b"\0\0\0\x08";

/// `GET http://test/` in entries of the static table (RFC 7541, appendix A).
pub const GET_ROOT: &[u8] = b"\x82\x86\x84\x41\x04test";

/// A frame (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("24 bits").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

/// HEADERS with these fields, as [`literal_fields`] takes them.
pub fn headers(stream: u32, flags: u8, fields: &str) -> Vec<u8> {
    frame(HEADERS, flags, stream, &literal_fields(fields))
}

/// Encodes `name=value|name=value`, without compression (RFC 7541, section 6.2.2).
pub fn literal_fields(fields: &str) -> Vec<u8> {
    let fields = fields.split('|').filter(|field| !field.is_empty());
    let fields = fields.map(|field| field.split_once('=').expect("name=value"));
    let literal = |(name, value): (&str, &str)| [vec![0], literal(name), literal(value)].concat();
    fields.flat_map(literal).collect()
}

/// A string: a length of 7 bits, continued if it is longer, and the bytes (RFC 7541, section 5.2).
pub fn literal(text: &str) -> Vec<u8> {
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

/// Reads a frame: its type, its stream and its payload.
pub fn read_frame(mut stream: impl Read) -> io::Result<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = number(&[0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    Ok((head[3], number(&head[5..]), payload))
}

/// The number that the first four bytes are.
pub fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// The status that a block of fields begins with: an entry of the static table, or a Huffman code, in which 4 is `011010`
/// (RFC 7541, appendices A and B).
pub fn status(block: &[u8]) -> u16 {
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

/// The preface, with these settings (RFC 9113, section 3.4).
pub fn http2_preface(settings: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()
}

/// A preface by which streams have a window of no bytes, and requests for `/`.
pub fn http2_without_window(requests: u32) -> Vec<u8> {
    let mut bytes = http2_preface(&[0, 4, 0, 0, 0, 0]);
    for request in 0..requests {
        bytes.extend(frame(HEADERS, END, 1 + 2 * request, GET_ROOT));
    }
    bytes
}

/// The fields of a request to the authority `test`, over http. The method is an index of the static table (RFC 7541, appendix
/// A), such as [`METHOD_GET`].
pub fn http2_head(method: u8, path: &str) -> Vec<u8> {
    let path = [&[0x44, path.len() as u8], path.as_bytes()].concat();
    [&[method, 0x86], &path[..], b"\x41\x04test"].concat()
}

// Methods as entries of the static table (RFC 7541, appendix A).
pub const METHOD_GET: u8 = 0x82;
pub const METHOD_POST: u8 = 0x83;
