//! The component as `build.rs` left it: compiled ahead of time, and run where it lies in this
//! executable, without a copy.

use rustix::mm::{MprotectFlags, mprotect};
use rustix::param::page_size;
use std::ptr::NonNull;
use wasmtime::component::Component;
use wasmtime::{CustomCodeMemory, Engine};

/// A component in machine code.
pub struct Precompiled {
    /// What `wasmtime::Engine::precompile_component` made of it. Private, so that nothing else can
    /// ever be loaded and run.
    pub(crate) code: &'static Pages<[u8]>,
    /// SHA-256 of the component's `.wasm` file, in hexadecimal.
    pub digest: &'static str,
}

impl Precompiled {
    /// Makes the machine code ready to run, in an engine that has [`InPlace`].
    ///
    /// # Errors
    /// When the machine code is not for this machine or this server.
    pub fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        let code = NonNull::from(&self.code.0);
        // SAFETY: the bytes are what `Engine::precompile_component` gave `build.rs`, unchanged
        // since: they are constants in this executable's read-only data, there as long as it runs.
        #[allow(unsafe_code)]
        unsafe {
            Component::deserialize_raw(engine, code)
        }
    }
}

/// Bytes that begin with a page of memory, of whatever size this machine's are, so that the code
/// among them can run where it lies.
#[cfg_attr(target_arch = "aarch64", repr(align(65536)))]
#[cfg_attr(not(target_arch = "aarch64"), repr(align(4096)))]
pub(crate) struct Pages<T: ?Sized>(pub T);

/// Has the machine code run in the pages that the system mapped with this executable.
pub struct InPlace;

impl InPlace {
    fn protect(start: *const u8, bytes: usize, access: MprotectFlags) -> wasmtime::Result<()> {
        // SAFETY: Wasmtime gives the code of a component that it was given, whole pages of it, by
        // their alignment. They stay readable, and nothing ever writes to them.
        #[allow(unsafe_code)]
        unsafe {
            mprotect(start.cast_mut().cast(), bytes, access)?;
        }
        Ok(())
    }
}

impl CustomCodeMemory for InPlace {
    fn required_alignment(&self) -> usize {
        page_size()
    }

    fn publish_executable(&self, start: *const u8, bytes: usize) -> wasmtime::Result<()> {
        Self::protect(start, bytes, MprotectFlags::READ | MprotectFlags::EXEC)
    }

    fn unpublish_executable(&self, start: *const u8, bytes: usize) -> wasmtime::Result<()> {
        Self::protect(start, bytes, MprotectFlags::READ)
    }
}

/// The service, built for WASI 0.2.
pub static WASI: Precompiled = Precompiled {
    code: &Pages(*include_bytes!(concat!(env!("OUT_DIR"), "/wasi.cwasm"))),
    digest: env!("WASI_DIGEST"),
};

/// The service, built for WASI 0.3.
#[cfg(feature = "spin")]
pub static SPIN: Precompiled = Precompiled {
    code: &Pages(*include_bytes!(concat!(env!("OUT_DIR"), "/spin.cwasm"))),
    digest: env!("SPIN_DIGEST"),
};

/// A guest that misbehaves, in a way for each path: `tests/fixtures/raw.rs`.
#[cfg(feature = "fixtures")]
pub static RAW: Precompiled = Precompiled {
    code: &Pages(*include_bytes!(concat!(env!("OUT_DIR"), "/raw.cwasm"))),
    digest: env!("RAW_DIGEST"),
};

/// A service whose routes fail, built for WASI 0.2: `tests/fixtures/service.rs`.
#[cfg(feature = "fixtures")]
pub static SERVICE_WASI: Precompiled = Precompiled {
    code: &Pages(*include_bytes!(concat!(
        env!("OUT_DIR"),
        "/service_wasi.cwasm"
    ))),
    digest: env!("SERVICE_WASI_DIGEST"),
};

/// The same, built for WASI 0.3.
#[cfg(all(feature = "fixtures", feature = "spin"))]
pub static SERVICE_SPIN: Precompiled = Precompiled {
    code: &Pages(*include_bytes!(concat!(
        env!("OUT_DIR"),
        "/service_spin.cwasm"
    ))),
    digest: env!("SERVICE_SPIN_DIGEST"),
};
