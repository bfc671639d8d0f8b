// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU (`-plugin libordering.so,out=FILE`) that checks which stores to persistent
//! memory would survive a power failure, in a guest with one CPU.
//!
//! An emulator that is killed loses nothing, as it has no caches. So the plugin simulates them: it
//! sees the stores to a range of physical memory, and the instructions that write cache lines back
//! and wait for that. When the guest says that something must be durable by now, the plugin writes
//! down how much of it is not.
//!
//! - [`lines`] has the state of each line.
//! - [`instruction`] decodes instructions, and [`paging`] translates their addresses to physical
//!   ones.
//! - [`order`] parses the lines from the guest.
//! - `watching` connects all that with QEMU, by the library `plugin`.
//!
//! Stores of devices are not seen (no device of the machine writes there). The instructions
//! `wbinvd` and `wbnoinvd` are not decoded, so they make nothing durable.

#![deny(unsafe_code)]

pub mod instruction;
pub mod lines;
pub mod order;
pub mod paging;
// The connection exists only inside of QEMU; the tests are programs.
#[cfg(not(test))]
mod watching;
