//! The log on standard output, which never makes a request wait.
//!
//! Lines go to a buffer, and one thread writes the buffer out. If the reader is slower than the server, the buffer becomes
//! full. Further lines are then dropped and counted, and the number is logged once there is room again. A batch is written
//! at most every [`BATCH_INTERVAL`], so that many requests share a system call.

use crate::telemetry::access::AccessRecord;
use crate::telemetry::line::{Event, Level, LogFormat};
use crate::telemetry::throttle::Throttle;
use crate::telemetry::trace::Trace;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

/// Bytes of lines that wait for the reader before further ones are dropped.
const BUFFER_BYTES: usize = 1 << 20;

const BATCH_INTERVAL: Duration = Duration::from_millis(5);

/// Capacity that a buffer keeps between batches.
const BATCH_BYTES: usize = 64 << 10;

/// A handle to the log, as cheap to clone as a pointer.
#[derive(Clone)]
pub struct Log {
    format: LogFormat,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Notified when there is something to write, and when it is written.
    changed: Condvar,
    /// Lines dropped since the start.
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Lines dropped since the last batch.
    dropped: u64,
    is_writing: bool,
    throttle: Throttle,
    /// Set when the process ends, and nothing is throttled any more.
    is_ending: bool,
}

impl Log {
    /// Returns a log whose lines wait for its writer.
    pub fn new(format: LogFormat) -> Self {
        let queue = Arc::default();
        Self { format, queue }
    }

    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start_writer(&self, out: impl Write + Send + 'static) -> io::Result<()> {
        let writer = self.clone();
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || writer.write_to(out))?;
        Ok(())
    }

    /// Logs an event of the server as a whole.
    pub fn event(&self, level: Level, message: fmt::Arguments) {
        self.push(&self.event_line(level, message));
    }

    /// Logs an event of a request.
    pub fn request_event(&self, level: Level, trace: &Trace, message: fmt::Arguments) {
        let event = Event {
            level,
            message,
            trace: Some(trace),
            iostream: None,
        };
        self.push(&event.line(self.format));
    }

    /// Logs a line that a guest has written to `stdout` or `stderr`.
    pub fn guest_line(&self, level: Level, trace: &Trace, iostream: &'static str, text: &str) {
        let event = Event {
            level,
            message: format_args!("{text}"),
            trace: Some(trace),
            iostream: Some(iostream),
        };
        self.push(&event.line(self.format));
    }

    /// Logs an event that may be frequent, of a kind with this name (see [`Throttle`]). `message` receives the number of
    /// events since the last line.
    pub fn event_throttled(
        &self,
        name: &'static str,
        message: impl Fn(u64) -> String + Send + 'static,
    ) {
        let mut state = self.lock();
        if state.throttle.allows(name, Instant::now()) {
            drop(state);
            self.event(Level::Warn, format_args!("{}", message(1)));
            return;
        }
        let is_first = state.throttle.defer(name, Box::new(message));
        drop(state);
        if is_first {
            self.queue.changed.notify_all();
        }
    }

    /// Logs a request.
    pub fn access(&self, record: &AccessRecord) {
        self.push(&record.line(self.format));
    }

    /// Returns the number of lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written, for `limit` at most because the reader may have stopped.
    pub fn flush(&self, limit: Duration) {
        let mut state = self.lock();
        state.is_ending = true;
        self.queue.changed.notify_all();
        let is_busy = |state: &mut State| {
            state.is_writing || state.throttle.due().is_some() || !state.lines.is_empty()
        };
        drop(self.queue.changed.wait_timeout_while(state, limit, is_busy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.queue.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &str) {
        let mut state = self.lock();
        if state.lines.len() + line.len() > BUFFER_BYTES {
            state.dropped += 1;
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let writer_waits = state.lines.is_empty();
        state.lines.extend_from_slice(line.as_bytes());
        drop(state);
        if writer_waits {
            self.queue.changed.notify_all();
        }
    }

    fn write_to(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let (mut state, throttled) = self.wait();
            mem::swap(&mut batch, &mut state.lines);
            let dropped = mem::take(&mut state.dropped);
            state.is_writing = true;
            drop(state);

            for message in throttled {
                let line = self.event_line(Level::Warn, format_args!("{message}"));
                batch.extend_from_slice(line.as_bytes());
            }
            if dropped > 0 {
                let message = format_args!("dropped {dropped} log lines: the reader is too slow");
                let line = self.event_line(Level::Warn, message);
                batch.extend_from_slice(line.as_bytes());
            }
            // Once the pipe is closed, only `/metrics` shows the loss.
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                self.queue
                    .dropped
                    .fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(BATCH_BYTES);

            self.lock().is_writing = false;
            self.queue.changed.notify_all();
            thread::sleep(BATCH_INTERVAL);
        }
    }

    /// Waits until there is something to write, and returns it: lines in the state, and messages of throttled events.
    fn wait(&self) -> (MutexGuard<'_, State>, Vec<String>) {
        let changed = &self.queue.changed;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let is_ending = state.is_ending;
            let throttled = state.throttle.take_due(now, is_ending);
            if !throttled.is_empty() || !state.lines.is_empty() {
                return (state, throttled);
            }
            state = match state.throttle.due() {
                Some(due) => {
                    let waited = changed.wait_timeout(state, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    fn event_line(&self, level: Level, message: fmt::Arguments) -> String {
        let event = Event {
            level,
            message,
            trace: None,
            iostream: None,
        };
        event.line(self.format)
    }
}
