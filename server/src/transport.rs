//! A client's connection below HTTP: its bytes, what it waits for, and how long it may wait.

use crate::config::Config;
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
    /// For the client to take a piece of an answer.
    pub write: Duration,
    /// For an answer to go on: what the guest may take, and then the client.
    pub answer: Duration,
}

impl Patience {
    pub fn of(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            head: config.header_timeout,
            write: config.write_timeout,
            answer: config.guest_timeout + config.write_timeout,
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
    /// When the last request came or the last piece of an answer went.
    since: Instant,
    /// When the first byte of the next head came.
    head: Option<Instant>,
    /// When the client stopped taking bytes.
    blocked: Option<Instant>,
    /// HTTP/2 has frames between requests, so that bytes do not mean a head.
    multiplexed: bool,
    /// The client sends no more.
    ended: bool,
    /// Set when a response's body has failed and the client could take it for whole.
    failed: bool,
}

impl Activity {
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            state: Mutex::new(State {
                open: 0,
                since: Instant::now(),
                head: None,
                blocked: None,
                multiplexed: false,
                ended: false,
                failed: false,
            }),
        }
    }

    /// When the client has had the time that it may take.
    pub fn deadline(&self) -> Instant {
        let state = self.state();
        match *state {
            State {
                blocked: Some(since),
                ..
            } => since + self.patience.write,
            State { open: 1.., .. } => state.since + self.patience.answer,
            State {
                head: Some(since), ..
            } => since + self.patience.head,
            _ => state.since + self.patience.idle,
        }
    }

    /// A request has come. It is open for as long as the value that this returns lives.
    pub fn begin(self: &Arc<Self>, multiplexed: bool) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.since = Instant::now();
        state.head = None;
        state.multiplexed = multiplexed;
        Open(self.clone())
    }

    fn received(&self, bytes: usize) {
        let mut state = self.state();
        if bytes == 0 {
            state.ended = true;
        } else if state.open == 0 && state.head.is_none() && !state.multiplexed {
            state.head = Some(Instant::now());
        }
    }

    fn sent(&self, taken: bool) {
        let mut state = self.state();
        match (taken, state.blocked) {
            (true, Some(_)) => state.blocked = None,
            (false, None) => state.blocked = Some(Instant::now()),
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer has not passed yet.
pub struct Open(Arc<Activity>);

impl Open {
    /// A piece of the answer has passed.
    pub fn progress(&self) {
        self.0.state().since = Instant::now();
    }

    /// Records that the response's body has failed and that the client could take it for whole.
    pub fn fail(&self) {
        self.0.state().failed = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        state.since = Instant::now();
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
        self.activity.sent(sent.is_ready());
        sent
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context,
        pieces: &[IoSlice],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut *self.stream()).poll_write_vectored(cx, pieces);
        self.activity.sent(sent.is_ready());
        sent
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket has no buffer of ours.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Left to [`Transport::close`], which always follows.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
