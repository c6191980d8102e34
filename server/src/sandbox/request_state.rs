//! The state of one request that the handler, the guest's call and the host share.

use crate::sandbox::error::HandleError;
use crate::telemetry::trace::Trace;
use http::Response;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use wasmtime_wasi_http::WasiBody;

/// The response of a guest, or the error that it returned instead.
pub type ResponseResult = Result<Response<WasiBody>, HandleError>;

/// State of one request.
#[derive(Default)]
pub struct RequestState {
    pub trace: Trace,
    /// `None` before the guest responds, and after [`Self::take_response`].
    response: Mutex<Option<ResponseResult>>,
    /// Set when the guest has returned a response or an error.
    pub has_responded: AtomicBool,
    /// Set when the guest has been interrupted for the first time.
    pub was_interrupted: AtomicBool,
    /// Set when the guest has yielded at the end of its time slice. It neither waits nor has finished.
    pub has_yielded: AtomicBool,
    /// Set while the response's body waits for the client.
    pub is_output_full: AtomicBool,
    /// Set when a part of the response's body has arrived.
    pub has_progressed: AtomicBool,
    /// Set when the guest has finished and has written to its standard error.
    pub has_logged: AtomicBool,
}

impl RequestState {
    pub fn new(trace: Trace) -> Self {
        Self {
            trace,
            ..Self::default()
        }
    }

    pub fn set_response(&self, response: ResponseResult) {
        self.has_responded.store(true, Ordering::Relaxed);
        *self.response() = Some(response);
    }

    pub fn take_response(&self) -> Option<ResponseResult> {
        self.response().take()
    }

    fn response(&self) -> MutexGuard<'_, Option<ResponseResult>> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
