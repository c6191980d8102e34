//! The command line: `serve`, the default, and `healthcheck`.

use crate::component::Precompiled;
use crate::config::{self, Config};
use crate::listener::Server;
use crate::log::Log;
use crate::probe;
use lexopt::prelude::{Long, Short, Value, ValueExt};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, io};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Runs the command that the process's arguments ask for, with this component.
pub fn main(component: &Precompiled) -> ExitCode {
    let (status, message) = match run(component) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Run(message)) => (1, message),
    };
    eprintln!("error: {message}");
    ExitCode::from(status)
}

/// Why the process ends, in one line.
enum Failure {
    /// Bad arguments or settings: exit status 2.
    Usage(String),
    /// Anything else: exit status 1.
    Run(String),
}

enum Command {
    Serve,
    Healthcheck,
}

fn run(component: &Precompiled) -> Result<(), Failure> {
    let mut command = None;
    let mut listen = None;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next().map_err(usage)? {
        match argument {
            Short('h') | Long("help") => {
                print!("{USAGE}\n{}\n", config::HELP);
                return Ok(());
            }
            Short('V') | Long("version") => {
                println!("{}", version(component));
                return Ok(());
            }
            Long("listen") => {
                let value = arguments.value().map_err(usage)?;
                listen = Some(value.string().map_err(usage)?);
            }
            Value(word) if command.is_none() => {
                command = Some(match word.to_str() {
                    Some("serve") => Command::Serve,
                    Some("healthcheck") => Command::Healthcheck,
                    _ => return Err(usage(format!("unknown command {word:?}"))),
                });
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let config = Config::read(listen, |name| {
        Some(env::var_os(name)?.to_string_lossy().into_owned())
    });
    let config = config.map_err(Failure::Usage)?;
    match command.unwrap_or(Command::Serve) {
        Command::Serve => serve(component, config).map_err(Failure::Run),
        Command::Healthcheck => probe::healthy(config.listen).map_err(Failure::Run),
    }
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{error}; see --help"))
}

const USAGE: &str = concat!(
    "\
wasi-essentials ",
    env!("CARGO_PKG_VERSION"),
    ": a WebAssembly component as a web service

Usage: wasi-essentials [serve] [--listen ADDR]   serve the component (the default)
       wasi-essentials healthcheck               ask a running server for /health

Options:
  --listen ADDR  address and port to listen on, such as 127.0.0.1:8080; port 0 takes a free one
  -h, --help     this text
  -V, --version  version, Wasmtime's version, digest of the component
"
);

/// Where to look: the address that stands for all of a machine's cannot be opened itself.
fn visible(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

fn version(component: &Precompiled) -> String {
    format!(
        "wasi-essentials {} (wasmtime {}, component sha256:{})",
        env!("CARGO_PKG_VERSION"),
        env!("WASMTIME_VERSION"),
        component.digest
    )
}

fn serve(component: &Precompiled, config: Config) -> Result<(), String> {
    let no = |error: io::Error| format!("cannot start: {error}");
    let log = Log::start(config.log_format, io::stdout()).map_err(no)?;
    let server = Server::bind(component, config, &log)?;
    let address = server.address().map_err(no)?;
    let runtime = tokio::runtime::Builder::new_current_thread();
    let served = { runtime }
        .enable_all()
        .build()
        .map_err(no)?
        .block_on(async {
            let stop = signals().map_err(no)?;
            log.event(format_args!(
                "{} listening on {address}, see http://{}/",
                version(component),
                visible(address)
            ));
            server.run(stop).await
        });
    log.flush(FLUSH);
    served
}

/// How long the last lines of the log may take to be read.
const FLUSH: Duration = Duration::from_secs(1);

/// The names of the signals that ask for an end, as they come.
fn signals() -> io::Result<mpsc::Receiver<String>> {
    let (told, stop) = mpsc::channel(2);
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
    ] {
        let mut signal = signal(kind)?;
        let told = told.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                let _ = told.send(name.to_owned()).await;
            }
        });
    }
    Ok(stop)
}
