//! What the component asks of its host, for each door: a guest that cannot name a capability
//! cannot use it.

use std::collections::BTreeSet;
use std::fs;
use wasmparser::{Parser, Payload};

/// What Rust's standard library brings along, needed or not. The host answers with an empty
/// environment, closed input, and a log for output.
const STD: [&str; 13] = [
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
];

#[test]
fn the_wasi_door_imports_http_types_and_a_seed() {
    let wasm = concat!(
        env!("OUT_DIR"),
        "/wasi/wasm32-wasip2/release/wasi_essentials.wasm"
    );
    assert_imports(wasm, &["wasi:http/types", "wasi:random/insecure-seed"]);
}

#[cfg(feature = "spin")]
#[test]
fn the_spin_door_imports_http_types_and_a_seed() {
    let wasm = concat!(
        env!("OUT_DIR"),
        "/spin/wasm32-wasip2/release/wasi_essentials.wasm"
    );
    assert_imports(wasm, &["wasi:http/types", "wasi:random/insecure-seed"]);
}

#[track_caller]
fn assert_imports(wasm: &str, own: &[&str]) {
    let imports = imports(&fs::read(wasm).expect(wasm));
    for import in &imports {
        println!("{import}");
    }
    let names = imports.iter().filter_map(|import| import.split('@').next());
    let names: BTreeSet<_> = names.collect();
    let pinned: BTreeSet<_> = STD.iter().chain(own).copied().collect();
    assert_eq!(names, pinned);
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
