//! The compiler: a `.wasm` in, a `.cwasm` out, for Linux on any CPU of an architecture. The same file of the same
//! name gives the same bytes.

use crate::component::engine;
use crate::component::file::{Description, VERSION, Wasi, require_component, unreadable};
use crate::sandbox::linker as imports;
use crate::telemetry::log::escape_control;
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use wasmparser::{ComponentName, ComponentNameSectionReader, KnownCustom, Parser, Payload};
use wasmtime::Engine;

/// Time between two lines about a compilation that is still going on.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Characters of a component's name that are kept.
const MAX_NAME_CHARS: usize = 256;

/// Bytes in a page of WebAssembly memory.
const PAGE: u64 = 64 << 10;

/// Returns the name that Rust has for a CPU architecture, given that or the one that container engines have.
///
/// # Errors
/// What the value has to be.
pub fn arch(name: &str) -> Result<&'static str, String> {
    match name {
        "x86_64" | "amd64" => Ok("x86_64"),
        "aarch64" | "arm64" => Ok("aarch64"),
        _ => Err("not a CPU architecture (x86_64 or amd64, aarch64 or arm64)".into()),
    }
}

/// Compiles a file, and says on standard error what is going on. Without `output`, it is the input's name with
/// `.cwasm`.
///
/// # Errors
/// One line that says what is wrong with the input, or what the system denies.
pub fn file(input: &Path, output: Option<PathBuf>, arch: &str) -> Result<(), String> {
    let wasm = fs::read(input).map_err(|error| unreadable(input, &error))?;
    let description = describe(input, &wasm, arch)?;
    let output = match output {
        Some(output) => output,
        None if input.is_file() => input.with_extension("cwasm"),
        None => {
            return Err(format!(
                "{}: not a file: say with -o what to write",
                input.display()
            ));
        }
    };
    let denied = |error: io::Error| format!("cannot write {}: {error}", output.display());
    // What can be told before minutes of work.
    let destination = Destination::of(&output).map_err(denied)?;
    if fs::canonicalize(input).is_ok_and(|input| input == destination.path) {
        return Err(format!(
            "{}: input and output are one file",
            input.display()
        ));
    }
    let compiled = with_progress(input, &description, wasm.len(), || {
        compile(&wasm, &description)
    })
    .map_err(|error| format!("{}: {error:#}", input.display()))?;
    destination.write(&compiled).map_err(denied)?;
    say(&format!(
        "wrote {} ({})",
        output.display(),
        megabytes(compiled.len())
    ));
    Ok(())
}

/// Returns what is to be known of a component.
///
/// # Errors
/// One line that says why it cannot be served, and what to do.
pub fn describe(path: &Path, wasm: &[u8], arch: &str) -> Result<Description, String> {
    require_component(path, wasm)?;
    let contents = Contents::read(wasm)
        .map_err(|error| format!("{}: not a valid component: {error}", path.display()))?;
    let wasi = contents
        .wasi()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let stem = || {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into()
    };
    let name: String = contents.name.unwrap_or_else(stem);
    Ok(Description {
        wasi,
        name: name.chars().take(MAX_NAME_CHARS).collect(),
        sha256: format!("{:x}", Sha256::digest(wasm)),
        initial_memory: contents.initial_memory,
        memories: contents.memories,
        tables: contents.tables,
        table_elements: contents.table_elements,
        arch: arch.to_owned(),
        version: VERSION.to_owned(),
    })
}

fn compile(wasm: &[u8], description: &Description) -> wasmtime::Result<Vec<u8>> {
    let mut config = engine::config(description.wasi);
    // Naming a target leaves out what the CPU of this machine has beyond the architecture's baseline.
    config.target(&format!("{}-unknown-linux-musl", description.arch))?;
    let mut compiled = Engine::new(&config)?.precompile_component(wasm)?;
    compiled.extend(description.trailer()?);
    Ok(compiled)
}

/// A file that is to be written.
struct Destination {
    /// Without symbolic links, if the file exists.
    path: PathBuf,
    /// Of the file that is to be replaced.
    permissions: Option<Permissions>,
    /// Set for a device or a pipe, which cannot be replaced.
    is_special: bool,
}

impl Destination {
    /// Looks at what is there.
    ///
    /// # Errors
    /// When a file cannot be there.
    fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let Ok(existing) = fs::metadata(&path) else {
            let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
            fs::metadata(directory.unwrap_or(Path::new(".")))?;
            return Ok(Self {
                path,
                permissions: None,
                is_special: false,
            });
        };
        if existing.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Self {
            path,
            permissions: Some(existing.permissions()),
            is_special: !existing.is_file(),
        })
    }

    /// Writes the file, or replaces it as a whole: a server that has the old one mapped keeps it.
    fn write(self, bytes: &[u8]) -> io::Result<()> {
        if self.is_special {
            return fs::write(&self.path, bytes);
        }
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", process::id()));
        let mut file = File::create_new(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| {
            if let Some(permissions) = self.permissions {
                file.set_permissions(permissions)?;
            }
            fs::rename(&temporary, &self.path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// Writes a line to standard error. A reader that has gone does not stop a compilation.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape_control(line));
}

/// Does what compiles a component, and says on standard error what is going on.
///
/// # Errors
/// When the component does not compile.
pub fn with_progress<T>(
    input: &Path,
    description: &Description,
    bytes: usize,
    compile: impl FnOnce() -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let started = Instant::now();
    let Description { wasi, arch, .. } = description;
    let input = input.display();
    say(&format!(
        "compiling {input} ({wasi}, {}) for {arch}",
        megabytes(bytes)
    ));
    let compiled = thread::scope(|scope| {
        let (done, working) = mpsc::channel::<()>();
        scope.spawn(move || {
            while working.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                say(&format!(
                    "still compiling after {} s",
                    started.elapsed().as_secs()
                ));
            }
        });
        let compiled = compile();
        drop(done);
        compiled
    });
    let compiled = compiled?;
    say(&format!(
        "compiled in {:.1} s",
        started.elapsed().as_secs_f32()
    ));
    Ok(compiled)
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// What a component's sections say of it.
#[derive(Default)]
struct Contents {
    name: Option<String>,
    imports: Vec<String>,
    exports: Vec<String>,
    initial_memory: u64,
    memories: u32,
    tables: u32,
    table_elements: u64,
}

impl Contents {
    /// Reads the sections, those of the modules and components within included, as far as they are of interest here;
    /// Wasmtime validates the rest.
    fn read(wasm: &[u8]) -> wasmparser::Result<Self> {
        let mut contents = Self::default();
        // Of the modules and components within which the parser is.
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) if depth > 0 => depth -= 1,
                Payload::MemorySection(memories) => {
                    contents.memories += memories.count();
                    for memory in memories {
                        let bytes = memory?.initial.saturating_mul(PAGE);
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

    /// The version of WASI that the component is to be served with.
    fn wasi(&self) -> Result<Wasi, String> {
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

/// A component's name for itself. A section that is not as it should be does not make a component invalid.
fn name(names: ComponentNameSectionReader) -> Option<String> {
    names.into_iter().find_map(|name| match name {
        Ok(ComponentName::Component { name, .. }) if !name.is_empty() => Some(name.to_owned()),
        _ => None,
    })
}
