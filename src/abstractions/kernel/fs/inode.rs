// SPDX-License-Identifier: GPL-2.0

//! References to inodes.

use super::frozen_super::ActiveSuper;
use crate::abstractions::bindings;
use core::ptr::{
    addr_of_mut,
    NonNull, //
};
use kernel::prelude::*;

/// A reference to an inode and an active reference to its superblock.
///
/// Dropping it may write back and evict the inode. After an unmount it may also shut the file
/// system down. Sleeps, takes locks of the file system, and waits for pinned pages of the file.
///
/// # Invariants
///
/// One active reference of the superblock is ours, and one reference of the inode, if there is one.
pub(super) struct Inode {
    inode: Option<NonNull<bindings::inode>>,
    sb: NonNull<bindings::super_block>,
}

// SAFETY: References to inodes and superblocks may be used and put by any thread.
unsafe impl Send for Inode {}

impl Inode {
    /// Takes references, unless the inode is being evicted. Does not sleep.
    ///
    /// # Safety
    ///
    /// Both must be valid, and the inode one of the superblock, which must not be dying: its
    /// `s_umount` must be held, or an active reference to it.
    pub(super) unsafe fn try_get(
        inode: *mut bindings::inode,
        sb: *mut bindings::super_block,
    ) -> Option<Self> {
        // SAFETY: By the safety requirements.
        let inode = NonNull::new(unsafe { bindings::igrab(inode) })?;

        // SAFETY: By the safety requirements.
        if !unsafe { bindings::atomic_inc_not_zero(addr_of_mut!((*sb).s_active)) } {
            // Unreachable: a superblock that is not dying has an active reference. The caller has
            // one itself, or `s_umount`, which the thread that puts the last one takes first.
            // SAFETY: The reference was just taken. If it were the last one, this would warn.
            unsafe { bindings::iput_not_last(inode.as_ptr()) };
            return None;
        }

        // INVARIANT: Both references were just taken.
        Some(Self {
            inode: Some(inode),
            // SAFETY: By the safety requirements the superblock is valid, so it is not null.
            sb: unsafe { NonNull::new_unchecked(sb) },
        })
    }

    /// Makes a reference to no inode of an active reference to a superblock.
    pub(super) fn without_inode(active: ActiveSuper) -> Self {
        // INVARIANT: The active reference is ours from now on.
        Self {
            inode: None,
            sb: active.into_raw(),
        }
    }

    /// Returns the page cache of the file, or null if the reference to the inode was put.
    pub(super) fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariant the inode is valid.
        self.inode.map_or(core::ptr::null_mut(), |inode| unsafe {
            (*inode.as_ptr()).i_mapping
        })
    }

    /// Returns the entry of the inode in the list of its superblock. The inode stays in the list
    /// while this reference exists.
    pub(super) fn list_entry(&self) -> Option<*mut bindings::list_head> {
        let inode = self.inode?;

        // SAFETY: By the type invariant the inode is valid.
        Some(unsafe { addr_of_mut!((*inode.as_ptr()).i_sb_list) })
    }

    /// Returns the number of the inode, and the name of its superblock (`s_id`): of its device, for
    /// most file systems.
    pub(super) fn id(&self) -> (u64, [c_char; 32]) {
        // SAFETY: By the type invariant both are valid.
        unsafe {
            // Linux 7.2 has another type of the same size here.
            #[allow(clippy::unnecessary_cast)]
            let number = self.inode.map_or(0, |inode| (*inode.as_ptr()).i_ino as u64);
            (number, (*self.sb.as_ptr()).s_id)
        }
    }

    /// Returns whether nothing can write to the file system: it is frozen, or is an erofs, which
    /// cannot be remounted for writing. May change after that.
    pub(super) fn is_frozen(&self) -> bool {
        // SAFETY: By the type invariant the superblock is valid. The field is read without the lock
        // that protects it, as the C code does.
        let frozen = unsafe { (&raw const (*self.sb.as_ptr()).s_writers.frozen).read_volatile() };

        u32::from(frozen) == bindings::SB_FREEZE_COMPLETE || self.spans_devices()
    }

    /// Returns whether the pages of one file may be on several devices of its superblock. Those of
    /// ext4 and xfs are on one, which may be a device-mapper device.
    pub(super) fn spans_devices(&self) -> bool {
        // SAFETY: By the type invariant the superblock is valid. The type of a superblock does not
        // change, and has a name.
        unsafe {
            let name = (*(*self.sb.as_ptr()).s_type).name;
            bindings::strcmp(name, c"erofs".as_char_ptr()) == 0
        }
    }

    pub(super) fn is_of(&self, sb: *mut bindings::super_block) -> bool {
        self.sb.as_ptr() == sb
    }

    pub(super) fn superblock(&self) -> *mut bindings::super_block {
        self.sb.as_ptr()
    }

    /// Puts the references that are not the last ones. Does not sleep. Returns what is left.
    pub(super) fn put_unless_last(mut self) -> Option<Self> {
        if let Some(inode) = self.inode {
            // SAFETY: By the type invariant the inode is valid. This is the first step of `iput()`.
            if !unsafe { bindings::atomic_add_unless(&raw mut (*inode.as_ptr()).i_count, -1, 1) } {
                return Some(self);
            }
            // INVARIANT: That reference was put.
            self.inode = None;
        }

        // SAFETY: By the type invariant the superblock is valid. This is the first step of
        // `deactivate_super()`.
        if !unsafe { bindings::atomic_add_unless(&raw mut (*self.sb.as_ptr()).s_active, -1, 1) } {
            return Some(self);
        }
        // Both references were put.
        core::mem::forget(self);
        None
    }
}

impl Clone for Inode {
    /// Takes further references. Does not sleep.
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant neither count is zero.
        unsafe {
            if let Some(inode) = self.inode {
                bindings::ihold(inode.as_ptr());
            }
            bindings::atomic_inc_not_zero(addr_of_mut!((*self.sb.as_ptr()).s_active));
        }

        // INVARIANT: Both references were just taken.
        Self { ..*self }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the references are ours.
        unsafe {
            if let Some(inode) = self.inode {
                bindings::iput(inode.as_ptr());
            }
            bindings::deactivate_super(self.sb.as_ptr());
        }
    }
}
