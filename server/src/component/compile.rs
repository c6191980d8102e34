//! Compiles a `.wasm` to a `.cwasm`, for Linux on every CPU of an architecture. The output is reproducible. It depends
//! on the content and the name of the file, on the architecture, and on the version of this program.

use crate::component::contents::Contents;
use crate::component::description::{Description, VERSION};
use crate::component::engine;
use crate::component::format::{require_component, unreadable};
use crate::escape::escape_control;
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use wasmtime::Engine;

/// Interval of the progress lines on standard error.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum length of a component's name. A longer one is cut.
const MAX_NAME_CHARS: usize = 256;

/// Parses a CPU architecture, in the spelling of Rust or of container engines, and returns that of Rust.
///
/// # Errors
/// The expected form of the value.
pub fn parse_arch(name: &str) -> Result<&'static str, String> {
    match name {
        "x86_64" | "amd64" => Ok("x86_64"),
        "aarch64" | "arm64" => Ok("aarch64"),
        _ => Err("not a CPU architecture (x86_64 or amd64, aarch64 or arm64)".into()),
    }
}

/// Compiles a file, with progress on standard error. The default of `output` is the input's name with `.cwasm`.
///
/// # Errors
/// One line with what is wrong with the input, or with the error of the system.
pub fn compile_file(input: &Path, output: Option<PathBuf>, arch: &str) -> Result<(), String> {
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
    let write_error = |error: io::Error| format!("cannot write {}: {error}", output.display());
    // Checks the destination before compiling, which can take minutes.
    let destination = Destination::new(&output).map_err(write_error)?;
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
    destination.write(&compiled).map_err(write_error)?;
    print_line(&format!(
        "wrote {} ({})",
        output.display(),
        megabytes(compiled.len())
    ));
    Ok(())
}

/// Returns the description of a component.
///
/// # Errors
/// One line with the reason why the component cannot be served and the remedy.
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
    // With an explicit target, Cranelift uses the baseline of the architecture instead of the features of this CPU.
    config.target(&format!("{}-unknown-linux-musl", description.arch))?;
    let mut compiled = Engine::new(&config)?.precompile_component(wasm)?;
    compiled.extend(description.trailer()?);
    Ok(compiled)
}

/// The file to write.
struct Destination {
    /// With symbolic links resolved, if the file exists.
    path: PathBuf,
    /// Permissions of the file to replace.
    permissions: Option<Permissions>,
    /// Set for a device or a pipe, which is written in place.
    is_special: bool,
}

impl Destination {
    /// Checks the path.
    ///
    /// # Errors
    /// When the path is a directory, or its directory does not exist.
    fn new(path: &Path) -> io::Result<Self> {
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

    /// Writes the file. An existing file is replaced by renaming, so that a server that has it mapped is not affected.
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

/// Writes a line to standard error. A write error, such as `EPIPE`, does not stop the compilation.
fn print_line(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape_control(line));
}

/// Runs `compile`, with progress on standard error.
///
/// # Errors
/// The error of `compile`.
pub fn with_progress<T>(
    input: &Path,
    description: &Description,
    bytes: usize,
    compile: impl FnOnce() -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let started = Instant::now();
    let Description { wasi, arch, .. } = description;
    let input = input.display();
    print_line(&format!(
        "compiling {input} ({wasi}, {}) for {arch}",
        megabytes(bytes)
    ));
    let compiled = thread::scope(|scope| {
        let (done, working) = mpsc::channel::<()>();
        scope.spawn(move || {
            while working.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                print_line(&format!(
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
    print_line(&format!(
        "compiled in {:.1} s",
        started.elapsed().as_secs_f32()
    ));
    Ok(compiled)
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
