// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU (`-plugin libcoverage.so,out=FILE`) that records which instructions of a
//! kernel module are executed.
//!
//! QEMU translates a block of instructions when it is about to execute it for the first time, and a
//! block has no branch in it. So what was translated was executed, except for instructions after
//! one that faulted, and recording that costs nothing while the guest runs.
//!
//! - [`reached`] keeps the executed instructions, and the sections of modules that the guest
//!   reports.
//! - `seeing` connects that with QEMU, by the library `plugin`.

#![deny(unsafe_code)]

pub mod reached;
// The tests are a program without QEMU.
#[cfg(not(test))]
mod seeing;
