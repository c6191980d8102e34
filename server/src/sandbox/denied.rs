//! Links the interfaces for files and sockets, which no guest has.
//!
//! The runtimes of languages import these interfaces whether a program uses them or not. A guest has no directories, and
//! the functions that create a socket or resolve a name return the interface's error `access-denied`. All other functions
//! need a handle that no guest has, and trap. Wasmtime's implementation is not compiled in.

use crate::sandbox::host::Host;
use crate::telemetry::line::Level;
use wasmtime::bail;
use wasmtime::component::types::ComponentFunc;
use wasmtime::component::{LinkerInstance, Resource, ResourceType};

/// Packages whose interfaces are denied.
const PACKAGES: [&str; 2] = ["wasi:filesystem/", "wasi:sockets/"];

/// The type of all resources of denied interfaces.
struct Denied;

/// Returns true if an import is a denied interface.
pub fn is_denied(import: &str) -> bool {
    PACKAGES.iter().any(|package| import.starts_with(package))
}

/// Links a resource of a denied interface.
///
/// # Errors
/// When the name is linked already.
pub fn link_resource(interface: &mut LinkerInstance<Host>, name: &str) -> wasmtime::Result<()> {
    interface.resource(name, ResourceType::host::<Denied>(), |_, _| Ok(()))
}

/// Links a function of a denied interface. `import` is the interface, for the log.
///
/// # Errors
/// When the name is linked already.
pub fn link_function(
    interface: &mut LinkerInstance<Host>,
    import: &str,
    name: &str,
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

    let function_name = format!("{import}#{name}");
    match name {
        "get-directories" => interface.func_wrap(name, |_, ()| Ok((Vec::<Directory>::new(),))),
        "filesystem-error-code" => {
            interface.func_wrap(name, |_, (_,): (IoError,)| Ok((None::<FileError>,)))
        }
        "network-error-code" => {
            interface.func_wrap(name, |_, (_,): (IoError,)| Ok((None::<ErrorCode>,)))
        }
        // Only denied functions take this handle.
        "instance-network" => interface.func_wrap(name, |_, ()| Ok((Handle::new_own(0),))),
        "create-tcp-socket" | "create-udp-socket" => {
            interface.func_wrap(name, move |mut store, (_,): (IpAddressFamily,)| {
                log_denied(store.data_mut(), &function_name);
                Ok((Err::<Handle, _>(ErrorCode::AccessDenied),))
            })
        }
        "[static]tcp-socket.create" | "[static]udp-socket.create" => {
            interface.func_wrap(name, move |mut store, (_,): (P3Family,)| {
                log_denied(store.data_mut(), &function_name);
                Ok((Err::<Handle, _>(P3Error::AccessDenied),))
            })
        }
        "resolve-addresses" if function.async_() => {
            interface.func_wrap_concurrent(name, move |guest, (_,): (String,)| {
                guest.with(|mut guest| log_denied(guest.data_mut(), &function_name));
                Box::pin(async { Ok((Err::<Vec<P3Address>, _>(P3NameError::AccessDenied),)) })
            })
        }
        "resolve-addresses" => {
            interface.func_wrap(name, move |mut store, (_, _): (Handle, String)| {
                log_denied(store.data_mut(), &function_name);
                Ok((Err::<Handle, _>(ErrorCode::AccessDenied),))
            })
        }
        _ if function.async_() => interface.func_new_concurrent(name, move |_, _, _, _| {
            let error = format!("it called {function_name}, which is denied");
            Box::pin(async move { bail!("{error}") })
        }),
        _ => interface.func_new(name, move |_, _, _, _| {
            bail!("it called {function_name}, which is denied")
        }),
    }
}

/// Logs that a guest is denied a socket or a lookup, once per guest.
fn log_denied(host: &mut Host, function: &str) {
    if !host.has_logged_denial {
        host.has_logged_denial = true;
        let message = format_args!("denied a guest {function}: no guest gets sockets");
        let log = &host.shared().log;
        log.request_event(Level::Warn, &host.state.trace, message);
    }
}
