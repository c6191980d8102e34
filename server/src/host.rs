//! What a guest sees of its host: clocks, randomness and a log stream. No files, no environment, no
//! sockets, no outbound HTTP.

use crate::component::Wasi;
use crate::guest_log::GuestLog;
use crate::log::Log;
use crate::sandbox::CallState;
use http::{HeaderName, Request, Response};
use std::convert::Infallible;
use std::sync::Arc;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasData, Linker, ResourceTable, ResourceType};
use wasmtime::{Engine, bail};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody};
use wasmtime_wasi_http::{WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};
use wasmtime_wasi_http::{p2::bindings as p2, p3::bindings as p3};

/// What the host keeps for one guest.
pub struct Host {
    pub call: Arc<CallState>,
    log: Log,
    /// Made when the guest first needs it, with its standard error: most guests do not, and making it
    /// takes as long as all the rest of the host.
    wasi: Option<(WasiCtx, GuestLog)>,
    http: WasiHttpCtx,
    outbound: NoOutboundHttp,
    handles: ResourceTable,
}

impl Host {
    pub fn new(log: &Log, call: Arc<CallState>) -> Self {
        Self {
            call,
            log: log.clone(),
            wasi: None,
            http: WasiHttpCtx::new(),
            outbound: NoOutboundHttp,
            handles: ResourceTable::new(),
        }
    }

    /// Returns true if the guest has written to its standard error since the last call.
    pub fn take_logged(&self) -> bool {
        let stderr = self.wasi.as_ref().map(|(_, stderr)| stderr);
        stderr.is_some_and(GuestLog::take_written)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (wasi, _) = self.wasi.get_or_insert_with(|| {
            let stderr = GuestLog::new(&self.log);
            let mut wasi = WasiCtx::builder();
            wasi.stdout(GuestLog::new(&self.log)).stderr(stderr.clone());
            (wasi.build(), stderr)
        });
        WasiCtxView {
            ctx: wasi,
            table: &mut self.handles,
        }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outbound,
            table: &mut self.handles,
            ctx: &mut self.http,
        }
    }
}

pub struct NoOutboundHttp;

/// A static, as the constant would be made anew for each field.
static FORBIDDEN_FIELDS: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

type Sending<T> = Box<dyn Future<Output = Result<T, Error>> + Send>;

impl WasiHttpHooks for NoOutboundHttp {
    /// The default's answer, without the allocation that it makes for each field.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        FORBIDDEN_FIELDS.contains(name)
    }

    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Sending<()>,
    ) -> Sending<(Response<WasiBody>, Sending<()>)> {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }

    /// Writes of the guest that wait for the client before the guest has to. With one, the
    /// default, even a guest with a short answer has to wait.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        8
    }

    /// Bytes that one write can have.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        64 << 10
    }
}

/// Interfaces that a guest may import, of WASI 0.2 and 0.3.
const INTERFACES: [&str; 34] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/types",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Checks the names of a component's imports.
///
/// # Errors
/// One line that names all imports that no guest can have here.
pub fn check_imports<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let unknown: Vec<_> = names.filter(|name| !is_known(name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(format!(
        "imports what this server does not have: {}",
        unknown.join(", ")
    ))
}

fn is_known(import: &str) -> bool {
    let is_of =
        |interface| is_release(import, interface, "0.2.") || is_release(import, interface, "0.3.");
    INTERFACES.into_iter().any(is_of)
}

/// Returns true if an import or export, `package:name/interface@version`, is this interface and of a version
/// that begins as `version`, a release and no draft of it.
pub fn is_release(name: &str, interface: &str, version: &str) -> bool {
    name.split_once('@')
        .is_some_and(|(name, of)| name == interface && of.starts_with(version) && !of.contains('-'))
}

/// Interfaces whose functions trap. A guest may import them, as libraries import more than a
/// service calls.
const DENIED: [&str; 4] = [
    "wasi:filesystem/",
    "wasi:http/client@",
    "wasi:http/outgoing-handler@",
    "wasi:sockets/",
];

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
    let imports = component.imports(engine).map(|(name, _)| name);
    check_imports(imports).map_err(wasmtime::Error::msg)?;
    let mut linker = Linker::new(engine);
    link(&mut linker)?;
    if wasi == Wasi::P3 {
        link_p3(&mut linker)?;
    }
    let mut resources = Vec::new();
    for (name, import) in component.imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            continue;
        };
        let denied = DENIED.iter().any(|prefix| name.starts_with(prefix));
        for (item, export) in interface.exports(engine) {
            match export.ty {
                // An interface can name another one's resources, which are not its to define.
                ComponentItem::Resource(resource) if !resources.contains(&resource) => {
                    resources.push(resource);
                    if denied {
                        let never = ResourceType::host::<Infallible>();
                        linker
                            .instance(name)?
                            .resource(item, never, |_, _| Ok(()))?;
                    }
                }
                ComponentItem::ComponentFunc(_) if denied => {
                    let function = format!("{name}#{item}");
                    linker.instance(name)?.func_new(item, move |_, _, _, _| {
                        bail!("it called {function}, which is denied")
                    })?;
                }
                _ => {}
            }
        }
    }
    Ok(linker)
}

/// Gives the guest the interfaces that need no capability, and no others.
fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::{cli, clocks, io, random};

    struct Handles;
    impl HasData for Handles {
        type Data<'a> = &'a mut ResourceTable;
    }
    fn handles(host: &mut Host) -> &mut ResourceTable {
        &mut host.handles
    }

    io::error::add_to_linker::<_, Handles>(linker, handles)?;
    io::poll::add_to_linker::<_, Handles>(linker, handles)?;
    io::streams::add_to_linker::<_, Handles>(linker, handles)?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, Host::clocks)?;
    clocks::wall_clock::add_to_linker::<_, WasiClocks>(linker, Host::clocks)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, Host::random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, Host::random)?;
    random::random::add_to_linker::<_, WasiRandom>(linker, Host::random)?;
    // Rust's standard library imports these whether it needs them or not. The environment that
    // they show is empty, standard input is at its end, and no stream is a terminal.
    cli::environment::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::stderr::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::stdout::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, Host::cli)?;
    p2::http::types::add_to_linker::<_, WasiHttp>(linker, &Default::default(), Host::http)?;
    Ok(())
}

/// The same for WASI 0.3. A component of that version has imports of both, as Rust's standard library is
/// built for WASI 0.2.
fn link_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p3::{cli, clocks, random};

    cli::add_to_linker(linker)?;
    clocks::add_to_linker(linker)?;
    random::add_to_linker(linker)?;
    p3::http::types::add_to_linker::<_, WasiHttp>(linker, Host::http)
}
