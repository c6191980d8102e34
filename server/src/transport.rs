//! A client's connection below HTTP: its bytes, what it waits for, and how long it may wait.

use crate::config::Config;
use crate::pace::STEADY_BYTES;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long a closed connection is still read, so that its last answer arrives: bytes of the client
/// that meet a closed socket reset it, and what the client has not read is lost (RFC 9112, section
/// 9.6).
const LINGER: Duration = Duration::from_millis(300);

/// Longest waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first byte of a request.
    pub idle: Duration,
    /// From there to the end of its head.
    pub head: Duration,
    /// For the client to take [`STEADY_BYTES`] of an answer.
    pub write: Duration,
}

impl Patience {
    pub fn of(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            head: config.header_timeout,
            write: config.write_timeout,
        }
    }
}

/// What a connection waits for, as told by those who see its bytes, requests and answers pass.
pub struct Activity {
    patience: Patience,
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
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
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
    pub fn begin(self: &Arc<Self>, multiplexed: bool) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.next += 1;
        state.head = None;
        state.multiplexed = multiplexed;
        Open {
            activity: self.clone(),
            number: state.next,
        }
    }

    fn received(&self, bytes: usize) {
        let mut state = self.state();
        if bytes == 0 {
            state.ended = true;
        } else if state.open == 0 && state.head.is_none() && !state.multiplexed {
            state.head = Some(Instant::now());
        }
    }

    /// Takes note of a write, and of how much the client has taken by it.
    fn sent(&self, sent: &Poll<io::Result<usize>>) {
        let mut state = self.state();
        match (sent, &mut state.blocked) {
            (Poll::Ready(Ok(bytes)), Some(blocked)) => blocked.pass(*bytes),
            (Poll::Pending, blocked @ None) => *blocked = Some(Blocked::new()),
            _ => {}
        }
    }

    /// Takes note that nothing is left to send.
    fn flushed(&self) {
        self.state().blocked = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer has not passed yet.
pub struct Open {
    activity: Arc<Activity>,
    number: u64,
}

impl Open {
    /// The client has to take a piece of the answer, after it has taken these bytes.
    pub fn wait_for_client(&self, bytes: usize) {
        let waiting = &mut self.activity.state().waiting;
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
        state.since = Instant::now();
        state.waiting.retain(|(number, _)| *number != self.number);
    }
}

/// A connection's bytes, with word of them to its [`Activity`].
#[derive(Clone)]
pub struct Transport {
    /// Never contended: HTTP holds one clone, and [`Transport::close`] has another one's when HTTP
    /// is done.
    stream: Arc<Mutex<TcpStream>>,
    activity: Arc<Activity>,
}

impl Transport {
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        let stream = Arc::new(Mutex::new(stream));
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
        if failed {
            // Fails only where the connection is gone.
            let _ = stream.set_zero_linger();
        } else if !ended {
            close(stream, LINGER).await;
        }
    }

    fn stream(&self) -> MutexGuard<'_, TcpStream> {
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
        ready!(Pin::new(&mut *self.stream()).poll_read(cx, buffer))?;
        self.activity.received(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut *self.stream()).poll_write(cx, bytes);
        self.activity.sent(&sent);
        sent
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context,
        pieces: &[IoSlice],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut *self.stream()).poll_write_vectored(cx, pieces);
        self.activity.sent(&sent);
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
