//! The guest's standard output and error: each line becomes a line of the log, with the id of the request.

use crate::telemetry::log::{Level, Log};
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::{io, mem};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of a line before it is broken up.
const LINE_BYTES: usize = 4096;

/// One of a guest's streams. Clones write to the same line.
#[derive(Clone)]
pub struct GuestLog {
    log: Log,
    kind: Kind,
    stream: Arc<Mutex<Stream>>,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Stdout,
    Stderr,
}

impl Kind {
    /// Returns the level of a line, and the name that OpenTelemetry has for the stream.
    fn describe(self) -> (Level, &'static str) {
        match self {
            Self::Stdout => (Level::Info, "stdout"),
            Self::Stderr => (Level::Warn, "stderr"),
        }
    }
}

#[derive(Default)]
struct Stream {
    /// The line so far.
    line: Vec<u8>,
    /// The request that the guest serves.
    trace: Trace,
    /// Set when anything has been written since [`GuestLog::take_written`].
    written: bool,
}

impl GuestLog {
    pub fn new(log: &Log, kind: Kind) -> Self {
        Self {
            log: log.clone(),
            kind,
            stream: Arc::default(),
        }
    }

    /// Begins the lines of a request.
    pub fn begin(&self, trace: Trace) {
        self.stream().trace = trace;
    }

    /// Ends the last line of a request, if the guest has not.
    pub fn end_request(&self) {
        let Stream { line, trace, .. } = &mut *self.stream();
        if !line.is_empty() {
            self.end(line, trace);
        }
    }

    /// Returns true if the guest has written anything since the last call.
    pub fn take_written(&self) -> bool {
        mem::take(&mut self.stream().written)
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8]) {
        let Stream {
            line,
            trace,
            written,
        } = &mut *self.stream();
        *written = true;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for chunk in piece.chunks(LINE_BYTES) {
                line.extend_from_slice(chunk);
                if line.ends_with(b"\n") || line.len() >= LINE_BYTES {
                    self.end(line, trace);
                }
            }
        }
    }

    fn end(&self, line: &mut Vec<u8>, trace: &Trace) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\n');
        // Rust's panics begin with an empty line.
        if !text.is_empty() {
            let (level, stream) = self.kind.describe();
            self.log.guest_line(level, trace, stream, text);
        }
        line.clear();
    }
}

impl Drop for GuestLog {
    /// A guest that breaks off may leave a line without its end.
    fn drop(&mut self) {
        if let Some(stream) = Arc::get_mut(&mut self.stream) {
            let stream = stream.get_mut().unwrap_or_else(PoisonError::into_inner);
            let mut line = mem::take(&mut stream.line);
            let trace = mem::take(&mut stream.trace);
            if !line.is_empty() {
                self.end(&mut line, &trace);
            }
        }
    }
}

impl IsTerminal for GuestLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestLog {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for GuestLog {
    async fn ready(&mut self) {}
}

impl OutputStream for GuestLog {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        GuestLog::write(self, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl AsyncWrite for GuestLog {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        GuestLog::write(&self, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
