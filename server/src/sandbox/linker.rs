//! Links a component's imports to the host.
//!
//! [`imports`](crate::component::imports) has the names of the interfaces that a component may import. Those for files and
//! sockets are linked to errors, see [`denied`].

use crate::component::description::Wasi;
use crate::component::imports::{check_imports, is_release};
use crate::sandbox::denied;
use crate::sandbox::host::Host;
use std::hash::{BuildHasher, RandomState};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasData, HasSelf, Linker, ResourceTable};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::p2::bindings::random::insecure_seed;
use wasmtime_wasi::p2::bindings::{cli, clocks, io, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi_http::{WasiHttp, WasiHttpView};
use wasmtime_wasi_http::{p2::bindings as p2, p3::bindings as p3};

/// Returns a linker with the component's imports.
///
/// # Errors
/// When the component has an unsupported import.
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
        // Linking all interfaces would take a fifth of the CPU time of a start.
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
        let is_denied = denied::is_denied(name);
        for (item, export) in interface.exports(engine) {
            match export.ty {
                // An interface can also export a resource of another interface, which defines it.
                ComponentItem::Resource(resource) if !resources.contains(&resource) => {
                    resources.push(resource);
                    if is_denied {
                        denied::link_resource(&mut linker.instance(name)?, item)?;
                    }
                }
                ComponentItem::ComponentFunc(function) if is_denied => {
                    denied::link_function(&mut linker.instance(name)?, name, item, &function)?;
                }
                _ => {}
            }
        }
    }
    Ok(linker)
}

type Link = fn(&mut Linker<Host>) -> wasmtime::Result<()>;

/// Interfaces of WASI 0.2. The standard libraries of languages import those of `wasi:cli` whether a program uses them or
/// not. Standard input is empty, and no stream is a terminal.
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

/// Access to the host's resource table.
struct HostTable;

impl HasData for HostTable {
    type Data<'a> = &'a mut ResourceTable;
}

/// Every guest in Rust with a hash map calls this function, and most call no other that needs a
/// [`wasmtime_wasi::WasiCtx`], whose two random generators cost 2,100 instructions.
impl insecure_seed::Host for Host {
    /// Derives two numbers from the random keys of this thread's hash maps.
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        let keys = RandomState::new();
        Ok((keys.hash_one(0), keys.hash_one(1)))
    }
}

/// Links the interfaces of WASI 0.3. A component of that version also imports interfaces of WASI 0.2, because Rust's
/// standard library does.
fn link_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p3::{cli, clocks, random};

    cli::add_to_linker(linker)?;
    clocks::add_to_linker(linker)?;
    random::add_to_linker(linker)?;
    p3::http::types::add_to_linker::<_, WasiHttp>(linker, Host::http)?;
    p3::http::client::add_to_linker::<_, WasiHttp>(linker, Host::http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_interfaces_may_be_imported() {
        for (interface, _) in LINKED {
            let import = format!("{interface}@0.2.0");
            assert_eq!(check_imports([import.as_str()].into_iter()), Ok(()));
        }
    }
}
