//! The drain: how a server stops without losing a request.
//!
//! The first signal (SIGTERM, SIGINT) starts these phases:
//!
//! 1. Delay, for `DRAIN_DELAY`: `/readyz` returns 503, and connections are still accepted until load balancers react.
//! 2. Close the listener, after accepting its backlog. The kernel refuses further clients. From here on, responses over
//!    HTTP/1 have `Connection: close`.
//! 3. Grace period, for [`IDLE_GRACE_PERIOD`]: idle connections stay open for requests that are on their way.
//! 4. Close idle connections, each as soon as it is idle. HTTP/2 connections receive GOAWAY.
//! 5. Force-close what is left `DRAIN_TIMEOUT` after phase 2. The access log marks requests that this cuts.
//!
//! The drain ends in phase 3 or 4 if all connections are closed. A second signal ends the delay and the phases 3 and 4 at
//! once.

use crate::listener::acceptor::Acceptor;
use crate::listener::dispatcher::Dispatcher;
use crate::listener::http::IDLE_GRACE_PERIOD;
use crate::request::endpoints::Endpoints;
use crate::request::shutdown::Shutdown;
use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// The parts of a server that a drain acts on.
pub struct Drain {
    pub dispatcher: Dispatcher,
    pub endpoints: Option<Arc<Endpoints>>,
    pub shutdown: Arc<Shutdown>,
    /// Becomes true in phase 4.
    pub close_idle: watch::Sender<bool>,
    /// `DRAIN_DELAY`.
    pub delay: Duration,
    /// `DRAIN_TIMEOUT`.
    pub timeout: Duration,
    pub log: Log,
}

impl Drain {
    /// Drains after a first signal, and ends the workers. Signals are named for the log.
    ///
    /// # Errors
    /// If the listener cannot be closed.
    pub async fn run(
        self,
        mut acceptor: Acceptor,
        signal: String,
        mut signals: mpsc::Receiver<String>,
    ) -> io::Result<()> {
        let second = self.delay(&mut acceptor, &signal, &mut signals).await;
        self.close_listener(acceptor)?;
        let last = second.as_ref().unwrap_or(&signal);
        let open = self.dispatcher.open_connections();
        self.log.event(
            Level::Info,
            format_args!("{last}: shutting down, {open} connections open"),
        );
        let reason = tokio::select! {
            () = self.close_connections() => None,
            () = wait_second(second.is_some(), &mut signals) => Some("received a second signal"),
            () = sleep(self.timeout) => Some("drain timed out (DRAIN_TIMEOUT)"),
        };
        if let Some(reason) = reason {
            self.mark_cut(reason);
        }
        self.dispatcher.shutdown();
        Ok(())
    }

    /// Phase 1. Returns a second signal, which ends it.
    async fn delay(
        &self,
        acceptor: &mut Acceptor,
        signal: &str,
        signals: &mut mpsc::Receiver<String>,
    ) -> Option<String> {
        if let Some(endpoints) = &self.endpoints {
            endpoints.end_readiness();
        }
        let delay = self.delay;
        if delay.is_zero() {
            return None;
        }
        self.log.event(
            Level::Info,
            format_args!("{signal}: not ready, serving for another {delay:?}"),
        );
        tokio::select! {
            second = signals.recv() => Some(second.unwrap_or_default()),
            () = sleep(delay) => None,
            never = acceptor.accept(&self.dispatcher) => match never {},
        }
    }

    /// Phase 2.
    fn close_listener(&self, acceptor: Acceptor) -> io::Result<()> {
        self.shutdown.is_draining.store(true, Ordering::Relaxed);
        let listener = acceptor.into_listener()?;
        while self.dispatcher.dispatch_next(&listener) {}
        Ok(())
    }

    /// Phases 3 and 4. Returns when all connections are closed.
    async fn close_connections(&self) {
        let closed = timeout(IDLE_GRACE_PERIOD, self.dispatcher.wait_closed());
        if closed.await.is_err() {
            self.close_idle.send_replace(true);
            self.dispatcher.wait_closed().await;
        }
    }

    /// Marks and logs what phase 5 cuts. The connections close when the workers end.
    fn mark_cut(&self, reason: &str) {
        self.shutdown.is_cutting.store(true, Ordering::Relaxed);
        let requests = self.shutdown.requests.load(Ordering::Relaxed);
        let connections = self.dispatcher.open_connections();
        self.log.event(
            Level::Warn,
            format_args!(
                "{reason}: closing {} with {}",
                pluralize(connections, "connection"),
                pluralize(requests, "request")
            ),
        );
    }
}

async fn wait_second(is_received: bool, signals: &mut mpsc::Receiver<String>) {
    if !is_received {
        signals.recv().await;
    }
}

fn pluralize(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
