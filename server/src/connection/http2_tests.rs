//! Tests of [`Streams`] with frames of both directions.

use crate::connection::frames::{
    CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::connection::http2::Streams;
use crate::connection::stream::{
    FIELDS_FACTOR, SHORT_FIELDS_BYTES, SHORT_FIELDS_FACTOR, STREAM_BYTES,
};
use http::StatusCode;
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(30);

fn frame(kind: u8, flags: u8, stream: u8, length: u8) -> Vec<u8> {
    let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    frame.resize(frame.len() + usize::from(length), b'x');
    frame
}

#[test]
fn stream_is_open_from_its_head_to_the_end_of_the_response() {
    let received = [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, 6),
        frame(HEADERS, 4, 1, 20),
        frame(HEADERS, 5, 3, 200),
        frame(DATA, 0, 1, 30),
        // Trailers.
        frame(HEADERS, 5, 1, 3),
        frame(HEADERS, 5, 5, 0),
    ]
    .concat();
    let sent = [
        frame(SETTINGS, 0, 0, 0),
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
        assert_eq!(streams.open(), 3, "{step}");
        assert!(streams.stall_deadline(LIMIT).is_none());
        sent.chunks(step).for_each(|it| streams.on_write(it));
        assert_eq!(streams.open(), 1, "{step}");
        let reset = frame(RST_STREAM, 0, 5, 4);
        reset.chunks(step).for_each(|it| streams.on_read(it));
        assert_eq!(streams.open(), 0, "{step}");
    }
}

#[test]
fn cost_grows_with_fields_and_leaves_out_one_short_stream() {
    let mut streams = Streams::default();
    streams.on_read(PREFACE);
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

/// Sets the length in the frame's header to that of the bytes behind it.
fn with_payload(mut frame: Vec<u8>) -> Vec<u8> {
    frame[2] = frame.len() as u8 - 9;
    frame
}

#[test]
fn client_stalls_while_its_window_is_closed() {
    let mut streams = Streams::default();
    streams.on_read(PREFACE);
    streams.on_read(&with_payload(settings(5)));
    streams.on_read(&frame(HEADERS, 5, 1, 0));
    streams.on_write(&frame(HEADERS, 4, 1, 0));
    assert!(streams.stall_deadline(LIMIT).is_none());
    streams.on_write(&frame(DATA, 0, 1, 5));
    let end = streams.stall_deadline(LIMIT).expect("the window is closed");
    // Opening the window byte by byte does not give the client more time, except for the time in which it is open.
    for _ in 0..10 {
        for byte in with_payload(increment(1, 1)) {
            streams.on_read(&[byte]);
        }
        assert!(streams.stall_deadline(LIMIT).is_none());
        streams.on_write(&frame(DATA, 0, 1, 1));
    }
    let opened = Instant::now();
    assert!(
        streams
            .stall_deadline(LIMIT)
            .is_some_and(|it| it >= end && it < opened + LIMIT)
    );
    // Receiving 1 KiB does.
    for _ in 0..5 {
        streams.on_read(&with_payload(increment(1, 250)));
        streams.on_write(&frame(DATA, 0, 1, 250));
    }
    assert!(streams.stall_deadline(LIMIT) >= Some(opened + LIMIT));
    // A setting opens the window, and another closes it.
    streams.on_read(&with_payload(settings(100)));
    assert!(streams.stall_deadline(LIMIT).is_none());
    streams.on_read(&with_payload(settings(0)));
    assert!(streams.stall_deadline(LIMIT).is_some());
}

#[test]
fn responses_wait_for_the_connections_window() {
    let mut streams = Streams::default();
    streams.on_read(PREFACE);
    for stream in [1, 3] {
        let more = [&frame(WINDOW_UPDATE, 0, stream, 0)[..], &[0, 1, 0, 0]].concat();
        streams.on_read(&frame(HEADERS, 5, stream, 0));
        streams.on_read(&with_payload(more));
    }
    streams.on_write(&frame(HEADERS, 4, 1, 0));
    for _ in 0..257 {
        streams.on_write(&frame(DATA, 0, 1, 255));
    }
    assert!(streams.stall_deadline(LIMIT).is_some());
    streams.on_write(&frame(DATA, END_STREAM, 1, 0));
    // No response waits for the window.
    assert!(streams.stall_deadline(LIMIT).is_none());
    let started = Instant::now();
    streams.on_write(&frame(HEADERS, 4, 3, 0));
    assert!(streams.stall_deadline(LIMIT) >= Some(started + LIMIT));
    streams.on_read(&with_payload(increment(0, 1)));
    assert!(streams.stall_deadline(LIMIT).is_none());
}

#[test]
fn streams_behind_goaway_are_not_opened() {
    let mut streams = Streams::default();
    streams.on_read(PREFACE);
    streams.on_read(&frame(HEADERS, 5, 1, 0));
    for byte in with_payload([&frame(GOAWAY, 0, 0, 0)[..], &[0, 0, 0, 3, 0, 0, 0, 0]].concat()) {
        streams.on_write(&[byte]);
    }
    for stream in [3, 5, 7] {
        streams.on_read(&frame(HEADERS, 5, stream, 0));
    }
    assert_eq!(streams.open(), 2);
}

#[test]
fn head_is_incomplete_until_its_last_frame_ends() {
    let mut streams = Streams::default();
    streams.on_read(PREFACE);
    assert!(streams.incomplete_since().is_none());
    let head = [frame(HEADERS, 1, 1, 9), frame(CONTINUATION, 4, 1, 9)].concat();
    let mut since = None;
    for (n, byte) in head.iter().enumerate() {
        streams.on_read(&[*byte]);
        let is_last = n + 1 == head.len();
        assert_eq!(streams.incomplete_since().is_none(), is_last, "{n}");
        since = since.or(streams.incomplete_since());
        assert!(is_last || streams.incomplete_since() == since, "{n}");
    }
    // Incomplete DATA has a timeout of its own.
    streams.on_read(&frame(DATA, 0, 1, 9)[..12]);
    assert!(streams.incomplete_since().is_none());
    // Each incomplete frame has a clock of its own.
    let rest = [&[b'x'; 6], &frame(DATA, 0, 1, 9)[..5]].concat();
    streams.on_read(&rest);
    let first = streams.incomplete_since();
    let rest = [&frame(DATA, 0, 1, 9)[5..], &frame(DATA, 0, 1, 9)[..5]].concat();
    streams.on_read(&rest);
    assert!(first.is_some() && streams.incomplete_since() > first);
}

#[test]
fn request_that_does_not_reach_the_service_is_rejected() {
    let mut streams = Streams::default();
    streams.on_read(PREFACE);
    for stream in [1, 3, 5, 7] {
        streams.on_read(&frame(HEADERS, 5, stream, 0));
    }
    streams.on_request();
    streams.on_write(&with_payload(
        [&frame(RST_STREAM, 0, 3, 0)[..], &[0, 0, 0, 1]].concat(),
    ));
    streams.on_write(&frame(HEADERS, 5, 5, 0));
    streams.on_request();
    let rejected = streams.drain_rejected();
    assert_eq!(
        rejected.iter().map(StatusCode::as_u16).collect::<Vec<_>>(),
        [400, 431]
    );
    streams.on_read(&frame(HEADERS, 5, 9, 0));
    streams.on_write(&with_payload(
        [&frame(RST_STREAM, 0, 9, 0)[..], &[0, 0, 0, 7]].concat(),
    ));
    assert_eq!(streams.drain_rejected(), [StatusCode::SERVICE_UNAVAILABLE]);
    for stream in [1, 7] {
        streams.on_write(&frame(HEADERS, 5, stream, 0));
    }
    assert!(streams.drain_rejected().is_empty() && streams.open() == 0);
}

#[test]
fn connection_without_the_preface_is_not_http2() {
    for bytes in ["GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n"] {
        let mut streams = Streams::default();
        streams.on_read(bytes.as_bytes());
        streams.on_write(&frame(HEADERS, 5, 1, 9));
        assert!(!streams.is_http2() && streams.cost() == 0);
    }
}
