//! Reads the properties of a component from the sections of its `.wasm`.

use crate::component::description::Wasi;
use crate::component::imports;
use wasmparser::{ComponentName, ComponentNameSectionReader, KnownCustom, Parser, Payload};

/// Size of a page of WebAssembly memory.
const PAGE_BYTES: u64 = 64 << 10;

/// Properties of a component.
#[derive(Default)]
pub struct Contents {
    pub name: Option<String>,
    imports: Vec<String>,
    exports: Vec<String>,
    /// Largest initial size of a linear memory, in bytes.
    pub initial_memory: u64,
    pub memories: u32,
    pub tables: u32,
    /// Largest initial size of a table, in elements.
    pub table_elements: u64,
}

impl Contents {
    /// Reads the sections of a component and of the modules and components nested in it. Validation is left to Wasmtime.
    ///
    /// # Errors
    /// When a section cannot be parsed.
    pub fn read(wasm: &[u8]) -> wasmparser::Result<Self> {
        let mut contents = Self::default();
        // Nesting of modules and components at the parser's position.
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) if depth > 0 => depth -= 1,
                Payload::MemorySection(memories) => {
                    contents.memories += memories.count();
                    for memory in memories {
                        let bytes = memory?.initial.saturating_mul(PAGE_BYTES);
                        contents.initial_memory = contents.initial_memory.max(bytes);
                    }
                }
                Payload::TableSection(tables) => {
                    contents.tables += tables.count();
                    for table in tables {
                        let elements = table?.ty.initial;
                        contents.table_elements = contents.table_elements.max(elements);
                    }
                }
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        contents.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        contents.exports.push(export?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(section) if depth == 0 => {
                    if let KnownCustom::ComponentName(names) = section.as_known() {
                        contents.name = name(names).or(contents.name);
                    }
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    /// Returns the version of the `wasi:http` world that the component exports.
    ///
    /// # Errors
    /// One line, when it exports none, or imports an interface that this server does not have.
    pub fn wasi(&self) -> Result<Wasi, String> {
        imports::check_imports(self.imports.iter().map(String::as_str))?;
        let exports = |interface, version| {
            let mut names = self.exports.iter();
            names.any(|name| imports::is_release(name, interface, version))
        };
        if exports("wasi:http/incoming-handler", "0.2.") {
            Ok(Wasi::P2)
        } else if exports("wasi:http/handler", "0.3.") {
            Ok(Wasi::P3)
        } else {
            let exports = match self.exports.as_slice() {
                [] => "nothing".into(),
                names => names.join(", "),
            };
            Err(format!(
                "exports neither wasi:http/incoming-handler@0.2 nor wasi:http/handler@0.3, so that it cannot serve \
                 HTTP; it exports {exports}"
            ))
        }
    }
}

/// Returns the name in a `name` section. A malformed section does not make a component invalid, and is skipped.
fn name(names: ComponentNameSectionReader) -> Option<String> {
    names.into_iter().find_map(|name| match name {
        Ok(ComponentName::Component { name, .. }) if !name.is_empty() => Some(name.to_owned()),
        _ => None,
    })
}
