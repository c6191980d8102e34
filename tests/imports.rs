//! What the component asks of its host, for each door: a guest that cannot name a capability
//! cannot use it.

use std::collections::BTreeSet;
use std::fs;
use wasmparser::{Parser, Payload};

/// What the service needs, and what Rust's standard library brings along, needed or not: the host
/// answers with an empty environment and a log for output.
const NEEDED: [&str; 8] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdout",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/streams",
    "wasi:random/insecure-seed",
];

/// What the C library brings along besides, where nothing keeps it out.
const LIBC: [&str; 7] = [
    "wasi:cli/stdin",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:io/poll",
];

#[test]
fn the_wasi_door_imports_what_it_needs() {
    let wasm = concat!(
        env!("OUT_DIR"),
        "/wasi/wasm32-wasip2/release/wasi_essentials.wasm"
    );
    assert_imports(wasm, &NEEDED);
}

#[cfg(feature = "spin")]
#[test]
fn the_spin_door_imports_what_it_needs_and_the_c_library() {
    let wasm = concat!(
        env!("OUT_DIR"),
        "/spin/wasm32-wasip2/release/wasi_essentials.wasm"
    );
    assert_imports(wasm, &[NEEDED.as_slice(), &LIBC].concat());
}

#[track_caller]
fn assert_imports(wasm: &str, pinned: &[&str]) {
    let imports = imports(&fs::read(wasm).expect(wasm));
    for import in &imports {
        println!("{import}");
    }
    let names = imports.iter().filter_map(|import| import.split('@').next());
    let names: BTreeSet<_> = names.collect();
    assert_eq!(names, pinned.iter().copied().collect());
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
