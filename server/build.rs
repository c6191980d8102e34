//! Compiles `memory.c`, which replaces what musl has. Elsewhere it has other names, by which a test calls it.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=memory.c");
    let target = |part: &str| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if target("ARCH") != "x86_64" || target("OS") != "linux" {
        return;
    }
    let mut build = cc::Build::new();
    build
        .file("memory.c")
        .opt_level(2)
        // Otherwise the compiler may find a copy in these functions, and call them for it.
        .flag("-fno-builtin")
        .flag_if_supported("-fno-tree-loop-distribute-patterns")
        // libc copies before it has set up what this protection reads.
        .flag_if_supported("-fno-stack-protector");
    if target("ENV") != "musl" {
        build
            .define("memcpy", "tested_memcpy")
            .define("memmove", "tested_memmove")
            .define("memcmp", "tested_memcmp");
    }
    build.compile("memory");
}
