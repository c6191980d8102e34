//! Which interfaces a component may import, and what they are linked to.
//!
//! There are no files and no sockets, and no code for them. Interfaces that a language's runtime imports all the same are
//! there: a guest has no directories, and the error of a socket that it may not have.

use crate::component::description::Wasi;
use crate::component::imports::{check_imports, is_release};
use crate::sandbox::host::Host;
use crate::telemetry::log::Level;
use std::hash::{BuildHasher, RandomState};
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, HasData, HasSelf, Linker, LinkerInstance, Resource};
use wasmtime::component::{ResourceTable, ResourceType};
use wasmtime::{Engine, bail};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::p2::bindings::random::insecure_seed;
use wasmtime_wasi::p2::bindings::{cli, clocks, io, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi_http::{WasiHttp, WasiHttpView};
use wasmtime_wasi_http::{p2::bindings as p2, p3::bindings as p3};

/// Packages that are there without what they are for.
const DENIED: [&str; 2] = ["wasi:filesystem/", "wasi:sockets/"];

/// The type of their resources.
struct Denied;

/// What the component's imports are linked to.
///
/// # Errors
/// When the component imports what no guest here can have.
pub fn linker(
    engine: &Engine,
    component: &Component,
    wasi: Wasi,
) -> wasmtime::Result<Linker<Host>> {
    let component = component.component_type();
    let names: Vec<_> = component.imports(engine).map(|(name, _)| name).collect();
    check_imports(names.iter().copied()).map_err(wasmtime::Error::msg)?;
    let mut linker = Linker::new(engine);
    for (interface, link) in LINKED {
        // All of them would take a fifth of the time that a start computes.
        if names.iter().any(|name| is_release(name, interface, "0.2.")) {
            link(&mut linker)?;
        }
    }
    wasmtime_wasi_config::add_to_linker(&mut linker, Host::config)?;
    if wasi == Wasi::P3 {
        link_p3(&mut linker)?;
    }
    let mut resources = Vec::new();
    for (name, import) in component.imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            continue;
        };
        let is_denied = DENIED.iter().any(|package| name.starts_with(package));
        for (item, export) in interface.exports(engine) {
            match export.ty {
                // An interface can name another one's resources, which are not its to define.
                ComponentItem::Resource(resource) if !resources.contains(&resource) => {
                    resources.push(resource);
                    if is_denied {
                        let denied = ResourceType::host::<Denied>();
                        linker
                            .instance(name)?
                            .resource(item, denied, |_, _| Ok(()))?;
                    }
                }
                ComponentItem::ComponentFunc(function) if is_denied => {
                    deny(&mut linker.instance(name)?, name, item, &function)?;
                }
                _ => {}
            }
        }
    }
    Ok(linker)
}

/// Links a function of a package that is there without what it is for.
///
/// A guest has no directories. Of a socket, and of a name to resolve, it gets the error that the interface has. The
/// other functions need a handle that no guest has.
fn deny(
    interface: &mut LinkerInstance<Host>,
    name: &str,
    item: &str,
    function: &ComponentFunc,
) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode as FileError;
    use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
    use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{
        ErrorCode as P3NameError, IpAddress as P3Address,
    };
    use wasmtime_wasi::p3::bindings::sockets::types::{
        ErrorCode as P3Error, IpAddressFamily as P3Family,
    };

    type Directory = (Resource<Denied>, String);
    type Handle = Resource<Denied>;
    type IoError = Resource<wasmtime_wasi::p2::bindings::io::error::Error>;

    let function_name = format!("{name}#{item}");
    match item {
        "get-directories" => interface.func_wrap(item, |_, ()| Ok((Vec::<Directory>::new(),))),
        "filesystem-error-code" => {
            interface.func_wrap(item, |_, (_,): (IoError,)| Ok((None::<FileError>,)))
        }
        "network-error-code" => {
            interface.func_wrap(item, |_, (_,): (IoError,)| Ok((None::<ErrorCode>,)))
        }
        // Nothing can be done with it.
        "instance-network" => interface.func_wrap(item, |_, ()| Ok((Handle::new_own(0),))),
        "create-tcp-socket" | "create-udp-socket" => {
            interface.func_wrap(item, move |mut store, (_,): (IpAddressFamily,)| {
                log_refusal(store.data_mut(), &function_name);
                Ok((Err::<Handle, _>(ErrorCode::AccessDenied),))
            })
        }
        "[static]tcp-socket.create" | "[static]udp-socket.create" => {
            interface.func_wrap(item, move |mut store, (_,): (P3Family,)| {
                log_refusal(store.data_mut(), &function_name);
                Ok((Err::<Handle, _>(P3Error::AccessDenied),))
            })
        }
        "resolve-addresses" if function.async_() => {
            interface.func_wrap_concurrent(item, move |guest, (_,): (String,)| {
                guest.with(|mut guest| log_refusal(guest.data_mut(), &function_name));
                Box::pin(async { Ok((Err::<Vec<P3Address>, _>(P3NameError::AccessDenied),)) })
            })
        }
        "resolve-addresses" => {
            interface.func_wrap(item, move |mut store, (_, _): (Handle, String)| {
                log_refusal(store.data_mut(), &function_name);
                Ok((Err::<Handle, _>(ErrorCode::AccessDenied),))
            })
        }
        _ if function.async_() => interface.func_new_concurrent(item, move |_, _, _, _| {
            let error = format!("it called {function_name}, which is denied");
            Box::pin(async move { bail!("{error}") })
        }),
        _ => interface.func_new(item, move |_, _, _, _| {
            bail!("it called {function_name}, which is denied")
        }),
    }
}

/// Logs a refused socket, once for each guest.
fn log_refusal(host: &mut Host, function: &str) {
    if !host.is_refused {
        host.is_refused = true;
        let message = format_args!("denied a guest {function}: no guest gets sockets");
        let log = &host.shared().log;
        log.request_event(Level::Warn, &host.call.trace, message);
    }
}

type Link = fn(&mut Linker<Host>) -> wasmtime::Result<()>;

/// Interfaces of WASI 0.2 that are there with all that they are for. The standard libraries of languages import those of
/// `wasi:cli` whether they need them or not: standard input is at its end, and no stream is a terminal.
const LINKED: [(&str, Link); 20] = [
    ("wasi:io/error", |it| {
        io::error::add_to_linker::<_, HostTable>(it, Host::table)
    }),
    ("wasi:io/poll", |it| {
        io::poll::add_to_linker::<_, HostTable>(it, Host::table)
    }),
    ("wasi:io/streams", |it| {
        io::streams::add_to_linker::<_, HostTable>(it, Host::table)
    }),
    ("wasi:clocks/monotonic-clock", |it| {
        clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(it, Host::clocks)
    }),
    ("wasi:clocks/wall-clock", |it| {
        clocks::wall_clock::add_to_linker::<_, WasiClocks>(it, Host::clocks)
    }),
    ("wasi:random/insecure", |it| {
        random::insecure::add_to_linker::<_, WasiRandom>(it, Host::random)
    }),
    ("wasi:random/insecure-seed", |it| {
        random::insecure_seed::add_to_linker::<_, HasSelf<Host>>(it, |host| host)
    }),
    ("wasi:random/random", |it| {
        random::random::add_to_linker::<_, WasiRandom>(it, Host::random)
    }),
    ("wasi:cli/environment", |it| {
        cli::environment::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/exit", |it| {
        cli::exit::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/stderr", |it| {
        cli::stderr::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/stdin", |it| {
        cli::stdin::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/stdout", |it| {
        cli::stdout::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/terminal-input", |it| {
        cli::terminal_input::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/terminal-output", |it| {
        cli::terminal_output::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/terminal-stderr", |it| {
        cli::terminal_stderr::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/terminal-stdin", |it| {
        cli::terminal_stdin::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:cli/terminal-stdout", |it| {
        cli::terminal_stdout::add_to_linker::<_, WasiCli>(it, Host::cli)
    }),
    ("wasi:http/types", |it| {
        p2::http::types::add_to_linker::<_, WasiHttp>(it, &Default::default(), Host::http)
    }),
    ("wasi:http/outgoing-handler", |it| {
        p2::http::outgoing_handler::add_to_linker::<_, WasiHttp>(it, Host::http)
    }),
];

struct HostTable;

impl HasData for HostTable {
    type Data<'a> = &'a mut ResourceTable;
}

/// Every guest in Rust that has a hash map asks for this, and most for nothing else that takes a [`wasmtime_wasi::WasiCtx`],
/// whose two generators cost 2,400 instructions.
impl insecure_seed::Host for Host {
    /// Returns two hashes with the random keys that the thread's hash maps have.
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        let keys = RandomState::new();
        Ok((keys.hash_one(0), keys.hash_one(1)))
    }
}

/// Links the interfaces of WASI 0.3. A component of that version has imports of both, as Rust's standard library is
/// built for WASI 0.2.
fn link_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p3::{cli, clocks, random};

    cli::add_to_linker(linker)?;
    clocks::add_to_linker(linker)?;
    random::add_to_linker(linker)?;
    p3::http::types::add_to_linker::<_, WasiHttp>(linker, Host::http)?;
    p3::http::client::add_to_linker::<_, WasiHttp>(linker, Host::http)
}
