//! A runtime for one WebAssembly component: HTTP on the outside, `wasi:http` on the inside, and a fresh
//! sandbox for each request.

// What a client sends must never end the process: no panic is reachable from the network.
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

/// The way of the operator: commands and their arguments.
pub mod cli {
    pub mod commands;
    pub(crate) mod healthcheck;
}

/// Settings, with defaults for the container that the server runs in.
pub mod config {
    pub(crate) mod container;
    pub mod settings;
}

/// Component files: compiles a `.wasm`, and loads a `.cwasm`.
pub mod component {
    #[cfg(feature = "compile")]
    pub(crate) mod compile;
    #[cfg(feature = "compile")]
    pub(crate) mod contents;
    pub(crate) mod description;
    pub(crate) mod engine;
    pub mod file;
    pub(crate) mod format;
    pub(crate) mod imports;
}

/// The way of a request begins: accepts connections, and serves each on one thread.
pub mod listener {
    pub mod server;
    pub(crate) mod worker;
}

/// Below HTTP: the bytes of a connection, with their deadlines and buffers.
mod connection {
    pub mod buffers;
    pub mod http2;
    pub mod pace;
    pub mod transport;
}

/// From a request of HTTP to its response.
mod request {
    pub mod body;
    pub mod management;
    pub mod service;
    pub mod validate;
}

/// Guests: instances of the component, their host, their limits and their responses.
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
mod outbound {
    pub mod allowed;
    pub mod body;
    pub mod client;
    pub mod limits;
}

/// What operators see of it all: log, metrics and traces.
pub mod telemetry {
    pub mod client;
    pub mod log;
    pub mod metrics;
    pub mod trace;
}

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
