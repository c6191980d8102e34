//! The program `wasi-essentials`. Its commands are in `server::cli::commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::commands::main()
}
