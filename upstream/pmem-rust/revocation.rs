// SPDX-License-Identifier: GPL-2.0

//! Revoking memory from files, by the DAX core.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c)

use super::{
    owner::Owner,
    walk::Walked, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::memremap::PagemapOperations;
use kernel::prelude::*;

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

impl<T: PagemapOperations> Owner<T> {
    /// Revokes the memory from all files once. Translations must be refused, or pages may be mapped
    /// again.
    ///
    /// The files and pages are not counted. [`Self::unmap_files`] has counted them before.
    pub(super) fn revoke_files(&mut self) -> Walked {
        let mut pinned: c_ulong = 0;

        // Memory that was never exposed has no users.
        if self.pages.is_exposed() {
            // SAFETY: The owner keeps the pgmap. The function waits for users with a limit, which
            // is none here, and changes only what it locks.
            let result = unsafe {
                bindings::dax_revoke_pgmap(self.pages.as_raw().cast_mut(), 0, &mut pinned)
            };
            self.revocation.is_incomplete = result != 0 && pinned == 0;
        }
        self.release_files();

        Walked::default()
    }

    /// Revokes the memory again. `walk_needed` is whether a translation may have ended since the
    /// last time, and is updated.
    pub(super) fn revoke_again(&mut self, walk_needed: &mut bool) -> Walked {
        *walk_needed = !self.pages.is_unused();
        self.revoke_files()
    }
}
