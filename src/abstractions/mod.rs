// SPDX-License-Identifier: GPL-2.0

//! Safe Rust APIs for the C subsystems that the driver uses.
//!
//! All `unsafe` code of the module is here, and the raw bindings are private to this tree. The
//! files are written like those of `rust/kernel/`, and most are to be sent there:
//!
//! - [`kernel`] has what the kernel crate does not have, at the paths that it would have there;
//! - [`kernel_ext`] has additions to modules of the kernel crate;
//! - [`nvdimm`] belongs beside the driver, since LIBNVDIMM may be a module;
//! - [`compat`] has what older kernels lack.
//!
//! The rule for every API here:
//!
//! > Safe code on top of the abstractions cannot cause undefined behaviour, whatever it calls,
//! > drops or forgets, in whatever order. What cannot be proved to be unused is leaked, with a
//! > warning.
//!
//! Leaking is sound, freeing is not. The rule rests on the following:
//!
//! - A driver gets no kernel address of persistent memory, and no page frame number of a
//!   translation. It gets [`PmemSlice`]s and [`WritableSlice`]s, which copy, zero and flush, and
//!   [`Extent`]s, which live no longer than the `dax_read_lock` under which they were made.
//! - A driver cannot choose a physical range by numbers. A reservation ([`MemRegion`]) comes from a
//!   namespace, and the memory of a region ([`PmemResource`]) from the firmware or a bound device.
//! - The owner of a pgmap goes through states that consume each other. Pages are freed from the
//!   last state only, after all proofs were checked ([`kernel::fs::dax`]). An owner that is dropped
//!   earlier frees them only if none was ever exposed, the disk had no indirect claim, and no
//!   reference is left. Otherwise it leaks them, or waits if leaking is not possible.
//! - Callbacks of the C side (bio, DAX, sysfs, memory failure) reach only data that their
//!   registration owns, or check at run time whether the data still exists
//!   ([`nvdimm::RegionAccess`]). A leaked registration leaks this data with it. It also keeps the
//!   module: each registration is [`Registered`], and the module is not unloaded while one exists.
//! - The private C code that this relies on was read. The module does not build for a kernel with
//!   other code (`docs/vetting.md`).
//!
//! The rule does not cover:
//!
//! - Registrations of the kernel crate itself, such as its debugfs files, and closures and work
//!   items on the queues of the system. They are not counted. The C side may call into a module
//!   that was unloaded if safe code forgets a registration, or if a closure has not run before.
//! - Code that sleeps where it must not: with a spinlock, or in an RCU read-side section. Types do
//!   not show the context. The debug kernel does.
//! - Tables of devices of the kernel crate, such as `OF_ID_TABLE` of a platform driver. They are of
//!   the safe trait `IdTable`, whose method may return any pointer.
//! - A page that leaves the linear mapping between the check and the store of a [`WritableSlice`],
//!   or of the DAX core after a translation. The store is an oops then, as it is with the C driver.
//!   The DAX core also stores to a page that has failed if it copies a block before a recovery
//!   write (`dax_iomap_iter()`), or more than was translated (`dax_iomap_copy_around()`).
//!   So is the read of a [`PmemSlice`] on CPUs without a copy that survives machine checks.
//! - An out-of-tree module that keeps addresses of DAX memory. The memory may be freed while the
//!   module uses it.
//! - A device that libnvdimm adds while it unbinds the region, and leaves there
//!   (`nd_region_remove()`). A flush that runs at that moment may use data of the region that are
//!   freed. Later ones fail.
//! - A media error that is reported while a device with its `struct page`s on the medium is being
//!   bound. libnvdimm may look for it in the wrong place (`nd_pfn_clear_memmap_errors()`).
//! - Poison that is cleared while another thread reads the list of bad ranges of the bus, to bind a
//!   device or to update its badblocks. libnvdimm walks the list without the lock with which
//!   entries are freed (`badblocks_populate()`).
//!
//! [`Extent`]: kernel::dax::Extent
//! [`MemRegion`]: kernel_ext::io::resource::MemRegion
//! [`PmemResource`]: kernel_ext::io::resource::PmemResource
//! [`PmemSlice`]: kernel::pmem_slice::PmemSlice
//! [`Registered`]: kernel_ext::module::Registered
//! [`WritableSlice`]: kernel::pmem_slice::WritableSlice

mod bindings;
pub mod compat;
pub mod kernel;
pub mod kernel_ext;
pub mod nvdimm;
