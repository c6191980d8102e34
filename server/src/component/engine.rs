//! The Wasmtime settings that machine code and runtime have to agree on: `compile` compiles with them, the sandbox
//! loads with them. Wasmtime compares them when it loads a file.

use crate::component::file::Wasi;
use wasmtime::Config;

/// Address space that each linear memory reserves, in bytes: all that 32 bits can address. An access beyond the
/// memory's size faults, so that the machine code does not compare each one with the size.
pub const MEMORY_RESERVATION: u64 = 4 << 30;

/// Returns the settings for components of this version. Only WASI 0.3 pays for concurrency within a component.
pub fn config(wasi: Wasi) -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(wasi == Wasi::P3)
        // Names for debuggers and profilers: 7 % of a file.
        .debug_symbols(false)
        .epoch_interruption(true)
        .generate_address_map(false)
        .memory_guard_size(64 << 10)
        .memory_may_move(false)
        .memory_reservation(MEMORY_RESERVATION)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(None);
    config
}
