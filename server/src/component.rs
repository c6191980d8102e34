//! The component as `build.rs` left it: compiled ahead of time, ready to be embedded.

/// A component in machine code.
#[derive(Debug)]
pub struct Precompiled {
    /// What `wasmtime::Engine::precompile_component` made of it. Private, so that nothing else can
    /// ever be loaded and run.
    pub(crate) code: &'static [u8],
    /// SHA-256 of the component's `.wasm` file, in hexadecimal.
    pub digest: &'static str,
}

/// The component behind its WASI 0.2 door.
pub static WASI: Precompiled = Precompiled {
    code: include_bytes!(concat!(env!("OUT_DIR"), "/wasi.cwasm")),
    digest: env!("WASI_DIGEST"),
};

/// The component behind its WASI 0.3 door.
#[cfg(feature = "spin")]
pub static SPIN: Precompiled = Precompiled {
    code: include_bytes!(concat!(env!("OUT_DIR"), "/spin.cwasm")),
    digest: env!("SPIN_DIGEST"),
};

/// Guests that misbehave, one for each path.
#[cfg(feature = "fixtures")]
pub static FIXTURES: Precompiled = Precompiled {
    code: include_bytes!(concat!(env!("OUT_DIR"), "/fixtures.cwasm")),
    digest: env!("FIXTURES_DIGEST"),
};
