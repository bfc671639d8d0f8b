// SPDX-License-Identifier: GPL-2.0

//! Common code of plugins for QEMU.
//!
//! - `qemu` is the connection to QEMU, and all of the unsafe code.
//! - [`instruction`] decodes instructions of x86-64, as far as plugins need it.
//!
//! A plugin is a library that QEMU loads (`-plugin libNAME.so,out=FILE`): a type that implements
//! [`Plugin`], and [`export!`] with a function that makes one.
//!
//! The guest sends lines to a plugin: it executes an instruction without effect ([`MARK`]), with
//! the address of a line of text in RDI and its length in RSI. The line begins with the name of the
//! plugin that it is for. On a machine without that plugin the line is lost.

#![deny(unsafe_code)]

use std::fs::File;
use std::io::Write;

pub mod instruction;
// Tests are programs without QEMU.
#[cfg(not(test))]
#[allow(unsafe_code)]
mod qemu;

#[cfg(not(test))]
pub use qemu::{Access, Block, Cpu, Info, Instruction, Piece, Plugin, Register, Switch, install};

/// `nopl 0x706d656d(%rax)`, which no compiler generates.
pub const MARK: [u8; 7] = [0x0f, 0x1f, 0x80, 0x6d, 0x65, 0x6d, 0x70];
/// The maximum length of a line from the guest.
pub const LINE_LIMIT: usize = 256;

/// The file that a plugin writes.
pub struct Out(File);

impl Out {
    /// Writes whole lines with one call, for readers of the growing file.
    pub fn write(&mut self, lines: &str) -> Result<(), String> {
        let written = self.0.write_all(lines.as_bytes());
        written.map_err(|error| format!("cannot write what was seen: {error}"))
    }
}

/// Parses the start and the end of an address range, in hexadecimal digits.
pub fn range(start: &str, end: &str) -> Option<std::ops::Range<u64>> {
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (start < end).then_some(start..end)
}

/// Makes a library a plugin: `export!(NAME, CPUS, make)`, with its name, the maximum number of CPUs
/// of the machine, and a function that makes a [`Plugin`] of its [`Out`].
#[macro_export]
macro_rules! export {
    ($name:literal, $cpus:literal, $make:expr) => {
        #[allow(unsafe_code)]
        mod exported {
            use super::*;

            /// The version of the interface that this was written for. QEMU checks it.
            // SAFETY: No other library has this name, as it is QEMU's for plugins.
            #[unsafe(no_mangle)]
            pub static qemu_plugin_version: ::std::ffi::c_int = 4;

            /// Called by QEMU when it has loaded the plugin. QEMU ends unless this returns zero.
            ///
            /// # Safety
            ///
            /// The arguments must be as in QEMU's header.
            // SAFETY: No other library has this name, as it is QEMU's for plugins.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn qemu_plugin_install(
                id: u64,
                info: *const $crate::Info,
                argc: ::std::ffi::c_int,
                argv: *const *const ::std::ffi::c_char,
            ) -> ::std::ffi::c_int {
                // SAFETY: By the safety requirements.
                unsafe {
                    $crate::install(id, info, argc, argv, $name, $cpus, |out| {
                        ::std::boxed::Box::new($make(out))
                    })
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_have_two_ends() {
        assert_eq!(range("10", "ff"), Some(0x10..0xff));
        assert_eq!(range("10", "10"), None);
        assert_eq!(range("x", "10"), None);
        assert_eq!(range("", "10"), None);
    }
}
