//! Builds the component, compiles it ahead of time for the target machine, and leaves the machine
//! code where `src/component.rs` embeds it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

#[path = "src/engine.rs"]
mod engine;

fn main() {
    if let Err(error) = build() {
        println!("cargo::error={error}");
        process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    for path in ["../Cargo.toml", "../Cargo.lock", "../src", "src/engine.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let wasm = fs::read(component("wasi", &out)?)?;
    let mut config = engine::config();
    config.target(&env::var("TARGET")?)?;
    let code = wasmtime::Engine::new(&config)?.precompile_component(&wasm)?;
    println!("cargo::warning=wasm {} cwasm {}", wasm.len(), code.len());
    fs::write(out.join("wasi.cwasm"), code)?;
    println!("cargo::rustc-env=WASMTIME_VERSION={}", wasmtime_environ::VERSION);
    Ok(())
}

fn component(door: &str, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let dir = out.join(door);
    let status = Command::new(env::var("CARGO")?)
        .args(["build", "--release", "--locked", "--target", "wasm32-wasip2"])
        .args(["--package", "wasi-essentials", "--no-default-features", "--features", door])
        .arg("--target-dir").arg(&dir)
        .current_dir("..")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    if !status.success() {
        return Err(format!("the component did not build").into());
    }
    Ok(dir.join("wasm32-wasip2/release/wasi_essentials.wasm"))
}
