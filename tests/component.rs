//! The component's imports, which are all that a guest can use, and its initial memory, which each fresh sandbox resets.

mod harness;

use harness::{SPIN, WASI};
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use wasmparser::{Parser, Payload};

/// The service, built for WASI 0.2: the file that `COMPONENT_FILE` names, such as the image's, or the one
/// that the other tests serve.
fn wasi() -> Vec<u8> {
    let path = env::var_os("COMPONENT_FILE").map_or_else(|| WASI.wasm(), PathBuf::from);
    fs::read(path).expect("a component")
}

/// The same for WASI 0.3.
fn spin() -> Vec<u8> {
    fs::read(SPIN.wasm()).expect("a component")
}

/// Imported by the standard libraries of Rust and C, whether the service uses them or not. On the host, the environment and the
/// input are empty, and the output is the log.
const LIBRARIES: [&str; 14] = [
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
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure-seed",
];

/// Used by the service, and by `wstd` or `spin-sdk` for it.
const SERVICE: [&str; 2] = ["wasi:clocks/monotonic-clock", "wasi:http/types"];

/// Bytes in a page of WebAssembly memory.
const PAGE: u64 = 64 << 10;

#[test]
fn wasi_0_2_component_has_minimal_imports() {
    assert_imports(&wasi());
}

#[test]
fn wasi_0_3_component_has_minimal_imports() {
    assert_imports(&spin());
}

/// The stack of 64 KiB and a page for the data, as the package's build.rs has it.
#[test]
fn wasi_0_2_component_starts_with_two_pages() {
    assert_eq!(initial_memories(&wasi()), [2 * PAGE]);
}

#[test]
fn wasi_0_3_component_starts_with_two_pages() {
    assert_eq!(initial_memories(&spin()), [2 * PAGE]);
}

#[track_caller]
fn assert_imports(wasm: &[u8]) {
    let imports = imports(wasm);
    let names = imports.iter().filter_map(|import| import.split('@').next());
    let expected = LIBRARIES.into_iter().chain(SERVICE);
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        expected.collect(),
        "{imports:#?}"
    );
}

/// The size, in bytes, of each memory that the modules of a component define.
fn initial_memories(wasm: &[u8]) -> Vec<u64> {
    let payloads = Parser::new(0).parse_all(wasm);
    let memories = payloads.filter_map(|payload| match payload.expect("a component") {
        Payload::MemorySection(section) => Some(section),
        _ => None,
    });
    let memories = memories.flatten();
    memories
        .map(|memory| memory.expect("a memory").initial * PAGE)
        .collect()
}

/// The interfaces that a component imports, with their versions.
fn imports(wasm: &[u8]) -> BTreeSet<String> {
    let mut imports = BTreeSet::new();
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.expect("a component") {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            // Depth 0 is the component itself, not what is nested in it.
            Payload::ComponentImportSection(section) if depth == 0 => {
                let names = section
                    .into_iter()
                    .map(|import| import.expect("an import").name);
                imports.extend(names.map(|name| name.name.to_owned()));
            }
            _ => {}
        }
    }
    imports
}
