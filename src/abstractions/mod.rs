// SPDX-License-Identifier: GPL-2.0

//! Safe Rust APIs for the C subsystems that the driver stands on.
//!
//! One file for each subsystem, each in the form of the files in `rust/kernel/` and fit to be sent
//! there. All `unsafe` code of the module is on this floor, and the raw bindings are private to it.
//!
//! Two rules hold for every API here:
//!
//! - No address of persistent memory leaves this floor. What a driver gets are [`pmem::PmemSlice`]s,
//!   which copy, zero and flush but do not say where they are, and [`dax::Extent`]s, which live no
//!   longer than the `dax_read_lock` under which they were made.
//! - What the C side may call at any time (bio, DAX, sysfs, memory failure) reaches only data that
//!   is owned by the registration through which it is called, or that checks at run time whether it
//!   is still there ([`nvdimm::RegionAccess`]). Leaking a registration leaks that data with it. (As
//!   with the registrations of the kernel crate, what is leaked must not be used once the module
//!   is gone.)

mod bindings;

pub mod atomic;
pub mod badblocks;
pub mod bio;
pub mod completion;
pub mod dax;
pub mod debugfs;
pub mod fs;
pub mod gendisk;
pub mod ioport;
pub mod kernfs;
pub mod kobject;
pub mod list;
pub mod memremap;
pub mod module;
pub mod nvdimm;
pub mod percpu_ref;
pub mod platform;
pub mod pmem;
pub mod time;
pub mod uio;
pub mod workqueue;
