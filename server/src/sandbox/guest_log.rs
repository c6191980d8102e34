//! The standard output and error of guests. Each line becomes a line of the log, with the trace of the request.

use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use crate::telemetry::trace::Trace;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::{io, mem};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Maximum size of a line. A longer one is split.
const LINE_BYTES: usize = 4096;

/// A standard stream of a guest. Clones share the current line.
#[derive(Clone)]
pub struct GuestLog {
    log: Log,
    kind: StdStream,
    buffer: Arc<Mutex<LineBuffer>>,
}

#[derive(Clone, Copy)]
pub enum StdStream {
    Stdout,
    Stderr,
}

impl StdStream {
    /// Returns the level of the lines, and the name of the stream in OpenTelemetry.
    fn describe(self) -> (Level, &'static str) {
        match self {
            Self::Stdout => (Level::Info, "stdout"),
            Self::Stderr => (Level::Warn, "stderr"),
        }
    }
}

#[derive(Default)]
struct LineBuffer {
    /// The current line, without its end.
    line: Vec<u8>,
    /// Trace of the request that the guest serves.
    trace: Trace,
    /// Set by a write, and cleared by [`GuestLog::take_written`].
    has_written: bool,
}

impl GuestLog {
    pub fn new(log: &Log, kind: StdStream) -> Self {
        Self {
            log: log.clone(),
            kind,
            buffer: Arc::default(),
        }
    }

    /// Sets the trace of the following lines.
    pub fn begin_request(&self, trace: Trace) {
        self.buffer().trace = trace;
    }

    /// Logs the last line of a request if the guest has not ended it.
    pub fn end_request(&self) {
        let LineBuffer { line, trace, .. } = &mut *self.buffer();
        if !line.is_empty() {
            self.log_line(line, trace);
        }
    }

    /// Returns true if the guest has written since the last call of this function.
    pub fn take_written(&self) -> bool {
        mem::take(&mut self.buffer().has_written)
    }

    fn buffer(&self) -> MutexGuard<'_, LineBuffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8]) {
        let LineBuffer {
            line,
            trace,
            has_written,
        } = &mut *self.buffer();
        *has_written = true;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for chunk in piece.chunks(LINE_BYTES) {
                line.extend_from_slice(chunk);
                if line.ends_with(b"\n") || line.len() >= LINE_BYTES {
                    self.log_line(line, trace);
                }
            }
        }
    }

    fn log_line(&self, line: &mut Vec<u8>, trace: &Trace) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches('\n');
        // A panic message of Rust starts with an empty line.
        if !text.is_empty() {
            let (level, stream) = self.kind.describe();
            self.log.guest_line(level, trace, stream, text);
        }
        line.clear();
    }
}

impl Drop for GuestLog {
    /// Logs the last line of a guest that has trapped.
    fn drop(&mut self) {
        if let Some(buffer) = Arc::get_mut(&mut self.buffer) {
            let buffer = buffer.get_mut().unwrap_or_else(PoisonError::into_inner);
            let mut line = mem::take(&mut buffer.line);
            let trace = mem::take(&mut buffer.trace);
            if !line.is_empty() {
                self.log_line(&mut line, &trace);
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
