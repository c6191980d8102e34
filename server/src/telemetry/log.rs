//! The log: one line an event, on standard output, never in the way of a request.
//!
//! Lines go to a buffer that one thread writes out. When the reader is slower than the service the
//! buffer fills up, further lines are dropped and counted, and the count is logged once there is
//! room again.

use crate::telemetry::client::Client;
use crate::telemetry::trace::{Id, Trace};
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{mem, thread};

/// Bytes of lines that wait for the reader before further ones are dropped.
const BUFFER_BYTES: usize = 1 << 20;

/// How long lines gather before they are written in one system call.
const BATCH_INTERVAL: Duration = Duration::from_millis(5);

/// Capacity that a buffer keeps between batches.
const BATCH_BYTES: usize = 64 << 10;

/// The least time between two lines of a kind that [`Log::often`] writes.
const THROTTLE_INTERVAL: Duration = Duration::from_secs(1);

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogFormat {
    Text,
    Json,
}

/// How much a line matters: the names of severities that OpenTelemetry's logs have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    Info,
    /// A limit was reached, or something is not as it should be.
    Warn,
    /// A request failed that should not have.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        })
    }
}

/// One request and its response.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Sender of the request: the peer, or the client that trusted proxies name.
    pub client: Client,
    pub trace: Trace,
    /// `None` if no head has come that could be read.
    pub method: Option<http::Method>,
    pub path: String,
    pub status: u16,
    /// Bytes of the body that were passed on.
    pub bytes: u64,
    /// From the request's head to the end of the body.
    pub duration: Duration,
    /// Set when the server has cut it at the end of a drain.
    pub is_cut: bool,
}

/// What happens too often under load to be logged each time.
struct Throttled {
    kind: &'static str,
    /// How often it has happened since the last line.
    count: u64,
    /// When that was.
    last: Instant,
    message: Message,
}

/// The message that something has happened so many times.
type Message = Box<dyn Fn(u64) -> String + Send>;

impl Throttled {
    /// When the next line is due, if there is anything to say.
    fn due(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.last + THROTTLE_INTERVAL)
    }
}

/// A handle on the log, as cheap to clone as a pointer.
#[derive(Clone)]
pub struct Log {
    format: LogFormat,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Lines dropped since the start.
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
    /// A few kinds, each as long as the process lives.
    throttled: Vec<Throttled>,
    /// Set when no more lines are to come.
    is_ending: bool,
}

impl State {
    /// The messages of what has been throttled and is due at this time, or at the end.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let mut messages = Vec::new();
        for throttled in &mut self.throttled {
            if throttled
                .due()
                .is_some_and(|due| due <= now || self.is_ending)
            {
                messages.push((throttled.message)(mem::take(&mut throttled.count)));
                throttled.last = now;
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
    pub fn start(format: LogFormat, out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::default();
        let log = Self { format, queue };
        let writer = log.clone();
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || writer.write_to(out))?;
        Ok(log)
    }

    /// Logs what concerns the server as a whole.
    pub fn event(&self, level: Level, message: fmt::Arguments) {
        self.push(&self.event_line(level, message, &Event::default()));
    }

    /// Logs what concerns a request.
    pub fn request_event(&self, level: Level, trace: &Trace, message: fmt::Arguments) {
        let event = Event {
            trace: Some(trace),
            iostream: None,
        };
        self.push(&self.event_line(level, message, &event));
    }

    /// Logs a line that a guest has written to a stream, `stdout` or `stderr`.
    pub fn guest_line(&self, level: Level, trace: &Trace, stream: &'static str, text: &str) {
        let event = Event {
            trace: Some(trace),
            iostream: Some(stream),
        };
        self.push(&match self.format {
            LogFormat::Json => self.event_line(level, format_args!("{text}"), &event),
            LogFormat::Text => self.event_line(level, format_args!("guest: {text}"), &event),
        });
    }

    /// Lines dropped since the start, as the reader was too slow or gone.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    /// Logs what happens often: at once, and for the rest at most once a second. `message` gets how often it has happened
    /// since the last line of its kind.
    pub fn event_throttled(
        &self,
        kind: &'static str,
        message: impl Fn(u64) -> String + Send + 'static,
    ) {
        let mut state = self.lock();
        let now = Instant::now();
        match state.throttled.iter_mut().find(|it| it.kind == kind) {
            Some(throttled) if throttled.count > 0 || now < throttled.last + THROTTLE_INTERVAL => {
                let is_waited_for = throttled.count > 0;
                throttled.count += 1;
                throttled.message = Box::new(message);
                drop(state);
                if !is_waited_for {
                    self.queue.changed.notify_all();
                }
                return;
            }
            Some(throttled) => throttled.last = now,
            None => state.throttled.push(Throttled {
                kind,
                count: 0,
                last: now,
                message: Box::new(|_| String::new()),
            }),
        }
        drop(state);
        self.event(Level::Warn, format_args!("{}", message(1)));
    }

    /// Logs a request and its answer.
    pub fn access(&self, record: &AccessRecord) {
        self.push(&match self.format {
            LogFormat::Text => format!(
                "{record}
"
            ),
            LogFormat::Json => record.json(),
        });
    }

    /// Waits until every line is written, `limit` at most: the reader may have stopped reading.
    pub fn flush(&self, limit: Duration) {
        let busy = |state: &mut State| {
            let is_due = state.throttled.iter().any(|it| it.due().is_some());
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
            state.writing = true;
            drop(state);

            for message in throttled {
                self.warn(&mut batch, &message);
            }
            if dropped > 0 {
                let message = format!("{dropped} lines of log lost: its reader is too slow");
                self.warn(&mut batch, &message);
            }
            // A closed pipe leaves nobody to tell but those who ask for metrics.
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                self.queue
                    .dropped
                    .fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(BATCH_BYTES);

            self.lock().writing = false;
            self.queue.changed.notify_all();
            thread::sleep(BATCH_INTERVAL);
        }
    }

    /// Waits until there is something to write; with it come the messages of what has been throttled.
    fn wait(&self) -> (MutexGuard<'_, State>, Vec<String>) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let throttled = state.due(now);
            if !throttled.is_empty() || !state.lines.is_empty() {
                return (state, throttled);
            }
            let changed = &self.queue.changed;
            let due = state.throttled.iter().filter_map(Throttled::due).min();
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

    /// Adds an event to what is written next.
    fn warn(&self, batch: &mut Vec<u8>, message: &str) {
        let line = self.event_line(Level::Warn, format_args!("{message}"), &Event::default());
        batch.extend_from_slice(line.as_bytes());
    }

    fn event_line(&self, level: Level, message: fmt::Arguments, event: &Event) -> String {
        let message = escape_control(&message.to_string());
        match self.format {
            LogFormat::Text => match event.trace.and_then(Trace::text) {
                // In front of the message, of which a guest may have written a part.
                Some(id) => format!("{} {level} [{id}] {message}\n", now()),
                None => format!("{} {level} {message}\n", now()),
            },
            LogFormat::Json => json(&JsonEvent {
                timestamp: now(),
                severity_text: level,
                body: message,
                iostream: event.iostream,
                ids: event.trace.map(Ids::of).unwrap_or_default(),
            }),
        }
    }
}

/// The origin of an event: the request that it concerns, and the stream if a guest has written it.
#[derive(Default)]
struct Event<'a> {
    trace: Option<&'a Trace>,
    iostream: Option<&'static str>,
}

/// The ids of a request. Keys are those of OpenTelemetry's log data model, but for the last, which it does not know.
#[derive(Default, Serialize)]
struct Ids<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl<'a> Ids<'a> {
    fn of(trace: &'a Trace) -> Self {
        match trace.id() {
            Some(Id::Context { trace, span }) => Self {
                trace_id: Some(trace),
                span_id: Some(span),
                request_id: None,
            },
            Some(Id::Request(id)) => Self {
                request_id: Some(id),
                ..Self::default()
            },
            None => Self::default(),
        }
    }
}

#[derive(Serialize)]
struct JsonEvent<'a> {
    timestamp: String,
    severity_text: Level,
    body: String,
    #[serde(rename = "log.iostream", skip_serializing_if = "Option::is_none")]
    iostream: Option<&'static str>,
    #[serde(flatten)]
    ids: Ids<'a>,
}

impl AccessRecord {
    /// Keys are those of OpenTelemetry's log data model and of its semantic conventions for HTTP. These have a duration for
    /// metrics alone.
    fn json(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            timestamp: String,
            severity_text: Level,
            #[serde(rename = "client.address")]
            client: IpAddr,
            #[serde(rename = "client.port", skip_serializing_if = "Option::is_none")]
            client_port: Option<u16>,
            #[serde(rename = "network.peer.address")]
            peer: IpAddr,
            #[serde(rename = "network.peer.port")]
            peer_port: u16,
            #[serde(rename = "http.request.method")]
            method: &'a str,
            #[serde(rename = "url.path")]
            path: String,
            #[serde(rename = "http.response.status_code")]
            status: u16,
            #[serde(rename = "http.response.body.size")]
            bytes: u64,
            duration_us: u128,
            #[serde(skip_serializing_if = "Option::is_none")]
            cut: Option<bool>,
            #[serde(flatten)]
            ids: Ids<'a>,
        }
        json(&Line {
            timestamp: now(),
            severity_text: Level::Info,
            client: self.client.address,
            client_port: self.client.port,
            peer: self.peer.ip(),
            peer_port: self.peer.port(),
            method: self.method(),
            path: escape_control(&self.path),
            status: self.status,
            bytes: self.bytes,
            duration_us: self.duration.as_micros(),
            cut: self.is_cut.then_some(true),
            ids: Ids::of(&self.trace),
        })
    }

    fn method(&self) -> &str {
        self.method.as_ref().map_or("-", http::Method::as_str)
    }
}

impl fmt::Display for AccessRecord {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (now, path, duration) = (now(), escape_control(&self.path), self.duration.as_micros());
        let Self {
            client,
            status,
            bytes,
            ..
        } = self;
        let (level, method) = (Level::Info, self.method());
        write!(
            f,
            "{now} {level} {client} {method} {path} {status} {bytes}B {duration}us"
        )?;
        if self.is_cut {
            write!(f, " cut")?;
        }
        match self.trace.text() {
            Some(id) => write!(f, " {id}"),
            None => Ok(()),
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
pub fn escape_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            // `escape_debug` leaves escape_control characters of any script as they are.
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}
