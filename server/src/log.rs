//! The log: one line an event, on standard output, never in the way of a request.
//!
//! Lines go to a buffer that one thread writes out. When the reader is slower than the service the
//! buffer fills up, further lines are dropped and counted, and the count is logged once there is
//! room again.

use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{mem, thread};

/// Bytes of lines that wait for the reader before further ones are dropped.
const BUFFER_BYTES: usize = 1 << 20;

/// How long lines gather before they are written in one system call.
const BATCH: Duration = Duration::from_millis(5);

/// Capacity that a buffer keeps between batches.
const BATCH_BYTES: usize = 64 << 10;

/// How often at most [`Log::often`] speaks.
const OFTEN: Duration = Duration::from_secs(1);

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Text,
    Json,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Access {
    pub peer: SocketAddr,
    pub method: http::Method,
    pub path: String,
    pub status: u16,
    /// Bytes of the body that were passed on.
    pub bytes: u64,
    /// From the request's head to the end of the body.
    pub took: Duration,
}

/// What happens too often under load to be logged each time.
#[derive(Default)]
pub struct Often(Mutex<Unsaid>);

#[derive(Default)]
struct Unsaid {
    count: u64,
    last: Option<Instant>,
}

/// A handle on the log, as cheap to clone as a pointer.
#[derive(Clone)]
pub struct Log {
    format: Format,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
}

impl Log {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(format: Format, out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::default();
        let log = Self { format, queue };
        let writer = log.clone();
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || writer.write_to(out))?;
        Ok(log)
    }

    /// Logs what concerns the server as a whole.
    pub fn event(&self, message: fmt::Arguments) {
        self.push(&self.event_line(message));
    }

    /// Logs what happens often, at most once a second. `message` gets how often it has happened
    /// since the last time that it was logged.
    pub fn often(&self, often: &Often, message: impl FnOnce(u64) -> String) {
        let mut unsaid = often.0.lock().unwrap_or_else(PoisonError::into_inner);
        unsaid.count += 1;
        let due = unsaid.last.is_none_or(|last| last.elapsed() >= OFTEN);
        if due {
            let count = mem::take(&mut unsaid.count);
            unsaid.last = Some(Instant::now());
            drop(unsaid);
            self.event(format_args!("{}", message(count)));
        }
    }

    /// Logs a request and its answer.
    pub fn access(&self, access: &Access) {
        self.push(&match self.format {
            Format::Text => format!("{access}\n"),
            Format::Json => access.json(),
        });
    }

    /// Waits until every line is written, `limit` at most: the reader may have stopped reading.
    pub fn flush(&self, limit: Duration) {
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        let changed = &self.queue.changed;
        drop(changed.wait_timeout_while(self.lock(), limit, busy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.queue.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &str) {
        let mut state = self.lock();
        if state.lines.len() + line.len() > BUFFER_BYTES {
            state.dropped += 1;
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
            let idle = |state: &mut State| state.lines.is_empty();
            let state = self.queue.changed.wait_while(self.lock(), idle);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut batch, &mut state.lines);
            let dropped = mem::take(&mut state.dropped);
            state.writing = true;
            drop(state);

            if dropped > 0 {
                let line = self.event_line(format_args!(
                    "{dropped} lines of log lost: its reader is too slow"
                ));
                batch.extend_from_slice(line.as_bytes());
            }
            // A closed pipe leaves nobody to tell.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            batch.shrink_to(BATCH_BYTES);

            self.lock().writing = false;
            self.queue.changed.notify_all();
            thread::sleep(BATCH);
        }
    }

    fn event_line(&self, message: fmt::Arguments) -> String {
        let message = printable(&message.to_string());
        match self.format {
            Format::Text => format!("{} {message}\n", now()),
            Format::Json => json(&Event {
                time: now(),
                message,
            }),
        }
    }
}

#[derive(Serialize)]
struct Event {
    time: String,
    message: String,
}

impl Access {
    fn json(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            peer: SocketAddr,
            method: &'a str,
            path: String,
            status: u16,
            bytes: u64,
            us: u128,
        }
        json(&Line {
            time: now(),
            peer: self.peer,
            method: self.method.as_str(),
            path: printable(&self.path),
            status: self.status,
            bytes: self.bytes,
            us: self.took.as_micros(),
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (now, path, took) = (now(), printable(&self.path), self.took.as_micros());
        let Self {
            peer,
            method,
            status,
            bytes,
            ..
        } = self;
        write!(f, "{now} {peer} {method} {path} {status} {bytes}B {took}us")
    }
}

fn json(line: &impl Serialize) -> String {
    // A struct of strings and numbers always has a JSON form.
    serde_json::to_string(line).unwrap_or_default() + "\n"
}

fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// The text with all that could move a cursor, colour a terminal or forge a line written as `\u{1b}`.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            // `escape_debug` leaves printable characters of any script as they are.
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}
