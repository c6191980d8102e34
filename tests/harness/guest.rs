//! The components that the tests serve, built and compiled on first use.

use super::{PROGRAM, command};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// A component that the tests serve: a target of the root package, built for an entry point.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guest {
    /// `wasi` or `spin`.
    pub entry: &'static str,
    /// Its file, without `.wasm`, in the directory of release builds.
    file: &'static str,
}

/// The service, built for WASI 0.2, as the image has it.
pub const WASI: Guest = guest("wasi", "wasi_essentials");

/// The service, built for WASI 0.3.
pub const SPIN: Guest = guest("spin", "wasi_essentials");

/// A guest that misbehaves in a different way on each path: `tests/fixtures/raw.rs`.
pub const RAW: Guest = guest("wasi", "examples/raw");

/// A service whose routes fail, for each entry point: `tests/fixtures/service.rs`.
pub const SERVICES: [Guest; 2] = [
    guest("wasi", "examples/service"),
    guest("spin", "examples/service"),
];

const fn guest(entry: &'static str, file: &'static str) -> Guest {
    Guest { entry, file }
}

impl Guest {
    /// One of the examples: `config`, `echo`, `proxy` or `stream`.
    pub fn example(name: &str) -> Self {
        match name {
            "config" => guest("wasi", "examples/config"),
            "echo" => guest("wasi", "examples/echo"),
            "proxy" => guest("wasi", "examples/proxy"),
            "stream" => guest("wasi", "examples/stream"),
            _ => panic!("no example {name}"),
        }
    }

    /// The component, built on the first call in this process.
    pub fn wasm(self) -> PathBuf {
        built(self.entry).join(self.file).with_extension("wasm")
    }

    /// The component as machine code, compiled on the first call in this process.
    pub fn cwasm(self) -> PathBuf {
        static COMPILED: Mutex<Vec<Guest>> = Mutex::new(Vec::new());
        let mut compiled = COMPILED.lock().expect("the lock");
        let name = self.file.replace("examples/", "");
        let output = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let output = output.join(format!("{name}-{}.cwasm", self.entry));
        if !compiled.contains(&self) {
            let mut command = command(PROGRAM);
            command
                .arg("compile")
                .arg(self.wasm())
                .arg("-o")
                .arg(&output);
            let ended = command.output().expect("it runs");
            assert!(ended.status.success(), "{ended:?}");
            compiled.push(self);
        }
        output
    }
}

/// Builds the components of an entry point, once per process; returns their directory.
fn built(entry: &str) -> &'static Path {
    static WASI: OnceLock<PathBuf> = OnceLock::new();
    static SPIN: OnceLock<PathBuf> = OnceLock::new();
    let (built, target_dir, features, examples): (_, _, &[&str], _) = match entry {
        "wasi" => (&WASI, "target", &[], "--examples"),
        // As spin.toml has it.
        _ => (
            &SPIN,
            "target/spin",
            &["--no-default-features", "--features=spin"],
            "--example=service",
        ),
    };
    built.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // One at a time, because a common build unifies the features of their dependencies.
        for targets in ["--lib", examples] {
            let output = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--release", "--locked"])
                .args(["--package=wasi-essentials", "--target=wasm32-wasip2"])
                .args(features)
                .args(["--target-dir", target_dir, targets])
                .current_dir(&root)
                .output()
                .expect("Cargo runs");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the guests do not build: {errors}");
        }
        root.join(target_dir).join("wasm32-wasip2/release")
    })
}
