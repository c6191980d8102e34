//! Detects by its first bytes whether a file is a component, a core module or machine code.

use std::io;
use std::path::Path;

/// The first bytes of an ELF file.
const ELF: &[u8] = b"\x7fELF";

/// The first bytes of WebAssembly: `\0asm`, the version, and the layer, 0 for modules and 1 for components
/// (component model, binary format).
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Size of the prefix that identifies a format.
pub const PREFIX_BYTES: usize = COMPONENT.len();

/// Returns true for machine code, that is a `.cwasm`.
pub fn is_machine_code(prefix: &[u8]) -> bool {
    prefix.starts_with(ELF)
}

/// Checks that a file with these first bytes is a component.
///
/// # Errors
/// One line with the format of the file and the remedy.
pub fn require_component(path: &Path, prefix: &[u8]) -> Result<(), String> {
    let path = path.display();
    if prefix.starts_with(COMPONENT) {
        Ok(())
    } else if is_machine_code(prefix) {
        Err(format!("{path}: machine code already, not a .wasm"))
    } else if prefix.starts_with(MODULE) {
        Err(format!(
            "{path}: a core WebAssembly module, not a component: build it for wasm32-wasip2, or make a component of it \
             with `wasm-tools component new`"
        ))
    } else {
        Err(format!("{path}: not a WebAssembly component"))
    }
}

/// Returns the error line for a file that cannot be read.
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "may not be read".into(),
        io::ErrorKind::IsADirectory => "a directory, not a component".into(),
        _ => error.to_string(),
    };
    format!("{}: {reason}", path.display())
}
