//! Accepts connections, and rejects those for which there is no permit or no file descriptor.

use crate::connection::transport::{OVERLOADED_RESPONSE, lingering_close};
use crate::listener::dispatcher::Dispatcher;
use crate::listener::http::Connection;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use rustix::io::{Errno, dup};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Maximum time for a rejected client to receive the response, and then to close.
const REJECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to wait after an error of accept(2) that is not a lack of file descriptors.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

pub struct Acceptor {
    listener: tokio::net::TcpListener,
    /// A spare descriptor, released on `EMFILE` so that the next client can be accepted and rejected.
    spare_fd: Option<OwnedFd>,
    pending_rejections: Arc<Semaphore>,
    log: Log,
    metrics: Arc<Metrics>,
}

impl Acceptor {
    /// Prepares to accept from a listener that does not block; at most `max_rejections` clients are being rejected at a time.
    ///
    /// # Errors
    /// If the socket cannot be registered with the runtime.
    pub fn new(
        listener: TcpListener,
        max_rejections: usize,
        log: Log,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Ok(Self {
            spare_fd: dup(&listener).ok(),
            listener: tokio::net::TcpListener::from_std(listener)?,
            pending_rejections: Arc::new(Semaphore::new(max_rejections)),
            log,
            metrics,
        })
    }

    /// Returns the listening socket, which does not block.
    ///
    /// # Errors
    /// If the socket cannot be removed from the runtime.
    pub fn into_listener(self) -> io::Result<TcpListener> {
        self.listener.into_std()
    }

    /// Accepts connections until the future is dropped.
    pub async fn accept(&mut self, dispatcher: &Dispatcher) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(permit) = dispatcher.try_acquire() else {
                        self.reject(stream);
                        continue;
                    };
                    if let Ok(stream) = stream.into_std() {
                        dispatcher.dispatch(Connection {
                            stream,
                            peer,
                            permit,
                        });
                    }
                }
                Err(error) => self.on_error(error).await,
            }
        }
    }

    async fn on_error(&mut self, error: io::Error) {
        // The client closed before it was accepted.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        let is_fd_exhausted = is_fd_exhausted(&error);
        self.log.event_throttled("accept", move |count| {
            let remedy = match is_fd_exhausted {
                true => "; raise `ulimit -n`, or lower MAX_CONNECTIONS",
                false => "",
            };
            format!("cannot accept connections: {error} ({count} times){remedy}")
        });
        if is_fd_exhausted && self.spare_fd.take().is_some() {
            self.reject_next().await;
        } else {
            sleep(ACCEPT_BACKOFF).await;
        }
        self.spare_fd = self.spare_fd.take().or_else(|| dup(&self.listener).ok());
    }

    /// Rejects a client in the background.
    fn reject(&self, mut stream: TcpStream) {
        self.metrics.rejected_connections.count("max_connections");
        self.log.event_throttled("connection limit", |count| {
            format!("connection limit reached (MAX_CONNECTIONS): rejected {count} connections")
        });
        let Ok(permit) = self.pending_rejections.clone().try_acquire_owned() else {
            return;
        };
        tokio::spawn(async move {
            let _ = timeout(REJECT_TIMEOUT, stream.write_all(OVERLOADED_RESPONSE)).await;
            lingering_close(stream, REJECT_TIMEOUT).await;
            drop(permit);
        });
    }

    /// Rejects the next client, if one is waiting, without blocking and with one file descriptor.
    async fn reject_next(&self) {
        let next = poll_fn(|cx| match self.listener.poll_accept(cx) {
            Poll::Ready(Ok((stream, _))) => Poll::Ready(Some(stream)),
            _ => Poll::Ready(None),
        });
        if let Some(stream) = next.await {
            self.metrics.rejected_connections.count("file_descriptors");
            // Closing with unread input resets the connection, and the client may lose the response.
            let _ = stream.try_read(&mut [0; 4096]);
            let _ = stream.try_write(OVERLOADED_RESPONSE);
        }
    }
}

/// Returns true if the process (`EMFILE`) or the system (`ENFILE`) has no file descriptor left.
fn is_fd_exhausted(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}
