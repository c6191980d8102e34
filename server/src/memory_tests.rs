//! `memory.c`, under the names that it has in a test.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

/// Sizes around each threshold in `memory.c` but the largest.
const SIZES: [std::ops::RangeInclusive<usize>; 3] = [0..=260, 1000..=1060, 4090..=4100];

unsafe extern "C" {
    fn tested_memcpy(to: *mut c_void, from: *const c_void, n: usize) -> *mut c_void;
    fn tested_memmove(to: *mut c_void, from: *const c_void, n: usize) -> *mut c_void;
    fn tested_memcmp(left: *const c_void, right: *const c_void, n: usize) -> c_int;
}

fn test_pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn memcpy_copies_these_bytes_and_no_others() {
    // Two pages apart: memcpy depends on the distance of source and destination in a page.
    const DESTINATION: usize = 2 << 12;
    let mut memory = test_pattern(DESTINATION);
    memory.resize(2 * DESTINATION, 0xff);
    for n in SIZES.into_iter().flatten() {
        for (to, from) in (0..=40).flat_map(|to| [0, 1, 8, 15].map(|from| (to, from))) {
            let mut copied = memory.clone();
            let mut expected = copied.clone();
            expected.copy_within(from..from + n, DESTINATION + to);
            let start = copied.as_mut_ptr();
            // SAFETY: both ranges are within the vector, and do not overlap.
            let destination = unsafe { start.add(DESTINATION + to) };
            let returned = unsafe { tested_memcpy(destination.cast(), start.add(from).cast(), n) };
            assert_eq!(returned, destination.cast());
            assert!(copied == expected, "{n} bytes from {from} to {to}");
        }
    }
}

/// The size from which `memory.c` copies past the caches.
const HUGE: usize = 8 << 20;

#[test]
fn memcpy_copies_megabytes() {
    /// Returns the part that starts with a line of 64 bytes, of which these copies write whole ones.
    fn lines(memory: &mut [u8]) -> &mut [u8] {
        let start = memory.as_ptr().align_offset(64);
        &mut memory[start..][..HUGE + 256]
    }

    let pattern = test_pattern(HUGE + 256);
    let mut source = vec![0; HUGE + 320];
    let source = lines(&mut source);
    source.copy_from_slice(&pattern);
    let mut destination = vec![0; HUGE + 320];
    let destination = lines(&mut destination);
    for n in [HUGE - 1, HUGE, HUGE + 1, HUGE + 63, HUGE + 64, HUGE + 65] {
        for (from, to) in [(0, 0), (0, 1), (0, 16), (1, 63), (7, 64), (64, 0)] {
            destination.fill(0xff);
            // SAFETY: both ranges are within their vectors.
            unsafe {
                let to = destination.as_mut_ptr().add(to).cast();
                tested_memcpy(to, source.as_ptr().add(from).cast(), n);
            }
            let (before, after) = (&destination[..to], &destination[to + n..]);
            assert!(before.iter().chain(after).all(|byte| *byte == 0xff));
            assert!(
                destination[to..to + n] == pattern[from..from + n],
                "{n} bytes from {from} to {to}"
            );
        }
    }
}

#[test]
fn memmove_copies_overlapping_ranges() {
    for n in SIZES.into_iter().flatten() {
        for distance in (0..80).chain([127, 128, 129, 1000, n]) {
            for (from, to) in [(0, distance), (distance, 0)] {
                let mut moved = test_pattern(n + distance);
                let mut expected = moved.clone();
                expected.copy_within(from..from + n, to);
                let start = moved.as_mut_ptr();
                // SAFETY: both ranges are within the vector.
                let returned =
                    unsafe { tested_memmove(start.add(to).cast(), start.add(from).cast(), n) };
                assert_eq!(returned, start.wrapping_add(to).cast());
                assert!(moved == expected, "{n} bytes from {from} to {to}");
            }
        }
    }
}

#[test]
fn memcmp_orders_by_the_first_byte_that_differs() {
    for n in (0..=70).chain([255, 256, 257]) {
        for (start, at) in (0..9).flat_map(|start| (0..=n).map(move |at| (start, at))) {
            let left = test_pattern(n + 9);
            let mut right = left.clone();
            // Beyond `at`, all bytes differ the other way. If `at` is `n`, nothing before does.
            right[start + at..]
                .iter_mut()
                .for_each(|it| *it = it.wrapping_sub(1));
            if at < n {
                right[start + at] = left[start + at] ^ 0x80;
            }
            let expected = left[start..start + n].cmp(&right[start..start + n]) as c_int;
            let (left, right) = (left[start..].as_ptr(), right[start..].as_ptr());
            // SAFETY: both ranges are within their vectors.
            let compared = unsafe { tested_memcmp(left.cast(), right.cast(), n) };
            assert_eq!(
                compared.signum(),
                expected,
                "{n} bytes, of which {at} are equal"
            );
        }
    }
}
