//! A native server that carries one WebAssembly component: HTTP on the outside, `wasi:http` on the
//! inside, and a fresh sandbox for every request.

pub mod cli;
pub mod component;
pub mod config;
mod engine;
mod guest_log;
mod host;
pub mod listener;
pub mod log;
mod probe;
mod sandbox;
mod service;
mod transport;
mod validate;
mod worker;

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
