//! The command line: `serve`, the default, `compile` and `healthcheck`.

use crate::cli::healthcheck;
#[cfg(feature = "compile")]
use crate::component::compile;
#[cfg(feature = "compile")]
use crate::component::description::ARCH;
use crate::component::description::VERSION;
use crate::component::file::Component;
use crate::config::container;
use crate::config::settings::{self as config, Config};
use crate::listener::server::{self as listener, Server};
use crate::listener::worker::WorkerThread;
use crate::telemetry::line::{Level, escape_control};
use crate::telemetry::log::Log;
use lexopt::prelude::{Long, Short, Value, ValueExt};
use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Runs the command that the process's arguments ask for.
pub fn main() -> ExitCode {
    let (status, message) = match run() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Run(message)) => (1, message),
    };
    let _ = writeln!(io::stderr(), "error: {}", escape_control(&message));
    ExitCode::from(status)
}

/// Why the process ends, in one line.
enum Failure {
    /// Bad arguments or settings: exit status 2.
    Usage(String),
    /// Anything else: exit status 1.
    Run(String),
}

/// The arguments, as they are given.
#[derive(Default)]
struct Arguments {
    command: Option<OsString>,
    file: Option<PathBuf>,
    listen: Option<String>,
    output: Option<PathBuf>,
    target: Option<String>,
}

fn run() -> Result<(), Failure> {
    let mut given = Arguments::default();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next().map_err(usage)? {
        match argument {
            Short('h') | Long("help") => {
                return print(&format!("{USAGE}\n{}", config::ENV_HELP));
            }
            Short('V') | Long("version") => {
                return print(&version());
            }
            Long("listen") => {
                let value = arguments.value().map_err(usage)?;
                given.listen = Some(value.string().map_err(usage)?);
            }
            Short('o') | Long("output") => {
                given.output = Some(arguments.value().map_err(usage)?.into());
            }
            Long("target") => {
                let value = arguments.value().map_err(usage)?;
                given.target = Some(value.string().map_err(usage)?);
            }
            Value(word) if given.command.is_none() && given.file.is_none() => {
                if is_command(&word) {
                    given.command = Some(word);
                } else {
                    given.file = Some(word.into());
                }
            }
            Value(word) if given.file.is_none() => given.file = Some(word.into()),
            other => return Err(usage(other.unexpected())),
        }
    }
    let command = given.command.take();
    match command.as_ref().and_then(|command| command.to_str()) {
        Some("compile") => compile(given),
        Some("healthcheck") => healthcheck(given),
        _ => serve(given, command.is_some()),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|error| Failure::Run(format!("cannot write: {error}")))
}

fn is_command(word: &OsString) -> bool {
    word == "serve" || word == "compile" || word == "healthcheck"
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{error}; see --help"))
}

/// Rejects an option of another command.
fn no_option<T>(command: &str, name: &str, value: &Option<T>) -> Result<(), Failure> {
    match value {
        Some(_) => Err(usage(format!("`{command}` takes no {name}"))),
        None => Ok(()),
    }
}

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
         asks a running server for /livez at MANAGEMENT_LISTEN, or for /health where that is off

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

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Reads the settings, of which `listen` is an argument.
fn config(listen: Option<String>) -> Result<Config, Failure> {
    let limit = container::memory_limit();
    Config::read(listen, |name| env::var_os(name), limit).map_err(Failure::Usage)
}

fn healthcheck(given: Arguments) -> Result<(), Failure> {
    no_option("healthcheck", "file", &given.file)?;
    no_option("healthcheck", "--output", &given.output)?;
    no_option("healthcheck", "--target", &given.target)?;
    let is_traffic_given = given.listen.is_some();
    let config = config(given.listen)?;
    let probed = match config.management {
        Some(address) if !is_traffic_given => healthcheck::check(address, "/livez"),
        _ => healthcheck::check(config.listen, "/health"),
    };
    probed.map_err(Failure::Run)
}

#[cfg(feature = "compile")]
fn compile(given: Arguments) -> Result<(), Failure> {
    no_option("compile", "--listen", &given.listen)?;
    let input = given.file.ok_or_else(|| usage("`compile` takes a .wasm"))?;
    let (name, arch) = match (given.target, variable("TARGETARCH")) {
        (Some(arch), _) => ("--target", arch),
        (None, Some(arch)) => ("TARGETARCH", arch.to_string_lossy().into_owned()),
        (None, None) => ("this machine", ARCH.to_owned()),
    };
    let arch = compile::parse_arch(&arch)
        .map_err(|expected| Failure::Usage(format!("{name}={arch}: {expected}")))?;
    compile::compile_file(&input, given.output, arch).map_err(Failure::Run)
}

#[cfg(not(feature = "compile"))]
fn compile(_: Arguments) -> Result<(), Failure> {
    Err(Failure::Run(
        "this program has no compiler: it is built without the feature `compile`".into(),
    ))
}

fn serve(given: Arguments, is_named: bool) -> Result<(), Failure> {
    no_option("serve", "--output", &given.output)?;
    no_option("serve", "--target", &given.target)?;
    let config = config(given.listen)?;
    let path = match (given.file, variable("COMPONENT")) {
        (Some(path), _) => {
            // A mistyped command, more likely.
            if !is_named && path.extension().is_none() && !path.exists() {
                return Err(usage(format!("no command and no file: {}", path.display())));
            }
            path
        }
        (None, Some(path)) => path.into(),
        (None, None) => {
            let path = Path::new("/component.cwasm");
            if !path.exists() {
                return Err(usage(
                    "no component: there is no /component.cwasm, and COMPONENT is not set",
                ));
            }
            path.to_owned()
        }
    };
    run_server(path, config).map_err(Failure::Run)
}

/// Where to look: the address that stands for all of a machine's cannot be opened itself.
fn display_host(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

fn version() -> String {
    format!(
        "wasi-essentials {VERSION} (wasmtime {})",
        wasmtime_environ::VERSION
    )
}

fn run_server(path: PathBuf, config: Config) -> Result<(), String> {
    let startup_error = |error: io::Error| format!("cannot start: {error}");
    // Before anything else, the signals: as process 1 of a container, a process gets none that it has no handler for.
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().map_err(startup_error)?;
    let mut stop = runtime
        .block_on(async { shutdown_signals() })
        .map_err(startup_error)?;
    let log = Log::start(config.log_format, io::stdout()).map_err(startup_error)?;
    let served = runtime.block_on(async {
        let (sizes, granted, warning) = (config.sizes(), config.granted(), config.warning());
        let (sender, loaded) = oneshot::channel();
        let server_log = log.clone();
        let load = {
            let config = config.clone();
            move || {
                let component = Component::open(&path);
                let server = component.and_then(|component| {
                    let server = Server::bind(&component, config, &server_log)?;
                    Ok((component.description, server))
                });
                // Nobody waits for it after a signal.
                let _ = sender.send(server);
            }
        };
        let workers = listener::start_workers(&config, load)?;
        let (description, server) = tokio::select! {
            biased;
            reason = stop.recv() => {
                let reason = reason.unwrap_or_default();
                log.event(
                    Level::Info,
                    format_args!("{reason}: ended before it has served"),
                );
                return Ok(());
            }
            loaded = loaded => match loaded {
                Ok(loaded) => loaded?,
                // The worker that was to load has not started.
                Err(ended) => {
                    let reason = workers.into_iter().find_map(WorkerThread::error);
                    return Err(startup_error(reason.unwrap_or_else(|| io::Error::other(ended))));
                }
            },
        };
        let address = server.address().map_err(startup_error)?;
        let management = match server.management_address() {
            Some(address) => format!("management on {address}, "),
            None => String::new(),
        };
        let line = format!(
            "{}: {description}, {sizes}, {management}listening on {address}, see http://{}/",
            version(),
            display_host(address)
        );
        log.event(Level::Info, format_args!("{line}"));
        if let Some(granted) = granted {
            log.event(Level::Info, format_args!("the component may use {granted}"));
        }
        if let Some(warning) = warning {
            log.event(Level::Warn, format_args!("{warning}"));
        }
        server.run(workers, stop).await
    });
    log.flush(LOG_FLUSH_TIMEOUT);
    served
}

/// How long the last lines of the log may take to be read.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The names of the signals that ask for an end, as they come.
fn shutdown_signals() -> io::Result<mpsc::Receiver<String>> {
    let (tx, stop) = mpsc::channel(2);
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
    ] {
        let mut signal = signal(kind)?;
        let tx = tx.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                let _ = tx.send(name.to_owned()).await;
            }
        });
    }
    Ok(stop)
}
