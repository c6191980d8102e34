//! The interfaces that a component may import. The sandbox links each of them.

/// Interfaces of WASI 0.2 and 0.3.
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

/// A draft, of which this version alone is supported.
const CONFIG_STORE: &str = "wasi:config/store@0.2.0-rc.1";

/// Checks the names of a component's imports.
///
/// # Errors
/// One line that names all unsupported imports.
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
    INTERFACES.into_iter().any(is_of) || import == CONFIG_STORE
}

/// Returns true if an import or export, `package:name/interface@version`, is this interface, in a release whose version
/// starts with `version`. Drafts have a `-` in their version.
pub fn is_release(name: &str, interface: &str, version: &str) -> bool {
    let of = name.strip_prefix(interface);
    of.and_then(|rest| rest.strip_prefix('@'))
        .is_some_and(|of| of.starts_with(version) && !of.contains('-'))
}
