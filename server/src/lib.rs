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

mod budget;
mod buffers;
pub mod cli;
mod clock;
#[cfg(feature = "compile")]
mod compile;
pub mod component;
pub mod config;
mod container;
mod engine;
mod failure;
mod forwarded;
mod guest_log;
mod host;
mod http2;
mod imports;
pub mod listener;
pub mod log;
mod management;
mod metrics;
mod outbound;
mod pace;
mod pool;
mod probe;
mod request_body;
mod response_body;
mod sandbox;
mod service;
mod trace;
mod transport;
mod validate;
mod worker;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
