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

pub mod cli;
mod clock;
#[cfg(feature = "compile")]
mod compile;
pub mod component;
pub mod config;
mod engine;
mod guest_log;
mod host;
mod imports;
pub mod listener;
pub mod log;
mod outbound;
mod probe;
mod sandbox;
mod service;
mod transport;
mod validate;
mod worker;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
