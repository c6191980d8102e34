//! A client's connection below HTTP: its bytes, what the server waits for, and how long.
//!
//! hyper has one timeout, `header_read_timeout`, which is that of the head and that of the idle connection at once, and
//! for HTTP/1 alone. It has none for a client that does not read, and h2's keep-alive only tells whether the client lives.
//! So the timeouts are those of the bytes that pass here; a guest and a request's body have timeouts of their own.

use crate::config::settings::Config;
use crate::connection::buffers::{Buffers, FREE_BYTES, Part};
use crate::connection::http2::Streams;
use crate::connection::pace::Blocked;
use crate::telemetry::metrics::Metrics;
use http::StatusCode;
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
const LINGERING_CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Response to a client for which there is no room.
pub const OVERLOADED_RESPONSE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 19\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\r\n\
    Service Unavailable";

/// Longest waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the first byte of a request.
    pub idle: Duration,
    /// From there to the end of its head.
    pub head: Duration,
    /// For the client to take [`STEADY_BYTES`](crate::connection::pace::STEADY_BYTES) of a response.
    pub write: Duration,
    /// For other responses to end when a connection of HTTP/2 closes for the sake of one, or of half a head.
    pub last: Duration,
}

impl Timeouts {
    pub fn of(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            head: config.header_timeout,
            write: config.write_timeout,
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

/// What a connection waits for, as told by those who see its bytes, requests and responses pass.
pub struct ConnectionState {
    timeouts: Timeouts,
    buffers: Buffers,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

struct State {
    /// Requests whose responses have not passed.
    in_flight: usize,
    /// Their bodies of which something is to come.
    bodies: usize,
    /// When the last response had passed.
    last_activity: Instant,
    /// When the first byte of the next head came. HTTP/2 has frames between requests, so that bytes do not mean a head.
    head: Option<Instant>,
    /// The last bytes that have come of heads, as a number.
    head_end: u32,
    /// Set when the client takes no more bytes of the connection.
    write_blocked: Option<Blocked>,
    /// The client sends no more.
    read_closed: bool,
    /// Set when a response's body has failed and the client could take it for whole.
    failed: bool,
    streams: Streams,
    /// FrameBuffer for the streams of HTTP/2.
    streams_part: Option<Part>,
    /// Bytes received since something has come of them: a request, or a part of its body.
    unused: usize,
    /// FrameBuffer for a long head, and kept until the connection closes: hyper keeps its buffer as well.
    head_part: Option<Part>,
    /// FrameBuffer for responses that have gone to HTTP and not yet to the kernel.
    sent_parts: Vec<Part>,
    /// Set when the connection has to close, as there is no memory for what it holds.
    is_over: bool,
}

impl State {
    fn is_http2(&self) -> bool {
        self.streams.is_http2()
    }

    /// Returns true if nothing is under way. h2 may hold the last piece of a response for longer than the service has it.
    fn is_idle(&self) -> bool {
        let is_sent =
            self.in_flight == 0 && self.write_blocked.is_none() && !self.streams.has_responses();
        is_sent && self.head().is_none()
    }

    fn head(&self) -> Option<Instant> {
        match self.is_http2() {
            true => self.streams.incomplete(),
            false => self.head,
        }
    }

    /// Takes note of bytes of heads.
    fn receive_heads(&mut self, bytes: &[u8]) {
        self.unused += bytes.len();
        let last = bytes.len().saturating_sub(size_of_val(&self.head_end));
        for byte in bytes.get(last..).unwrap_or_default() {
            self.head_end = self.head_end << 8 | u32::from(*byte);
        }
    }

    /// Returns true if the last head that has begun has not come whole: it ends with an empty line (RFC 9112, section 2.1),
    /// and its lines may end without a CR (section 2.2).
    fn is_within_head(&self) -> bool {
        self.head_end & 0xff_ffff != 0x0a_0d0a && self.head_end & 0xffff != 0x0a0a
    }
}

impl ConnectionState {
    pub fn new(timeouts: Timeouts, buffers: Buffers, metrics: Arc<Metrics>) -> Self {
        Self {
            timeouts,
            buffers,
            metrics,
            state: Mutex::new(State {
                in_flight: 0,
                bodies: 0,
                last_activity: Instant::now(),
                head: None,
                head_end: 0,
                write_blocked: None,
                read_closed: false,
                failed: false,
                streams: Streams::default(),
                streams_part: None,
                unused: 0,
                head_part: None,
                sent_parts: Vec::new(),
                is_over: false,
            }),
        }
    }

    /// When the client has had the time that it may take, and by which timeout, as [`Metrics::timeouts`] names it. `None`
    /// while it is not waited for.
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        let state = self.state();
        // HTTP reads nothing while it cannot write.
        if let Some(write_blocked) = &state.write_blocked {
            return Some((write_blocked.since() + self.timeouts.write, "write"));
        }
        let stalls = state.streams.stalls_at(self.timeouts.write);
        let stalls = stalls.map(|at| (at, "write"));
        let head = state.head();
        let head = head.map(|since| (since + self.timeouts.head, "header"));
        let idle =
            (state.in_flight == 0).then(|| (state.last_activity + self.timeouts.idle, "idle"));
        stalls.into_iter().chain(head).min().or(idle)
    }

    /// Returns when a connection may close that is to close, if its client may take so long to hear of it: one of HTTP/1 when
    /// it has had no request for so long, and one of HTTP/2 at once, as it first serves all that it has.
    pub fn closes_at(&self, linger: Duration) -> Option<Instant> {
        let state = self.state();
        match state.is_http2() {
            true => Some(Instant::now()),
            false => state.is_idle().then(|| state.last_activity + linger),
        }
    }

    /// Returns when a connection of HTTP/2 that has said GOAWAY is over, though the client has not acknowledged it: it has had
    /// so long for it since then, and since the last response.
    pub fn is_over_at(&self, goaway: Instant, limit: Duration) -> Option<Instant> {
        let state = self.state();
        let is_over = state.is_http2() && state.is_idle();
        is_over.then(|| state.last_activity.max(goaway) + limit)
    }

    /// Returns when the head of a request began of which the rest is waited for.
    pub fn head(&self) -> Option<Instant> {
        self.state().head()
    }

    /// Returns the statuses of requests that HTTP/2 has refused since the last call.
    pub fn take_refused(&self) -> Vec<StatusCode> {
        self.state().streams.take_refused()
    }

    /// A request has come. It is open for as long as the value that this returns lives.
    pub fn start_request(self: &Arc<Self>) -> InFlightRequest {
        let mut state = self.state();
        if state.in_flight == 0 {
            self.metrics.busy_connections.inc();
        }
        state.in_flight += 1;
        state.head = None;
        state.unused = 0;
        state.streams.start_request();
        InFlightRequest {
            connection: self.clone(),
            parts: Vec::new(),
        }
    }

    /// Takes memory for what the connection holds; without it, the connection has to close.
    fn reserve(&self, state: &mut State, bytes: usize) -> Option<Part> {
        let part = self.buffers.take(bytes);
        state.is_over |= part.is_none();
        part
    }

    /// Returns true if this is a connection of HTTP/2 that takes bytes: some of its responses may go on.
    pub fn is_multiplexed(&self) -> bool {
        let state = self.state();
        state.is_http2() && state.write_blocked.is_none()
    }

    /// Returns true if there is no memory for what the connection holds.
    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// A request's body comes, for as long as the value that this returns lives.
    pub fn receive_body(self: &Arc<Self>) -> ReceivingBody {
        let mut state = self.state();
        state.bodies += 1;
        // What came with the head is taken for a part of the body.
        state.receive_heads(b"\n\n");
        state.unused = 0;
        ReceivingBody(self.clone())
    }

    /// Takes note of bytes that have come; returns false if there is no memory for what comes of them.
    fn on_read(&self, bytes: &[u8]) -> bool {
        self.metrics.received.inc_by(bytes.len() as u64);
        let mut state = self.state();
        state.streams.on_read(bytes);
        self.reserve_for_streams(&mut state);
        let is_of_heads = state.bodies == 0 && !state.is_http2();
        if is_of_heads {
            state.receive_heads(bytes);
        }
        if state.unused > SHORT_HEAD_BYTES && state.head_part.is_none() && !state.is_over {
            state.head_part = self.reserve(&mut state, HEAD_BYTES);
        }
        if bytes.is_empty() {
            state.read_closed = true;
        } else if is_of_heads && state.in_flight == 0 {
            state.head.get_or_insert_with(Instant::now);
        }
        !state.is_over
    }

    /// Takes or gives back what the open streams need.
    fn reserve_for_streams(&self, state: &mut State) {
        let taken = state.streams_part.as_ref().map_or(0, Buffers::size);
        let needed = state.streams.cost();
        if needed > taken {
            let more = self.reserve(state, needed - taken);
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
    fn on_write(&self, sent: &Poll<io::Result<usize>>, pieces: &[IoSlice]) {
        if let Poll::Ready(Ok(bytes)) = sent {
            self.metrics.sent.inc_by(*bytes as u64);
        }
        let mut state = self.state();
        if state.is_http2()
            && let Poll::Ready(Ok(bytes)) = sent
        {
            let mut left = *bytes;
            for piece in pieces {
                let (passed, _) = piece.split_at(left.min(piece.len()));
                state.streams.on_write(passed);
                left -= passed.len();
            }
            self.reserve_for_streams(&mut state);
        }
        match (sent, &mut state.write_blocked) {
            (Poll::Ready(Ok(bytes)), Some(write_blocked)) => write_blocked.pass(*bytes),
            (Poll::Pending, write_blocked @ None) => *write_blocked = Some(Blocked::new()),
            _ => {}
        }
    }

    /// Takes note that nothing is left to send.
    fn on_flush(&self) {
        let mut state = self.state();
        if state.write_blocked.take().is_some() {
            let now = Instant::now();
            state.last_activity = now;
            state.head = state.head.map(|_| now);
            state.streams.restart_incomplete();
        }
        state.sent_parts.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body that comes, to whomever.
pub struct ReceivingBody(Arc<ConnectionState>);

impl ReceivingBody {
    /// A part of the body has come.
    pub fn progress(&self) {
        self.0.state().unused = 0;
    }

    /// The client sends the body too slowly.
    pub fn stall(&self) {
        self.0.metrics.timeouts.count("body");
    }
}

impl Drop for ReceivingBody {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.bodies -= 1;
        state.unused = 0;
    }
}

/// A request whose answer has not passed yet.
pub struct InFlightRequest {
    connection: Arc<ConnectionState>,
    /// Memory that the request takes.
    parts: Vec<Part>,
}

impl InFlightRequest {
    pub fn connection(&self) -> &Arc<ConnectionState> {
        &self.connection
    }

    /// Keeps memory until the response has gone to the kernel.
    pub fn keep(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Records that the response's body has failed and that the client could take it for whole.
    pub fn fail(&self) {
        self.connection.state().failed = true;
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        let mut state = self.connection.state();
        state.in_flight -= 1;
        if state.in_flight == 0 {
            self.connection.metrics.busy_connections.dec();
        }
        state.last_activity = Instant::now();
        if state.in_flight == 0 && state.bodies == 0 && state.is_within_head() {
            // The next request was sent behind this one, and has begun to come.
            state.head = Some(state.last_activity);
        }
        state.sent_parts.append(&mut self.parts);
    }
}

/// A connection's bytes, with word of them to its [`ConnectionState`].
#[derive(Clone)]
pub struct Transport {
    /// Never contended: HTTP holds one clone, and [`Transport::close`] has another one's when HTTP
    /// is done.
    stream: Arc<Mutex<Take<TcpStream>>>,
    connection: Arc<ConnectionState>,
}

impl Transport {
    pub fn new(stream: TcpStream, connection: Arc<ConnectionState>) -> Self {
        let stream = Arc::new(Mutex::new(stream.take(READ_BYTES)));
        Self { stream, connection }
    }

    /// Closes the connection in a way that its last response survives; nobody else may hold it. If
    /// [`InFlightRequest::fail`] was called, resets it: with HTTP/1.0 an orderly close would be the end of a whole
    /// response (RFC 9112, section 6.3).
    pub async fn close(self) {
        let (read_closed, failed) = {
            let state = self.connection.state();
            (state.read_closed, state.failed)
        };
        let Some(stream) = Arc::into_inner(self.stream) else {
            return;
        };
        let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.into_inner();
        if failed {
            // Fails only where the connection is gone.
            let _ = stream.set_zero_linger();
        } else if !read_closed {
            lingering_close(stream, LINGERING_CLOSE_TIMEOUT).await;
        }
    }

    /// Closes the connection of a client that took too long, or for which no memory is left. If the kernel holds bytes that
    /// the client does not take, they go as well: an orderly close would keep them until the client takes them.
    pub async fn cut(self) {
        let (is_blocked, is_over, is_between) = {
            let state = self.connection.state();
            let is_between = state.in_flight == 0 && !state.is_http2();
            (state.write_blocked.is_some(), state.is_over, is_between)
        };
        let Some(stream) = Arc::into_inner(self.stream) else {
            return;
        };
        let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.into_inner();
        if is_over && is_between && !is_blocked {
            let _ = stream.try_write(OVERLOADED_RESPONSE);
            lingering_close(stream, LINGERING_CLOSE_TIMEOUT).await;
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
pub async fn lingering_close(mut stream: TcpStream, limit: Duration) {
    let drain_input = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = timeout(limit, drain_input).await;
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
        match self.connection.on_read(received) {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(io::Error::other("no buffers are left"))),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(self.stream().get_mut()).poll_write(cx, bytes);
        self.connection.on_write(&sent, &[IoSlice::new(bytes)]);
        sent
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context,
        pieces: &[IoSlice],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(self.stream().get_mut()).poll_write_vectored(cx, pieces);
        self.connection.on_write(&sent, pieces);
        sent
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket has no buffer of ours. HTTP flushes when it has nothing more to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.connection.on_flush();
        Poll::Ready(Ok(()))
    }

    /// Left to [`Transport::close`], which always follows.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
