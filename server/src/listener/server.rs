//! The server: binds its sockets and loads the component, then serves until a signal.
//!
//! Owns what is made once at startup. Accepting, serving and draining are in the files next to it.

use crate::component::description::Description;
use crate::component::file::Component;
use crate::config::settings::Config;
use crate::connection::buffers::Buffers;
use crate::listener::acceptor::Acceptor;
use crate::listener::descriptors::FdLimits;
use crate::listener::dispatcher::Dispatcher;
use crate::listener::drain::Drain;
use crate::listener::http::ConnectionHandler;
use crate::listener::worker::Worker;
use crate::listener::{management, socket};
use crate::outbound::client::Outbound;
use crate::request::endpoints::Endpoints;
use crate::request::service::{Handler, Service};
use crate::request::sources::Sources;
use crate::sandbox::budget::Budget;
use crate::sandbox::handler::ComponentHandler;
use crate::sandbox::limits::Limits;
use crate::sandbox::permits::Permits;
use crate::sandbox::shared::Shared;
use crate::telemetry::line::Level;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// A server with its first worker.
pub struct Server {
    listener: TcpListener,
    management: Option<TcpListener>,
    config: Config,
    fds: FdLimits,
    service: Arc<Service>,
    handler: Arc<ComponentHandler>,
    dispatcher: Dispatcher,
    /// Has the workers close idle connections.
    close_idle: watch::Sender<bool>,
    description: Description,
    log: Log,
}

impl Server {
    /// Binds the sockets, loads the component and serves it on `runtime`, which the second value runs: the work of this thread,
    /// until the server has ended. Port 0 takes a free port.
    ///
    /// # Errors
    /// One line that says what failed and what to do.
    pub fn bind(
        component: &Component,
        config: Config,
        fds: FdLimits,
        log: &Log,
        runtime: Runtime,
    ) -> Result<(Self, impl FnOnce() + Send + use<>), String> {
        // First, so that early clients wait in the backlog and are not refused.
        let listener = socket::bind_traffic(&config)?;
        let management = socket::bind_management(&config)?;
        component.check_total(config.guest_memory_total)?;
        let metrics = Arc::<Metrics>::default();
        let buffers = Buffers::new(config.max_connections);
        let handler = Arc::new(ComponentHandler::load(
            component,
            limits(&config),
            shared(component, &config, log, &metrics, &buffers),
        )?);
        let service = Arc::new(Service {
            handler: Handler::Guests(handler.clone()),
            log: log.clone(),
            metrics,
            access_log: config.access_log,
            trusted_proxies: config.trusted_proxies.clone(),
            body_timeout: config.body_timeout,
            buffers,
            shutdown: Arc::default(),
        });
        let close_idle = watch::Sender::new(false);
        let connections = ConnectionHandler::new(service.clone(), &config, close_idle.subscribe());
        let (first, work) = Worker::new(runtime, connections);
        let server = Self {
            listener,
            management,
            service,
            handler,
            dispatcher: Dispatcher::new(first, fds.connections),
            close_idle,
            fds,
            description: component.description.clone(),
            log: log.clone(),
            config,
        };
        Ok((server, work))
    }

    /// Gives the first client to the first worker, if one waits. The others wait for further workers.
    pub fn dispatch_first(&self) {
        self.dispatcher.dispatch_next(&self.listener);
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the address of the management listener, if there is one.
    pub fn management_address(&self) -> Option<SocketAddr> {
        self.management.as_ref()?.local_addr().ok()
    }

    /// Returns the address that the server listens on.
    ///
    /// # Errors
    /// If the address cannot be read.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Starts a worker for each further core.
    ///
    /// # Errors
    /// If a thread or a file descriptor cannot be created.
    pub fn start_workers(&mut self, cores: usize) -> io::Result<()> {
        let start = |_| {
            let (service, close_idle) = (self.service.clone(), self.close_idle.subscribe());
            let handler = ConnectionHandler::new(service, &self.config, close_idle);
            Worker::start("worker", self.config.allows_outbound(), handler)
        };
        let starting: Vec<_> = (1..cores).map(start).collect();
        for worker in starting {
            self.dispatcher.add(worker?.wait()?);
        }
        Ok(())
    }

    /// Serves until the first signal, then drains.
    ///
    /// # Errors
    /// One line, if a thread or a file descriptor cannot be created.
    pub async fn run(self, mut signals: mpsc::Receiver<String>) -> Result<(), String> {
        let cannot_serve = |error: io::Error| format!("cannot serve: {error}");
        self.warn_of_few_descriptors();
        let (mut acceptor, drain) = self.start().map_err(cannot_serve)?;
        let signal = tokio::select! {
            signal = signals.recv() => signal.unwrap_or_default(),
            never = acceptor.accept(&drain.dispatcher) => match never {},
        };
        let drained = drain.run(acceptor, signal, signals).await;
        drained.map_err(cannot_serve)
    }

    fn warn_of_few_descriptors(&self) {
        let (total, connections) = (self.fds.total, self.fds.connections);
        let max = self.config.max_connections;
        if connections < max {
            self.log.event(
                Level::Warn,
                format_args!(
                    "the limit of {total} file descriptors leaves room for {connections} connections, not for \
                     MAX_CONNECTIONS={max}; raise it with `ulimit -n`"
                ),
            );
        }
    }

    /// Starts the management listener, and prepares to accept and to drain.
    fn start(self) -> io::Result<(Acceptor, Drain)> {
        let sources = Sources {
            metrics: self.service.metrics.clone(),
            log: self.log.clone(),
            shutdown: self.service.shutdown.clone(),
            handler: self.handler,
            description: self.description,
            max_connections: self.fds.connections,
        };
        let endpoints = match self.management {
            Some(listener) => {
                let endpoints = Arc::new(Endpoints::new(self.dispatcher.runtimes(), &sources));
                management::start(listener, endpoints.clone(), &self.config, &self.log)?;
                Some(endpoints)
            }
            None => None,
        };
        let metrics = self.service.metrics.clone();
        let rejections = self.fds.rejections;
        let acceptor = Acceptor::new(self.listener, rejections, self.log.clone(), metrics)?;
        let drain = Drain {
            dispatcher: self.dispatcher,
            endpoints,
            shutdown: self.service.shutdown.clone(),
            close_idle: self.close_idle,
            delay: self.config.drain_delay,
            timeout: self.config.drain_timeout,
            log: self.log,
        };
        Ok((acceptor, drain))
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        max_concurrent_requests: config.max_requests,
        guest_timeout: config.guest_timeout,
        requests_per_instance: config.requests_per_sandbox,
        memory: config.guest_memory,
        resident: config.guest_memory_resident,
    }
}

/// Makes what all sandboxes share.
fn shared(
    component: &Component,
    config: &Config,
    log: &Log,
    metrics: &Arc<Metrics>,
    buffers: &Buffers,
) -> Shared {
    let set = |(name, value): &(String, Option<String>)| Some((name.clone(), value.clone()?));
    let variables: Vec<_> = config.guest_env.iter().filter_map(set).collect();
    let outbound = Outbound::new(
        config.outbound.clone(),
        config.guest_timeout,
        log.clone(),
        metrics.clone(),
    );
    Shared {
        log: log.clone(),
        metrics: metrics.clone(),
        config: variables.iter().cloned().collect(),
        variables,
        outbound,
        memory: Budget::new(config.guest_memory_total.0),
        memory_share: component.description.memory_share(config.guest_memory.0),
        permits: Permits::new(
            &limits(config),
            config.guest_memory_total.0,
            component.description.total_initial_memory(),
            buffers.clone(),
        ),
    }
}
