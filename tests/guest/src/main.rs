// SPDX-License-Identifier: GPL-2.0

//! The only program that a test guest starts with.
//!
//! The kernel starts it as PID 1 (`rdinit=/pmem-rs/guest`). It mounts the pseudo file systems,
//! loads the driver under test, and then runs one suite. Every test is a process of its own, made
//! by starting this same program again with `test`, so that a test that crashes or hangs is one
//! failed test. Results leave the guest as KTAP on the second serial port, where kernel messages
//! cannot interrupt them.
//!
//! - [`init`] brings the machine up and down, [`supervisor`] runs the tests, [`ktap`] writes.
//! - [`suites`] holds the tests.
//! - [`metal`] runs the benchmark on a machine that is not a guest.
//! - The other modules are used by tests: the nd bus and its devices ([`nd`], [`ndctl`]), disks,
//!   file systems, mappings.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod aio;
#[allow(unsafe_code)]
mod arch;
#[allow(unsafe_code)]
mod bus_error;
mod checkers;
mod cli;
mod command;
#[allow(unsafe_code)]
mod counter;
mod coverage;
mod cxl;
mod disk;
mod dm;
mod driver;
mod errno;
mod filesystem;
mod host;
mod infoblock;
mod init;
mod injection;
mod injector;
mod kallsyms;
mod kexec;
mod kmemleak;
mod ktap;
mod kunit;
mod lab;
mod leaks;
mod lessee;
#[allow(unsafe_code)]
mod mapping;
mod messages;
mod metal;
mod nd;
mod ndctl;
mod nfs;
mod ordering;
mod pci;
mod platform;
mod plugin;
mod process;
mod retired;
mod sectors;
mod sqlite;
mod stacked;
mod suites;
mod supervisor;
#[allow(unsafe_code)]
mod syscall;
mod sysfs;
mod tidy;
mod tracing;
mod uevents;
#[allow(unsafe_code)]
mod uring;
#[allow(unsafe_code)]
mod userfault;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::main();
    }
    cli::main()
}
