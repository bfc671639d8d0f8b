// SPDX-License-Identifier: GPL-2.0

//! Superblocks that are frozen by the kernel.
//!
//! A freeze of a block device (`bdev_freeze()`) counts as one of user space, so `FITHAW` undoes it.
//! A freeze of the kernel is counted apart. A superblock stays frozen while either count is above
//! zero.
//!
//! C source: [`fs/super.c`](srctree/fs/super.c)

use crate::abstractions::bindings;
use core::{
    mem::ManuallyDrop,
    ptr::{
        addr_of_mut,
        null,
        NonNull, //
    }, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

/// A freeze by the kernel, which may be nested.
const KERNEL: bindings::freeze_holder =
    bindings::freeze_holder_FREEZE_HOLDER_KERNEL | bindings::freeze_holder_FREEZE_MAY_NEST;

/// The name of a superblock (`s_id`): of its device, for most file systems.
pub(super) type SuperName = [c_char; 32];

/// Returns the name of a superblock as a string.
pub(super) fn name_of(name: &SuperName) -> &CStr {
    CStr::from_bytes_until_nul(name).unwrap_or(c"?")
}

/// An active reference to a superblock. An unmount is not completed meanwhile
/// (`generic_shutdown_super()`).
///
/// Dropping it may shut the file system down, if that was unmounted. Sleeps.
///
/// # Invariants
///
/// One active reference of the superblock is ours.
pub(super) struct ActiveSuper(NonNull<bindings::super_block>);

// SAFETY: References to superblocks may be used and put by any thread.
unsafe impl Send for ActiveSuper {}

impl ActiveSuper {
    /// Takes a reference, unless the last one was put. Does not sleep.
    ///
    /// # Safety
    ///
    /// `sb` must be valid.
    pub(super) unsafe fn try_get(sb: *mut bindings::super_block) -> Option<Self> {
        let raw = NonNull::new(sb)?;

        // SAFETY: By the safety requirements.
        let is_active = unsafe { bindings::atomic_inc_not_zero(addr_of_mut!((*sb).s_active)) };
        // INVARIANT: The reference was just taken.
        is_active.then_some(Self(raw))
    }

    /// Returns the superblock, and leaves the reference to the caller.
    pub(super) fn into_raw(self) -> NonNull<bindings::super_block> {
        ManuallyDrop::new(self).0
    }

    pub(super) fn as_raw(&self) -> *mut bindings::super_block {
        self.0.as_ptr()
    }

    pub(super) fn name(&self) -> SuperName {
        // SAFETY: By the type invariant the superblock is valid.
        unsafe { (*self.0.as_ptr()).s_id }
    }

    /// Freezes the file system, once more if it is frozen already. Sleeps. Waits for threads that
    /// write to it.
    pub(super) fn freeze(&self) -> Result {
        // SAFETY: By the type invariant the superblock is not being shut down. The types of file
        // systems with DAX have no `freeze_super` operation.
        to_result(unsafe { bindings::freeze_super(self.0.as_ptr(), KERNEL, null()) })
    }

    /// Undoes one call of [`Self::freeze`]. Sleeps. Fails with [`EINVAL`] if something else has
    /// done that.
    pub(super) fn thaw(&self) -> Result {
        // SAFETY: As in `freeze`.
        to_result(unsafe { bindings::thaw_super(self.0.as_ptr(), KERNEL, null()) })
    }
}

impl Drop for ActiveSuper {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::deactivate_super(self.0.as_ptr()) };
    }
}

/// Returns whether the kernel has frozen a file system, so that nothing can write to it, whatever
/// programs do. One that is read-only and not frozen could be remounted.
///
/// # Safety
///
/// `sb` must be valid, with `s_umount` held.
pub(super) unsafe fn is_frozen_by_kernel(sb: *mut bindings::super_block) -> bool {
    // SAFETY: By the safety requirements. The lock protects the fields.
    let (frozen, count) = unsafe { ((*sb).s_writers.frozen, (*sb).s_writers.freeze_kcount) };

    u32::from(frozen) == bindings::SB_FREEZE_COMPLETE && count > 0
}
