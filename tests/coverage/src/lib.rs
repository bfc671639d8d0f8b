// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU (`-plugin libcoverage.so,out=FILE`) that sees which instructions of a kernel module are
//! executed.
//!
//! QEMU translates a block of instructions when it is about to execute it for the first time, and a block has no
//! branch in it. So what was translated was executed, but for instructions after one that faulted, and seeing that
//! costs nothing while the guest runs.
//!
//! - [`reached`] keeps what was seen, and what the guest says of modules.
//! - `seeing` connects that with QEMU, by the library `plugin`.

#![deny(unsafe_code)]

pub mod reached;
// The tests are a program, in which there is no QEMU to connect to.
#[cfg(not(test))]
mod seeing;
