//! Builds the component, compiles it ahead of time for the target machine, and leaves the machine
//! code where `src/component.rs` embeds it.

#[path = "src/engine.rs"]
mod engine;

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};
use wasmtime::Engine;

const WASM: &str = "wasm32-wasip2";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() {
    if let Err(error) = build() {
        println!("cargo::error={error}");
        exit(1);
    }
}

fn build() -> Result<()> {
    // What the component is made of; Cargo knows what the server is made of, and the toolchain.
    for path in ["Cargo.toml", "Cargo.lock", "src"] {
        println!("cargo::rerun-if-changed=../{path}");
    }
    println!(
        "cargo::rustc-env=WASMTIME_VERSION={}",
        wasmtime_environ::VERSION
    );
    require_target()?;
    let mut config = engine::config();
    config.target(&env::var("TARGET")?)?;
    let engine = Engine::new(&config)?;
    let service = Path::new("wasi_essentials.wasm");
    embed("wasi", &["--lib", "--features=wasi"], service, &engine)?;
    if cfg!(feature = "spin") {
        embed("spin", &["--lib", "--features=spin"], service, &engine)?;
    }
    if cfg!(feature = "fixtures") {
        println!("cargo::rerun-if-changed=../tests/fixtures.rs");
        let fixtures = Path::new("examples/fixtures.wasm");
        embed(
            "fixtures",
            &["--example=fixtures", "--features=wasi"],
            fixtures,
            &engine,
        )?;
    }
    Ok(())
}

/// Builds what these arguments of Cargo say, and leaves it as `$OUT_DIR/<name>.cwasm`, its digest in
/// the environment.
fn embed(name: &str, arguments: &[&str], wasm: &Path, engine: &Engine) -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let wasm = fs::read(component(name, arguments, &out.join(name))?.join(wasm))?;
    fs::write(
        out.join(format!("{name}.cwasm")),
        engine.precompile_component(&wasm)?,
    )?;
    let digest = Sha256::digest(&wasm);
    println!("cargo::rustc-env={}_DIGEST={digest:x}", name.to_uppercase());
    Ok(())
}

/// Builds a component, in a target folder of its own: the outer Cargo holds the lock on its own.
/// Returns the folder that Cargo leaves it in.
fn component(name: &str, arguments: &[&str], target_dir: &Path) -> Result<PathBuf> {
    let output = Command::new(env::var("CARGO")?)
        .args(["build", "--release", "--locked", "--target", WASM])
        .args(["--package", "wasi-essentials", "--no-default-features"])
        .args(arguments)
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir("..")
        // All are meant for the outer build: flags for another target, and clippy.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!("the component `{name}` does not build").into());
    }
    Ok(target_dir.join(WASM).join("release"))
}

fn require_target() -> Result<()> {
    let output = Command::new(env::var("RUSTC")?)
        .args(["--print", "target-libdir", "--target", WASM])
        .output()?;
    let libdir = String::from_utf8(output.stdout)?;
    if !Path::new(libdir.trim()).is_dir() {
        return Err(format!("Rust lacks the {WASM} target: run `rustup target add {WASM}`").into());
    }
    Ok(())
}
