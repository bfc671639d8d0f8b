// SPDX-License-Identifier: GPL-2.0

//! Revoking memory from files, by the DAX core.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c)

use super::{
    mapping::LockMode,
    walk::{
        may_put,
        Walked, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::{
    fs::inode_pool::InodePool,
    memremap::{
        PagemapInner,
        PagemapOperations, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// What the latest call has found.
#[derive(Default)]
pub(super) struct Revocation {
    is_incomplete: bool,
}

impl Revocation {
    /// Returns whether another call is needed, although no page was pinned.
    pub(super) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }
}

impl Revocation {
    /// Revokes the memory from all files once. Translations must be refused, or pages may be mapped
    /// again.
    ///
    /// The files and pages are not counted. `Owner::unmap_files` has counted them before. The
    /// function chooses itself whether it waits for the inode lock of a file.
    pub(super) fn revoke_files<T: PagemapOperations>(
        &mut self,
        pgmap: &PagemapInner<T>,
        pool: &Arc<InodePool>,
        _mode: LockMode,
    ) -> Walked {
        let mut pinned: c_ulong = 0;

        if pgmap.is_reachable_by_faults() {
            // SAFETY: The owner keeps the pgmap. The function waits for users with a limit, which
            // is none here, and changes only what it locks.
            let result =
                unsafe { bindings::dax_revoke_pgmap(pgmap.as_raw().cast_mut(), 0, &mut pinned) };
            self.is_incomplete = result != 0 && pinned == 0;
        }
        pool.release(|inode| may_put(pgmap, inode));

        Walked::default()
    }

    /// Does nothing: all files are walked through each time.
    pub(super) fn revoke_kept_files<T: PagemapOperations>(
        &self,
        _pages: &PagemapInner<T>,
        _pool: &Arc<InodePool>,
    ) -> bool {
        false
    }
}
