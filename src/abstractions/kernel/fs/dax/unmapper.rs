// SPDX-License-Identifier: GPL-2.0

//! A reference to a pgmap with which its files are unmapped.

use super::walk::{
    try_walk_files,
    walk_files, //
};
use crate::abstractions::kernel::{
    fs::{
        inode::Inode,
        inode_pool::InodePool, //
    },
    memremap::{
        PagemapOperations,
        PagemapRef, //
    }, //
};
use core::ops::ControlFlow;
use kernel::{
    fmt,
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc, //
};

/// A file, for messages.
pub struct FileId {
    /// The number of its inode.
    inode: u64,
    /// The name of its file system.
    file_system: [c_char; 32],
}

impl FileId {
    fn of(inode: &Inode) -> Self {
        let (inode, file_system) = inode.id();

        Self { inode, file_system }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file_system = CStr::from_bytes_until_nul(&self.file_system).unwrap_or(c"?");

        f.write_fmt(fmt!("inode {} of {}", self.inode, file_system))
    }
}

/// Why frozen files were not unmapped.
pub enum Obstacle {
    /// A file has pages of the memory, and its file system is not frozen.
    NotFrozen(FileId),
    /// Too many files were closed meanwhile: the last reference to a file that was deleted cannot
    /// be put while its file system is frozen, nor can the references that are queued after it.
    TooManyFiles,
}

/// A reference to a pgmap, with which its files can be unmapped without the owner.
pub struct Unmapper<T: PagemapOperations> {
    pub(super) pgmap: PagemapRef<T>,
    pub(super) pool: Arc<InodePool>,
}

impl<T: PagemapOperations> Unmapper<T> {
    /// Unmaps all files that may use the memory, once. They can be mapped again.
    ///
    /// Sleeps. If the disk ever had an indirect claim, waits for mounts and unmounts of file
    /// systems with DAX that are under way.
    pub fn unmap_files(&self) {
        walk_files(&self.pgmap, &self.pool, |_, file, _| {
            file.unmap(&self.pgmap).0
        });
    }

    /// Unmaps all files that may use the memory, and writes back from the CPU caches what was
    /// stored to them. To be called with the file systems frozen. The memory can be mapped again,
    /// but only for reading. Before each file `may_go_on` is called; the rest is left if it returns
    /// false.
    ///
    /// Sleeps. Waits for page faults, and, if the disk ever had an indirect claim, for mounts and
    /// unmounts of file systems with DAX that are under way.
    ///
    /// # Errors
    ///
    /// An [`Obstacle`].
    pub fn unmap_frozen_files(&self, may_go_on: impl Fn() -> bool) -> Result<(), Obstacle> {
        let mut other = None;

        let walked = try_walk_files(&self.pgmap, &self.pool, |inode, file, _| {
            if !may_go_on() {
                return ControlFlow::Break(());
            }
            if inode.is_frozen() {
                return ControlFlow::Continue(file.unmap_frozen(&self.pgmap));
            }
            let (count, _) = file.count(&self.pgmap);
            if count != 0 {
                other.get_or_insert(FileId::of(inode));
            }
            ControlFlow::Continue(count)
        });
        match other {
            Some(file) => Err(Obstacle::NotFrozen(file)),
            None => walked.map(|_| ()).ok_or(Obstacle::TooManyFiles),
        }
    }

    /// Returns the offset in the data of the first page, from page `*next` on, that has more
    /// references than page table entries, and sets `*next` to it. Both counts may change
    /// meanwhile, so the result may be wrong if the page is being mapped or unmapped. Sleeps.
    pub fn first_pinned(&self, next: &mut u64) -> Option<u64> {
        let first = self.pgmap.frames().start;
        let frame = self.pgmap.first_pinned(first.saturating_add(*next))?;

        *next = frame.saturating_sub(first);
        Some(*next << PAGE_SHIFT)
    }

    /// Returns a file that has the page at an offset in the data. Sleeps.
    pub fn file_at(&self, offset: u64) -> Option<FileId> {
        let frame = self
            .pgmap
            .frames()
            .start
            .saturating_add(offset >> PAGE_SHIFT);
        let mut found = None;

        // If the walk ends early, the file is not found.
        try_walk_files(&self.pgmap, &self.pool, |inode, file, _| {
            if file.has_frame(frame) {
                found = Some(FileId::of(inode));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(0)
        });
        found
    }
}
