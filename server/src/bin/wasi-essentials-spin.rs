//! The server with the component behind its WASI 0.3 door.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(&server::component::SPIN)
}
