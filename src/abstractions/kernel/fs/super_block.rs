// SPDX-License-Identifier: GPL-2.0

//! Walks through the DAX files of all superblocks.
//!
//! No step of a walk allocates memory. Inodes are taken one at a time, and a reference that cannot
//! be put at once goes to an [`InodePool`].
//!
//! Lock order: `s_umount` of a superblock is outside of its `s_inode_list_lock`, which is outside
//! of `i_lock`. Neither is held while an inode is returned to the caller.

use super::{
    frozen_super::{
        is_held,
        ActiveSuper,
        SuperName, //
    },
    inode::Inode,
    inode_pool::InodePool, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::block::gendisk::{
    BlockDevice,
    DiskState, //
};
use crate::abstractions::kernel_ext::module_list::Code;
use core::ptr::{
    addr_of,
    addr_of_mut, //
};
use kernel::{
    container_of,
    prelude::*,
    sync::Arc, //
};

/// A type of file system, and the code that registers it.
struct FileSystemType {
    name: &'static CStr,
    code: Code,
    /// The only block device whose DAX device it uses is `s_bdev`.
    uses_s_bdev_only: bool,
}

const EXT4: Code = Code {
    built_in: cfg!(CONFIG_EXT4_FS = "y"),
    module: c"ext4",
};

/// All types whose DAX memory comes from a block device: the callers of `dax_iomap_fault()`, which
/// are vetted (`rust-bindings/vetted`). `fs/fuse` and `device-dax` have memory of their own.
const DAX_TYPES: &[FileSystemType] = &[
    FileSystemType {
        name: c"ext4",
        code: EXT4,
        uses_s_bdev_only: true,
    },
    FileSystemType {
        name: c"ext3",
        code: EXT4,
        uses_s_bdev_only: true,
    },
    #[cfg(CONFIG_EXT4_USE_FOR_EXT2)]
    FileSystemType {
        name: c"ext2",
        code: EXT4,
        uses_s_bdev_only: true,
    },
    FileSystemType {
        name: c"xfs",
        code: Code {
            built_in: cfg!(CONFIG_XFS_FS = "y"),
            module: c"xfs",
        },
        uses_s_bdev_only: false,
    },
    FileSystemType {
        name: c"erofs",
        code: Code {
            built_in: cfg!(CONFIG_EROFS_FS = "y"),
            module: c"erofs",
        },
        uses_s_bdev_only: false,
    },
];

/// The superblocks of a [`Walk`], of file systems with DAX.
#[derive(Clone, Copy)]
pub(super) enum Supers<'a> {
    /// All that are mounted.
    All,
    /// Those that may use the memory behind a disk. A superblock is skipped if the disk proves that
    /// the superblock never got a DAX device through this disk ([`DiskState::may_be_used_by`]). The
    /// claims that the disk has now prove nothing: a device-mapper table that was replaced gives
    /// its claim up, while the file system above still has pages and faults under way.
    MayUse(&'a DiskState),
    /// Those that are shut down when a disk is removed ([`DiskState::shuts_down`]).
    ShutDownWith(&'a DiskState),
}

/// A walk through the inodes with DAX entries of mounted file systems.
///
/// An inode that is being evicted is not found; `PagemapInner::first_used` finds its pages. An
/// inode that gets its first entry after the walk began may be missed.
///
/// Sleeps. Waits for mounts and unmounts of the same types of file systems that are under way.
pub(super) struct Walk<'a> {
    pool: &'a Arc<InodePool>,
    supers: Supers<'a>,
    /// Which kept inodes may be put if the pool is full.
    may_put: &'a dyn Fn(&Inode) -> bool,
    /// The index of the current type in [`DAX_TYPES`].
    index: usize,
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

struct Found {
    inode: Inode,
    has_entries: bool,
}

impl<'a> Walk<'a> {
    /// How many inodes are passed with the list locked.
    const BATCH: u32 = 1024;

    /// A walk that is not to wait until references are put ends early instead. Putting the last
    /// reference to a file that was deleted waits until its file system is thawed.
    pub(super) fn new(
        pool: &'a Arc<InodePool>,
        supers: Supers<'a>,
        is_nonblocking: bool,
        may_put: &'a dyn Fn(&Inode) -> bool,
    ) -> Self {
        Self {
            pool,
            supers,
            may_put,
            index: 0,
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
            let fs_type = DAX_TYPES.get(self.index)?;
            if self.is_nonblocking && !self.pool.has_room() {
                self.is_cut_short = true;
                return None;
            }
            self.has_reached_cursor = self.cursor.is_none();
            // `get_fs_type` would load the module.
            if fs_type.code.is_loaded() {
                self.visit_type(fs_type.name);
            }

            let found = self.found.take();
            let has_entries = found.as_ref().is_some_and(|found| found.has_entries);
            if found.is_none() {
                self.index = self.index.wrapping_add(1);
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

    /// Returns whether a superblock of the current type is one of the walk. May sleep.
    ///
    /// # Safety
    ///
    /// `sb` must be valid, with `s_umount` held.
    unsafe fn includes(&self, sb: *mut bindings::super_block) -> bool {
        let uses_s_bdev_only = DAX_TYPES
            .get(self.index)
            .is_some_and(|fs_type| fs_type.uses_s_bdev_only);

        // SAFETY: By the safety requirements. `iterate_supers_type` passes over superblocks that
        // are not mounted yet, or are shut down.
        unsafe {
            match self.supers {
                Supers::All => true,
                Supers::MayUse(disk) => disk.may_be_used_by(sb, uses_s_bdev_only),
                Supers::ShutDownWith(disk) => disk.shuts_down(sb),
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
        if self.found.is_some() {
            return;
        }
        // SAFETY: By the safety requirements.
        let (lock, head) = unsafe {
            (
                addr_of_mut!((*sb).s_inode_list_lock),
                addr_of_mut!((*sb).s_inodes),
            )
        };

        let mut before = head;
        match &self.cursor {
            Some(cursor) if cursor.is_of(sb) => {
                self.has_reached_cursor = true;
                before = cursor.list_entry().unwrap_or(head);
            }
            _ if !self.has_reached_cursor => return,
            // SAFETY: By the safety requirements.
            _ if !unsafe { self.includes(sb) } => return,
            _ => {}
        }

        let mut passed: u32 = 0;
        // SAFETY: The lock is valid, and protects the list. An entry that is not the head is part
        // of an inode, which is not freed while it is in the list and the lock is held. The inode
        // of the cursor is in the list, since it is referenced.
        unsafe {
            bindings::spin_lock(lock);
            let mut entry = (*before).next;
            while entry != head {
                let inode = container_of!(entry, bindings::inode, i_sb_list);
                let has_entries = has_dax_entries(inode);
                // Stops at any inode from time to time, so that other threads get lock and CPU.
                passed = passed.wrapping_add(1);
                if has_entries || passed >= Self::BATCH {
                    if let Some(inode) = Inode::try_get(inode, sb) {
                        self.found = Some(Found { inode, has_entries });
                        break;
                    }
                }
                entry = (*entry).next;
            }
            bindings::spin_unlock(lock);
        }
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if let Some(inode) = self.cursor.take() {
            self.put(inode);
        }
    }
}

/// Calls a function for each mounted superblock of a type, with its `s_umount` held for reading.
/// Sleeps.
///
/// # Safety
///
/// The function must be callable with any such superblock and this argument.
unsafe fn for_each_super(
    name: &CStr,
    callback: unsafe extern "C" fn(*mut bindings::super_block, *mut c_void),
    argument: *mut c_void,
) {
    // SAFETY: The name is a string.
    let fs_type = unsafe { bindings::get_fs_type(name.as_char_ptr()) };
    if fs_type.is_null() {
        return;
    }

    // SAFETY: The type is valid, and its module is referenced until it is put. By the safety
    // requirements the function may be called.
    unsafe {
        bindings::iterate_supers_type(fs_type, Some(callback), argument);
        // `put_filesystem()`
        bindings::module_put((*fs_type).owner);
    }
}

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
    /// For [`for_each_super`] only: `listing` must be a `Listing` that is not used otherwise.
    unsafe extern "C" fn add_callback(sb: *mut bindings::super_block, listing: *mut c_void) {
        // SAFETY: By the safety requirements.
        let listing = unsafe { &mut *listing.cast::<Listing<'_>>() };
        let Users { devices, supers } = &mut listing.users;

        // SAFETY: `for_each_super` calls this with a mounted superblock and its lock held.
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
        // A list of this size is filled, since growing one can panic, as far as the compiler can
        // tell.
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
    /// For [`for_each_super`] only: `search` must be a `Search` that is not used otherwise.
    unsafe extern "C" fn look_callback(sb: *mut bindings::super_block, search: *mut c_void) {
        // SAFETY: By the safety requirements.
        let search = unsafe { &mut *search.cast::<Search<'_>>() };

        // SAFETY: `for_each_super` calls this with a mounted superblock and its lock held.
        unsafe {
            if search.disk.may_be_below(sb) && !is_held(sb) {
                search.found = Some((*sb).s_id);
            }
        }
    }
}

/// Returns the name of a file system with DAX on a disk that the kernel has not frozen, if there is
/// one. Sleeps, as [`users_of`].
pub(super) fn first_unfrozen(disk: &DiskState) -> Option<SuperName> {
    let mut search = Search { disk, found: None };
    let argument = addr_of_mut!(search).cast();

    // SAFETY: The callback is the one for the argument, which lives as long as the call.
    unsafe { for_each_dax_super(Search::look_callback, argument) };
    search.found
}

/// As [`for_each_super`], for all types of [`DAX_TYPES`].
///
/// # Safety
///
/// As for [`for_each_super`].
unsafe fn for_each_dax_super(
    callback: unsafe extern "C" fn(*mut bindings::super_block, *mut c_void),
    argument: *mut c_void,
) {
    for fs_type in DAX_TYPES.iter().filter(|fs_type| fs_type.code.is_loaded()) {
        // SAFETY: By the safety requirements.
        unsafe { for_each_super(fs_type.name, callback, argument) };
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
