// SPDX-License-Identifier: GPL-2.0

//! A PC.

use std::arch::asm;
use std::arch::x86_64::{_mm_sfence, _mm_stream_si64};

use super::Flush;

/// The port of the kernel's messages.
pub const CONSOLE: &str = "/dev/ttyS0";
/// The port of the results.
pub const RESULTS: &str = "/dev/ttyS1";
/// The port of QEMU's monitor.
pub const MONITOR: &str = "/dev/ttyS2";
/// The port that controls flushes of virtio-pmem devices.
pub const FLUSHES: &str = "/dev/ttyS3";
/// The C library.
pub const C_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

/// The start of the memory.
pub const MEMORY: u64 = 0;
/// The start of the memory that the kernel leaves unused on some machines (`memmap=`).
pub const UNUSED_MEMORY: u64 = 1 << 30;

/// Writes a line of the CPU cache back.
///
/// # Safety
///
/// The byte must be mapped.
pub unsafe fn flush_line(line: *mut u8, flush: Flush) {
    // SAFETY: by the safety requirement; flushing a line changes no contents. The emulated CPU has
    // these instructions.
    unsafe {
        match flush {
            Flush::Clwb => asm!("clwb [{}]", in(reg) line, options(nostack)),
            Flush::Clflushopt => asm!("clflushopt [{}]", in(reg) line, options(nostack)),
            Flush::Clflush => asm!("clflush [{}]", in(reg) line, options(nostack)),
        }
    }
}

/// Waits until flushed lines and non-temporal stores are durable.
pub fn fence() {
    // SAFETY: every x86-64 CPU has this instruction.
    unsafe { _mm_sfence() }
}

/// Stores a word past the CPU cache.
///
/// # Safety
///
/// The word must be mapped writable and aligned, and no reference to it may exist.
pub unsafe fn store_past_cache(at: *mut i64, word: i64) {
    // SAFETY: by the safety requirements.
    unsafe { _mm_stream_si64(at, word) }
}

/// Passes a text to the plugin of QEMU. On a machine without one this does nothing.
pub fn tell_plugin(text: &str) {
    // SAFETY: This is `nopl 0x706d656d(%rax)`, which does nothing. The plugin reads the two
    // registers and the bytes that they name.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x80, 0x6d, 0x65, 0x6d, 0x70",
            in("rdi") text.as_ptr(),
            in("rsi") text.len(),
            options(readonly, nostack, preserves_flags),
        );
    }
}
