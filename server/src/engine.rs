//! The Wasmtime settings that machine code and server must agree on: `build.rs` compiles with them,
//! the sandbox loads with them.

use wasmtime::Config;

/// The most linear memory that a guest can have, in bytes.
pub const MEMORY_BYTES: usize = 32 << 20;

pub fn config() -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(cfg!(feature = "spin"))
        .epoch_interruption(true)
        .generate_address_map(false)
        .memory_guard_size(64 << 10)
        .memory_may_move(false)
        .memory_reservation(MEMORY_BYTES as u64)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(None);
    config
}
