// SPDX-License-Identifier: GPL-2.0

//! How tests talk to plugins of QEMU (`tests/plugin`).

use std::arch::asm;

/// Sends a line to the plugin of that name. On a machine without it this does nothing.
pub fn say(plugin: &str, line: &str) {
    let line = format!("{plugin} {line}");
    // SAFETY: This is `nopl 0x706d656d(%rax)`, which does nothing. The plugin reads the two
    // registers and the bytes that they name.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x80, 0x6d, 0x65, 0x6d, 0x70",
            in("rdi") line.as_ptr(),
            in("rsi") line.len(),
            options(readonly, nostack, preserves_flags),
        );
    }
}
