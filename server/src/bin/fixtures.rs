//! The server with guests that misbehave, for the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(&server::component::FIXTURES)
}
