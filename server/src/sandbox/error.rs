//! The reasons why a request has no response from the guest, with the status, log line and metric for each.

use crate::connection::buffers;
use crate::telemetry::line::Level;
use crate::telemetry::metrics::Metrics;
use http::StatusCode;
use std::fmt;
use wasmtime_wasi_http::Error;

/// Reason why a request has no response from the guest.
#[derive(Debug)]
pub enum HandleError {
    /// `MAX_REQUESTS` calls are running.
    Overloaded,
    /// The initial memory of an instance does not fit into `GUEST_MEMORY_TOTAL`.
    GuestMemory,
    /// All permits for guests that wait for their clients are in use.
    Transfers,
    /// The buffers that connections share are in use.
    Buffers,
    /// The client disconnected before the end of the request's body, or sent a malformed body.
    IncompleteRequest,
    /// The client sends the request's body too slowly.
    SlowRequest,
    /// The guest returned this error instead of a response.
    GuestError(String),
    /// The guest ended without a response.
    NoResponse,
    /// The guest's response is malformed.
    InvalidResponse(Error),
    /// The guest ended the response's body with an error.
    BodyFailed {
        error: Error,
        /// Set when the guest has written to its standard error during the request.
        logged: bool,
    },
    /// The guest exited.
    Exited {
        status: i32,
        /// Set when the guest has written to its standard error during the request.
        logged: bool,
    },
    /// The guest exceeded `GUEST_TIMEOUT`.
    Timeout,
    /// The guest trapped: a panic, a fault, or exhausted memory or stack.
    Trap(wasmtime::Error),
}

impl HandleError {
    pub fn guest_error(code: impl fmt::Debug) -> Self {
        Self::GuestError(format!("{code:?}"))
    }

    /// Returns the exhausted resource, if that is the reason.
    pub fn exhausted(&self) -> Option<&'static str> {
        match self {
            Self::Overloaded => Some("request limit reached (MAX_REQUESTS)"),
            Self::GuestMemory => Some("guest memory exhausted (GUEST_MEMORY_TOTAL)"),
            Self::Transfers => Some(
                "transfer limit reached (half of MAX_REQUESTS, for large bodies and clients that pause)",
            ),
            Self::Buffers => Some(buffers::EXHAUSTED),
            _ => None,
        }
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Overloaded | Self::GuestMemory | Self::Transfers | Self::Buffers => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::IncompleteRequest => StatusCode::BAD_REQUEST,
            Self::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            Self::GuestError(_) | Self::NoResponse | Self::InvalidResponse(_) => {
                StatusCode::BAD_GATEWAY
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BodyFailed { .. } | Self::Exited { .. } | Self::Trap(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// Counts the failure.
    pub fn count(&self, metrics: &Metrics) {
        let Metrics {
            rejected_requests,
            guest_failures,
            ..
        } = metrics;
        match self {
            Self::Overloaded => rejected_requests.count("max_requests"),
            Self::GuestMemory => rejected_requests.count("guest_memory_total"),
            Self::Transfers => rejected_requests.count("transfers"),
            Self::Buffers => rejected_requests.count("buffers"),
            // Failures of the client. The body counts its timeouts.
            Self::IncompleteRequest | Self::SlowRequest => {}
            Self::GuestError(_) => guest_failures.count("guest_error"),
            Self::NoResponse => guest_failures.count("no_response"),
            Self::InvalidResponse(_) => guest_failures.count("malformed_response"),
            Self::BodyFailed { .. } => guest_failures.count("body_failed"),
            Self::Exited { .. } => guest_failures.count("exited"),
            Self::Timeout => guest_failures.count("timed_out"),
            Self::Trap(_) => guest_failures.count("trapped"),
        }
    }

    /// Returns the level of the log line.
    pub fn level(&self) -> Level {
        match self.exhausted() {
            Some(_) => Level::Warn,
            None => Level::Error,
        }
    }

    /// Returns true if the log needs no line of the server: the client caused the failure, or the guest has written a
    /// line to its standard error.
    pub fn is_already_logged(&self) -> bool {
        matches!(
            self,
            Self::IncompleteRequest
                | Self::SlowRequest
                | Self::BodyFailed { logged: true, .. }
                | Self::Exited { logged: true, .. }
        )
    }
}

impl std::error::Error for HandleError {}

impl fmt::Display for HandleError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Overloaded | Self::GuestMemory | Self::Transfers | Self::Buffers => {
                write!(f, "{}", self.exhausted().unwrap_or_default())
            }
            Self::IncompleteRequest => write!(f, "the request body is incomplete"),
            Self::SlowRequest => write!(f, "the client sends the request body too slowly"),
            Self::GuestError(code) => write!(f, "the guest returned an error: {code}"),
            Self::NoResponse => write!(f, "the guest returned no response"),
            Self::InvalidResponse(error) => write!(f, "the guest's response is invalid: {error}"),
            Self::BodyFailed { error, .. } => {
                write!(f, "the guest's response body failed: {error}")
            }
            Self::Exited { status, .. } => write!(f, "the guest exited with status {status}"),
            Self::Timeout => write!(f, "the guest timed out (GUEST_TIMEOUT)"),
            Self::Trap(error) => write!(f, "the guest trapped: {error:#}"),
        }
    }
}
