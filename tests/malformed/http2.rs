//! HTTP/2 frames, a case a line or two: its name, its frames, and what the server does.

use crate::harness::frames::*;
use Expected::{ConnectionError, Open, OpenOrError, PingAck, Status, StreamError};

/// Name, frames after the preface, and what they lead to.
pub type Case = (&'static str, Vec<Vec<u8>>, Expected);

/// Cases of one rule.
pub struct Group {
    pub name: &'static str,
    pub rule: &'static str,
    /// Sent before the frames of each case.
    pub preface: Vec<u8>,
    pub cases: Vec<Case>,
}

/// What RFC 9113 permits: a stream error may be a connection error (section 5.4), which may come without GOAWAY (5.4.1), and a
/// malformed request may get a response (8.1.1). `PROTOCOL_ERROR` may stand for any other code but `ENHANCE_YOUR_CALM`, as
/// codes are for debugging.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// A connection error with this code.
    ConnectionError(u32),
    /// An error of stream 1 with this code, or a response that rejects it.
    StreamError(u32),
    /// One of these statuses on stream 1.
    Status(&'static [u16]),
    /// The connection stays open.
    Open,
    /// The connection stays open, and PING is acknowledged.
    PingAck,
    /// The connection stays open, or is closed with this code.
    OpenOrError(u32),
}

// Error codes (RFC 9113, section 7).
pub const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// The fields of a valid request.
pub const FIELDS: &str = ":method=GET|:scheme=http|:authority=test|:path=/";

/// The stream of a valid request that follows the frames of each case. Its response is 404.
pub const NEXT_STREAM: u32 = 1_000_001;

const MALFORMED: Expected = StreamError(PROTOCOL_ERROR);

fn get() -> Vec<u8> {
    headers(1, END, FIELDS)
}

/// A request whose body is still to come.
fn post() -> Vec<u8> {
    headers(1, END_HEADERS, ":method=POST|:scheme=http|:authority=test|:path=/")
}

/// A request whose fields are to be continued.
fn open_head() -> Vec<u8> {
    headers(1, END_STREAM, FIELDS)
}

fn last_continuation() -> Vec<u8> {
    frame(CONTINUATION, END_HEADERS, 1, b"")
}

/// A request whose payload has these bytes around its fields.
fn wrapped(flags: u8, before: &[u8], after: &[u8]) -> Vec<u8> {
    frame(HEADERS, END | flags, 1, &[before, &literal_fields(FIELDS), after].concat())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// Frames for each of the client's first streams.
fn each_stream(streams: u32, frames: impl Fn(u32) -> Vec<u8>) -> Vec<Vec<u8>> {
    (0..streams).map(|n| frames(2 * n + 1)).collect()
}

/// The first frame, and many others.
fn first(frame: Vec<u8>, others: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    [vec![frame], others].concat()
}

pub fn groups() -> Vec<Group> {
    let group = |name, rule, cases| Group { name, rule, preface: http2_preface(&[]), cases };
    vec![
        Group { preface: PREFACE.to_vec(), ..group("preface", "RFC 9113, section 3.4: SETTINGS come first", prefaces()) },
        group("frames", "RFC 9113, section 4", frames()),
        group("streams", "RFC 9113, section 5.1: streams that a client opens are odd, and ascend", streams()),
        group("DATA", "RFC 9113, section 6.1", data()),
        group("HEADERS", "RFC 9113, section 6.2", head()),
        group("PRIORITY", "RFC 9113, section 6.3", priority()),
        group("RST_STREAM", "RFC 9113, section 6.4", rst_stream()),
        group("SETTINGS", "RFC 9113, section 6.5", settings()),
        group("PUSH_PROMISE", "RFC 9113, section 6.6: a client sends none", push_promise()),
        group("PING", "RFC 9113, section 6.7", ping()),
        group("GOAWAY", "RFC 9113, section 6.8", goaway()),
        group("WINDOW_UPDATE", "RFC 9113, section 6.9", window_update()),
        group("CONTINUATION", "RFC 9113, section 6.10: no other frame comes between HEADERS and their CONTINUATION", continuation()),
        group("compression", "RFC 7541; RFC 9113, section 4.3: fields that cannot be decoded are a connection error", compression()),
        group("fields", "RFC 9113, section 8.2: a request with an invalid field is malformed", fields()),
        group("pseudo-fields", "RFC 9113, section 8.3: each is there once, before other fields", pseudo_fields()),
        group("request", "RFC 9113, section 8.3.1: a request has a method, a scheme, an authority and a path", requests()),
        group("CONNECT", "RFC 9113, section 8.5; RFC 8441 is not offered", connect()),
        group("body", "RFC 9113, section 8.1.1: a body has the length that its field announces", bodies()),
        group("head size", "RFC 6585, section 5: fields that are too large are rejected; the limit here is 32 KiB", head_sizes()),
        group("flood", "RFC 9113, section 10.5: much work for few bytes", floods()),
    ]
}

fn prefaces() -> Vec<Case> {
    // An error by the RFC. h2 applies the default settings until others come, and does not report it.
    let tolerated = OpenOrError(PROTOCOL_ERROR);
    vec![
        ("SETTINGS (valid)", vec![frame(SETTINGS, 0, 0, b""), get()], Status(&[200])),
        ("request instead of SETTINGS", vec![get()], tolerated),
        ("PING instead of SETTINGS", vec![frame(PING, 0, 0, b"12345678"), get()], tolerated),
        ("SETTINGS acknowledgement instead of SETTINGS", vec![frame(SETTINGS, ACK, 0, b""), get()], tolerated),
        ("second preface", vec![PREFACE.to_vec(), frame(SETTINGS, 0, 0, b""), get()], ConnectionError(FRAME_SIZE_ERROR)),
        ("HTTP/1 request", vec![super::http1::GET.to_vec()], ConnectionError(FRAME_SIZE_ERROR)),
        ("TLS", vec![b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03".to_vec()], ConnectionError(FRAME_SIZE_ERROR)),
    ]
}

// From here to CONTINUATION: all that `h2spec` sends, except for what it sends after the response.

fn frames() -> Vec<Case> {
    vec![
        ("16,384 bytes of DATA (valid)", vec![post(), frame(DATA, END_STREAM, 1, &[0; 16_384])], Status(&[405])),
        ("16,385 bytes of DATA", vec![post(), frame(DATA, 0, 1, &[0; 16_385])], ConnectionError(FRAME_SIZE_ERROR)),
        ("16,385 bytes of HEADERS", vec![frame(HEADERS, END, 1, &[0; 16_385])], ConnectionError(FRAME_SIZE_ERROR)),
        ("16,385 bytes of an unknown type", vec![frame(0xbe, 0, 0, &[0; 16_385])], ConnectionError(FRAME_SIZE_ERROR)),
        ("length of 16 MiB", vec![b"\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec()], ConnectionError(FRAME_SIZE_ERROR)),
        ("unknown type (ignored)", vec![frame(0xbe, 0xff, 0, b"hello"), frame(0xef, 0, 9, b""), get()], Status(&[200])),
        ("unknown flags (ignored)", vec![headers(1, END | 0xc2, FIELDS)], Status(&[200])),
        ("reserved bit (ignored)", vec![headers(1 | 1 << 31, END, FIELDS)], Status(&[200])),
    ]
}

fn streams() -> Vec<Case> {
    vec![
        ("HEADERS on stream 0", vec![headers(0, END, FIELDS)], ConnectionError(PROTOCOL_ERROR)),
        ("HEADERS on stream 2", vec![headers(2, END, FIELDS)], ConnectionError(PROTOCOL_ERROR)),
        ("HEADERS on a lower stream", vec![headers(5, END, FIELDS), headers(3, END, FIELDS)], ConnectionError(STREAM_CLOSED)),
        ("HEADERS after the end", vec![post(), frame(DATA, END_STREAM, 1, b""), get()], StreamError(STREAM_CLOSED)),
        ("HEADERS after a reset", vec![post(), frame(RST_STREAM, 0, 1, CANCEL), get()], StreamError(STREAM_CLOSED)),
        ("DATA on stream 0", vec![frame(DATA, 0, 0, b"hello")], ConnectionError(PROTOCOL_ERROR)),
        ("DATA on an idle stream", vec![frame(DATA, END_STREAM, 1, b"hello")], ConnectionError(PROTOCOL_ERROR)),
        ("DATA after the end", vec![post(), frame(DATA, END_STREAM, 1, b"a"), frame(DATA, END_STREAM, 1, b"b")], StreamError(STREAM_CLOSED)),
        ("PRIORITY on stream 0", vec![frame(PRIORITY, 0, 0, b"\0\0\0\x03\x0f")], ConnectionError(PROTOCOL_ERROR)),
        ("PRIORITY on an idle stream (valid)", vec![frame(PRIORITY, 0, 1, b"\0\0\0\0\0"), get()], Status(&[200])),
        ("PRIORITY after the end (valid)", vec![get(), frame(PRIORITY, 0, 1, b"\x80\0\0\0\xff")], Status(&[200])),
        ("RST_STREAM on stream 0", vec![frame(RST_STREAM, 0, 0, CANCEL)], ConnectionError(PROTOCOL_ERROR)),
        ("RST_STREAM on an idle stream", vec![frame(RST_STREAM, 0, 1, CANCEL)], ConnectionError(PROTOCOL_ERROR)),
        ("RST_STREAM after the end (valid)", vec![get(), frame(RST_STREAM, 0, 1, CANCEL)], Open),
        ("SETTINGS on a stream", vec![frame(SETTINGS, 0, 1, b"")], ConnectionError(PROTOCOL_ERROR)),
        ("PING on a stream", vec![frame(PING, 0, 1, b"12345678")], ConnectionError(PROTOCOL_ERROR)),
        ("GOAWAY on a stream", vec![frame(GOAWAY, 0, 1, b"\0\0\0\0\0\0\0\0")], ConnectionError(PROTOCOL_ERROR)),
        ("WINDOW_UPDATE on an idle stream", vec![frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")], ConnectionError(PROTOCOL_ERROR)),
        ("WINDOW_UPDATE after the end (valid)", vec![get(), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")], Status(&[200])),
    ]
}

fn data() -> Vec<Case> {
    vec![
        ("more padding than payload", vec![post(), frame(DATA, END | PADDED, 1, b"\x06hello")], ConnectionError(PROTOCOL_ERROR)),
        ("padding without its length", vec![post(), frame(DATA, PADDED, 1, b"")], ConnectionError(FRAME_SIZE_ERROR)),
        ("padding alone (valid)", vec![post(), frame(DATA, END | PADDED, 1, b"\x05\0\0\0\0\0")], Status(&[405])),
    ]
}

fn head() -> Vec<Case> {
    vec![
        ("padding (valid)", vec![wrapped(PADDED, &[3], &[0; 3])], Status(&[200])),
        ("priority (valid)", vec![wrapped(HAS_PRIORITY, b"\0\0\0\0\xff", b"")], Status(&[200])),
        ("padding and priority (valid)", vec![wrapped(PADDED | HAS_PRIORITY, b"\x01\0\0\0\0\0", b"\0")], Status(&[200])),
        ("more padding than payload", vec![wrapped(PADDED, &[200], b"")], ConnectionError(PROTOCOL_ERROR)),
        ("padding without its length", vec![frame(HEADERS, END | PADDED, 1, b"")], ConnectionError(FRAME_SIZE_ERROR)),
        ("half a priority", vec![frame(HEADERS, END | HAS_PRIORITY, 1, b"\0\0\0")], ConnectionError(FRAME_SIZE_ERROR)),
        ("stream that depends on itself", vec![wrapped(HAS_PRIORITY, b"\0\0\0\x01\x0f", b"")], OpenOrError(PROTOCOL_ERROR)),
        ("no fields", vec![headers(1, END, "")], MALFORMED),
    ]
}

fn priority() -> Vec<Case> {
    vec![
        ("4 bytes", vec![post(), frame(PRIORITY, 0, 1, b"\0\0\0\0")], StreamError(FRAME_SIZE_ERROR)),
        ("stream that depends on itself", vec![frame(PRIORITY, 0, 1, b"\0\0\0\x01\x0f")], OpenOrError(PROTOCOL_ERROR)),
    ]
}

fn rst_stream() -> Vec<Case> {
    vec![
        ("3 bytes", vec![post(), frame(RST_STREAM, 0, 1, b"\0\0\0")], ConnectionError(FRAME_SIZE_ERROR)),
        ("5 bytes", vec![post(), frame(RST_STREAM, 0, 1, b"\0\0\0\0\0")], ConnectionError(FRAME_SIZE_ERROR)),
        ("unknown code (valid)", vec![post(), frame(RST_STREAM, 0, 1, b"\xff\xff\xff\xff")], Open),
    ]
}

fn settings() -> Vec<Case> {
    vec![
        ("acknowledgement (valid)", vec![frame(SETTINGS, ACK, 0, b""), get()], Status(&[200])),
        ("acknowledgement with a payload", vec![frame(SETTINGS, ACK, 0, b"\0\x03\0\0\0\0")], ConnectionError(FRAME_SIZE_ERROR)),
        ("5 bytes", vec![frame(SETTINGS, 0, 0, b"\0\x03\0\0\0")], ConnectionError(FRAME_SIZE_ERROR)),
        ("ENABLE_PUSH of 2", vec![setting(2, 2)], ConnectionError(PROTOCOL_ERROR)),
        ("INITIAL_WINDOW_SIZE of 2^31", vec![setting(4, 1 << 31)], ConnectionError(FLOW_CONTROL_ERROR)),
        ("MAX_FRAME_SIZE of 0", vec![setting(5, 0)], ConnectionError(PROTOCOL_ERROR)),
        ("MAX_FRAME_SIZE of 16,383", vec![setting(5, 16_383)], ConnectionError(PROTOCOL_ERROR)),
        ("MAX_FRAME_SIZE of 2^24", vec![setting(5, 1 << 24)], ConnectionError(PROTOCOL_ERROR)),
        ("unknown setting (ignored)", vec![setting(0xbeef, 1), get()], Status(&[200])),
        ("INITIAL_WINDOW_SIZE of 1 (valid)", vec![setting(4, 1), get()], Status(&[200])),
        ("INITIAL_WINDOW_SIZE twice (valid)", vec![frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\x64\0\x04\0\0\0\x01"), get()], Status(&[200])),
        ("INITIAL_WINDOW_SIZE after a request (valid)", vec![setting(4, 0), get(), setting(4, 1)], Status(&[200])),
        ("INITIAL_WINDOW_SIZE that makes a window negative (valid)",
            vec![setting(4, 3), get(), setting(4, 2), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x02")], Status(&[200])),
        ("INITIAL_WINDOW_SIZE that overflows a window",
            vec![post(), frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\0\0"), setting(4, 0x7fff_ffff)], ConnectionError(FLOW_CONTROL_ERROR)),
        ("HEADER_TABLE_SIZE of 0 (valid)", vec![setting(1, 0), get()], Status(&[200])),
        ("HEADER_TABLE_SIZE of 2^32 - 1 (valid)", vec![setting(1, u32::MAX), get()], Status(&[200])),
        ("MAX_HEADER_LIST_SIZE of 1 (valid)", vec![setting(6, 1), get()], Status(&[200])),
    ]
}

fn push_promise() -> Vec<Case> {
    let promise = [b"\0\0\0\x02", &literal_fields(FIELDS)[..]].concat();
    vec![("from a client", vec![post(), frame(PUSH_PROMISE, END_HEADERS, 1, &promise)], ConnectionError(PROTOCOL_ERROR))]
}

fn ping() -> Vec<Case> {
    vec![
        ("8 bytes (valid)", vec![frame(PING, 0, 0, b"12345678")], PingAck),
        ("7 bytes", vec![frame(PING, 0, 0, b"1234567")], ConnectionError(FRAME_SIZE_ERROR)),
        ("9 bytes", vec![frame(PING, 0, 0, b"123456789")], ConnectionError(FRAME_SIZE_ERROR)),
        ("acknowledgement without PING (ignored)", vec![frame(PING, ACK, 0, b"12345678")], Open),
    ]
}

fn goaway() -> Vec<Case> {
    vec![
        ("7 bytes", vec![frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0")], ConnectionError(FRAME_SIZE_ERROR)),
        ("unknown code", vec![frame(GOAWAY, 0, 0, b"\0\0\0\0\xff\xff\xff\xff")], OpenOrError(PROTOCOL_ERROR)),
        ("request after it", vec![frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0hello"), get()], OpenOrError(PROTOCOL_ERROR)),
    ]
}

fn window_update() -> Vec<Case> {
    vec![
        ("zero for the connection", vec![frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0")], ConnectionError(PROTOCOL_ERROR)),
        ("zero for a stream", vec![post(), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0")], MALFORMED),
        ("overflow of the connection's window", vec![frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff")], ConnectionError(FLOW_CONTROL_ERROR)),
        ("overflow of a stream's window", vec![post(), frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff")], StreamError(FLOW_CONTROL_ERROR)),
        ("3 bytes", vec![frame(WINDOW_UPDATE, 0, 0, b"\0\0\x01")], ConnectionError(FRAME_SIZE_ERROR)),
    ]
}

fn continuation() -> Vec<Case> {
    let part = literal_fields("x=y");
    let between = |frame| vec![open_head(), frame, last_continuation()];
    vec![
        ("without HEADERS", vec![frame(CONTINUATION, END_HEADERS, 1, &literal_fields(FIELDS))], ConnectionError(PROTOCOL_ERROR)),
        ("after END_HEADERS", vec![post(), frame(CONTINUATION, END_HEADERS, 1, &part)], ConnectionError(PROTOCOL_ERROR)),
        ("after END_HEADERS of CONTINUATION", between(last_continuation()), ConnectionError(PROTOCOL_ERROR)),
        ("after DATA", vec![post(), frame(DATA, END_STREAM, 1, b"x"), last_continuation()], ConnectionError(PROTOCOL_ERROR)),
        ("after a reset", vec![post(), frame(RST_STREAM, 0, 1, CANCEL), last_continuation()], ConnectionError(STREAM_CLOSED)),
        ("three times (valid)",
            vec![open_head(), frame(CONTINUATION, 0, 1, &part), frame(CONTINUATION, 0, 1, &part), last_continuation()], Status(&[200])),
        ("on stream 0", vec![open_head(), frame(CONTINUATION, END_HEADERS, 0, &part)], ConnectionError(PROTOCOL_ERROR)),
        ("on another stream", vec![open_head(), frame(CONTINUATION, END_HEADERS, 3, &part)], ConnectionError(PROTOCOL_ERROR)),
        ("PRIORITY before it", between(frame(PRIORITY, 0, 1, b"\0\0\0\0\0")), ConnectionError(PROTOCOL_ERROR)),
        ("DATA before it", between(frame(DATA, 0, 1, b"x")), ConnectionError(PROTOCOL_ERROR)),
        ("PING before it", between(frame(PING, 0, 0, b"12345678")), ConnectionError(PROTOCOL_ERROR)),
        ("unknown frame before it", between(frame(0xbe, 0, 0, b"")), ConnectionError(PROTOCOL_ERROR)),
        ("HEADERS of another stream before it", between(headers(3, END, FIELDS)), ConnectionError(PROTOCOL_ERROR)),
        ("missing", vec![open_head()], ConnectionError(PROTOCOL_ERROR)),
        ("empty (valid)", vec![open_head(), last_continuation()], Status(&[200])),
    ]
}

fn compression() -> Vec<Case> {
    let after = |bytes: &[u8]| vec![wrapped(0, b"", bytes)];
    let before = |bytes: &[u8]| vec![wrapped(0, bytes, b"")];
    let error = ConnectionError(COMPRESSION_ERROR);
    vec![
        ("100 fields (valid)", vec![headers(1, END, &format!("{FIELDS}{}", "|a=x".repeat(100)))], Status(&[200])),
        ("101 fields", vec![headers(1, END, &format!("{FIELDS}{}", "|a=x".repeat(101)))], Status(&[431])),
        ("entries of the static table (valid)", vec![frame(HEADERS, END, 1, GET_ROOT)], Status(&[200])),
        ("entry 0", after(b"\x80"), error),
        ("entry 62 of an empty table", after(b"\xbe"), error),
        ("entry 1,000,000", after(b"\xff\xc1\x83\x3d"), error),
        ("index of 70 bits", after(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), error),
        ("truncated index", after(b"\xff\x80"), error),
        ("name from entry 62 of an empty table", after(b"\x7e\x01x"), error),
        ("truncated name", after(b"\0\x7fabc"), error),
        ("truncated value", after(b"\0\x01x\x7fabc"), error),
        ("no value", after(b"\0\x01x"), error),
        ("value of 4 GiB", after(b"\0\x01x\x7f\xff\xff\xff\xff\x0f"), error),
        ("table of the maximum size (valid)", before(b"\x3f\xe1\x1f"), Status(&[200])),
        ("table above the maximum size", before(b"\x3f\xe2\x1f"), error),
        ("table of 4 GiB", before(b"\x3f\xe0\xff\xff\xff\x0f"), error),
        ("table resized after a field", after(b"\x20"), error),
        // Section 5.2: padding is all ones and shorter than 8 bits, and the end symbol is not used.
        ("Huffman code (valid)", after(b"\0\x01x\x81\x1f"), Status(&[200])),
        ("Huffman end symbol", after(b"\0\x01x\x84\xff\xff\xff\xff"), error),
        ("Huffman padding of a byte", after(b"\0\x01x\x82\x1f\xff"), error),
        ("Huffman padding of zeros", after(b"\0\x01x\x81\x18"), error),
        ("truncated Huffman symbol", after(b"\0\x01x\x82\xff\xf0"), error),
    ]
}

/// Cases of fields that follow those of a valid request.
fn added(cases: &[(&'static str, &str, Expected)]) -> Vec<Case> {
    let case = |&(name, fields, expected): &(_, &str, _)| (name, vec![headers(1, END, &format!("{FIELDS}|{fields}"))], expected);
    cases.iter().map(case).collect()
}

fn fields() -> Vec<Case> {
    added(&[
        ("upper case in a name", "Upper=x", MALFORMED),
        ("space in a name", "a b=x", MALFORMED),
        ("colon in a name", "a:b=x", MALFORMED),
        ("NUL in a name", "a\0b=x", MALFORMED),
        ("CRLF in a name", "a\r\nb=x", MALFORMED),
        ("name that is not ASCII", "é=x", MALFORMED),
        ("empty name", "=x", MALFORMED),
        ("NUL in a value", "a=x\0y", MALFORMED),
        ("CR in a value", "a=x\ry", MALFORMED),
        ("LF in a value", "a=x\ny", MALFORMED),
        ("request in a value", "a=x\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", MALFORMED),
        // Malformed by section 8.2.1, but h2 accepts it: the space frames nothing.
        ("space at the start of a value", "a= x", Status(&[200, 400])),
        ("connection", "connection=close", MALFORMED),
        ("keep-alive", "keep-alive=timeout=5", MALFORMED),
        ("proxy-connection", "proxy-connection=close", MALFORMED),
        ("transfer-encoding", "transfer-encoding=chunked", MALFORMED),
        ("upgrade", "upgrade=websocket", MALFORMED),
        ("te: gzip", "te=gzip", MALFORMED),
        ("te: trailers (valid)", "te=trailers", Status(&[200])),
        ("two cookies (valid)", "cookie=a=b|cookie=c=d", Status(&[200])),
        ("unknown expectation", "expect=banana", Status(&[200, 417])),
    ])
}

fn pseudo_fields() -> Vec<Case> {
    added(&[
        ("after a field", "a=b|:path=/", MALFORMED),
        ("second method", ":method=GET", MALFORMED),
        ("second path", ":path=/health", MALFORMED),
        ("second scheme", ":scheme=http", MALFORMED),
        ("second authority", ":authority=test", MALFORMED),
        ("unknown", ":unknown=x", MALFORMED),
        ("status", ":status=200", MALFORMED),
        ("protocol", ":protocol=websocket", MALFORMED),
        // Section 8.3.1.
        ("host that differs from the authority", "host=other", MALFORMED),
        ("host that equals the authority (valid)", "host=test", Status(&[200])),
        ("host with a space", "host=te st", MALFORMED),
        ("two hosts", "host=test|host=other", MALFORMED),
    ])
}

fn requests() -> Vec<Case> {
    let tolerated = Status(&[200, 400]);
    alone(&[
        ("no method", ":scheme=http|:authority=test|:path=/", MALFORMED),
        ("no scheme", ":method=GET|:authority=test|:path=/", MALFORMED),
        ("no path", ":method=GET|:scheme=http|:authority=test", MALFORMED),
        ("no pseudo-field", "a=b", MALFORMED),
        ("no authority", ":method=GET|:scheme=http|:path=/", tolerated),
        ("host instead of an authority (valid)", ":method=GET|:scheme=http|:path=/|host=test", Status(&[200])),
        ("invalid host instead of an authority", ":method=GET|:scheme=http|:path=/|host=a b", MALFORMED),
        ("empty authority", ":method=GET|:scheme=http|:authority=|:path=/", MALFORMED),
        ("authority with a space", ":method=GET|:scheme=http|:authority=a b|:path=/", MALFORMED),
        ("authority with a user", ":method=GET|:scheme=http|:authority=user@test|:path=/", MALFORMED),
        ("authority with a path", ":method=GET|:scheme=http|:authority=test/x|:path=/", MALFORMED),
        ("authority with an invalid port", ":method=GET|:scheme=http|:authority=test:port|:path=/", MALFORMED),
        ("empty method", ":method=|:scheme=http|:authority=test|:path=/", MALFORMED),
        ("method with a space", ":method=GET /x|:scheme=http|:authority=test|:path=/", MALFORMED),
        ("method with a NUL", ":method=GET\0|:scheme=http|:authority=test|:path=/", MALFORMED),
        ("empty scheme", ":method=GET|:scheme=|:authority=test|:path=/", MALFORMED),
        ("invalid scheme", ":method=GET|:scheme=1:|:authority=test|:path=/", MALFORMED),
        ("scheme ftp", ":method=GET|:scheme=ftp|:authority=test|:path=/", MALFORMED),
        // As from a gateway that terminates TLS.
        ("scheme https", ":method=GET|:scheme=https|:authority=test|:path=/", Status(&[200, 400, 421])),
        ("empty path", ":method=GET|:scheme=http|:authority=test|:path=", MALFORMED),
        ("path without a slash", ":method=GET|:scheme=http|:authority=test|:path=health", MALFORMED),
        ("absolute URI as path", ":method=GET|:scheme=http|:authority=test|:path=http://test/", MALFORMED),
        ("query as path", ":method=GET|:scheme=http|:authority=test|:path=?x", MALFORMED),
        ("path with a space", ":method=GET|:scheme=http|:authority=test|:path=/ x", MALFORMED),
        ("path with a NUL", ":method=GET|:scheme=http|:authority=test|:path=/\0", MALFORMED),
        ("path with a request", ":method=GET|:scheme=http|:authority=test|:path=/ HTTP/1.1\r\nHost: test\r\n\r\n", MALFORMED),
        ("asterisk as path", ":method=GET|:scheme=http|:authority=test|:path=*", MALFORMED),
        // As in HTTP/1, the parser drops the fragment.
        ("path with a fragment", ":method=GET|:scheme=http|:authority=test|:path=/#x", tolerated),
        ("OPTIONS *", ":method=OPTIONS|:scheme=http|:authority=test|:path=*", Status(&[200, 204, 404])),
    ])
}

fn connect() -> Vec<Case> {
    alone(&[
        ("to a port", ":method=CONNECT|:authority=test:80", MALFORMED),
        ("with a path", ":method=CONNECT|:scheme=http|:authority=test:80|:path=/", MALFORMED),
        ("without an authority", ":method=CONNECT", MALFORMED),
        ("without a port", ":method=CONNECT|:authority=test", MALFORMED),
        ("with a length", ":method=CONNECT|:authority=test:80|content-length=5", MALFORMED),
        ("to a protocol", ":method=CONNECT|:protocol=websocket|:scheme=http|:authority=test|:path=/", MALFORMED),
    ])
}

/// Cases of requests that have these fields alone.
fn alone(cases: &[(&'static str, &str, Expected)]) -> Vec<Case> {
    let case = |&(name, fields, expected): &(_, &str, _)| (name, vec![headers(1, END, fields)], expected);
    cases.iter().map(case).collect()
}

fn bodies() -> Vec<Case> {
    let length = |length: u64| headers(1, END_HEADERS, &format!("{FIELDS}|content-length={length}"));
    let twice = format!("{FIELDS}|content-length=5|content-length=5");
    let mut cases = added(&[
        ("length without DATA", "content-length=5", MALFORMED),
        ("length that is not a number", "content-length=x", MALFORMED),
        ("negative length", "content-length=-1", MALFORMED),
        ("empty length", "content-length=", MALFORMED),
        ("two lengths, the first empty", "content-length=|content-length=0", MALFORMED),
        ("two lengths, the second empty", "content-length=0|content-length=", MALFORMED),
        ("two equal lengths", "content-length=0|content-length=0", MALFORMED),
        ("two equal lengths with other digits", "content-length=00|content-length=0", MALFORMED),
        ("list of equal lengths", "content-length=0, 0", MALFORMED),
        ("length with a plus sign", "content-length=+0", MALFORMED),
        ("length after a space", "content-length= 0", MALFORMED),
        ("length with leading zeros (valid)", "content-length=000", Status(&[200])),
        ("length of 65 bits", "content-length=18446744073709551616", MALFORMED),
        ("two lengths", "content-length=0|content-length=5", MALFORMED),
    ]);
    cases.extend([
        ("less DATA than the length", vec![length(5), frame(DATA, END_STREAM, 1, b"hell")], MALFORMED),
        ("more DATA than the length", vec![length(5), frame(DATA, END_STREAM, 1, b"hello!")], MALFORMED),
        ("DATA with two equal lengths", vec![headers(1, END_HEADERS, &twice), frame(DATA, END_STREAM, 1, b"hello")], MALFORMED),
        ("length of 64 bits, before DATA", vec![length(1 << 63)], MALFORMED),
        ("length of 19 digits, before DATA", vec![length(9_999_999_999_999_999_999)], MALFORMED),
        ("DATA with a length of 0", vec![length(0), frame(DATA, END_STREAM, 1, b"x")], MALFORMED),
        ("trailers (valid)", vec![post(), headers(1, END, "a=b")], Status(&[405])),
        ("trailers with a pseudo-field", vec![post(), headers(1, END, ":path=/")], MALFORMED),
        ("trailers without END_STREAM", vec![post(), headers(1, END_HEADERS, "a=b")], MALFORMED),
        ("trailers in upper case", vec![post(), headers(1, END, "A=b")], MALFORMED),
    ]);
    cases
}

fn head_sizes() -> Vec<Case> {
    let kilobytes = |count| format!("{FIELDS}{}", format!("|a={}", "x".repeat(1000)).repeat(count));
    // As many CONTINUATION frames as it takes.
    let continued = |fields: &str| {
        let block = literal_fields(fields);
        let mut parts = block.chunks(16_384);
        let first = frame(HEADERS, END_STREAM, 1, parts.next().expect("fields"));
        let mut frames = vec![first];
        frames.extend(parts.map(|part| frame(CONTINUATION, 0, 1, part)));
        frames.push(last_continuation());
        frames
    };
    vec![
        ("12,000 bytes (valid)", vec![headers(1, END, &kilobytes(12))], Status(&[200])),
        ("40,000 bytes", continued(&kilobytes(40)), StreamError(ENHANCE_YOUR_CALM)),
        ("200,000 bytes", continued(&kilobytes(200)), ConnectionError(ENHANCE_YOUR_CALM)),
    ]
}

fn floods() -> Vec<Case> {
    let rejected = ConnectionError(ENHANCE_YOUR_CALM);
    let bounded = OpenOrError(ENHANCE_YOUR_CALM);
    // Enters a field of 4,000 bytes into the table, and refers to it by a byte each time.
    let bomb = [b"\x40", &literal("a")[..], &literal(&"x".repeat(4000)), &b"\xbe".repeat(4000)].concat();
    vec![
        ("3,000 requests, each reset",
            each_stream(3000, |id| [headers(id, END, FIELDS), frame(RST_STREAM, 0, id, CANCEL)].concat()), rejected),
        ("3,000 requests that the server has to reset",
            each_stream(3000, |id| [headers(id, END_HEADERS, FIELDS), frame(WINDOW_UPDATE, 0, id, b"\x7f\xff\xff\xff")].concat()), rejected),
        ("3,000 malformed requests", each_stream(3000, |id| headers(id, END, "a=b")), rejected),
        ("3,000 concurrent requests", each_stream(3000, |id| headers(id, END, FIELDS)), bounded),
        ("3,000 concurrent requests without an end", each_stream(3000, |id| headers(id, END_HEADERS, FIELDS)), bounded),
        ("endless CONTINUATION", first(open_head(), vec![frame(CONTINUATION, 0, 1, &literal_fields("a=b")); 5000]), rejected),
        ("endless empty CONTINUATION", first(open_head(), vec![frame(CONTINUATION, 0, 1, b""); 5000]), rejected),
        ("fields that decompress to 16 MB", vec![wrapped(0, b"", &bomb)], rejected),
        ("10,000 SETTINGS", vec![frame(SETTINGS, 0, 0, b""); 10_000], bounded),
        ("10,000 SETTINGS with another window", (0..10_000).map(|size| setting(4, size)).collect(), bounded),
        ("10,000 PING", vec![frame(PING, 0, 0, b"12345678"); 10_000], bounded),
        ("10,000 PRIORITY", each_stream(10_000, |id| frame(PRIORITY, 0, id, b"\0\0\0\0\x0f")), bounded),
        ("10,000 WINDOW_UPDATE", vec![frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"); 10_000], bounded),
        ("10,000 unknown frames", vec![frame(0xbe, 0, 0, b""); 10_000], Open),
        ("10,000 empty DATA", first(post(), vec![frame(DATA, 0, 1, b""); 10_000]), bounded),
        ("10,000 DATA of padding alone", first(post(), vec![frame(DATA, PADDED, 1, &[10; 11]); 10_000]), bounded),
        ("10,000 DATA after a reset",
            first([post(), frame(RST_STREAM, 0, 1, CANCEL)].concat(), vec![frame(DATA, 0, 1, b"x"); 10_000]), bounded),
        ("DATA beyond the window", first(post(), vec![frame(DATA, 0, 1, &[0; 16_384]); 100]), StreamError(FLOW_CONTROL_ERROR)),
        ("90 requests with a zero window", first(setting(4, 0), each_stream(90, |id| headers(id, END, FIELDS))), Status(&[200])),
    ]
}
