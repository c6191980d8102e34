//! The component: one service behind one of two doors.
//!
//! [`routes`] answers requests and knows nothing of WASI. A door carries requests to it from the
//! `wasi:http` world that it exports: `wasi` speaks WASI 0.2, `spin` WASI 0.3.

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

#[cfg(all(target_family = "wasm", feature = "spin", not(feature = "wasi")))]
mod spin;
#[cfg(all(target_family = "wasm", feature = "wasi", not(feature = "spin")))]
mod stdio;
#[cfg(all(target_family = "wasm", feature = "wasi", not(feature = "spin")))]
mod wasi;

#[cfg(all(target_family = "wasm", feature = "wasi", feature = "spin"))]
compile_error!("two doors chosen: for Spin's, add `--no-default-features --features spin`");
#[cfg(all(target_family = "wasm", not(feature = "wasi"), not(feature = "spin")))]
compile_error!("no door chosen: add `--features wasi` (WASI 0.2) or `--features spin` (WASI 0.3)");
