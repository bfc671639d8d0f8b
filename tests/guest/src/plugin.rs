// SPDX-License-Identifier: GPL-2.0

//! How tests talk to plugins of QEMU (`tests/plugin`).

use crate::arch;

/// Sends a line to the plugin of that name. On a machine without it this does nothing.
pub fn say(plugin: &str, line: &str) {
    arch::tell_plugin(&format!("{plugin} {line}"));
}
