//! A runtime for one WebAssembly component: an HTTP server that calls the component through `wasi:http`, in a new sandbox for
//! each request.
//!
//! The path of a request: `listener` accepts its connection and gives it to a worker, a thread that serves all requests of the
//! connection. `connection` is between the socket and hyper: it enforces the client's deadlines and bounds what is buffered.
//! hyper calls `request`, which validates the request and receives its body. `sandbox` takes an idle instance of the
//! component or creates one, calls it, and sends its response as far as the client reads it. If the guest sends a request
//! itself, that goes through `outbound`. When the response has ended, `telemetry` counts and logs the request.
//!
//! Startup and shutdown: `cli` reads the arguments and `config` the environment, `component` compiles or loads the
//! component, and `listener` serves until a signal, then drains.
//!
//! Dependencies go one way: `cli`, `listener`, `request`, `sandbox`, then `component` and `connection`, then `config`, `outbound`
//! and `telemetry`, then `escape` and `startup_error`. Neither files nor directories have cyclic dependencies (`.ci/server-layout`).

// No panic may be reachable from the network, because a panic ends the process.
#![deny(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::todo,
    clippy::unreachable,
    clippy::unwrap_used,
    unsafe_code
)]
// The program that only compiles uses a part of what describes a component.
#![cfg_attr(not(feature = "serve"), allow(dead_code))]

#[cfg(not(any(feature = "compile", feature = "serve")))]
compile_error!("nothing to do: add `--features serve`, `--features compile` or both");

/// The command line: the commands `serve`, `compile` and `healthcheck`.
pub mod cli {
    pub(crate) mod arguments;
    pub mod commands;
    #[cfg(feature = "serve")]
    pub(crate) mod healthcheck;
    #[cfg(feature = "serve")]
    pub(crate) mod serve;
}

/// The settings, from the environment, with defaults that fit the container.
#[cfg(feature = "serve")]
pub mod config {
    pub(crate) mod container;
    pub(crate) mod environment;
    pub(crate) mod parse;
    pub mod settings;
    #[cfg(test)]
    mod settings_tests;
    pub(crate) mod size;
    pub(crate) mod table;
}

/// Component files: compiles a `.wasm`, and loads a `.cwasm`.
pub mod component {
    #[cfg(feature = "compile")]
    pub(crate) mod compile;
    #[cfg(feature = "compile")]
    pub(crate) mod contents;
    pub(crate) mod description;
    pub(crate) mod engine;
    #[cfg(feature = "serve")]
    pub mod file;
    pub(crate) mod format;
    pub(crate) mod imports;
}

/// From startup to the drain: accepts connections, and serves each on one thread.
#[cfg(feature = "serve")]
pub mod listener {
    pub(crate) mod acceptor;
    pub mod descriptors;
    pub(crate) mod dispatcher;
    pub(crate) mod drain;
    pub(crate) mod http;
    pub(crate) mod management;
    pub mod server;
    pub(crate) mod socket;
    pub mod worker;
}

/// A client's connection below hyper: bytes, deadlines, memory.
#[cfg(feature = "serve")]
mod connection {
    pub mod buffers;
    pub mod frames;
    pub mod http1;
    pub mod http2;
    #[cfg(test)]
    mod http2_tests;
    pub mod in_flight;
    pub mod stall;
    pub mod state;
    pub mod stream;
    pub mod timeouts;
    pub mod transport;
    pub mod window;
}

/// HTTP: from a request to its response and its record, or to a page of the management listener.
#[cfg(feature = "serve")]
mod request {
    pub mod body;
    pub mod endpoints;
    pub mod handle;
    pub mod page;
    pub mod record;
    pub mod service;
    pub mod shutdown;
    pub mod sources;
    pub mod validate;
}

/// Guests: instances of the component, their host, their limits and their responses.
#[cfg(feature = "serve")]
mod sandbox {
    // A request's way through a guest.
    pub mod call;
    pub mod error;
    pub mod handler;
    pub mod idle;
    pub mod instance;
    pub mod progress;
    pub mod request_state;

    // The response.
    pub mod frame_buffer;
    pub mod pipe;
    pub mod response;
    pub mod streaming;

    // The host functions.
    pub mod denied;
    pub mod guest_log;
    pub mod hooks;
    pub mod host;
    pub mod linker;
    pub mod shared;

    // Memory, time and concurrency.
    pub mod budget;
    pub mod epoch;
    pub mod host_memory;
    pub mod limiter;
    pub mod limits;
    pub mod permits;
    pub mod pool;
}

/// Outbound HTTP: requests of guests to other services.
#[cfg(feature = "serve")]
mod outbound {
    pub mod allowed;
    pub mod body;
    pub mod client;
    pub mod limits;
}

/// Log, metrics and trace ids.
#[cfg(feature = "serve")]
pub mod telemetry {
    pub(crate) mod access;
    pub(crate) mod client;
    pub(crate) mod exposition;
    pub(crate) mod labels;
    pub mod line;
    pub mod log;
    pub(crate) mod metrics;
    pub(crate) mod process;
    pub(crate) mod throttle;
    pub(crate) mod trace;
}

/// Escapes untrusted text in logs and errors.
mod escape;

/// The error line for a system call that fails at startup.
#[cfg(feature = "serve")]
mod startup_error;

#[cfg(all(
    test,
    target_arch = "x86_64",
    target_os = "linux",
    not(target_env = "musl")
))]
mod memory_tests;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
