//! Why a request gets no response from the guest, and which one it gets instead.

use crate::telemetry::log::Level;
use http::StatusCode;
use std::fmt;
use wasmtime_wasi_http::Error;

/// Why there is no response from the guest.
#[derive(Debug)]
pub enum Failure {
    /// As many calls as allowed are under way.
    Busy,
    /// The memory of all guests is taken, and this one does not fit.
    Memory,
    /// As many guests as may wait for their clients do so.
    Transfers,
    /// The memory that connections share is taken.
    Buffers,
    /// The client has gone before the request's body was whole, or has sent what is no body.
    NoWholeRequest,
    /// The client sends the request's body too slowly.
    Stalled,
    /// The guest gave this error instead of a response.
    Refused(String),
    /// The guest ended without a response.
    Silent,
    /// The guest's response is not what it says it is.
    Malformed(Error),
    /// The guest gave an error in place of the rest of the response's body.
    BodyFailed {
        error: Error,
        /// As below.
        logged: bool,
    },
    /// The guest exited.
    Exited {
        status: i32,
        /// Set when the guest has written to its standard error during the request.
        logged: bool,
    },
    /// The guest took longer than allowed.
    TimedOut,
    /// The guest broke off: a panic, a fault, too much memory or stack.
    Trapped(wasmtime::Error),
}

impl Failure {
    pub fn refused(code: impl fmt::Debug) -> Self {
        Self::Refused(format!("{code:?}"))
    }

    /// Returns what there is not enough of for the request, if that is why it fails.
    pub fn lack(&self) -> Option<&'static str> {
        match self {
            Self::Busy => Some("MAX_REQUESTS are in the component"),
            Self::Memory => Some("no memory is left in GUEST_MEMORY_TOTAL"),
            Self::Transfers => {
                Some("half of MAX_REQUESTS have large bodies, or clients that pause")
            }
            Self::Buffers => Some("the buffers of all connections are taken"),
            _ => None,
        }
    }

    /// The status to respond with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Busy | Self::Memory | Self::Transfers | Self::Buffers => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NoWholeRequest => StatusCode::BAD_REQUEST,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Refused(_) | Self::Silent | Self::Malformed(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::BodyFailed { .. } | Self::Exited { .. } | Self::Trapped(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// Returns how much it matters to the operator.
    pub fn level(&self) -> Level {
        match self.lack() {
            Some(_) => Level::Warn,
            None => Level::Error,
        }
    }

    /// Returns true if the log needs no line of the server's own: the fault is the client's, or the guest
    /// gave up and has written to its standard error, as a program does that gives its reason.
    pub fn is_quiet(&self) -> bool {
        matches!(
            self,
            Self::NoWholeRequest
                | Self::Stalled
                | Self::BodyFailed { logged: true, .. }
                | Self::Exited { logged: true, .. }
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Busy | Self::Memory | Self::Transfers | Self::Buffers => {
                write!(f, "{}", self.lack().unwrap_or_default())
            }
            Self::NoWholeRequest => write!(f, "the request's body is not whole"),
            Self::Stalled => write!(f, "the client sends the request's body too slowly"),
            Self::Refused(code) => write!(f, "the guest refused the request: {code}"),
            Self::Silent => write!(f, "the guest ended without an answer"),
            Self::Malformed(error) => write!(f, "the guest's answer is malformed: {error}"),
            Self::BodyFailed { error, .. } => write!(f, "the guest's response broke off: {error}"),
            Self::Exited { status, .. } => write!(f, "the guest exited with status {status}"),
            Self::TimedOut => write!(f, "the guest took too long"),
            Self::Trapped(error) => write!(f, "the guest trapped: {error:#}"),
        }
    }
}
