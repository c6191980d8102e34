//! Builds the component, compiles it ahead of time for the target machine, and leaves the machine
//! code where `src/component.rs` embeds it. A component that `COMPONENT` names, a path from the
//! project's folder, is taken as it is.

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
    for path in ["Cargo.toml", "Cargo.lock", "build.rs", "src"] {
        println!("cargo::rerun-if-changed=../{path}");
    }
    println!(
        "cargo::rustc-env=WASMTIME_VERSION={}",
        wasmtime_environ::VERSION
    );
    println!("cargo::rerun-if-env-changed=COMPONENT");
    let mut config = engine::config();
    config.target(&env::var("TARGET")?)?;
    let engine = Engine::new(&config)?;
    let service = Path::new("wasi_essentials.wasm");
    let wasi = match env::var_os("COMPONENT") {
        Some(path) => existing(&Path::new("..").join(path))?,
        None => component("wasi", "--lib", service)?,
    };
    embed("wasi", &wasi, &engine)?;
    if cfg!(feature = "spin") {
        let spin = component("spin", "--lib", service)?;
        embed("spin", &spin, &engine)?;
    }
    if cfg!(feature = "fixtures") {
        println!("cargo::rerun-if-changed=../tests/fixtures");
        for (name, example, entry) in [
            ("raw", "raw", "wasi"),
            ("service_wasi", "service", "wasi"),
            ("service_spin", "service", "spin"),
        ] {
            let file = PathBuf::from(format!("examples/{example}.wasm"));
            let target = format!("--example={example}");
            if entry == "wasi" || cfg!(feature = "spin") {
                embed(name, &component(entry, &target, &file)?, &engine)?;
            }
        }
    }
    Ok(())
}

/// Leaves a component as machine code in `$OUT_DIR/<name>.cwasm`, its digest in the environment.
fn embed(name: &str, wasm: &[u8], engine: &Engine) -> Result<()> {
    let path = PathBuf::from(env::var("OUT_DIR")?).join(format!("{name}.cwasm"));
    fs::write(path, engine.precompile_component(wasm)?)?;
    let digest = Sha256::digest(wasm);
    println!("cargo::rustc-env={}_DIGEST={digest:x}", name.to_uppercase());
    Ok(())
}

fn existing(path: &Path) -> Result<Vec<u8>> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).map_err(|error| format!("COMPONENT, {}: {error}", path.display()).into())
}

/// Builds a target of the root package, in a target directory for its entry point: the outer Cargo
/// holds the lock on its own. Returns the component that is then at `file`.
fn component(entry: &str, target: &str, file: &Path) -> Result<Vec<u8>> {
    require_target()?;
    let target_dir = PathBuf::from(env::var("OUT_DIR")?).join(entry);
    let output = Command::new(env::var("CARGO")?)
        .args(["build", "--release", "--locked", "--target", WASM])
        .args(["--package", "wasi-essentials", target])
        // As the Dockerfile does, for the same bits: Cargo hashes the features, default or not.
        .args(match entry {
            "spin" => ["--no-default-features", "--features=spin"].as_slice(),
            _ => &[],
        })
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir("..")
        // Those of the outer build are flags for another target, and clippy.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // Wherever the dependencies are, the same sources are to give the same bits.
        .env(
            "RUSTFLAGS",
            format!("--remap-path-prefix={}=/cargo", cargo_home()?),
        )
        .output()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        let file = file.display();
        return Err(format!("{file} for `{entry}` does not build").into());
    }
    Ok(fs::read(target_dir.join(WASM).join("release").join(file))?)
}

/// Where Cargo keeps the sources of dependencies, whose paths are in the messages of their panics.
fn cargo_home() -> Result<String> {
    match env::var("CARGO_HOME") {
        Ok(path) => Ok(path),
        Err(_) => Ok(format!("{}/.cargo", env::var("HOME")?)),
    }
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
