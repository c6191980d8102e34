//! The server with one of the tests' guests: the one that misbehaves, or the one that `FIXTURE` names.

use server::component;
use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(match env::var("FIXTURE").as_deref() {
        Err(_) => &component::RAW,
        Ok("service-wasi") => &component::SERVICE_WASI,
        #[cfg(feature = "spin")]
        Ok("service-spin") => &component::SERVICE_SPIN,
        Ok(fixture) => panic!("FIXTURE={fixture}: no such guest"),
    })
}
