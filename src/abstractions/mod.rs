// SPDX-License-Identifier: GPL-2.0

//! Safe Rust APIs for the C subsystems that the driver stands on.
//!
//! One file for each subsystem, each in the form of the files in `rust/kernel/` and fit to be sent
//! there. All `unsafe` code of the module is on this floor, and the raw bindings are private to it.
//!
//! The rule for every API here:
//!
//! > Safe code on top of the abstractions cannot cause undefined behaviour, whatever it calls,
//! > drops or forgets, in whatever order. What cannot be proved is leaked, with a warning.
//!
//! To leak is sound, to unmap is not. What this rests on:
//!
//! - No address of persistent memory leaves this floor. What a driver gets are
//!   [`kernel::pmem_slice::PmemSlice`]s and [`kernel::pmem_slice::WritableSlice`]s, which copy,
//!   zero and flush but do not say where they are, and [`kernel::dax::Extent`]s, which live no
//!   longer than the `dax_read_lock` under which they were made.
//! - No physical range is taken from a driver as numbers. A reservation
//!   ([`kernel_ext::io::resource::MemRegion`]) comes from a namespace, and the memory of a region
//!   ([`kernel_ext::io::resource::PmemResource`]) from the firmware or a bound device.
//! - The owner of a pgmap goes through states that consume each other, and pages are unmapped from
//!   the last one only, with all proofs at hand ([`kernel::fs::dax`]). An owner that is dropped
//!   earlier leaks, or waits where nothing can be left.
//! - What the C side may call at any time (bio, DAX, sysfs, memory failure) reaches only data that
//!   is owned by the registration through which it is called, or that checks at run time whether it
//!   is still there ([`nvdimm::RegionAccess`]). Leaking a registration leaks that data with it, and
//!   keeps the module: each one is [`kernel_ext::module::Registered`], and the module is not
//!   unloaded while one is left.
//! - Private text of the kernel that this relies on was read, and the module is not built for
//!   another one (`docs/vetting.md`).
//!
//! What is outside of the rule:
//!
//! - Registrations of the kernel crate itself, such as its debugfs files and closures on the queues
//!   of the system. They are not counted. If safe code forgets one, the C side may call into a
//!   module that was unloaded.
//! - `AsRef<device::Device>` of an nd device, which the macros for messages need. Safe code can
//!   keep an `ARef` of that beyond the binding, and nd devices must not outlive their bus.
//! - A page that fails between the look and the store of a [`kernel::pmem_slice::WritableSlice`].
//!   The store is an oops then, as it is in the C driver.
//! - A kernel module from out of the tree that keeps addresses of DAX memory. It is not known as a
//!   keeper, and the memory is unmapped under it.

mod bindings;
pub mod kernel;
pub mod kernel_ext;
pub mod nvdimm;
