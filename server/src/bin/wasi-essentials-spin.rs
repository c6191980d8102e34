//! The server with the component, built for WASI 0.3.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(&server::component::SPIN)
}
