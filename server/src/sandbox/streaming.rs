//! Streams the response of a guest that has not finished.
//!
//! The guest continues in a task of its own, which moves its body into a [`Pipe`]. The pipe buffers 64 KiB, so that a guest
//! with a small response finishes without its client. A guest with a full pipe waits for the client, and needs a permit for
//! a transfer. Without one, it fails after [`PERMIT_TIMEOUT`]. When the guest finishes, its instance is released, and the
//! rest of the body needs a permit for its buffer alone.

use crate::connection::buffers::FREE_BYTES;
use crate::sandbox::call::Call;
use crate::sandbox::error::HandleError;
use crate::sandbox::frame_buffer::{FrameBuffer, fields_bytes};
use crate::sandbox::pipe::{Pipe, StreamingBody};
use crate::sandbox::request_state::RequestState;
use crate::sandbox::response::{ResponseBody, StartedResponse, parse_length};
use crate::sandbox::shared::Shared;
use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt, Either, Full};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep, timeout};
use wasmtime_wasi_http::WasiBody;

/// Time for which a guest with a full pipe waits without a permit. A client that reads as fast as the guest writes needs
/// none.
const PERMIT_TIMEOUT: Duration = Duration::from_millis(100);

/// Limits on a body that is discarded, such as that of a response to `HEAD`. Then the guest is aborted, because the client
/// has its response.
const MAX_DISCARDED_BYTES: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the response of a guest that has not finished, and runs the guest until its end or until the client
/// disconnects.
///
/// # Errors
/// When the response does not fit into the pipe, and there is no permit for a transfer.
pub fn stream(
    started: StartedResponse,
    shared: Arc<Shared>,
    call: Call,
    state: Arc<RequestState>,
    transfer: Option<OwnedSemaphorePermit>,
    is_head: bool,
) -> Result<Response<ResponseBody>, HandleError> {
    let has_no_body = started.has_no_body(is_head);
    let StartedResponse { head, body, buffer } = started;
    if has_no_body {
        let guest = spawn(shared, state, async move {
            let _transfer = transfer;
            call.await
        });
        // The guest writes a body nevertheless, and its writes fail without a reader.
        tokio::spawn(async move {
            if timeout(DISCARD_TIMEOUT, discard(body)).await != Ok(true) {
                guest.abort();
            }
        });
        return Ok(Response::from_parts(head, Either::Left(Full::default())));
    }
    let is_large = buffer.is_full() || fields_bytes(&head.headers) > FREE_BYTES;
    let transfer = match transfer {
        None if is_large => Some(shared.permits.transfer().ok_or(HandleError::Transfers)?),
        transfer => transfer,
    };
    let length = head.headers.get(CONTENT_LENGTH).and_then(parse_length);
    let pipe = Arc::new(Pipe::new(buffer));
    let run = fill_pipe(
        shared.clone(),
        call,
        state.clone(),
        transfer,
        body,
        pipe.clone(),
    );
    let guest = spawn(shared, state, run);
    let body = StreamingBody::new(pipe, guest, length);
    let body = Either::Right(body.boxed_unsync());
    Ok(Response::from_parts(head, body))
}

/// Runs a guest whose response has started, and logs and counts its failure.
fn spawn(
    shared: Arc<Shared>,
    state: Arc<RequestState>,
    run: impl Future<Output = Result<(), HandleError>> + Send + 'static,
) -> AbortHandle {
    let guest = tokio::spawn(async move {
        let Err(failure) = run.await else {
            return;
        };
        failure.count(&shared.metrics);
        if !failure.is_already_logged() {
            let message = format_args!("after the response started: {failure}");
            shared
                .log
                .request_event(failure.level(), &state.trace, message);
        }
    });
    guest.abort_handle()
}

/// Runs the guest, and moves its body into the pipe.
async fn fill_pipe(
    shared: Arc<Shared>,
    mut call: Call,
    state: Arc<RequestState>,
    mut transfer: Option<OwnedSemaphorePermit>,
    mut body: WasiBody,
    pipe: Arc<Pipe>,
) -> Result<(), HandleError> {
    let mut permit_timeout: Option<Pin<Box<Sleep>>> = None;
    let finished = poll_fn(|cx| {
        loop {
            let (has_progressed, is_full) = pipe.fill(&mut body, cx);
            if is_full && transfer.is_none() {
                transfer = shared.permits.transfer();
            }
            match &transfer {
                None if is_full => {
                    let timer =
                        permit_timeout.get_or_insert_with(|| Box::pin(sleep(PERMIT_TIMEOUT)));
                    if timer.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(HandleError::Transfers));
                    }
                }
                _ => permit_timeout = None,
            }
            state.is_output_full.store(is_full, Ordering::Relaxed);
            if has_progressed {
                state.has_progressed.store(true, Ordering::Relaxed);
            }
            state.has_yielded.store(false, Ordering::Relaxed);
            if let Poll::Ready(finished) = call.as_mut().poll(cx) {
                return Poll::Ready(finished);
            }
            if !has_progressed || state.has_yielded.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
    });
    let finished = finished.await;
    // Releases the instance.
    drop(call);
    let mut rest = FrameBuffer::default();
    if !pipe.has_end() {
        if finished.is_err() {
            // Otherwise the client takes a truncated body for a complete one.
            pipe.fail();
            return finished;
        }
        rest.read_to_end(&mut body).await;
    }
    if finished.is_ok() && (rest.has_failed || pipe.has_failed()) {
        // The guest logs the reason itself.
        shared.metrics.guest_failures.count("body_failed");
    }
    let bytes = pipe.cost() + rest.cost();
    if bytes > FREE_BYTES && transfer.is_none() {
        transfer = shared.permits.buffer(bytes);
        if transfer.is_none() {
            pipe.fail();
            return Err(HandleError::Buffers);
        }
    }
    pipe.end(rest, transfer);
    finished
}

/// Discards a body up to [`MAX_DISCARDED_BYTES`]. Returns true if it has ended.
async fn discard(mut body: WasiBody) -> bool {
    let mut bytes = 0;
    while bytes <= MAX_DISCARDED_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    bytes <= MAX_DISCARDED_BYTES
}
