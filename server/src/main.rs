//! The program: see `server::cli::commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::commands::main()
}
