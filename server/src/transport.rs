//! A client's connection below HTTP: its bytes, what it waits for, and how long it may wait.

use crate::buffers::{Buffers, FREE_BYTES, Part};
use crate::config::Config;
use crate::http2::Streams;
use crate::pace::STEADY_BYTES;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long a closed connection is still read, so that its last answer arrives: bytes of the client
/// that meet a closed socket reset it, and what the client has not read is lost (RFC 9112, section
/// 9.6).
const LINGER: Duration = Duration::from_millis(300);

/// Response to a client for which there is no room.
pub const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 19\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\r\n\
    Service Unavailable";

/// Longest waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first byte of a request.
    pub idle: Duration,
    /// From there to the end of its head.
    pub head: Duration,
    /// For the client to take [`STEADY_BYTES`] of an answer.
    pub write: Duration,
    /// For the next frame of a response of HTTP/2: from the guest, or for the client to send or take something.
    pub stream: Duration,
    /// For other responses to end when one of HTTP/2 does not go on.
    pub last: Duration,
}

impl Patience {
    pub fn of(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            head: config.header_timeout,
            write: config.write_timeout,
            stream: config.guest_timeout + config.write_timeout.max(config.body_timeout),
            last: config.guest_timeout,
        }
    }
}

/// Bytes that hyper may hold for a head of HTTP/1 of more than [`FREE_BYTES`], with what it copies of it: measured, 25 KiB
/// more than for a short one.
const HEAD_BYTES: usize = 32 << 10;

/// Bytes that are read before a head counts as long: one read, behind the one by which hyper tells HTTP/1 from HTTP/2.
const SHORT_HEAD_BYTES: usize = FREE_BYTES + 24;

/// Bytes that are read at a time. hyper's buffer has [`FREE_BYTES`], and doubles when a read fills it.
const READ_BYTES: u64 = FREE_BYTES as u64 - 1;

/// What a connection waits for, as told by those who see its bytes, requests and answers pass.
pub struct Activity {
    patience: Patience,
    buffers: Buffers,
    state: Mutex<State>,
}

struct State {
    /// Requests whose answers have not passed.
    open: usize,
    /// Answers that wait for the client, by their number: HTTP/2 has several.
    waiting: Vec<(u64, Blocked)>,
    /// The number of the next one.
    next: u64,
    /// When the last answer had passed.
    since: Instant,
    /// When the first byte of the next head came.
    head: Option<Instant>,
    /// Set when the client takes no more bytes of the connection.
    blocked: Option<Blocked>,
    /// HTTP/2 has frames between requests, so that bytes do not mean a head.
    multiplexed: bool,
    /// The client sends no more.
    ended: bool,
    /// Set when a response's body has failed and the client could take it for whole.
    failed: bool,
    streams: Streams,
    /// Taken for the streams of HTTP/2.
    streams_part: Option<Part>,
    /// Bytes received since something has come of them: a request, or a part of its body.
    unused: usize,
    /// Set while what comes is the body of a request.
    has_body: bool,
    /// Taken for a long head, and kept until the connection closes: hyper keeps its buffer as well.
    head_part: Option<Part>,
    /// Taken for responses that have gone to HTTP and not yet to the kernel.
    sent_parts: Vec<Part>,
    /// Set when the connection has to close, as there is no memory for what it holds.
    is_over: bool,
}

/// Bytes that wait for a client which does not take them.
#[derive(Clone, Copy)]
struct Blocked {
    /// When it last was steady.
    since: Instant,
    /// What it has taken since then.
    bytes: usize,
}

impl Blocked {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Takes note of bytes that the client has taken.
    fn pass(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= STEADY_BYTES {
            *self = Self::new();
        }
    }
}

impl Activity {
    pub fn new(patience: Patience, buffers: Buffers) -> Self {
        Self {
            patience,
            buffers,
            state: Mutex::new(State {
                open: 0,
                waiting: Vec::new(),
                next: 0,
                since: Instant::now(),
                head: None,
                blocked: None,
                multiplexed: false,
                ended: false,
                failed: false,
                streams: Streams::default(),
                streams_part: None,
                unused: 0,
                has_body: false,
                head_part: None,
                sent_parts: Vec::new(),
                is_over: false,
            }),
        }
    }

    /// When the client has had the time that it may take. `None` while it is not waited for: a guest and a request's body
    /// have clocks of their own.
    pub fn deadline(&self) -> Option<Instant> {
        let state = self.state();
        let waiting = state.waiting.iter().map(|(_, blocked)| blocked);
        let since = waiting.chain(&state.blocked).map(|it| it.since).min();
        let since = since.map(|since| since + self.patience.write);
        // What HTTP/2 has taken of a response may wait there for its client.
        let oldest = state.streams.oldest().map(|it| it + self.patience.stream);
        let since = since.into_iter().chain(oldest).min();
        match *state {
            _ if since.is_some() => since,
            State { open: 1.., .. } => None,
            State {
                head: Some(since), ..
            } => Some(since + self.patience.head),
            _ => Some(state.since + self.patience.idle),
        }
    }

    /// A request has come. It is open for as long as the value that this returns lives.
    pub fn begin(self: &Arc<Self>, multiplexed: bool, has_body: bool) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.next += 1;
        state.head = None;
        state.multiplexed = multiplexed;
        state.unused = 0;
        state.has_body = has_body;
        Open {
            activity: self.clone(),
            number: state.next,
            parts: Vec::new(),
        }
    }

    /// Takes memory for what the connection holds; without it, the connection has to close.
    fn take(&self, state: &mut State, bytes: usize) -> Option<Part> {
        let part = self.buffers.take(bytes);
        state.is_over |= part.is_none();
        part
    }

    /// Returns true if a connection of HTTP/2 has a response that its client does not take, and others may go on.
    pub fn is_multiplexed(&self) -> bool {
        let state = self.state();
        state.streams.is_http2() && state.blocked.is_none()
    }

    /// Returns true if there is no memory for what the connection holds.
    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// A request's body comes, for as long as the value that this returns lives.
    pub fn receive_body(self: &Arc<Self>) -> Receiving {
        Receiving(self.clone())
    }

    /// Takes note of bytes that have come; returns false if there is no memory for what comes of them.
    fn received(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        state.streams.receive(bytes);
        self.take_for_streams(&mut state);
        if !state.has_body && !state.streams.is_http2() {
            state.unused += bytes.len();
        }
        if state.unused > SHORT_HEAD_BYTES && state.head_part.is_none() && !state.is_over {
            state.head_part = self.take(&mut state, HEAD_BYTES);
        }
        if bytes.is_empty() {
            state.ended = true;
        } else if state.open == 0 && state.head.is_none() && !state.multiplexed {
            state.head = Some(Instant::now());
        }
        !state.is_over
    }

    /// Takes or gives back what the open streams need.
    fn take_for_streams(&self, state: &mut State) {
        let taken = state.streams_part.as_ref().map_or(0, Buffers::size);
        let needed = state.streams.cost();
        if needed > taken {
            let more = self.take(state, needed - taken);
            match (&mut state.streams_part, more) {
                (Some(part), Some(more)) => part.merge(more),
                (part @ None, more) => *part = more,
                (Some(_), None) => {}
            }
        } else if let Some(part) = &mut state.streams_part {
            Buffers::shrink(part, needed);
        }
    }

    /// Takes note of a write, and of how much the client has taken by it.
    fn sent(&self, sent: &Poll<io::Result<usize>>, pieces: &[IoSlice]) {
        let mut state = self.state();
        if state.streams.is_http2()
            && let Poll::Ready(Ok(bytes)) = sent
        {
            let mut left = *bytes;
            for piece in pieces {
                let (passed, _) = piece.split_at(left.min(piece.len()));
                state.streams.send(passed);
                left -= passed.len();
            }
            self.take_for_streams(&mut state);
        }
        match (sent, &mut state.blocked) {
            (Poll::Ready(Ok(bytes)), Some(blocked)) => blocked.pass(*bytes),
            (Poll::Pending, blocked @ None) => *blocked = Some(Blocked::new()),
            _ => {}
        }
    }

    /// Takes note that nothing is left to send.
    fn flushed(&self) {
        let mut state = self.state();
        state.blocked = None;
        state.sent_parts.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body that comes, to whomever.
pub struct Receiving(Arc<Activity>);

impl Receiving {
    /// A part of the body has come.
    pub fn progress(&self) {
        self.0.state().unused = 0;
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.has_body = false;
        state.unused = 0;
    }
}

/// A request whose answer has not passed yet.
pub struct Open {
    activity: Arc<Activity>,
    number: u64,
    /// Memory that the request takes.
    parts: Vec<Part>,
}

impl Open {
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Keeps memory until the response has gone to the kernel.
    pub fn keep(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// The client has to take a piece of the answer, after it has taken these bytes.
    pub fn wait_for_client(&self, bytes: usize) {
        let mut state = self.activity.state();
        state.unused = 0;
        let waiting = &mut state.waiting;
        let mut all = waiting.iter_mut();
        match all.find(|(number, _)| *number == self.number) {
            Some((_, blocked)) => blocked.pass(bytes),
            None => waiting.push((self.number, Blocked::new())),
        }
    }

    /// There is no more of the answer for now.
    pub fn wait_for_guest(&self) {
        let waiting = &mut self.activity.state().waiting;
        waiting.retain(|(number, _)| *number != self.number);
    }

    /// Records that the response's body has failed and that the client could take it for whole.
    pub fn fail(&self) {
        self.activity.state().failed = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.open -= 1;
        state.has_body &= state.open > 0;
        state.since = Instant::now();
        state.sent_parts.append(&mut self.parts);
        state.waiting.retain(|(number, _)| *number != self.number);
    }
}

/// A connection's bytes, with word of them to its [`Activity`].
#[derive(Clone)]
pub struct Transport {
    /// Never contended: HTTP holds one clone, and [`Transport::close`] has another one's when HTTP
    /// is done.
    stream: Arc<Mutex<Take<TcpStream>>>,
    activity: Arc<Activity>,
}

impl Transport {
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        let stream = Arc::new(Mutex::new(stream.take(READ_BYTES)));
        Self { stream, activity }
    }

    /// Closes the connection in a way that its last response survives; nobody else may hold it. If
    /// [`Open::fail`] was called, resets it: with HTTP/1.0 an orderly close would be the end of a whole
    /// response (RFC 9112, section 6.3).
    pub async fn close(self) {
        let (ended, failed) = {
            let state = self.activity.state();
            (state.ended, state.failed)
        };
        let Some(stream) = Arc::into_inner(self.stream) else {
            return;
        };
        let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.into_inner();
        if failed {
            // Fails only where the connection is gone.
            let _ = stream.set_zero_linger();
        } else if !ended {
            close(stream, LINGER).await;
        }
    }

    /// Closes the connection of a client that took too long, or for which no memory is left. If the kernel holds bytes that
    /// the client does not take, they go as well: an orderly close would keep them until the client takes them.
    pub async fn cut(self) {
        let (is_blocked, is_over, is_between) = {
            let state = self.activity.state();
            let is_between = state.open == 0 && !state.streams.is_http2();
            (state.blocked.is_some(), state.is_over, is_between)
        };
        let Some(stream) = Arc::into_inner(self.stream) else {
            return;
        };
        let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.into_inner();
        if is_over && is_between && !is_blocked {
            let _ = stream.try_write(NO_ROOM);
            close(stream, LINGER).await;
        } else if is_over || is_blocked {
            // Fails only where the connection is gone.
            let _ = stream.set_zero_linger();
        }
    }

    fn stream(&self) -> MutexGuard<'_, Take<TcpStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the client that nothing more comes, and takes in what it still sends.
pub async fn close(mut stream: TcpStream, limit: Duration) {
    let last_words = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = timeout(limit, last_words).await;
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let mut stream = self.stream();
        stream.set_limit(READ_BYTES);
        ready!(Pin::new(&mut *stream).poll_read(cx, buffer))?;
        drop(stream);
        let received = buffer.filled().get(before..).unwrap_or_default();
        match self.activity.received(received) {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(io::Error::other("no buffers are left"))),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(self.stream().get_mut()).poll_write(cx, bytes);
        self.activity.sent(&sent, &[IoSlice::new(bytes)]);
        sent
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context,
        pieces: &[IoSlice],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(self.stream().get_mut()).poll_write_vectored(cx, pieces);
        self.activity.sent(&sent, pieces);
        sent
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket has no buffer of ours. HTTP flushes when it has nothing more to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.activity.flushed();
        Poll::Ready(Ok(()))
    }

    /// Left to [`Transport::close`], which always follows.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
