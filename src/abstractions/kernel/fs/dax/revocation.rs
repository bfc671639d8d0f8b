// SPDX-License-Identifier: GPL-2.0

//! Revoking memory from files, by a walk through all that may use it.
//!
//! `upstream/dax-revoke` adds `dax_revoke_pgmap()` to the kernel, which does the same in C. The
//! driver that is exported for the kernel's tree has a file that calls it in place of this one.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c)

use super::{
    mapping::{
        is_idle,
        FileMapping,
        InodeLock,
        LockMode, //
    },
    walk::{
        may_put,
        walk_files_and_copies,
        Walked, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::{
    fs::{
        inode::Inode,
        inode_pool::InodePool, //
    },
    memremap::{
        FolioUse,
        PagemapInner,
        PagemapOperations, //
    }, //
};
use crate::abstractions::kernel_ext::task::cond_resched;
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc, //
};

/// After how many walks in a row with a mismatch the memory stays mapped for good.
const MAX_MISMATCHES: u32 = 3;
/// How many pages are deleted at once, unless one entry has more. The C function holds a spinlock
/// meanwhile.
const BATCH: u64 = 512;

/// What the latest walks have found.
#[derive(Default)]
pub(super) struct Revocation {
    /// In how many walks in a row an entry of a page cache and its folio did not match.
    mismatches: u32,
}

impl Revocation {
    /// Returns whether another walk is needed. Always true once [`MAX_MISMATCHES`] walks in a row
    /// had a mismatch.
    pub(super) fn is_incomplete(&self) -> bool {
        self.mismatches != 0
    }

    /// Records a walk. Returns whether the memory has to stay mapped from now on.
    fn record(&mut self, mismatch: bool) -> bool {
        let before = self.mismatches;

        if mismatch {
            self.mismatches = before.saturating_add(1);
        } else if before < MAX_MISMATCHES {
            self.mismatches = 0;
        }
        before < MAX_MISMATCHES && self.mismatches == MAX_MISMATCHES
    }
}

impl Revocation {
    /// Revokes the memory from all files once. Translations must be refused before. Otherwise pages
    /// may be mapped again. As long as a file may be mapped, `mode` must be [`LockMode::Try`]: a
    /// wait for one file would keep the others mapped.
    pub(super) fn revoke_files<T: PagemapOperations>(
        &mut self,
        pgmap: &PagemapInner<T>,
        pool: &Arc<InodePool>,
        mode: LockMode,
    ) -> Walked {
        self.record_walk(pgmap, mode, |revoke| {
            let walked = walk_files_and_copies(pgmap, pool, |_, file, _| {
                let revoked = revoke(file);
                revoked.nr_deleted.saturating_add(revoked.nr_kept)
            });
            pool.release(|inode| may_put(pgmap, inode));
            walked
        })
    }

    /// Calls `walk` with the function that revokes the memory from a file, and records the walk.
    fn record_walk<T: PagemapOperations, R>(
        &mut self,
        pgmap: &PagemapInner<T>,
        mode: LockMode,
        walk: impl FnOnce(&mut dyn FnMut(FileMapping<'_>) -> FileRevoked) -> R,
    ) -> R {
        let mut mismatch = false;
        let result = walk(&mut |file| {
            let revoked = file.revoke(pgmap, mode);
            mismatch |= revoked.mismatch;
            revoked
        });

        if self.record(mismatch) {
            pr_err!(
                "{}: entries of page caches do not match their folios. The range stays mapped and \
                 reserved until reboot\n",
                pgmap.reservation_name().first()
            );
        }
        result
    }

    /// Revokes the memory from the kept files, unless all files have to be walked through. Returns
    /// whether a page was deleted, and all entries match their folios. Waits for threads that write
    /// to a file without pins, or truncate it. No file may be mapped any more.
    pub(super) fn revoke_kept_files<T: PagemapOperations>(
        &self,
        pgmap: &PagemapInner<T>,
        pool: &Arc<InodePool>,
    ) -> bool {
        if self.is_incomplete() {
            return false;
        }
        let may_put = |inode: &Inode| may_put(pgmap, inode);
        let mut deleted = false;
        let mut mismatch = false;

        pool.for_each_kept(&may_put, |inode| {
            let revoked = FileMapping::new(inode).revoke(pgmap, LockMode::Wait);
            deleted |= revoked.nr_deleted != 0;
            mismatch |= revoked.mismatch;
        });
        pool.release(may_put);
        deleted && !mismatch
    }
}

/// The result of [`FileMapping::revoke`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FileRevoked {
    /// Pages whose entries were deleted.
    nr_deleted: u64,
    /// Pages whose entries were kept, because they are pinned, a thread may wait for them, or the
    /// folio does not match.
    nr_kept: u64,
    /// An entry and its folio disagree about the association. The two are read one after the other,
    /// so a mismatch may be transient.
    mismatch: bool,
}

impl FileMapping<'_> {
    /// Revokes the memory from the file: unmaps the file everywhere, waits for the faults that are
    /// under way, writes dirty pages back from the CPU caches, and deletes the entries of pages
    /// that are not pinned. Entries of other memory stay: deleting them would lose their dirty
    /// marks. If the inode lock is not taken, all entries stay. It is not waited for if the file
    /// has pinned pages.
    ///
    /// This is only complete if translations are refused.
    ///
    /// Sleeps. Takes the inode lock and the invalidate lock of the file, so neither `mmap_lock` nor
    /// the locks that are taken inside of page faults may be held.
    fn revoke<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>, mode: LockMode) -> FileRevoked {
        // A truncate may wait for the pins of its file with the inode lock held, whatever memory
        // they are of. Waiting for that lock here would delay the other files.
        let is_busy = mode == LockMode::Wait
            && (self.has_busy_entries(pgmap)
                || self.has_busy_entries_outside(&pgmap.frames(), true));
        let inode_lock = self.lock_inode(if is_busy { LockMode::Try } else { mode });
        let Some(_guard) = self.lock() else {
            return FileRevoked::default();
        };
        let frames = pgmap.frames();

        // Each round unmaps first, then waits for locked entries. So the second round unmaps the
        // pages that faults have inserted in the first.
        for _ in 0..2 {
            self.unmap_and_wait(&frames);
        }

        self.write_back(pgmap);
        self.delete(&frames, inode_lock.as_ref())
    }

    /// Deletes the entries of idle pages. Without the inode lock it deletes none: a thread may wait
    /// for a page that only its entry keeps.
    fn delete(&self, pfns: &Range<u64>, inode_lock: Option<&InodeLock<'_>>) -> FileRevoked {
        let mut revoked = FileRevoked::default();
        let mut run: Option<Range<u64>> = None;

        for entry in self.entries(0, bindings::XA_PRESENT) {
            let (start, end) = (entry.start(), entry.end());

            let idle = entry.overlap(pfns).is_some_and(|own| {
                let matches = is_associated(&own, self.as_raw());
                revoked.mismatch |= !matches;
                let idle = matches && inode_lock.is_some() && is_idle(&own);
                let count = if idle {
                    &mut revoked.nr_deleted
                } else {
                    &mut revoked.nr_kept
                };
                *count = count.saturating_add(entry.pages());
                idle
            });

            // A run ends before an entry that is kept, before a hole, where an entry may be made at
            // any moment, and at its full length.
            run = match (run, idle) {
                (Some(run), true) if run.end == start && end.saturating_sub(run.start) <= BATCH => {
                    Some(run.start..end)
                }
                (run, idle) => {
                    self.delete_run(run);
                    idle.then_some(start..end)
                }
            };
        }
        self.delete_run(run);

        revoked
    }

    fn delete_run(&self, run: Option<Range<u64>>) {
        let Some(run) = run else {
            return;
        };
        let start = i64::try_from(u128::from(run.start) << PAGE_SHIFT).unwrap_or(i64::MAX);
        // The last byte: the range of the C function includes its end.
        let end = i64::try_from((u128::from(run.end) << PAGE_SHIFT).saturating_sub(1))
            .unwrap_or(i64::MAX);

        // SAFETY: By the type invariant the mapping is valid. The entries are those of idle pages
        // that cannot be mapped any more, as the function requires.
        unsafe { bindings::dax_delete_mapping_range(self.as_raw(), start, end) };
        cond_resched();
    }
}

/// Returns whether the folio of these page frames is associated with this file, or with several.
/// They must be those of one folio, and of the memory that is being revoked.
fn is_associated(frames: &Range<u64>, mapping: *mut bindings::address_space) -> bool {
    // SAFETY: The frames are those of a pgmap whose owner is borrowed.
    unsafe { FolioUse::of(frames.start as c_ulong) }.is_in(mapping)
}

#[kunit_tests(pmem_rs_fs_dax_revocation)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::fs::dax::{
        testing::{
            associate,
            associate_with_several,
            pages,
            Referenced,
            Silent,
            TestFile,
            TestPagemap, //
        },
        Revoked,
        User, //
    };
    use core::ptr::null_mut;

    const NONE: FileRevoked = FileRevoked {
        nr_deleted: 0,
        nr_kept: 0,
        mismatch: false,
    };
    const DELETED: FileRevoked = FileRevoked {
        nr_deleted: 1,
        ..NONE
    };
    const KEPT: FileRevoked = FileRevoked { nr_kept: 1, ..NONE };
    const MISMATCH: FileRevoked = FileRevoked {
        mismatch: true,
        ..KEPT
    };

    /// Makes a walk that finds a file only.
    pub(super) fn walk(revoked: &mut Revoked<Silent>, file: &TestFile) -> FileRevoked {
        let owner = &mut revoked.owner;

        owner
            .revocation
            .record_walk(&owner.pgmap, LockMode::Try, |revoke| revoke(file.mapping()))
    }

    #[test]
    fn the_entry_of_an_idle_page_is_deleted() -> Result {
        let ours = pages()?;
        let file = TestFile::new()?;
        let frame = ours.frames().start + 3;
        let revoke = || file.mapping().revoke(&ours, LockMode::Try);

        file.store(frame, false)?;
        associate(frame, file.mapping().as_raw());
        let of_one = revoke();
        let is_left = file.mapping().has_frame(frame);
        file.store(frame, false)?;
        associate_with_several(frame, 1);
        let of_several = revoke();
        let again = revoke();

        assert_eq!(of_one, DELETED);
        assert!(!is_left);
        assert_eq!(of_several, DELETED);
        assert_eq!(again, NONE);
        Ok(())
    }

    #[test]
    fn the_entry_of_a_pinned_page_stays() -> Result {
        let ours = pages()?;
        let file = TestFile::new()?;
        let frame = ours.frames().start + 3;
        let revoke = || file.mapping().revoke(&ours, LockMode::Try);

        file.store(frame, false)?;
        associate(frame, file.mapping().as_raw());
        let page = Referenced::new(&ours, 3);
        let pinned = revoke();
        let is_left = file.mapping().has_frame(frame);
        drop(page);
        let idle = revoke();

        assert_eq!(pinned, KEPT);
        assert!(is_left);
        assert_eq!(idle, DELETED);
        Ok(())
    }

    #[test]
    fn an_entry_that_its_folio_does_not_confirm_stays() -> Result {
        let ours = pages()?;
        let (file, other) = (TestFile::new()?, TestFile::new()?);
        let frame = ours.frames().start + 3;
        let revoke = || file.mapping().revoke(&ours, LockMode::Try);

        file.store(frame, false)?;
        let of_none = revoke();
        associate(frame, other.mapping().as_raw());
        let of_another = revoke();
        let page = Referenced::new(&ours, 3);
        let pinned = revoke();
        drop(page);
        let is_left = file.mapping().has_frame(frame);
        associate(frame, null_mut());

        assert_eq!(of_none, MISMATCH);
        assert_eq!(of_another, MISMATCH);
        assert_eq!(pinned, MISMATCH);
        assert!(is_left);
        Ok(())
    }

    #[test]
    fn an_entry_of_other_memory_keeps_its_dirty_mark() -> Result {
        let (ours, other) = (pages()?, pages()?);
        let file = TestFile::new()?;
        let frame = other.frames().start + 3;
        let revoke = || file.mapping().revoke(&ours, LockMode::Try);

        file.store(frame, false)?;
        file.set_dirty();
        associate(frame, file.mapping().as_raw());
        let of_one = revoke();
        associate(frame, null_mut());
        let of_none = revoke();
        let is_dirty = file.is_dirty();

        assert_eq!(of_one, NONE);
        assert_eq!(of_none, NONE);
        assert!(is_dirty);
        Ok(())
    }

    #[test]
    fn three_walks_in_a_row_with_a_mismatch_are_remembered() {
        let mut revocation = Revocation::default();

        for _ in 0..2 {
            assert!(!revocation.record(true));
            assert!(!revocation.record(true));
            assert!(revocation.is_incomplete());
            assert!(!revocation.record(false));
            assert!(!revocation.is_incomplete());
        }
        assert!(!revocation.record(true));
        assert!(!revocation.record(true));
        // It is logged once.
        assert!(revocation.record(true));
        for mismatch in [true, false] {
            assert!(!revocation.record(mismatch));
            assert!(revocation.is_incomplete());
        }
    }

    #[test]
    fn memory_is_freed_after_a_mismatch_that_has_ended() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let file = TestFile::new()?;
        let frame = pages.frames().start + 3;

        file.store(frame, false)?;
        pages.page_states.expose(3, 1);
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        revoked.revoke();
        let mismatches = [walk(&mut revoked, &file), walk(&mut revoked, &file)];
        let user = revoked.first_user();
        let Err(mut revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        associate(frame, file.mapping().as_raw());
        let deleted = walk(&mut revoked, &file);
        let is_free = revoked.free().is_ok();

        assert_eq!(mismatches, [MISMATCH; 2]);
        assert_eq!(user, Some(User::PageCache));
        assert_eq!(deleted, DELETED);
        assert!(is_free);
        drop(queue);
        Ok(())
    }
}

/// What these tests leak stays until reboot; see the suite `pmem_rs_x_misuse`. It also checks that
/// the mismatches were logged.
#[kunit_tests(pmem_rs_x_misuse_revocation)]
mod misuse {
    use super::{
        tests::walk,
        *, //
    };
    use crate::abstractions::kernel::fs::dax::{
        testing::{
            associate,
            is_reserved,
            pages,
            use_page,
            TestFile,
            TestPagemap, //
        },
        User, //
    };
    use core::ptr::null_mut;

    #[test]
    fn memory_whose_entries_do_not_match_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.data_start();
        let file = TestFile::new()?;
        let frame = pages.frames().start + 3;

        file.store(frame, false)?;
        pages.page_states.expose(3, 1);
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        revoked.revoke();
        let mut mismatches = 0;
        for _ in 0..MAX_MISMATCHES {
            mismatches += u32::from(walk(&mut revoked, &file).mismatch);
        }
        // Too late: the entry that was wrong may not have been the only one.
        associate(frame, file.mapping().as_raw());
        let late = walk(&mut revoked, &file);
        associate(frame, null_mut());
        revoked.revoke();
        let user = revoked.first_user();
        let Err(revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        drop(revoked);

        assert_eq!(mismatches, MAX_MISMATCHES);
        assert_eq!(late.nr_deleted, 1);
        assert_eq!(user, Some(User::PageCache));
        assert!(is_reserved(start)?);
        use_page(start);
        // Leaked like the memory. Only an owner that was forgotten would still have a reference to
        // it.
        core::mem::forget(queue);
        Ok(())
    }
}
