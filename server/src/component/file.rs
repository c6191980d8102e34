//! A component that is ready to be loaded, from a `.cwasm` or a `.wasm`.

#[cfg(feature = "compile")]
use crate::component::compile;
use crate::component::description::{ARCH, Description, VERSION};
use crate::component::format::{PREFIX_BYTES, is_machine_code, require_component, unreadable};
use crate::config::size::MemorySize;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use wasmtime::Engine;

/// Maximum number of memories and tables of a component, and of initial elements of a table. CPython has 1, 2 and 5,768.
/// A table element takes 8 bytes outside of the guest's memory.
const MAX_MEMORIES: u32 = 16;
const MAX_TABLES: u32 = 64;
const MAX_TABLE_ELEMENTS: u64 = 100_000;

/// A component that can be loaded.
pub struct Component {
    pub description: Description,
    pub path: PathBuf,
    code: Code,
}

enum Code {
    /// A file with machine code.
    Compiled(File),
    /// A component to compile.
    #[cfg(feature = "compile")]
    Wasm(Vec<u8>),
}

impl Component {
    /// Opens a `.cwasm`, or a `.wasm` if this program has the compiler. The content decides, not the name.
    ///
    /// # Errors
    /// One line with what is wrong with the file, and the remedy.
    pub fn open(path: &Path) -> Result<Self, String> {
        let error = |error: io::Error| unreadable(path, &error);
        let mut file = File::open(path).map_err(error)?;
        let mut prefix = Vec::new();
        (&mut file)
            .take(PREFIX_BYTES as u64)
            .read_to_end(&mut prefix)
            .map_err(error)?;
        if !is_machine_code(&prefix) {
            require_component(path, &prefix)?;
            return Self::from_wasm(path, prefix, file);
        }
        let description = Description::read(&mut file).map_err(error)?;
        let description = description.ok_or_else(|| {
            format!(
                "{}: not a file that `wasi-essentials compile` has made, or only a part of one; compile the .wasm again",
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
    fn from_wasm(path: &Path, prefix: Vec<u8>, mut rest: File) -> Result<Self, String> {
        let mut wasm = prefix;
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
            "{0}: not compiled, and this program has no compiler: run `wasi-essentials compile {0}` in the image tagged \
             …-compile, and serve the .cwasm",
            path.display()
        ))
    }

    /// Maps the machine code of a `.cwasm`, or compiles a `.wasm`.
    ///
    /// # Errors
    /// One line with the reason why the component does not load and the remedy.
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
        // The path may name another file since the trailer was read.
        let mut opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if !opened.exists() {
            opened.clone_from(&self.path);
        }
        // SAFETY: the file ends with the trailer that only `wasi-essentials compile` writes, after the output of
        // `Engine::precompile_component`, and Wasmtime compares version and settings. Operators must ensure that nothing
        // else writes to the file, before or while it is mapped: see SECURITY.md.
        #[expect(
            unsafe_code,
            reason = "loads machine code that this program has compiled"
        )]
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

    /// Checks that an instance can start with `GUEST_MEMORY`, and that its tables are bounded.
    ///
    /// # Errors
    /// One line that names the limit, and the setting if there is one.
    pub fn check_memory(&self, limit: MemorySize) -> Result<(), String> {
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
        // All memories have the same share.
        let initial = self.description.initial_memory;
        let needed = initial.saturating_mul(memories.into());
        if needed > limit.0 {
            let needed = MemorySize(needed);
            return Err(format!(
                "GUEST_MEMORY={limit}: {path} starts with {needed}; set at least that"
            ));
        }
        Ok(())
    }

    /// Checks that at least one instance fits into `GUEST_MEMORY_TOTAL`.
    ///
    /// # Errors
    /// One line that names the setting.
    pub fn check_total(&self, total: MemorySize) -> Result<(), String> {
        let needed = self.description.total_initial_memory();
        if needed > total.0 {
            let path = self.path.display();
            let needed = MemorySize(needed);
            return Err(format!(
                "GUEST_MEMORY_TOTAL={total}: {path} starts with {needed}; set at least that"
            ));
        }
        Ok(())
    }
}

/// Returns the error line for a component that exceeds a limit of the pool. Wasmtime's errors have no kinds, so the text
/// decides.
fn too_large(path: impl fmt::Display, error: &wasmtime::Error) -> Option<String> {
    let reason = error.root_cause().to_string();
    let is_limit = reason.contains(" exceeds ");
    is_limit.then(|| format!("{path}: needs more than a sandbox has: {reason}"))
}
