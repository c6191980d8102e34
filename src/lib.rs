//! The component: one HTTP service, built for one of two `wasi:http` worlds.
//!
//! - [`routes`] is the service: what each path responds. It does not depend on WASI.
//! - [`service`] calls the routes and turns an error into a response and a line of the log.
//! - `entry` exports that to the host, for WASI 0.2 (feature `wasi`) or WASI 0.3 (feature `spin`).

#![deny(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::todo,
    clippy::unreachable,
    clippy::unwrap_used
)]

pub mod routes;
pub mod service;

#[cfg(all(target_family = "wasm", any(feature = "wasi", feature = "spin")))]
mod entry;

#[cfg(all(target_family = "wasm", feature = "wasi", feature = "spin"))]
compile_error!(
    "both `wasi` (WASI 0.2) and `spin` (WASI 0.3) are enabled: for WASI 0.3, add `--no-default-features --features spin`"
);
#[cfg(all(target_family = "wasm", not(any(feature = "wasi", feature = "spin"))))]
compile_error!("no entry point: enable the feature `wasi` (WASI 0.2) or `spin` (WASI 0.3)");
