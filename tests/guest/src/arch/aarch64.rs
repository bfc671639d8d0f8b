// SPDX-License-Identifier: GPL-2.0

//! A machine with Arm CPUs.

use std::arch::asm;

use super::Flush;

/// The port of the kernel's messages.
pub const CONSOLE: &str = "/dev/ttyAMA0";
/// The port of the results.
pub const RESULTS: &str = "/dev/ttyAMA1";
/// The port of QEMU's monitor, on a PCI card.
pub const MONITOR: &str = "/dev/ttyS0";
/// The port that controls flushes of virtio-pmem devices.
pub const FLUSHES: &str = "/dev/ttyS1";
/// The C library.
pub const C_LIBRARY: &str = "/usr/lib/aarch64-linux-gnu/libc.so.6";

/// The start of the memory.
pub const MEMORY: u64 = 1 << 30;
/// The start of the memory that the kernel leaves unused on some machines (`mem=`).
pub const UNUSED_MEMORY: u64 = 3 << 30;

/// Writes a line of the CPU cache back, to the point where it is durable.
///
/// # Safety
///
/// The byte must be mapped.
pub unsafe fn flush_line(line: *mut u8, flush: Flush) {
    // SAFETY: by the safety requirement; flushing a line changes no contents. The kernel permits
    // these instructions. The emulated CPU has the first, `dc cvap`, which came with Armv8.2.
    unsafe {
        match flush {
            Flush::Clwb => asm!("sys #3, c7, c12, #1, {}", in(reg) line, options(nostack)),
            Flush::Clflushopt | Flush::Clflush => {
                asm!("dc civac, {}", in(reg) line, options(nostack));
            }
        }
    }
}

/// Waits until flushed lines are durable.
pub fn fence() {
    // SAFETY: every CPU has this instruction.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) }
}

/// Stores a word and writes its line back, since no store goes past the CPU cache.
///
/// # Safety
///
/// The word must be mapped writable and aligned, and no reference to it may exist.
pub unsafe fn store_past_cache(at: *mut i64, word: i64) {
    // SAFETY: by the safety requirements.
    unsafe {
        at.write_volatile(word);
        flush_line(at.cast(), Flush::Clwb);
    }
}

/// Does nothing: the plugins of QEMU know x86 only.
pub fn tell_plugin(_: &str) {}
