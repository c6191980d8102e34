//! The description of a component, and the trailer of a `.cwasm` that holds it.
//!
//! A `.cwasm` is Wasmtime's own file, an ELF image that `serve` maps into memory. `compile` appends a trailer, which
//! Wasmtime ignores:
//!
//! ```text
//! Description as JSON │ length of the JSON in bytes (u32, little-endian) │ MAGIC
//! ```
//!
//! `serve` reads the trailer first, because the settings of the engine that loads the file depend on the description. For
//! a `.wasm`, [`compile`](crate::component::compile) makes the same description.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// The last bytes of a `.cwasm`.
const MAGIC: &[u8] = b"wasi-essentials\n";

/// Maximum size of the JSON in a trailer. Of its fields, the component's name alone has no fixed size.
const MAX_JSON_BYTES: usize = 64 << 10;

/// Size of a table element, on a 64-bit machine.
pub const TABLE_ELEMENT_BYTES: usize = 8;

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
    /// Returns the version number alone, such as `0.2`.
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

/// Properties of a component that are needed before it is loaded.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Description {
    pub wasi: Wasi,
    /// Name in the component's `name` section, or else the name of its file without `.wasm`.
    pub name: String,
    /// SHA-256 of the `.wasm`, in lower-case hexadecimal.
    pub sha256: String,
    /// Largest initial size of a linear memory, in bytes.
    pub initial_memory: u64,
    /// Number of linear memories that the modules of the component define.
    pub memories: u32,
    /// Number of tables that they define.
    pub tables: u32,
    /// Largest initial size of a table, in elements.
    pub table_elements: u64,
    /// CPU architecture of the machine code, in the form of [`ARCH`].
    pub arch: String,
    /// Version of this program that compiled the component.
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
    /// Returns the trailer with this description.
    ///
    /// # Errors
    /// When the description exceeds [`MAX_JSON_BYTES`].
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

    /// Returns the limit of each memory, given the limit of all memories of a guest, in bytes.
    pub fn memory_share(&self, total: u64) -> usize {
        (total / u64::from(self.memories.max(1))) as usize
    }

    /// Returns an upper bound on the initial size of all memories and tables of an instance, in bytes.
    pub fn total_initial_memory(&self) -> u64 {
        let elements = u64::from(self.tables).saturating_mul(self.table_elements);
        let tables = elements.saturating_mul(TABLE_ELEMENT_BYTES as u64);
        let memories = self.initial_memory.saturating_mul(self.memories.into());
        memories.saturating_add(tables)
    }

    /// Reads the description from a file; returns `None` if the file has no trailer.
    pub fn read(file: &mut File) -> io::Result<Option<Self>> {
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
