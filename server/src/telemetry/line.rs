//! A line of the log, in text or in JSON.
//!
//! JSON has the keys of OpenTelemetry's log data model. In neither format does a line have control characters: they would
//! let a client or a guest forge lines, move the cursor of a terminal or color it.

use crate::escape::escape_control;
use crate::telemetry::trace::{Id, Trace};
use serde::Serialize;
use std::fmt;
use std::time::SystemTime;

/// The format of all lines.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The severity of a line, by its name in OpenTelemetry's log data model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    Info,
    /// A limit was reached, or the settings do not fit the machine.
    Warn,
    /// A request failed, or a part of the server.
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

/// Anything but the end of a request, which is an [`AccessRecord`](crate::telemetry::access::AccessRecord).
pub struct Event<'a> {
    pub level: Level,
    pub message: fmt::Arguments<'a>,
    /// The request that it concerns.
    pub trace: Option<&'a Trace>,
    /// `stdout` or `stderr` if a guest has written the message there.
    pub iostream: Option<&'static str>,
}

impl Event<'_> {
    pub fn line(&self, format: LogFormat) -> String {
        let (level, message) = (self.level, escape_control(&self.message.to_string()));
        match format {
            LogFormat::Text => {
                let origin = self.iostream.map_or("", |_| "guest: ");
                // The id comes first, because a guest can write one into its message.
                match self.trace.and_then(Trace::text) {
                    Some(id) => format!("{} {level} [{id}] {origin}{message}\n", timestamp()),
                    None => format!("{} {level} {origin}{message}\n", timestamp()),
                }
            }
            LogFormat::Json => json(&JsonEvent {
                timestamp: timestamp(),
                severity_text: level,
                body: message,
                iostream: self.iostream,
                ids: self.trace.map(Ids::of).unwrap_or_default(),
            }),
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

/// The ids of a request. OpenTelemetry defines the first two.
#[derive(Default, Serialize)]
pub struct Ids<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl<'a> Ids<'a> {
    pub fn of(trace: &'a Trace) -> Self {
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

/// Returns a struct as a line of JSON. Structs of strings and numbers always have a JSON form.
pub fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).unwrap_or_default() + "\n"
}

/// Returns the current time as RFC 3339 has it, with milliseconds.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
