// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU (`-plugin libordering.so,out=FILE`) that sees whether what is stored in persistent memory
//! would survive a failure of power, in a guest with one CPU.
//!
//! An emulator that is killed loses nothing, as it has no caches. So the plugin keeps account of what would be
//! in them: it sees the stores to a range of physical memory, and the instructions that write cache lines back
//! and wait for that. When the guest says that something must be durable by now, it writes down how much of it
//! is not.
//!
//! - [`lines`] is the account: the state of each line.
//! - [`instruction`] says which instructions matter, and [`paging`] where in physical memory they point.
//! - [`order`] is what the guest tells the plugin.
//! - `watching` connects all that with QEMU, by the library `plugin`.
//!
//! What is not seen: stores of devices (the machine has none that would write there), and the instructions
//! `wbinvd` and `wbnoinvd`, so they make nothing durable.

#![deny(unsafe_code)]

pub mod instruction;
pub mod lines;
pub mod order;
pub mod paging;
// Only QEMU has what this needs; the tests are programs.
#[cfg(not(test))]
mod watching;
