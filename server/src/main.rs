//! The server with the component, built for WASI 0.2: what the image ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(&server::component::WASI)
}
