//! The commands: `serve`, which is the default, `compile` and `healthcheck`. Errors go to standard error, and the exit status
//! is 2 for bad arguments and settings, 1 for all others.

use crate::cli::arguments::{self, Arguments, Command};
#[cfg(feature = "serve")]
use crate::cli::{healthcheck, serve};
#[cfg(feature = "compile")]
use crate::component::compile;
#[cfg(feature = "compile")]
use crate::component::description::ARCH;
#[cfg(feature = "serve")]
use crate::config::container;
#[cfg(feature = "serve")]
use crate::config::settings::Config;
use crate::escape::escape_control;
use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
#[cfg(feature = "serve")]
use std::path::Path;
use std::process::ExitCode;

/// The component of the image.
const DEFAULT_COMPONENT: &str = "/component.cwasm";

/// Reason for the failure of a command.
enum Failure {
    /// Bad arguments or settings, a line each.
    Usage(Vec<String>),
    /// Anything else, in a line.
    Run(String),
}

/// Runs the command that the arguments of this process name.
pub fn main() -> ExitCode {
    let (status, lines) = match run() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(lines)) => (2, lines),
        Err(Failure::Run(line)) => (1, vec![line]),
    };
    for line in lines {
        let _ = writeln!(io::stderr(), "error: {}", escape_control(&line));
    }
    ExitCode::from(status)
}

fn run() -> Result<(), Failure> {
    let given = Arguments::parse().map_err(usage)?;
    match given.command {
        Some(Command::Help) => print(&arguments::help()),
        Some(Command::Version) => print(&arguments::version()),
        Some(Command::Compile) => compile(given),
        Some(Command::Healthcheck) => healthcheck(given),
        Some(Command::Serve) | None => serve(given),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|error| Failure::Run(format!("cannot write: {error}")))
}

#[cfg(feature = "serve")]
fn serve(given: Arguments) -> Result<(), Failure> {
    reject("serve", "--output", &given.output)?;
    reject("serve", "--target", &given.target)?;
    let config = config(given.listen)?;
    let path = match (given.file, variable("COMPONENT")) {
        (Some(path), _) => {
            // Probably a mistyped command.
            if given.command.is_none() && path.extension().is_none() && !path.exists() {
                return Err(usage(format!("no command and no file: {}", path.display())));
            }
            path
        }
        (None, Some(path)) => path.into(),
        (None, None) if Path::new(DEFAULT_COMPONENT).exists() => DEFAULT_COMPONENT.into(),
        (None, None) => {
            return Err(usage(format!(
                "no component: there is no {DEFAULT_COMPONENT}, and COMPONENT is not set"
            )));
        }
    };
    serve::run(path, config).map_err(Failure::Run)
}

#[cfg(feature = "compile")]
fn compile(given: Arguments) -> Result<(), Failure> {
    reject("compile", "--listen", &given.listen)?;
    let input = given.file.ok_or_else(|| usage("`compile` takes a .wasm"))?;
    let (name, arch) = match (given.target, variable("TARGETARCH")) {
        (Some(arch), _) => ("--target", arch),
        (None, Some(arch)) => ("TARGETARCH", arch.to_string_lossy().into_owned()),
        (None, None) => ("this machine", ARCH.to_owned()),
    };
    let arch = compile::parse_arch(&arch)
        .map_err(|rule| Failure::Usage(vec![format!("{name}={arch}: {rule}")]))?;
    compile::compile_file(&input, given.output, arch).map_err(Failure::Run)
}

#[cfg(not(feature = "compile"))]
fn compile(_: Arguments) -> Result<(), Failure> {
    Err(Failure::Run(
        "this program has no compiler: use the image tagged …-compile".into(),
    ))
}

#[cfg(not(feature = "serve"))]
fn serve(given: Arguments) -> Result<(), Failure> {
    if given.command.is_none() {
        let file = given.file.unwrap_or_else(|| "INPUT.wasm".into());
        return Err(usage(format!("no command: `compile {}`", file.display())));
    }
    Err(Failure::Run(
        "this program only compiles: serve the .cwasm in the image tagged …-runtime".into(),
    ))
}

#[cfg(not(feature = "serve"))]
fn healthcheck(_: Arguments) -> Result<(), Failure> {
    Err(Failure::Run(
        "this program only compiles: there is no server to check".into(),
    ))
}

/// Checks the management listener, unless it is off or `--listen` names another.
#[cfg(feature = "serve")]
fn healthcheck(given: Arguments) -> Result<(), Failure> {
    reject("healthcheck", "file", &given.file)?;
    reject("healthcheck", "--output", &given.output)?;
    reject("healthcheck", "--target", &given.target)?;
    let is_listen_given = given.listen.is_some();
    let config = config(given.listen)?;
    let checked = match config.management {
        Some(address) if !is_listen_given => healthcheck::check(address, "/livez"),
        _ => healthcheck::check(config.listen, "/health"),
    };
    checked.map_err(Failure::Run)
}

/// Reads the settings, of which `listen` is an argument.
#[cfg(feature = "serve")]
fn config(listen: Option<String>) -> Result<Config, Failure> {
    let limit = container::memory_limit();
    Config::read(listen, |name| env::var_os(name), limit).map_err(Failure::Usage)
}

/// Returns an environment variable that is set and not empty.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Rejects an argument of another command.
fn reject<T>(command: &str, name: &str, value: &Option<T>) -> Result<(), Failure> {
    match value {
        Some(_) => Err(usage(format!("`{command}` takes no {name}"))),
        None => Ok(()),
    }
}

fn usage(error: impl Display) -> Failure {
    Failure::Usage(vec![format!("{error}; see --help")])
}
