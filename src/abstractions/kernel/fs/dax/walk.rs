// SPDX-License-Identifier: GPL-2.0

//! Walks through the files that may use the memory of a pgmap.

use super::mapping::FileMapping;
use crate::abstractions::kernel::{
    fs::{
        inode::Inode,
        inode_pool::InodePool,
        super_block::{
            Supers,
            Walk, //
        }, //
    },
    memremap::{
        PagemapInner,
        PagemapOperations, //
    }, //
};
use core::ops::ControlFlow;
use kernel::sync::Arc;

/// The result of a walk through the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// The number of files with pages of the memory.
    pub nr_inodes: u64,
    /// The number of these pages, pinned or not.
    pub nr_pages: u64,
}

/// Calls `f` for each file that may use pages of the memory. `f` returns the number of pages that
/// the file has.
pub(super) fn walk_files<T: PagemapOperations>(
    pgmap: &PagemapInner<T>,
    pool: &Arc<InodePool>,
    f: impl FnMut(&Inode, FileMapping<'_>, &dyn Fn(&Inode) -> bool) -> u64,
) -> Walked {
    if !pgmap.is_exposed() {
        return Walked::default();
    }
    walk_files_and_copies(pgmap, pool, f)
}

/// As [`walk_files`], also if only page faults that copy may use the memory
/// ([`PagemapInner::is_reachable_by_faults`]).
pub(super) fn walk_files_and_copies<T: PagemapOperations>(
    pgmap: &PagemapInner<T>,
    pool: &Arc<InodePool>,
    mut f: impl FnMut(&Inode, FileMapping<'_>, &dyn Fn(&Inode) -> bool) -> u64,
) -> Walked {
    if !pgmap.is_reachable_by_faults() {
        return Walked::default();
    }
    let f = |inode: &Inode, file: FileMapping<'_>, may_put: &dyn Fn(&Inode) -> bool| {
        ControlFlow::Continue(f(inode, file, may_put))
    };

    walk(pgmap, pool, false, f).0
}

/// As [`walk_files`], but does not wait until references to files are put. Returns [`None`] if the
/// walk has ended because it would have had to wait for that. `f` may end the walk too.
pub(super) fn try_walk_files<T: PagemapOperations>(
    pgmap: &PagemapInner<T>,
    pool: &Arc<InodePool>,
    f: impl FnMut(&Inode, FileMapping<'_>, &dyn Fn(&Inode) -> bool) -> ControlFlow<(), u64>,
) -> Option<Walked> {
    if !pgmap.is_exposed() {
        return Some(Walked::default());
    }
    let (walked, is_cut_short) = walk(pgmap, pool, true, f);

    (!is_cut_short).then_some(walked)
}

/// Also returns whether the walk was cut short because it would have had to wait. This is false if
/// `f` has ended the walk.
fn walk<T: PagemapOperations>(
    pgmap: &PagemapInner<T>,
    pool: &Arc<InodePool>,
    is_nonblocking: bool,
    mut f: impl FnMut(&Inode, FileMapping<'_>, &dyn Fn(&Inode) -> bool) -> ControlFlow<(), u64>,
) -> (Walked, bool) {
    let mut walked = Walked::default();
    let may_put = |inode: &Inode| may_put(pgmap, inode);
    let supers = pgmap.host().map_or(Supers::All, Supers::MayUse);
    let mut walk = Walk::new(pool, supers, is_nonblocking, &may_put);
    while let Some(inode) = walk.next() {
        let file = FileMapping::new(inode);
        if !file.may_use(pgmap) {
            continue;
        }

        let ControlFlow::Continue(of_file) = f(inode, file, &may_put) else {
            break;
        };
        walked.nr_pages = walked.nr_pages.saturating_add(of_file);
        walked.nr_inodes = walked.nr_inodes.saturating_add(u64::from(of_file != 0));
    }
    (walked, walk.is_cut_short())
}

/// Returns whether the reference to a kept file may be put: the file has neither pinned pages nor
/// locked entries, and no fault is under way. Does not sleep.
pub(super) fn may_put<T: PagemapOperations>(pgmap: &PagemapInner<T>, inode: &Inode) -> bool {
    !FileMapping::new(inode).may_be_busy(pgmap)
}
