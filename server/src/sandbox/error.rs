//! Why a request gets no response from the guest, and which one it gets instead.

use crate::telemetry::log::Level;
use http::StatusCode;
use std::fmt;
use wasmtime_wasi_http::Error;

/// Why there is no response from the guest.
#[derive(Debug)]
pub enum HandleError {
    /// As many calls as allowed are under way.
    Overloaded,
    /// The memory of all guests is taken, and this one does not fit.
    GuestMemory,
    /// As many guests as may wait for their clients do so.
    Transfers,
    /// The memory that connections share is taken.
    Buffers,
    /// The client has gone before the request's body was whole, or has sent what is no body.
    IncompleteRequest,
    /// The client sends the request's body too slowly.
    SlowRequest,
    /// The guest gave this error instead of a response.
    GuestError(String),
    /// The guest ended without a response.
    NoResponse,
    /// The guest's response is not what it says it is.
    InvalidResponse(Error),
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
    Timeout,
    /// The guest broke off: a panic, a fault, too much memory or stack.
    Trap(wasmtime::Error),
}

impl HandleError {
    pub fn guest_error(code: impl fmt::Debug) -> Self {
        Self::GuestError(format!("{code:?}"))
    }

    /// Returns what there is not enough of for the request, if that is why it fails.
    pub fn exhausted(&self) -> Option<&'static str> {
        match self {
            Self::Overloaded => Some("MAX_REQUESTS are in the component"),
            Self::GuestMemory => Some("no memory is left in GUEST_MEMORY_TOTAL"),
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

    /// Returns how much it matters to the operator.
    pub fn level(&self) -> Level {
        match self.exhausted() {
            Some(_) => Level::Warn,
            None => Level::Error,
        }
    }

    /// Returns true if the log needs no line of the server's own: the fault is the client's, or the guest
    /// gave up and has written to its standard error, as a program does that gives its reason.
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

impl fmt::Display for HandleError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Overloaded | Self::GuestMemory | Self::Transfers | Self::Buffers => {
                write!(f, "{}", self.exhausted().unwrap_or_default())
            }
            Self::IncompleteRequest => write!(f, "the request's body is not whole"),
            Self::SlowRequest => write!(f, "the client sends the request's body too slowly"),
            Self::GuestError(code) => write!(f, "the guest refused the request: {code}"),
            Self::NoResponse => write!(f, "the guest ended without an answer"),
            Self::InvalidResponse(error) => write!(f, "the guest's answer is malformed: {error}"),
            Self::BodyFailed { error, .. } => write!(f, "the guest's response broke off: {error}"),
            Self::Exited { status, .. } => write!(f, "the guest exited with status {status}"),
            Self::Timeout => write!(f, "the guest took too long"),
            Self::Trap(error) => write!(f, "the guest trapped: {error:#}"),
        }
    }
}
