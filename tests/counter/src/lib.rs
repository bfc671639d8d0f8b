// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU (`-plugin libcounter.so,out=FILE`) that counts the instructions which a driver, and
//! whatever it calls, executes in a guest with one CPU.
//!
//! - [`count`] is what is counted, and how: plain logic, with its tests.
//! - [`order`] is what the guest tells the plugin.
//! - `counting` connects both with QEMU, by the library `plugin`.
//!
//! What counts as the driver, and when, the guest says. Counting does not depend on time, so two runs of the
//! same work give the same numbers, whatever else the host does.

#![deny(unsafe_code)]

pub mod count;
pub mod order;
// The tests are a program, in which there is no QEMU to connect to.
#[cfg(not(test))]
mod counting;
