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

/// The least time between two lines of a kind that [`Log::often`] writes.
const OFTEN: Duration = Duration::from_secs(1);

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Text,
    Json,
}

/// One request and its response.
#[derive(Clone, Debug)]
pub struct Access {
    pub peer: SocketAddr,
    /// `None` if no head has come that could be read.
    pub method: Option<http::Method>,
    pub path: String,
    pub status: u16,
    /// Bytes of the body that were passed on.
    pub bytes: u64,
    /// From the request's head to the end of the body.
    pub took: Duration,
    /// Set when the server has cut it at the end of a drain.
    pub is_cut: bool,
}

/// What happens too often under load to be logged each time.
struct Repeated {
    kind: &'static str,
    /// How often it has happened since the last line.
    count: u64,
    /// When that was.
    last: Instant,
    message: Message,
}

/// The message that something has happened so many times.
type Message = Box<dyn Fn(u64) -> String + Send>;

impl Repeated {
    /// When the next line is due, if there is anything to say.
    fn due(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.last + OFTEN)
    }
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
    /// A few kinds, each as long as the process lives.
    repeated: Vec<Repeated>,
    /// Set when no more lines are to come.
    is_ending: bool,
}

impl State {
    /// The messages of what has been repeated and is due at this time, or at the end.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let mut messages = Vec::new();
        for repeated in &mut self.repeated {
            if repeated
                .due()
                .is_some_and(|due| due <= now || self.is_ending)
            {
                messages.push((repeated.message)(mem::take(&mut repeated.count)));
                repeated.last = now;
            }
        }
        messages
    }
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

    /// Logs what happens often: at once, and for the rest at most once a second. `message` gets how often it has happened
    /// since the last line of its kind.
    pub fn often(&self, kind: &'static str, message: impl Fn(u64) -> String + Send + 'static) {
        let mut state = self.lock();
        let now = Instant::now();
        match state.repeated.iter_mut().find(|it| it.kind == kind) {
            Some(repeated) if repeated.count > 0 || now < repeated.last + OFTEN => {
                let is_waited_for = repeated.count > 0;
                repeated.count += 1;
                repeated.message = Box::new(message);
                drop(state);
                if !is_waited_for {
                    self.queue.changed.notify_all();
                }
                return;
            }
            Some(repeated) => repeated.last = now,
            None => state.repeated.push(Repeated {
                kind,
                count: 0,
                last: now,
                message: Box::new(|_| String::new()),
            }),
        }
        drop(state);
        self.event(format_args!("{}", message(1)));
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
        let busy = |state: &mut State| {
            let is_due = state.repeated.iter().any(|it| it.due().is_some());
            state.writing || is_due || !state.lines.is_empty()
        };
        let mut state = self.lock();
        state.is_ending = true;
        self.queue.changed.notify_all();
        drop(self.queue.changed.wait_timeout_while(state, limit, busy));
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
            let (mut state, repeated) = self.wait();
            mem::swap(&mut batch, &mut state.lines);
            let dropped = mem::take(&mut state.dropped);
            state.writing = true;
            drop(state);

            for message in repeated {
                let line = self.event_line(format_args!("{message}"));
                batch.extend_from_slice(line.as_bytes());
            }
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

    /// Waits until there is something to write; with it come the messages of what has been repeated.
    fn wait(&self) -> (MutexGuard<'_, State>, Vec<String>) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let repeated = state.due(now);
            if !repeated.is_empty() || !state.lines.is_empty() {
                return (state, repeated);
            }
            let changed = &self.queue.changed;
            let due = state.repeated.iter().filter_map(Repeated::due).min();
            state = match due {
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
            #[serde(skip_serializing_if = "Option::is_none")]
            cut: Option<bool>,
        }
        json(&Line {
            time: now(),
            peer: self.peer,
            method: self.method(),
            path: printable(&self.path),
            status: self.status,
            bytes: self.bytes,
            us: self.took.as_micros(),
            cut: self.is_cut.then_some(true),
        })
    }

    fn method(&self) -> &str {
        self.method.as_ref().map_or("-", http::Method::as_str)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (now, path, took) = (now(), printable(&self.path), self.took.as_micros());
        let Self {
            peer,
            status,
            bytes,
            ..
        } = self;
        let method = self.method();
        write!(f, "{now} {peer} {method} {path} {status} {bytes}B {took}us")?;
        if self.is_cut {
            write!(f, " cut")
        } else {
            Ok(())
        }
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
