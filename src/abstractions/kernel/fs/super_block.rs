// SPDX-License-Identifier: GPL-2.0

//! Walks through the DAX files of all superblocks.
//!
//! No step of a walk depends on an allocation. Inodes are taken one at a time, and a reference that
//! cannot be put at once goes to an [`InodePool`], which tries to allocate slots if it is full.
//!
//! A file system may hang while it is mounted or unmounted, and the kernel has no function that
//! goes through superblocks without waiting for it. So superblocks on a disk itself are found by
//! the claims of the disk and its partitions. Only if the disk may be used through another device,
//! all superblocks of the types with DAX are gone through.
//!
//! Lock order: `s_umount` of a superblock is outside of its `s_inode_list_lock`, which is outside
//! of `i_lock`. Neither is held while an inode is returned to the caller.

use super::{
    dax_types::{
        dax_types,
        for_each_super,
        DAX_TYPES, //
    },
    frozen_super::ActiveSuper,
    inode::Inode,
    inode_pool::InodePool, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::block::gendisk::{
    DevicePosition,
    DiskState,
    FsClaim, //
};
use core::ptr::{
    addr_of,
    addr_of_mut, //
};
use kernel::{
    container_of,
    prelude::*,
    sync::Arc, //
};

/// The superblocks of a [`Walk`], of file systems with DAX.
#[derive(Clone, Copy)]
pub(super) enum Supers<'a> {
    /// All that are mounted.
    All,
    /// Those that may use the memory behind a disk. A superblock is skipped if the disk proves that
    /// the superblock never got a DAX device through this disk ([`DiskState::may_be_used_by`]).
    /// Once there was an indirect claim, the claims that the disk has now prove nothing: a
    /// device-mapper table that was replaced gives its claim up, while the file system above still
    /// has pages and faults under way.
    MayUse(&'a DiskState),
    /// Those that are shut down when a disk is removed ([`DiskState::shuts_down`]).
    ShutDownWith(&'a DiskState),
}

/// A walk through the inodes with DAX entries of mounted file systems.
///
/// An inode that is being evicted is not found; `PagemapInner::first_used` finds its pages. An
/// inode that gets its first entry after the walk began may be missed.
///
/// A superblock that is being mounted or unmounted has no mapped file. If superblocks are found by
/// their types, the walk waits for mounts and unmounts of file systems of these types that are
/// under way. [`Supers::All`] has all types of [`DAX_TYPES`], and so has [`Supers::MayUse`] if the
/// disk ever had an indirect claim. [`Supers::ShutDownWith`] has those types that have claimed the
/// disk as a further device. Sleeps.
pub(super) struct Walk<'a> {
    pool: &'a Arc<InodePool>,
    supers: Supers<'a>,
    /// Which kept inodes may be put if the pool is full.
    may_put: &'a dyn Fn(&Inode) -> bool,
    place: Place,
    /// The superblocks of the types whose bits are set are gone through after those on the disk
    /// itself.
    types: u32,
    /// The current inode. It stays in the list of its superblock, since it is referenced.
    cursor: Option<Inode>,
    /// The walk has come to the superblock of the cursor.
    has_reached_cursor: bool,
    /// References are put without waiting for other references.
    is_nonblocking: bool,
    /// The walk has ended early, since it would have had to wait.
    is_cut_short: bool,
    found: Option<Found>,
}

/// What a walk goes through.
#[derive(Clone, Copy)]
enum Place {
    /// The superblock of the cursor, or the one that has claimed the device at this position of
    /// the list of the disk's devices.
    Device(DevicePosition),
    /// The superblocks of the type with this index in [`DAX_TYPES`].
    Type(usize),
}

struct Found {
    inode: Inode,
    has_entries: bool,
}

/// How many inodes are passed with the list locked.
const BATCH: u32 = 1024;

/// The bits of all types.
const ALL_TYPES: u32 = u32::MAX;

/// Returns the bit of the type with this index in [`DAX_TYPES`].
fn bit_of(index: usize) -> u32 {
    1_u32.checked_shl(index as u32).unwrap_or(ALL_TYPES)
}

impl<'a> Walk<'a> {
    /// A walk that is not to wait until references are put ends early instead. Putting the last
    /// reference to a file that was deleted waits until its file system is thawed.
    pub(super) fn new(
        pool: &'a Arc<InodePool>,
        supers: Supers<'a>,
        is_nonblocking: bool,
        may_put: &'a dyn Fn(&Inode) -> bool,
    ) -> Self {
        let on_disk = Place::Device(DevicePosition::default());
        let (place, types) = match supers {
            Supers::All => (Place::Type(0), ALL_TYPES),
            // Before a revocation translations were refused, and during a suspension indirect
            // claims are. So a claim that is not seen here has not led to a page. When a disk has
            // become read-only, neither is refused, but a claim that comes later cannot write.
            Supers::MayUse(disk) if disk.had_indirect_claim() => (on_disk, ALL_TYPES),
            Supers::MayUse(_) | Supers::ShutDownWith(_) => (on_disk, 0),
        };

        Self {
            pool,
            supers,
            may_put,
            place,
            types,
            cursor: None,
            has_reached_cursor: false,
            is_nonblocking,
            is_cut_short: false,
            found: None,
        }
    }

    /// Returns whether the walk has ended because it would have had to wait.
    pub(super) fn is_cut_short(&self) -> bool {
        self.is_cut_short
    }

    fn put(&self, inode: Inode) {
        if self.is_nonblocking {
            self.pool.put_now(inode);
        } else {
            self.pool.put(inode, self.may_put);
        }
    }

    /// Returns the next inode, which is referenced until the next call.
    pub(super) fn next(&mut self) -> Option<&Inode> {
        loop {
            if self.is_nonblocking && !self.pool.has_room() {
                self.is_cut_short = true;
                return None;
            }
            self.has_reached_cursor = self.cursor.is_none();
            let next = match self.place {
                Place::Device(position) => self.visit_device(position),
                Place::Type(index) => {
                    let fs_type = DAX_TYPES.get(index)?;
                    // `get_fs_type` would load the module.
                    if self.types & bit_of(index) != 0 && fs_type.code.is_loaded() {
                        self.visit_type(fs_type.name);
                    }
                    Place::Type(index.wrapping_add(1))
                }
            };

            let found = self.found.take();
            let has_entries = found.as_ref().is_some_and(|found| found.has_entries);
            if found.is_none() {
                self.place = next;
            }
            let old = core::mem::replace(&mut self.cursor, found.map(|found| found.inode));
            if let Some(old) = old {
                self.put(old);
            }
            if has_entries {
                return self.cursor.as_ref();
            }
        }
    }

    /// Finds the next inode in the superblock of the cursor, or else in the one that has claimed
    /// the device at a position. Returns what is to be visited after that superblock.
    fn visit_device(&mut self, mut position: DevicePosition) -> Place {
        let (Supers::MayUse(disk) | Supers::ShutDownWith(disk)) = self.supers else {
            return Place::Type(0);
        };

        if let Some(cursor) = &self.cursor {
            let (sb, before) = (cursor.superblock(), cursor.list_entry());
            // SAFETY: The cursor is an inode in the list of its superblock, and has an active
            // reference to it.
            self.found = before.and_then(|before| unsafe { next_inode(sb, before) });
            return Place::Device(position);
        }
        let Some(device) = disk.next_device(&mut position) else {
            return Place::Type(0);
        };
        self.place = Place::Device(position);
        // SAFETY: The superblock is valid during the call.
        let claim = device.with_superblock(&dax_types(), |sb| unsafe { active_if_mounted(sb) });
        match claim {
            FsClaim::Super(Some(active)) => {
                let sb = active.as_raw();
                // SAFETY: There is an active reference to the superblock. The head of the list is
                // a field of it.
                self.found = unsafe { next_inode(sb, addr_of_mut!((*sb).s_inodes)) };
                self.put(Inode::without_inode(active));
            }
            // It is not known which superblock that is.
            FsClaim::Further(index) => self.types |= bit_of(index),
            FsClaim::Super(None) | FsClaim::Other => {}
        }
        Place::Device(position)
    }

    fn visit_type(&mut self, name: &CStr) {
        let argument = addr_of_mut!(*self).cast();

        // SAFETY: The callback is the one for the argument, which lives as long as the call.
        unsafe { for_each_super(name, Self::visit_super_callback, argument) };
    }

    /// # Safety
    ///
    /// For `iterate_supers_type` only: `sb` must be valid and not dying, with `s_umount` held, and
    /// `walk` be a `Walk` that is not used otherwise.
    unsafe extern "C" fn visit_super_callback(sb: *mut bindings::super_block, walk: *mut c_void) {
        // SAFETY: By the safety requirements.
        let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };

        // SAFETY: By the safety requirements.
        unsafe { walk.visit_super(sb) };
    }

    /// Returns whether a superblock of the type with this index is to be visited with its type. May
    /// sleep.
    ///
    /// # Safety
    ///
    /// `sb` must be valid and mounted, with `s_umount` held.
    unsafe fn includes(&self, index: usize, sb: *mut bindings::super_block) -> bool {
        let uses_s_bdev_only = DAX_TYPES
            .get(index)
            .is_some_and(|fs_type| fs_type.uses_s_bdev_only);

        // SAFETY: By the safety requirements.
        unsafe {
            match self.supers {
                Supers::All => true,
                Supers::MayUse(disk) => {
                    // The others on the disk were visited.
                    !disk.has_super(sb) && disk.may_be_used_by(sb, uses_s_bdev_only)
                }
                Supers::ShutDownWith(disk) => !disk.has_super(sb) && disk.shuts_down(sb),
            }
        }
    }

    /// Finds the next inode in a superblock, unless one was found already or the superblock is
    /// before that of the cursor. Superblocks that were mounted since are before it.
    ///
    /// # Safety
    ///
    /// `sb` must be valid and not dying, with `s_umount` held.
    unsafe fn visit_super(&mut self, sb: *mut bindings::super_block) {
        let Place::Type(index) = self.place else {
            return;
        };
        if self.found.is_some() {
            return;
        }
        // SAFETY: By the safety requirements.
        let head = unsafe { addr_of_mut!((*sb).s_inodes) };
        let mut before = head;
        match &self.cursor {
            Some(cursor) if cursor.is_of(sb) => {
                self.has_reached_cursor = true;
                before = cursor.list_entry().unwrap_or(head);
            }
            _ if !self.has_reached_cursor => return,
            // SAFETY: By the safety requirements. `iterate_supers_type` waits until a superblock is
            // mounted, and passes over those that are shut down.
            _ if !unsafe { self.includes(index, sb) } => return,
            _ => {}
        }

        // SAFETY: By the safety requirements. The inode of the cursor is in the list, since it is
        // referenced.
        self.found = unsafe { next_inode(sb, before) };
    }
}

/// Finds the first inode with DAX entries in the list of a superblock, after the entry `before`.
/// Stops at any inode from time to time, so that other threads get the lock and the CPU.
///
/// # Safety
///
/// `sb` must be valid and not dying, with `s_umount` held, or an active reference to it. `before`
/// must be the head of its list of inodes, or the entry of an inode that is referenced.
unsafe fn next_inode(
    sb: *mut bindings::super_block,
    before: *mut bindings::list_head,
) -> Option<Found> {
    let mut found = None;
    let mut passed: u32 = 0;

    // SAFETY: By the safety requirements. The lock protects the list. An entry that is not the head
    // is part of an inode, which is not freed while it is in the list and the lock is held. An
    // inode that is referenced stays in the list.
    unsafe {
        let lock = addr_of_mut!((*sb).s_inode_list_lock);
        let head = addr_of_mut!((*sb).s_inodes);

        bindings::spin_lock(lock);
        let mut entry = (*before).next;
        while entry != head {
            let inode = container_of!(entry, bindings::inode, i_sb_list);
            let has_entries = has_dax_entries(inode);
            passed = passed.wrapping_add(1);
            if has_entries || passed >= BATCH {
                if let Some(inode) = Inode::try_get(inode, sb) {
                    found = Some(Found { inode, has_entries });
                    break;
                }
            }
            entry = (*entry).next;
        }
        bindings::spin_unlock(lock);
    }
    found
}

/// Takes an active reference to a superblock, unless it is being mounted or unmounted. Does not
/// sleep, nor wait for `s_umount`.
///
/// A superblock without an active reference has no open file. No active reference is taken to a
/// superblock that is being mounted: a mount that fails expects that its own is the only one.
///
/// # Safety
///
/// `sb` must be valid.
unsafe fn active_if_mounted(sb: *mut bindings::super_block) -> Option<ActiveSuper> {
    // SAFETY: By the safety requirements.
    // ORDERING: an active reference that was taken is a full barrier after the flags were read.
    unsafe {
        let flags = (&raw const (*sb).s_flags).read_volatile();
        let is_mounted = flags as u64 & bindings::SB_BORN != 0;

        is_mounted.then(|| ActiveSuper::try_get(sb))?
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if let Some(inode) = self.cursor.take() {
            self.put(inode);
        }
    }
}

/// Returns whether an inode is one of a DAX file with entries in its page cache.
///
/// # Safety
///
/// The inode must be in the list of its superblock, which must be locked.
unsafe fn has_dax_entries(inode: *mut bindings::inode) -> bool {
    // SAFETY: By the safety requirements the inode is valid, and so is its mapping. The flags and
    // the number of entries are read without the locks that protect them, as the C code does.
    // `S_DAX` does not change while the file has entries. It is tested first because it is in the
    // first cache line of the inode.
    // ORDERING: an entry that was made before translations were refused is seen, because both sides
    // have a full barrier in between (`AccessState`).
    unsafe {
        let mapping = (*inode).i_mapping;
        addr_of!((*inode).i_flags).read_volatile() & bindings::S_DAX != 0
            && !mapping.is_null()
            && addr_of!((*mapping).nrpages).read_volatile() != 0
            && bindings::dax_mapping(mapping)
    }
}
