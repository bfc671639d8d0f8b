// SPDX-License-Identifier: GPL-2.0

//! Leases: another module holds a range of a DAX disk for long, at one contiguous kernel address.
//!
//! The holder is notified before the device is unbound ([`Leases::request_return`]) and of memory
//! that fails, and gives the lease back. The API for it is in C; `rust-bindings/pmem_rs_lease.h`
//! documents it.
//!
//! - A lease claims its block device, with holder operations of its own.
//! - Each pgmap has a list of its leases, [`Leases`]. A lease of a device-mapper device may be in
//!   the lists of several pgmaps. It has a counted reference to each, so the memory stays.
//! - [`Table`] has the lists of all pgmaps that can be leased. A piece of a range whose address is
//!   in none of these belongs to another driver.
//!
//! A callback is called from a work item of its lease, one at a time ([`handover`]). Only
//! [`Leases::wait_returned`], the end of the lease and the end of the [`Table`] wait for a holder.
//!
//! Lock order, outermost first:
//!
//! 1. `mf_mutex`, held while a failure is reported; `dax_read_lock`, held while a range is
//!    translated.
//! 2. `Table::lists`.
//! 3. `Leases::state`.
//! 4. `Lease::handover`.
//!
//! `Table::held` is taken alone.
//!
//! None is held while a callback runs, or while a block device is opened or closed.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h) (`struct blk_holder_ops`)

mod claimed_device;
mod exports;
mod handover;
mod held_lease;
mod leases;
mod pieces;

pub(in crate::abstractions) use crate::abstractions::kernel::lease::leases::LeasedMemory;
pub use crate::abstractions::kernel::lease::leases::{
    InstalledTable,
    LeaseHolders,
    Leases,
    Pause,
    Table, //
};
