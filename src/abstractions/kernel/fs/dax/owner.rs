// SPDX-License-Identifier: GPL-2.0

//! The owner of a pgmap, without its state.

use super::{
    mapping::LockMode,
    revocation::Revocation,
    unmapper::Unmapper,
    walk::{
        may_put,
        walk_files,
        Walked, //
    }, //
};
use crate::abstractions::kernel::{
    fs::inode_pool::InodePool,
    memremap::{
        PagemapConfig,
        PagemapInner,
        PagemapOperations,
        UsedPage, //
    },
    numa::Node,
    percpu_ref::{
        Counted,
        Ref, //
    }, //
};
use crate::abstractions::kernel_ext::{
    io::resource::MemRegion,
    module::Registered,
    time::{
        sleep,
        MINUTE, //
    },
    workqueue::OwnedQueue, //
};
use core::mem::ManuallyDrop;
use kernel::{
    prelude::*,
    str::CString,
    sync::Arc,
    time::Msecs, //
};

/// How long a drop waits for references that are about to be put, in milliseconds.
const DROP_TIMEOUT: Msecs = 10_000;
/// The pause between two walks of a drop that waits, in milliseconds.
const WALK_INTERVAL: Msecs = 1000;

/// A user of revoked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// There is a reference to the pgmap: of a DAX device that is not dead, of a disk or one of its
    /// requests, of a lease, or of an [`Unmapper`].
    Reference,
    /// A holder of the disk may keep an address, or the disk was not removed.
    Keeper,
    /// A page has a reference.
    Pin,
    /// A page is associated with a file, or another walk through the files is needed
    /// ([`Revoked::revoke`](super::Revoked::revoke)).
    PageCache,
}

/// The owner of a pgmap, in all states.
///
/// # Invariants
///
/// The value of `pgmap` is not freed.
pub(super) struct Owner<T: PagemapOperations> {
    pub(super) pgmap: ManuallyDrop<Counted<PagemapInner<T>>>,
    pool: Arc<InodePool>,
    pub(super) revocation: Revocation,
    registered: ManuallyDrop<Registered>,
}

impl<T: PagemapOperations> Owner<T> {
    /// Maps a range; see [`Pagemap::new`](super::Pagemap::new).
    pub(super) fn new(
        config: PagemapConfig<'_>,
        reservation: MemRegion,
        node: Node,
        ops: impl PinInit<T, Error>,
        queue: Ref<OwnedQueue>,
    ) -> Result<Self> {
        let registered = Registered::new()?;
        let name = CString::try_from_fmt(fmt!("{}", reservation.name().first()))?;
        let pool = InodePool::new(name, queue)?;
        // SAFETY: The owner does not drop the value before it has freed the range. The count
        // initialises the value last, and nothing fails after that.
        let inner = unsafe { PagemapInner::new(config, reservation, node, ops) }?;
        let pgmap = Counted::pin_init(inner)?;

        // INVARIANT: Just mapped.
        let owner = Self {
            pgmap: ManuallyDrop::new(pgmap),
            pool,
            revocation: Revocation::default(),
            registered: ManuallyDrop::new(registered),
        };
        let memory = owner.pgmap.try_get().ok_or(ENXIO)?;
        owner.pgmap.leases().accept(Arc::new(memory, GFP_KERNEL)?)?;
        Ok(owner)
    }

    pub(super) fn pgmap(&self) -> &Counted<PagemapInner<T>> {
        &self.pgmap
    }

    /// Refuses translations that ask for a page frame number, and new references. May sleep.
    pub(super) fn refuse_mappings(&mut self) {
        self.pgmap.refuse_mappings();
        self.refuse_references();
    }

    /// Refuses all translations and new references. May sleep.
    pub(super) fn refuse_access(&mut self) {
        self.pgmap.refuse_access();
        self.refuse_references();
    }

    /// Refuses new references to the pgmap, and queues the callbacks of the holders of leases.
    fn refuse_references(&mut self) {
        self.pgmap.leases().request_return();
        self.pgmap.kill();
    }

    /// Unmaps all files once; see
    /// [`Pagemap::close_to_mappings`](super::Pagemap::close_to_mappings).
    pub(super) fn unmap_files(&self) -> Walked {
        walk_files(&self.pgmap, &self.pool, |inode, file, may_put| {
            let (count, may_be_busy) = file.unmap(&self.pgmap);
            if may_be_busy {
                self.pool.keep(inode, may_put);
            }
            count
        })
    }

    /// Returns a reference with which the files can be unmapped, unless new references are refused.
    pub(super) fn unmapper(&self) -> Option<Unmapper<T>> {
        Some(Unmapper {
            pgmap: self.pgmap.try_get()?,
            pool: self.pool.clone(),
        })
    }

    /// Revokes the memory from all files once; see [`Revocation::revoke_files`].
    pub(super) fn revoke_files(&mut self, mode: LockMode) -> Walked {
        self.revocation.revoke_files(&self.pgmap, &self.pool, mode)
    }

    /// Revokes the memory again: from the kept files if that deletes any page, otherwise from all.
    /// `walk_needed` says whether all files have to be walked through, and is updated.
    ///
    /// The kept files are enough if all files were walked through after the last translation had
    /// ended:
    ///
    /// - No entry was made since.
    /// - That walk has deleted all entries but those of pinned pages, those of files that a thread
    ///   wrote to or truncated, and those of file systems that are being unmounted.
    /// - No idle page was pinned since. Files whose pages were pinned when
    ///   [`close_to_mappings`](super::Pagemap::close_to_mappings) was called, or that had faults
    ///   under way, were kept by it.
    ///
    /// If an entry is in another file, its page stays in use ([`Self::first_user`]). Then the kept
    /// files yield nothing more, and all files are walked through.
    pub(super) fn revoke_again(&mut self, walk_needed: &mut bool) -> Walked {
        // Once no walk is needed, no file is mapped. Then a wait for the inode lock of one file
        // keeps no other file mapped. Entries may stay until another thread has released that lock.
        let mode = if *walk_needed {
            LockMode::Try
        } else {
            LockMode::Wait
        };

        if !*walk_needed && self.revocation.revoke_kept_files(&self.pgmap, &self.pool) {
            return Walked::default();
        }
        *walk_needed = !self.pgmap.is_unused();
        self.revoke_files(mode)
    }

    /// Puts the references to kept files that have no pinned page.
    pub(super) fn release_files(&self) {
        self.pool.release(|inode| may_put(&self.pgmap, inode));
    }

    /// Waits, for at most `limit` milliseconds, until the worker has put all references to files
    /// that are not kept.
    pub(super) fn wait_put(&self, limit: Msecs) {
        self.pool.wait_put(limit);
    }

    /// Finds a user. Pages before frame `next` were idle when they were last checked; before the
    /// range is freed, all are checked again. `walk_needed` is whether the files have to be
    /// walked through again.
    pub(super) fn first_user(&self, next: &mut u64, walk_needed: bool) -> Option<User> {
        if !self.pgmap.is_unused() {
            return Some(User::Reference);
        }
        // Nothing that was not exposed will be. A keeper asks for a page frame number.
        let is_exposed = self.pgmap.is_exposed();
        if is_exposed && self.pgmap.host().is_some_and(|host| host.has_keeper()) {
            return Some(User::Keeper);
        }
        let is_incomplete = walk_needed || self.revocation.is_incomplete();
        if is_incomplete && self.pgmap.is_reachable_by_faults() {
            return Some(User::PageCache);
        }
        let page = self.first_used(next)?;
        if page.is_referenced() {
            Some(User::Pin)
        } else {
            Some(User::PageCache)
        }
    }

    /// Returns the first page from frame `next` on that is in use, and sets `next` to it.
    pub(super) fn first_used(&self, next: &mut u64) -> Option<UsedPage<'_>> {
        let page = self.pgmap.first_used(*next);

        *next = page.as_ref().map_or(u64::MAX, |page| page.frames().start);
        page
    }

    /// Waits without a limit until there is no user.
    fn wait_unused(&mut self) {
        let mut next = 0;
        let mut walk_needed = true;
        let mut waited: Msecs = 0;

        loop {
            // Kept files may hold the table that is the keeper, see `Revoked::release_files`.
            self.release_files();
            match self.first_user(&mut next, walk_needed) {
                None => return,
                Some(User::PageCache) => {
                    self.revoke_again(&mut walk_needed);
                }
                Some(User::Reference | User::Keeper | User::Pin) => {}
            }
            sleep(WALK_INTERVAL);
            waited = waited.wrapping_add(WALK_INTERVAL);
            if waited % MINUTE == 0 {
                pr_warn!(
                    "still waiting for users of {}: its struct pages are on the medium, so it \
                     cannot be left mapped. End the programs that use it\n",
                    self.pgmap.reservation_name().first()
                );
            }
        }
    }

    /// Frees pages, mapping and reservation. Sleeps.
    ///
    /// # Safety
    ///
    /// There must be no user, and translations must be refused.
    pub(super) unsafe fn free(self) {
        let mut this = ManuallyDrop::new(self);

        // SAFETY: By the safety requirements. Each field is dropped once, since the drop of `this`
        // does not run.
        unsafe {
            this.free_pages();
            core::ptr::drop_in_place(&mut this.pool);
            ManuallyDrop::drop(&mut this.registered);
        }
    }

    /// # Safety
    ///
    /// As [`Self::free`]. `pgmap` must not be used after this.
    unsafe fn free_pages(&mut self) {
        // SAFETY: By the safety requirements no page is in use, no translation is under way or
        // begins, and nothing has an address. The count has no references.
        unsafe {
            self.pgmap.free();
            ManuallyDrop::drop(&mut self.pgmap);
        }
        self.pool.release(|_| true);
    }
}

impl<T: PagemapOperations> Drop for Owner<T> {
    fn drop(&mut self) {
        self.refuse_access();

        if self.pgmap.memmap_is_on_medium() {
            // A thread may use a page just after it was seen idle, until a grace period has passed.
            loop {
                self.wait_unused();
                self.pgmap.synchronize();
                if self.pgmap.first_used(0).is_none() {
                    break;
                }
            }
        } else if self.pgmap.is_reachable_by_faults() || !self.pgmap.wait_timeout(DROP_TIMEOUT) {
            pr_warn!(
                "{} may be in use and was not freed: it stays mapped and reserved until reboot\n",
                self.pgmap.reservation_name().first()
            );
            // SAFETY: The field is not used after this. `pgmap` is leaked.
            unsafe { ManuallyDrop::take(&mut self.registered) }.leak();
            self.pool.release(|_| true);
            return;
        }

        // SAFETY: Translations are refused. Either there was no user before and after the grace
        // periods; or no fault has reached the memory and no reference is left. The fields are not
        // used after this.
        unsafe {
            self.free_pages();
            ManuallyDrop::drop(&mut self.registered);
        }
    }
}
