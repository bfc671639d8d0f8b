// SPDX-License-Identifier: GPL-2.0

//! What has to be frozen while a disk is suspended.

use super::{
    dax_types::for_each_dax_super,
    frozen_super::{
        is_frozen_by_kernel,
        ActiveSuper,
        SuperName, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::block::gendisk::{
    BlockDevice,
    DiskState, //
};
use core::ptr::addr_of_mut;
use kernel::prelude::*;

/// What has to be frozen for nothing to be written to a disk.
pub(super) struct Users {
    /// The devices above the disk ([`DiskState::device_above`]), then its partitions, then the
    /// disk.
    pub(super) devices: KVec<BlockDevice>,
    /// The file systems with DAX on these devices.
    pub(super) supers: KVec<ActiveSuper>,
}

/// The list that [`users_of`] fills.
struct Listing<'a> {
    disk: &'a DiskState,
    users: Users,
    is_full: bool,
}

impl Listing<'_> {
    /// # Safety
    ///
    /// For [`for_each_dax_super`] only: `listing` must be a `Listing` that is not used otherwise.
    unsafe extern "C" fn add_callback(sb: *mut bindings::super_block, listing: *mut c_void) {
        // SAFETY: By the safety requirements.
        let listing = unsafe { &mut *listing.cast::<Listing<'_>>() };
        let Users { devices, supers } = &mut listing.users;

        // SAFETY: `for_each_dax_super` calls this with a mounted superblock and its lock held.
        unsafe {
            if !listing.disk.may_be_below(sb) {
                return;
            }
            if let Some(device) = listing.disk.device_above(sb) {
                listing.is_full |= devices.push_within_capacity(device).is_err();
            }
            // A reference that was taken could not be put with the lock held.
            if supers.len() >= supers.capacity() {
                listing.is_full = true;
            } else if let Some(active) = ActiveSuper::try_get(sb) {
                listing.is_full |= supers.push_within_capacity(active).is_err();
            }
        }
    }
}

/// Lists what has to be frozen. Sleeps. Waits for mounts and unmounts of file systems with DAX that
/// are under way.
pub(super) fn users_of(disk: &DiskState) -> Result<Users> {
    let mut capacity: usize = 16;

    loop {
        // The lists do not grow: the compiler cannot prove that growing one does not panic.
        let mut listing = Listing {
            disk,
            users: Users {
                devices: KVec::with_capacity(capacity, GFP_KERNEL)?,
                supers: KVec::with_capacity(capacity, GFP_KERNEL)?,
            },
            is_full: false,
        };
        let argument = addr_of_mut!(listing).cast();
        // SAFETY: The callback is the one for the argument, which lives as long as the call.
        unsafe { for_each_dax_super(Listing::add_callback, argument) };

        if !listing.is_full && disk.add_devices(&mut listing.users.devices)? {
            return Ok(listing.users);
        }
        capacity = capacity.saturating_mul(2);
    }
}

/// What [`first_unfrozen`] looks for.
struct Search<'a> {
    disk: &'a DiskState,
    found: Option<SuperName>,
}

impl Search<'_> {
    /// # Safety
    ///
    /// For [`for_each_dax_super`] only: `search` must be a `Search` that is not used otherwise.
    unsafe extern "C" fn look_callback(sb: *mut bindings::super_block, search: *mut c_void) {
        // SAFETY: By the safety requirements.
        let search = unsafe { &mut *search.cast::<Search<'_>>() };

        // SAFETY: `for_each_dax_super` calls this with a mounted superblock and its lock held.
        unsafe {
            if search.disk.may_be_below(sb) && !is_frozen_by_kernel(sb) {
                search.found = Some((*sb).s_id);
            }
        }
    }
}

/// Returns the name of a file system with DAX that may be on the disk and that the kernel has not
/// frozen, if there is one. Sleeps, as [`users_of`].
pub(super) fn first_unfrozen(disk: &DiskState) -> Option<SuperName> {
    let mut search = Search { disk, found: None };
    let argument = addr_of_mut!(search).cast();

    // SAFETY: The callback is the one for the argument, which lives as long as the call.
    unsafe { for_each_dax_super(Search::look_callback, argument) };
    search.found
}
