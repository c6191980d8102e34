//! A component's file, from what it is to machine code in memory.
//!
//! `compile` leaves a `.cwasm`: Wasmtime's own file, which is an ELF image that `serve` maps into memory, and behind
//! it a trailer, which Wasmtime does not look at:
//!
//! ```text
//! Description as JSON │ length of the JSON in bytes (u32, little-endian) │ MAGIC
//! ```
//!
//! The trailer has what `serve` needs before there is an engine that could load the file: an engine's settings have to
//! match those of the compilation. A program that has the compiler makes the same description of a `.wasm`.

#[cfg(feature = "compile")]
use crate::component::compile;
use crate::config::settings::MemorySize;
use crate::sandbox::budget::TABLE_ELEMENT_BYTES;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use wasmtime::Engine;

/// The last bytes of a `.cwasm` that [`Description::write`] has ended.
const MAGIC: &[u8] = b"wasi-essentials\n";

/// Bytes of JSON that a trailer may have. A component's name is all that has no size of its own.
const MAX_JSON_BYTES: usize = 64 << 10;

/// The first bytes of an ELF file.
const ELF: &[u8] = b"\x7fELF";

/// The first bytes of WebAssembly: `\0asm`, the version, and the layer, 0 for modules and 1 for components
/// (component model, binary format).
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Linear memories and tables that the modules of a component may define, and elements that a table may start with: what
/// CPython has is 1, 2 and 5,768, and each element takes 8 bytes outside of the guest's memory.
const MAX_MEMORIES: u32 = 16;
const MAX_TABLES: u32 = 64;
const MAX_TABLE_ELEMENTS: u64 = 100_000;

/// The CPU architecture that this program runs on.
pub const ARCH: &str = std::env::consts::ARCH;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of the `wasi:http` world that a component exports.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Wasi {
    #[serde(rename = "0.2")]
    P2,
    #[serde(rename = "0.3")]
    P3,
}

impl Wasi {
    /// The version alone, such as `0.2`.
    pub fn number(self) -> &'static str {
        match self {
            Self::P2 => "0.2",
            Self::P3 => "0.3",
        }
    }
}

impl fmt::Display for Wasi {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "WASI {}", self.number())
    }
}

/// What is to be known of a component before it is loaded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Description {
    pub wasi: Wasi,
    /// From the component's `name` section, else the name of its file without `.wasm`.
    pub name: String,
    /// SHA-256 of the `.wasm`, in hexadecimal.
    pub sha256: String,
    /// Size of the largest linear memory that an instance starts with, in bytes.
    pub initial_memory: u64,
    /// How many linear memories the modules within define, and how many tables.
    pub memories: u32,
    pub tables: u32,
    /// Size of the largest table that an instance starts with, in elements.
    pub table_elements: u64,
    /// The CPU architecture that the machine code is for, as [`ARCH`] has it.
    pub arch: String,
    /// Version of this program that compiled it.
    pub version: String,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            name,
            wasi,
            sha256,
            version,
            ..
        } = self;
        write!(
            f,
            "component {name:?} ({wasi}, sha256:{sha256}, compiled by {version})"
        )
    }
}

impl Description {
    /// Returns the trailer.
    ///
    /// # Errors
    /// When the description has more than [`MAX_JSON_BYTES`].
    #[cfg(feature = "compile")]
    pub fn trailer(&self) -> io::Result<Vec<u8>> {
        let mut trailer = serde_json::to_vec(self)?;
        if trailer.len() > MAX_JSON_BYTES {
            return Err(io::Error::other("the component's name is too long"));
        }
        let length = trailer.len() as u32;
        trailer.extend(length.to_le_bytes());
        trailer.extend(MAGIC);
        Ok(trailer)
    }

    /// Returns the bytes that each memory may have of this many for all of a guest's.
    pub fn memory_share(&self, all: MemorySize) -> usize {
        (all.0 / u64::from(self.memories.max(1))) as usize
    }

    /// Returns the most bytes that the memories and tables of an instance start with.
    pub fn total_initial_memory(&self) -> u64 {
        let elements = u64::from(self.tables).saturating_mul(self.table_elements);
        let tables = elements.saturating_mul(TABLE_ELEMENT_BYTES as u64);
        let memories = self.initial_memory.saturating_mul(self.memories.into());
        memories.saturating_add(tables)
    }

    /// Reads the trailer; returns `None` if the file has none.
    fn read(file: &mut File) -> io::Result<Option<Self>> {
        let mut end = [0; 4 + MAGIC.len()];
        let whole = file.metadata()?.len();
        if whole < end.len() as u64 {
            return Ok(None);
        }
        file.seek(SeekFrom::End(-(end.len() as i64)))?;
        file.read_exact(&mut end)?;
        let Some((length, MAGIC)) = end.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        let trailer = (length + end.len()) as u64;
        if length > MAX_JSON_BYTES || trailer > whole {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(whole - trailer))?;
        let mut json = vec![0; length];
        file.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json).ok())
    }
}

/// A component that can be loaded.
pub struct Component {
    pub description: Description,
    pub path: PathBuf,
    code: Code,
}

enum Code {
    /// Machine code in this file.
    Compiled(File),
    /// A component that is to be compiled.
    #[cfg(feature = "compile")]
    Wasm(Vec<u8>),
}

impl Component {
    /// Opens a `.cwasm`, or a `.wasm` if this program has the compiler. The content counts, not the name.
    ///
    /// # Errors
    /// One line that says what is wrong with the file, and what to do.
    pub fn open(path: &Path) -> Result<Self, String> {
        let error = |error: io::Error| unreadable(path, &error);
        let mut file = File::open(path).map_err(error)?;
        let mut begin = Vec::new();
        let begun = (&mut file)
            .take(MODULE.len() as u64)
            .read_to_end(&mut begin);
        begun.map_err(error)?;
        if !begin.starts_with(ELF) {
            require_component(path, &begin)?;
            return Self::from_wasm(path, begin, file);
        }
        let description = Description::read(&mut file).map_err(error)?;
        let description = description.ok_or_else(|| {
            format!(
                "{}: not a file that `wasi-essentials compile` has made, or only a part of one",
                path.display()
            )
        })?;
        Ok(Self {
            description,
            path: path.to_owned(),
            code: Code::Compiled(file),
        })
    }

    #[cfg(feature = "compile")]
    fn from_wasm(path: &Path, begin: Vec<u8>, mut rest: File) -> Result<Self, String> {
        let mut wasm = begin;
        rest.read_to_end(&mut wasm)
            .map_err(|error| unreadable(path, &error))?;
        Ok(Self {
            description: compile::describe(path, &wasm, ARCH)?,
            path: path.to_owned(),
            code: Code::Wasm(wasm),
        })
    }

    #[cfg(not(feature = "compile"))]
    fn from_wasm(path: &Path, _: Vec<u8>, _: File) -> Result<Self, String> {
        Err(format!(
            "{0}: not compiled, and this program has no compiler: `wasi-essentials compile {0}` of a program that has \
             one makes a .cwasm of it",
            path.display()
        ))
    }

    /// Makes machine code of the component, or maps the machine code that is in its file.
    ///
    /// # Errors
    /// One line that says why the machine code does not fit this program, and what to do.
    pub fn load(&self, engine: &Engine) -> Result<wasmtime::component::Component, String> {
        match &self.code {
            Code::Compiled(file) => self.map(engine, file),
            #[cfg(feature = "compile")]
            Code::Wasm(wasm) => {
                let path = self.path.display();
                compile::with_progress(&self.path, &self.description, wasm.len(), || {
                    wasmtime::component::Component::new(engine, wasm)
                })
                .map_err(|error| {
                    too_large(&path, &error).unwrap_or_else(|| format!("{path}: {error:#}"))
                })
            }
        }
    }

    fn map(&self, engine: &Engine, file: &File) -> Result<wasmtime::component::Component, String> {
        let path = self.path.display();
        let Description { arch, version, .. } = &self.description;
        if arch != ARCH {
            return Err(format!(
                "{path}: compiled for {arch}, and this is {ARCH}: compile it with `--target {ARCH}`"
            ));
        }
        // The file whose trailer was read, even if another has taken its path since.
        let mut opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if !opened.exists() {
            opened.clone_from(&self.path);
        }
        // SAFETY: the file ends with the trailer that only `wasi-essentials compile` writes, behind what
        // `Engine::precompile_component` returned, and Wasmtime compares version and settings. That nobody
        // else has written to it, then or while it is mapped, is up to those who give it to this program:
        // see SECURITY.md.
        #[allow(unsafe_code)]
        let component = unsafe { wasmtime::component::Component::deserialize_file(engine, opened) };
        component.map_err(|error| {
            if let Some(line) = too_large(&path, &error) {
                return line;
            }
            let mismatch = match version.as_str() {
                VERSION => "damaged, or compiled with other settings".into(),
                _ => format!("compiled by version {version}, does not fit version {VERSION}"),
            };
            format!(
                "{path}: {mismatch}: {}; compile it again",
                error.root_cause()
            )
        })
    }

    /// Checks that an instance can start with this much memory, and that its tables are no way around that.
    ///
    /// # Errors
    /// One line that names the limit, and the setting if it is one.
    pub fn check_memory(&self, most: MemorySize) -> Result<(), String> {
        let path = self.path.display();
        let Description {
            memories,
            tables,
            table_elements,
            ..
        } = self.description;
        if memories > MAX_MEMORIES || tables > MAX_TABLES || table_elements > MAX_TABLE_ELEMENTS {
            return Err(format!(
                "{path}: needs more than a sandbox has: {memories} memories, {tables} tables with up to {table_elements} \
                 elements, and the most is {MAX_MEMORIES}, {MAX_TABLES} and {MAX_TABLE_ELEMENTS}"
            ));
        }
        // Each memory has the same share.
        let initial = self.description.initial_memory;
        let needed = initial.saturating_mul(memories.into());
        if needed > most.0 {
            let needed = MemorySize(needed);
            return Err(format!("GUEST_MEMORY={most}: {path} starts with {needed}"));
        }
        Ok(())
    }
}

impl Component {
    /// Checks that at least one instance fits into the memory of all.
    ///
    /// # Errors
    /// One line that names the setting.
    pub fn check_total(&self, total: MemorySize) -> Result<(), String> {
        let needed = self.description.total_initial_memory();
        if needed > total.0 {
            let path = self.path.display();
            let needed = MemorySize(needed);
            return Err(format!(
                "GUEST_MEMORY_TOTAL={total}: {path} starts with {needed}"
            ));
        }
        Ok(())
    }
}

/// The line for an error that says that the pool of sandboxes has no room for a component. Wasmtime's errors
/// have no kinds; those of the pool's limits say what exceeds them.
fn too_large(path: impl fmt::Display, error: &wasmtime::Error) -> Option<String> {
    let reason = error.root_cause().to_string();
    let is_limit = reason.contains(" exceeds ");
    is_limit.then(|| format!("{path}: needs more than a sandbox has: {reason}"))
}

/// Checks by its first bytes that a file is a component.
///
/// # Errors
/// One line that says what it is instead, and what to do.
pub fn require_component(path: &Path, begin: &[u8]) -> Result<(), String> {
    let path = path.display();
    if begin.starts_with(COMPONENT) {
        Ok(())
    } else if begin.starts_with(ELF) {
        Err(format!("{path}: machine code already, not a .wasm"))
    } else if begin.starts_with(MODULE) {
        Err(format!(
            "{path}: a core WebAssembly module, not a component: build it for wasm32-wasip2, or make a component of it \
             with `wasm-tools component new`"
        ))
    } else {
        Err(format!("{path}: not a WebAssembly component"))
    }
}

/// The line for a file that cannot be read.
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "may not be read".into(),
        io::ErrorKind::IsADirectory => "a directory, not a component".into(),
        _ => error.to_string(),
    };
    format!("{}: {reason}", path.display())
}
