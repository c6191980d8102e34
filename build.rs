//! Gives every guest of this package a small stack, and no names of functions.

use std::env;

/// Size of a guest's shadow stack, in bytes: where WebAssembly keeps what Rust takes the address of.
/// A request that starts in a fresh sandbox pays for resetting the guest's initial memory, most of
/// which is this stack; Rust's default is 1 MiB. A guest that recurses deeper than this traps. To
/// raise it, take a multiple of 65,536.
const STACK_BYTES: usize = 64 << 10;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Not in `.cargo/config.toml`, whose flags an environment with `RUSTFLAGS` replaces.
    if env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "wasm") {
        // Not `-cdylib` and `-examples`, which leave out examples that are libraries.
        println!("cargo::rustc-link-arg=-zstack-size={STACK_BYTES}");
        // Cargo does not apply a profile's `strip` to a package for which the profile has a section. `PROFILE` is
        // `release` for the profiles that inherit it, too.
        if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
            println!("cargo::rustc-link-arg=--strip-all");
        }
    }
}
