// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU (`-plugin libcounter.so,out=FILE`) that counts the instructions which a driver
//! and the functions that it calls execute in a guest with one CPU.
//!
//! - [`count`] defines what is counted: plain logic, with its tests.
//! - [`order`] parses the lines from the guest.
//! - `counting` connects both with QEMU, by the library `plugin`.
//!
//! The guest tells the plugin the address ranges of the driver, and when to count. Counting does
//! not depend on time, so two runs of the same work give the same numbers, whatever else the host
//! does.

#![deny(unsafe_code)]

pub mod count;
pub mod order;
// The tests are a program without QEMU.
#[cfg(not(test))]
mod counting;
