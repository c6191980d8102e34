//! The arguments of the command line, and the texts of `--help` and `--version`.

use crate::component::description::VERSION;
#[cfg(feature = "serve")]
use crate::config::table;
use lexopt::prelude::{Long, Short, Value, ValueExt};
use std::ffi::OsString;
use std::path::PathBuf;

#[cfg(feature = "serve")]
const USAGE: &str = concat!(
    "\
wasi-essentials ",
    env!("CARGO_PKG_VERSION"),
    ": a runtime for WebAssembly components that serve HTTP

Usage: wasi-essentials [serve] [COMPONENT] [--listen ADDR]
         serves a component; without COMPONENT, what the variable COMPONENT names, else /component.cwasm
       wasi-essentials compile INPUT.wasm [-o OUTPUT.cwasm] [--target ARCH]
         compiles a component for Linux, so that it can be served without a compiler
       wasi-essentials healthcheck [--listen ADDR]
         requests /livez from MANAGEMENT_LISTEN, or /health if that is off; with --listen, /health from ADDR

COMPONENT is a .cwasm that `compile` has made; or, if this program has the compiler, a .wasm.

Options:
  --listen ADDR     address and port to listen on, such as 127.0.0.1:8080; port 0 takes a free one
  -o, --output FILE what `compile` writes; by default INPUT with .cwasm
  --target ARCH     x86_64 (or amd64), aarch64 (or arm64); by default TARGETARCH from the environment,
                    else this machine's
  -h, --help        this text
  -V, --version     version of this program and of Wasmtime
"
);

#[cfg(not(feature = "serve"))]
const USAGE: &str = concat!(
    "\
wasi-essentials ",
    env!("CARGO_PKG_VERSION"),
    ": compiles WebAssembly components that serve HTTP

Usage: wasi-essentials compile INPUT.wasm [-o OUTPUT.cwasm] [--target ARCH]
         compiles a component for Linux, for the runtime of the same version

Options:
  -o, --output FILE what to write; by default INPUT with .cwasm
  --target ARCH     x86_64 (or amd64), aarch64 (or arm64); by default TARGETARCH from the environment,
                    else this machine's
  -h, --help        this text
  -V, --version     version of this program and of Wasmtime"
);

pub enum Command {
    Help,
    Version,
    Serve,
    Compile,
    Healthcheck,
}

/// The arguments as given. A command rejects those that it does not take.
#[derive(Default)]
pub struct Arguments {
    /// `None` if no argument is the name of a command.
    pub command: Option<Command>,
    pub file: Option<PathBuf>,
    pub listen: Option<String>,
    pub output: Option<PathBuf>,
    pub target: Option<String>,
}

impl Arguments {
    /// Parses the arguments of this process. Those after `--help` and `--version` do not count.
    ///
    /// # Errors
    /// One line that names the argument.
    pub fn parse() -> Result<Self, lexopt::Error> {
        let mut given = Self::default();
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Short('h') | Long("help") => {
                    given.command = Some(Command::Help);
                    break;
                }
                Short('V') | Long("version") => {
                    given.command = Some(Command::Version);
                    break;
                }
                Long("listen") => given.listen = Some(arguments.value()?.string()?),
                Short('o') | Long("output") => given.output = Some(arguments.value()?.into()),
                Long("target") => given.target = Some(arguments.value()?.string()?),
                Value(word) if given.command.is_none() && given.file.is_none() => {
                    given.command = Command::from_name(&word);
                    if given.command.is_none() {
                        given.file = Some(word.into());
                    }
                }
                Value(word) if given.file.is_none() => given.file = Some(word.into()),
                other => return Err(other.unexpected()),
            }
        }
        Ok(given)
    }
}

impl Command {
    fn from_name(word: &OsString) -> Option<Self> {
        match word.to_str()? {
            "serve" => Some(Self::Serve),
            "compile" => Some(Self::Compile),
            "healthcheck" => Some(Self::Healthcheck),
            _ => None,
        }
    }
}

#[cfg(feature = "serve")]
pub fn help() -> String {
    format!("{USAGE}\n{}", table::help().trim_end())
}

#[cfg(not(feature = "serve"))]
pub fn help() -> String {
    USAGE.into()
}

/// Returns the versions of this program and of Wasmtime.
pub fn version() -> String {
    format!(
        "wasi-essentials {VERSION} (wasmtime {})",
        wasmtime_environ::VERSION
    )
}
