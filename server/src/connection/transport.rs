//! The socket of a client's connection, as hyper reads and writes it. Reports the bytes to the [`ConnectionState`], and
//! closes the socket when hyper is done.

use crate::connection::buffers::FREE_BYTES;
use crate::connection::state::{CloseMode, ConnectionState};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time for which input is discarded after the last response. Input that arrives at a closed socket resets the connection, and the
/// client may lose the response (RFC 9112, section 9.6).
const LINGERING_CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

/// Sent to a client that is rejected before its request is read.
pub const OVERLOADED_RESPONSE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 19\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\r\n\
    Service Unavailable";

/// Maximum bytes of one read. hyper's buffer has [`FREE_BYTES`], and doubles when a read fills it.
const READ_BYTES: u64 = FREE_BYTES as u64 - 1;

/// Maximum bytes of one write: half of what the kernel holds for a client (`listener/socket.rs`). A receiver acknowledges every
/// second segment at once, but may delay the acknowledgement of a single one (RFC 9293, section 3.8.6.3), Linux by 40 ms. Over
/// loopback a segment can have 64 KiB. A larger write would be the only segment that the kernel holds, and wait each time.
pub const WRITE_BYTES: usize = 32 << 10;

/// Maximum number of pieces of a write, if all together exceed [`WRITE_BYTES`].
const WRITE_PIECES: usize = 16;

/// A connection's socket.
#[derive(Clone)]
pub struct Transport {
    /// Never contended: hyper has one clone, and the other one is used when hyper has dropped it.
    stream: Arc<Mutex<Take<TcpStream>>>,
    connection: Arc<ConnectionState>,
}

impl Transport {
    pub fn new(stream: TcpStream, connection: Arc<ConnectionState>) -> Self {
        let stream = Arc::new(Mutex::new(stream.take(READ_BYTES)));
        Self { stream, connection }
    }

    /// Closes the socket after the last response. This has to be the last clone.
    pub async fn close(self) {
        let mode = self.connection.close_mode();
        self.close_by(mode).await;
    }

    /// Closes the socket of a client that has timed out, or for which no memory is left. This has to be the last clone.
    pub async fn abort(self) {
        let mode = self.connection.abort_mode();
        self.close_by(mode).await;
    }

    async fn close_by(self, mode: CloseMode) {
        let Some(stream) = Arc::into_inner(self.stream) else {
            return;
        };
        let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.into_inner();
        match mode {
            CloseMode::Immediate => {}
            // Fails only if the connection is already closed.
            CloseMode::Reset => drop(stream.set_zero_linger()),
            CloseMode::Lingering => lingering_close(stream, LINGERING_CLOSE_TIMEOUT).await,
            CloseMode::Rejected => {
                let _ = stream.try_write(OVERLOADED_RESPONSE);
                lingering_close(stream, LINGERING_CLOSE_TIMEOUT).await;
            }
        }
    }

    fn write_pieces(&self, cx: &mut Context, pieces: &[IoSlice]) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.stream().get_mut()).poll_write_vectored(cx, pieces);
        self.connection.on_write(&written, pieces);
        written
    }

    fn stream(&self) -> MutexGuard<'_, Take<TcpStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes without a reset: shuts down the write half, then discards input until the client closes or `limit` expires.
pub async fn lingering_close(mut stream: TcpStream, limit: Duration) {
    let discard_input = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = timeout(limit, discard_input).await;
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
            false => Poll::Ready(Err(io::Error::other("connection buffers exhausted"))),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = bytes.get(..WRITE_BYTES).unwrap_or(bytes);
        let written = Pin::new(self.stream().get_mut()).poll_write(cx, bytes);
        self.connection.on_write(&written, &[IoSlice::new(bytes)]);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context,
        pieces: &[IoSlice],
    ) -> Poll<io::Result<usize>> {
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= WRITE_BYTES {
            return self.write_pieces(cx, pieces);
        }
        self.write_pieces(
            cx,
            first_bytes(pieces, &mut [IoSlice::new(&[]); WRITE_PIECES]),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The socket is not buffered. HTTP flushes when it has nothing more to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        self.connection.on_flush();
        Poll::Ready(Ok(()))
    }

    /// Does nothing: [`Self::close`] or [`Self::abort`] follows, and needs the socket as it is.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns the first [`WRITE_BYTES`] of `pieces`, or less if they have more pieces than `first`.
fn first_bytes<'a, 'b>(pieces: &'b [IoSlice<'a>], first: &'b mut [IoSlice<'a>]) -> &'b [IoSlice<'a>]
where
    'b: 'a,
{
    let mut left = WRITE_BYTES;
    let mut used = 0;
    for (slot, piece) in first.iter_mut().zip(pieces) {
        let bytes: &[u8] = piece;
        *slot = IoSlice::new(bytes.get(..left).unwrap_or(bytes));
        left -= slot.len();
        used += 1;
        if left == 0 {
            break;
        }
    }
    first.get(..used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_have_at_most_half_of_what_the_kernel_holds() {
        let (head, body) = (vec![b'h'; 100], vec![b'b'; 2 * WRITE_BYTES]);
        for (pieces, expected) in [
            (&[&head[..], &body][..], vec![100, WRITE_BYTES - 100]),
            (&[&body[..], &head], vec![WRITE_BYTES]),
            (&[&[][..], &body], vec![0, WRITE_BYTES]),
            (&[&head[..]; 400], vec![100; WRITE_PIECES]),
        ] {
            let pieces: Vec<_> = pieces.iter().map(|it| IoSlice::new(it)).collect();
            let mut first = [IoSlice::new(&[]); WRITE_PIECES];
            let lengths = first_bytes(&pieces, &mut first).iter().map(|it| it.len());
            assert_eq!(lengths.collect::<Vec<_>>(), expected);
        }
    }
}
