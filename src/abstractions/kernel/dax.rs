// SPDX-License-Identifier: GPL-2.0

//! DAX devices: memory that file systems map to user space directly.
//!
//! A translation (`dax_direct_access()`) turns an offset in a device into a kernel address and a
//! page frame number. The result is valid while `dax_read_lock` is held and the device is alive.
//! [`ReadLocked`] proves that the lock is held. The DAX core checks that the device is alive before
//! it calls the driver. An [`Extent`] is the result, and borrows from the proof.
//!
//! A [`Registration`] has a reference to the pgmap of its memory
//! ([`PagemapRef`](crate::abstractions::kernel::memremap::PagemapRef)). It puts the reference once
//! the device is dead: `kill_dax()` has waited for all `dax_read_lock` sections then. So no
//! translation of a pgmap without references is under way.
//!
//! The DAX core uses the results after it has released the lock. A page fault still uses address
//! and page frame number then, with its entry in the page cache locked (`dax_insert_entry()`,
//! `dax_iomap_copy_around()`), and leaves page table entries and entries of page caches behind.
//! [`fs::dax`](crate::abstractions::kernel::fs::dax) finds and revokes these.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

mod callbacks;
mod device;
mod extent;
mod host;
mod operations;
mod registration;

pub use crate::abstractions::kernel::dax::{
    device::Handle,
    extent::{
        Extent,
        ReadLocked, //
    },
    operations::{
        AccessMode,
        Operations, //
    },
    registration::{
        Properties,
        Registration, //
    }, //
};
