// SPDX-License-Identifier: GPL-2.0

//! What plugins for QEMU have in common.
//!
//! - `qemu` is the connection to QEMU, and all of the unsafe code.
//! - [`instruction`] takes instructions of x86-64 apart, as far as plugins have to know them.
//!
//! A plugin is a library that QEMU loads (`-plugin libNAME.so,out=FILE`): a type that is [`Plugin`], and
//! [`export!`] with a function that makes one.
//!
//! The guest tells a plugin what to do: it executes an instruction that does nothing ([`MARK`]), with the address
//! of a line of text in RDI and its length in RSI. The line begins with the name of the plugin that it is for. On a
//! machine without that plugin nothing happens.

#![deny(unsafe_code)]

use std::fs::File;
use std::io::Write;

pub mod instruction;
// Tests are programs, in which there is no QEMU to connect to.
#[cfg(not(test))]
#[allow(unsafe_code)]
mod qemu;

#[cfg(not(test))]
pub use qemu::{Block, Cpu, Info, Instruction, Piece, Plugin, Register, Switch, install};

/// `nopl 0x706d656d(%rax)`, which no compiler makes.
pub const MARK: [u8; 7] = [0x0f, 0x1f, 0x80, 0x6d, 0x65, 0x6d, 0x70];
/// No line of the guest is longer.
pub const LINE_LIMIT: usize = 256;

/// The file that a plugin writes.
pub struct Out(File);

impl Out {
    /// Writes whole lines, all at once, for who reads the file while it grows.
    pub fn write(&mut self, lines: &str) -> Result<(), String> {
        let written = self.0.write_all(lines.as_bytes());
        written.map_err(|error| format!("cannot write what was seen: {error}"))
    }
}

/// The two numbers that a line has, in hexadecimal digits, as addresses from the first to before the second.
pub fn range(start: &str, end: &str) -> Option<std::ops::Range<u64>> {
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (start < end).then_some(start..end)
}

/// Makes a library a plugin: `export!(NAME, CPUS, make)`, with its name, the number of CPUs
/// that a machine may have at most, and a function that makes a [`Plugin`] of its [`Out`].
#[macro_export]
macro_rules! export {
    ($name:literal, $cpus:literal, $make:expr) => {
        #[allow(unsafe_code)]
        mod exported {
            use super::*;

            /// The version of the interface that this was written for. QEMU looks at it.
            // SAFETY: No other library has this name, as it is QEMU's for plugins.
            #[unsafe(no_mangle)]
            pub static qemu_plugin_version: ::std::ffi::c_int = 4;

            /// Called by QEMU when it has loaded the plugin. Anything but zero makes QEMU end.
            ///
            /// # Safety
            ///
            /// The arguments must be as QEMU's header has it.
            // SAFETY: As above.
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
