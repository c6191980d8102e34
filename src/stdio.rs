//! Standard output and error.
//!
//! The C library's `write` would do, but it knows files, terminals and standard input as well, and
//! what it imports for them the host has to link for every request: 15 of 40 imports. Without them
//! a fresh sandbox takes a tenth less. Nothing else is taken over: files and the environment stay
//! the C library's, but for writing to a file, which fails.

use std::slice;
use wasi::cli::{stderr, stdout};

/// Writes all of the bytes; -1 when it cannot.
///
/// # Safety
/// `bytes` points to `length` bytes. Rust's standard library, which alone calls this, sees to it.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(file: i32, bytes: *const u8, length: usize) -> isize {
    let stream = match file {
        1 => stdout::get_stdout(),
        2 => stderr::get_stderr(),
        _ => return -1,
    };
    // SAFETY: as above.
    let bytes = unsafe { slice::from_raw_parts(bytes, length) };
    // `blocking-write-and-flush` takes 4,096 bytes at most (wasi:io 0.2).
    let mut chunks = bytes.chunks(4096);
    match chunks.all(|chunk| stream.blocking_write_and_flush(chunk).is_ok()) {
        true => length as isize,
        false => -1,
    }
}
