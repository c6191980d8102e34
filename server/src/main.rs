//! The server with the component behind its WASI 0.2 door: what the image ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(&server::component::WASI)
}
