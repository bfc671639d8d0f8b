// SPDX-License-Identifier: GPL-2.0

//! What depends on the architecture: instructions, and the names of serial ports and folders.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

/// An instruction that writes a line of the CPU cache back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// The line may stay in the cache.
    Clwb,
    Clflushopt,
    /// Needs no fence.
    Clflush,
}
