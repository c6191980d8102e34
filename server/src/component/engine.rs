//! The Wasmtime settings that compilation and loading must share. Wasmtime compares them when it loads a file.

use crate::component::description::Wasi;
use wasmtime::Config;

/// Address space that a linear memory reserves, in bytes: the whole range of a 32-bit address. An access beyond the
/// memory's size faults, so that the machine code needs no bounds checks.
pub const MEMORY_RESERVATION: u64 = 4 << 30;

/// Returns the settings for components of a WASI version. Concurrency within a component has a cost, and WASI 0.2 does
/// not need it.
pub fn config(wasi: Wasi) -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(wasi == Wasi::P3)
        // Names for debuggers and profilers take 7 % of a file.
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
