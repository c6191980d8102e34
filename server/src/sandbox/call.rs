//! The deadline of a guest's call.
//!
//! A guest has `GUEST_TIMEOUT` until its response starts, and again whenever a part of the response's body arrives. The
//! timer runs while the guest computes or waits. It stops while the guest waits for its client: for more of the request's
//! body, or for room for the response's body.
//!
//! A client that stalls is detected elsewhere: by the request's body after `BODY_TIMEOUT`, by the connection after
//! `WRITE_TIMEOUT`. The first works only while the guest polls the body. So if there is a request's body, the guest's timer
//! resumes after [`Progress::limit`].
//!
//! A guest that has yielded is computing, so its timer runs even if it is also waiting for its client.

use crate::sandbox::budget::OverBudget;
use crate::sandbox::error::HandleError;
use crate::sandbox::progress::Progress;
use crate::sandbox::request_state::RequestState;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi::I32Exit;

/// Longer than every timeout.
const NEVER: Duration = Duration::from_secs(1 << 20);

/// A guest's call. It finishes with the guest.
pub type Call = Pin<Box<dyn Future<Output = Result<(), HandleError>> + Send>>;

/// Polls a guest until it finishes or its time is over. `progress` is that of the request's body, if there is one.
/// `polls_again` is set for WASI 0.2, whose guests poll again everything that they wait for whenever they are polled. For
/// WASI 0.3, the host waits instead.
///
/// # Errors
/// When the guest fails, the time is over, or the request's body fails.
pub async fn run_with_deadline(
    mut guest: Pin<&mut impl Future<Output = wasmtime::Result<()>>>,
    state: &RequestState,
    progress: Option<&Progress>,
    polls_again: bool,
    timeout: Duration,
) -> Result<(), HandleError> {
    let mut body_failed = pin!(async {
        match progress {
            Some(progress) => progress.failed.notified().await,
            None => std::future::pending().await,
        }
    });
    let mut deadline = Deadline {
        timeout,
        timer: pin!(sleep(timeout)),
        stopped: None,
    };
    let finished = poll_fn(|cx| {
        if let Some(progress) = progress
            && polls_again
        {
            progress.begin_poll(cx.waker());
        }
        if let Poll::Ready(finished) = guest.as_mut().poll(cx) {
            return Poll::Ready(Ok(finished));
        }
        if body_failed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(HandleError::IncompleteRequest));
        }
        if state.has_progressed.swap(false, Ordering::Relaxed) {
            deadline.restart();
        }
        let is_body_awaited = || progress.is_some_and(|it| it.is_awaited.load(Ordering::Relaxed));
        if !state.has_yielded.load(Ordering::Relaxed)
            && (state.is_output_full.load(Ordering::Relaxed) || is_body_awaited())
        {
            let limit = progress.map_or(NEVER, |progress| progress.limit);
            ready!(deadline.poll_client(cx, limit));
            if let Some(progress) = progress {
                progress.is_awaited.store(false, Ordering::Relaxed);
            }
        }
        let timed_out = deadline.poll_guest(cx);
        timed_out.map(|()| Err(HandleError::Timeout))
    });
    finished
        .await?
        .map_err(|error| match error.downcast_ref::<I32Exit>() {
            Some(&I32Exit(status)) => HandleError::Exited {
                status,
                logged: state.has_logged.load(Ordering::Relaxed),
            },
            None if error.is::<OverBudget>() => HandleError::GuestMemory,
            None => HandleError::Trap(error),
        })
}

/// The timer of a call.
struct Deadline<'a> {
    /// `GUEST_TIMEOUT`.
    timeout: Duration,
    /// Timer of the guest. While that is stopped, timer of its client.
    timer: Pin<&'a mut Sleep>,
    /// Remaining time of the guest while its timer is stopped.
    stopped: Option<Duration>,
}

impl Deadline<'_> {
    /// Gives the guest its full time again.
    fn restart(&mut self) {
        match &mut self.stopped {
            Some(remaining) => *remaining = self.timeout,
            None => self.timer.as_mut().reset(Instant::now() + self.timeout),
        }
    }

    /// Stops the guest's timer; returns ready if the client has used up its limit.
    fn poll_client(&mut self, cx: &mut Context, limit: Duration) -> Poll<()> {
        if self.stopped.is_none() {
            let now = Instant::now();
            self.stopped = Some(self.timer.deadline() - now);
            self.timer.as_mut().reset(now + limit);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Continues the guest's timer; returns ready if its time is over.
    fn poll_guest(&mut self, cx: &mut Context) -> Poll<()> {
        if let Some(remaining) = self.stopped.take() {
            self.timer.as_mut().reset(Instant::now() + remaining);
        }
        self.timer.as_mut().poll(cx)
    }
}
