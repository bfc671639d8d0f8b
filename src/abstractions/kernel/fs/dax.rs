// SPDX-License-Identifier: GPL-2.0

//! Memory that DAX files map, and how it is taken away from them.
//!
//! The owner of a pgmap goes through three types, each of which consumes the one before it:
//!
//! - [`Pagemap`]: the gate is open, or closed to mappings.
//! - [`Closed`]: no translation succeeds any more.
//! - [`Revoked`]: no file has the memory mapped, except for pinned pages.
//!
//! Pages and mapping are unmapped by [`Revoked::unmap`] alone. It asks for four proofs:
//!
//! - revoked: the type;
//! - dead: no reference to the pgmap is left. A DAX device puts its reference when it is dead, and
//!   a disk when it was removed;
//! - no keeper: nothing in the kernel keeps an address. The disk through which the DAX device was
//!   found knows its claims;
//! - idle: no exposed page has a reference, or is named by a page cache.
//!
//! An owner that is dropped earlier leaks pages, mapping, reservation and the module, with a
//! warning, unless no page was ever exposed: leaking is sound, unmapping is not. If the memory map
//! is on the medium, which goes with the provider, nothing can be left, and the drop waits instead.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c)

use crate::abstractions::{
    kernel::{
        fs::super_block::{
            Inode,
            InodePool,
            Walk, //
        },
        memremap::{
            Node,
            PagemapConfig,
            PagemapInner,
            PagemapOperations,
            PagemapRef,
            UsedPage, //
        },
        percpu_ref::{
            Counted,
            Ref, //
        }, //
    },
    kernel_ext::{
        io::resource::MemRegion,
        module::Registered,
        time::{
            sleep,
            MINUTE, //
        },
        workqueue::OwnedQueue, //
    }, //
};
use core::{
    mem::ManuallyDrop,
    ops::Deref, //
};
use kernel::{
    prelude::*,
    str::CString,
    sync::Arc,
    time::Msecs, //
};

mod mapping;

use crate::abstractions::kernel::fs::dax::mapping::FileMapping;

/// How long a drop waits for references that are just being put, in milliseconds.
const PATIENCE: Msecs = 10_000;
/// How many walks in a row have to find that a page cache and the memory map do not agree, until it
/// is believed.
const DISAGREEMENTS: u32 = 3;
/// The pause between two walks of a drop that waits, in milliseconds.
const PAUSE: Msecs = 1000;

/// What a walk through the files has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Files that had pages of the memory.
    pub inodes: u64,
    /// Pages that they had, whether they are pinned or not.
    pub pages: u64,
}

/// What is using memory that was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// There is a reference to the pgmap: a DAX device that is not dead, or a disk.
    Reference,
    /// A holder of the disk may keep an address.
    Keeper,
    /// A page has a reference.
    Pin,
    /// A page cache names a page, or a walk through the files is due. [`Revoked::revoke`] helps.
    PageCache,
}

/// The owner of a pgmap, in all states.
///
/// # Invariants
///
/// The value of `pages` is not unmapped. `disagreed` is how many of the latest walks in a row have
/// found a page cache and the memory map not to agree. If it has reached [`DISAGREEMENTS`], it
/// stays, and the value is never unmapped.
struct Owner<T: PagemapOperations> {
    pages: ManuallyDrop<Counted<PagemapInner<T>>>,
    pool: Arc<InodePool>,
    disagreed: u32,
    registered: ManuallyDrop<Registered>,
}

impl<T: PagemapOperations> Owner<T> {
    /// Goes through all files once. The gate must be closed, or pages that were taken away may be
    /// mapped again.
    fn walk(&mut self) -> Walked {
        let mut walked = Walked::default();
        // A translation that passes the gate has recorded its exposure before.
        if !self.pages.is_exposed() {
            return walked;
        }

        let pages = &self.pages;
        let may_go = |inode: &Inode| !FileMapping::new(inode).count(pages).1;
        let mut disagree = false;
        let mut walk = Walk::new(&self.pool, &may_go);
        while let Some(inode) = walk.next() {
            let file = FileMapping::new(inode);
            if !file.may_use(pages) {
                continue;
            }

            let revoked = file.revoke(pages);
            disagree |= revoked.disagree;
            let pages = revoked.pages.saturating_add(revoked.pinned);
            walked.pages = walked.pages.saturating_add(pages);
            walked.inodes = walked.inodes.saturating_add(u64::from(pages != 0));
        }
        drop(walk);
        // Files that were kept for their pins, and have none any more.
        self.pool.release(may_go);

        if disagree {
            self.disagreed = self.disagreed.saturating_add(1);
            if self.disagreed == DISAGREEMENTS {
                pr_err!(
                    "{}: page caches and memory map do not agree: mapped until reboot\n",
                    self.pages.reservation_name().first()
                );
            }
        } else if self.disagreed < DISAGREEMENTS {
            self.disagreed = 0;
        }
        walked
    }

    /// Finds a user. `next` is the first page that may be in use; pages do not become used again.
    /// `is_due` says whether a walk is due.
    fn first_user(&self, next: &mut u64, is_due: bool) -> Option<User> {
        if !self.pages.is_unused() {
            return Some(User::Reference);
        }
        // What was not exposed has no other user, and never will.
        if !self.pages.is_exposed() {
            return None;
        }
        if self.pages.host().is_some_and(|host| host.has_keeper()) {
            return Some(User::Keeper);
        }
        if is_due || self.disagreed != 0 {
            return Some(User::PageCache);
        }
        let page = self.first_used(next)?;
        if page.is_referenced() {
            Some(User::Pin)
        } else {
            Some(User::PageCache)
        }
    }

    fn first_used(&self, next: &mut u64) -> Option<UsedPage<'_>> {
        let page = self.pages.first_used(*next);

        *next = page.as_ref().map_or(u64::MAX, |page| page.frames().start);
        page
    }

    /// Takes everything away.
    ///
    /// # Safety
    ///
    /// There must be no user, and the gate must be closed.
    unsafe fn unmap(self) {
        let mut this = ManuallyDrop::new(self);

        // SAFETY: By the safety requirements no page is in use, no translation is under way or
        // begins, and nothing has an address.
        unsafe { this.pages.unmap() };
        this.pool.release(|_| true);
        // SAFETY: Each field is dropped once, since `this` is not dropped. The count has no holds.
        unsafe {
            ManuallyDrop::drop(&mut this.pages);
            core::ptr::drop_in_place(&mut this.pool);
            ManuallyDrop::drop(&mut this.registered);
        }
    }

    /// Waits, for as long as it takes, until there is no user.
    fn wait_unused(&mut self) {
        let mut next = 0;
        let mut is_due = true;
        let mut waited: Msecs = 0;

        loop {
            let is_dead = self.pages.is_unused();
            match self.first_user(&mut next, is_due) {
                None => return,
                Some(User::PageCache) => {
                    self.walk();
                    is_due = !is_dead;
                }
                Some(User::Reference | User::Keeper | User::Pin) => {}
            }
            sleep(PAUSE);
            waited = waited.wrapping_add(PAUSE);
            if waited % MINUTE == 0 {
                pr_warn!(
                    "still waiting for users of {}, whose memory map goes with the medium\n",
                    self.pages.reservation_name().first()
                );
            }
        }
    }
}

impl<T: PagemapOperations> Drop for Owner<T> {
    fn drop(&mut self) {
        self.pages.close_gate();
        self.pages.kill();

        if self.pages.memmap_is_on_media() {
            // What was about to use a page when it was looked at has done so after the grace periods.
            loop {
                self.wait_unused();
                self.pages.synchronize();
                if self.pages.first_used(0).is_none() {
                    break;
                }
            }
        } else if self.pages.is_exposed() || !self.pages.wait_timeout(PATIENCE) {
            pr_warn!(
                "{} was dropped while it may be in use: it stays mapped and reserved until reboot\n",
                self.pages.reservation_name().first()
            );
            // SAFETY: The field is not used after this. The others are leaked, but for the pool.
            unsafe { ManuallyDrop::take(&mut self.registered) }.leak();
            self.pool.release(|_| true);
            return;
        }

        // SAFETY: There is no user: that was waited for, and looked at again after the grace periods;
        // or no page was ever exposed and no reference is left. The gate is closed. Each field is
        // dropped once.
        unsafe {
            self.pages.unmap();
            ManuallyDrop::drop(&mut self.pages);
            ManuallyDrop::drop(&mut self.registered);
        }
        self.pool.release(|_| true);
    }
}

/// The owner of a pgmap that can be translated.
///
/// Offsets, and what it dereferences to, are those of [`PagemapInner`].
///
/// # Examples
///
/// ```no_run
/// use kernel::{
///     prelude::*,
///     str::CString, //
/// };
/// use pmem_rs::abstractions::{
///     kernel::{
///         fs::dax::Pagemap,
///         memremap::{
///             Node,
///             PagemapConfig,
///             PagemapOperations, //
///         },
///         percpu_ref::Ref, //
///     },
///     kernel_ext::{
///         io::resource::MemRegion,
///         workqueue::OwnedQueue, //
///     }, //
/// };
///
/// struct Unprepared;
///
/// impl PagemapOperations for Unprepared {
///     fn memory_failure(&self, _offset: u64, _len: u64, _flags: c_int) -> Result {
///         // Leaves it to the memory management.
///         Err(EOPNOTSUPP)
///     }
///
///     fn has_failed(&self, _offset: u64, _len: u64) {}
/// }
///
/// fn map(
///     reservation: MemRegion,
///     node: Node,
///     queue: Ref<OwnedQueue>,
/// ) -> Result<Pagemap<Unprepared>> {
///     let config = PagemapConfig::new(reservation.start(), reservation.len())?;
///
///     Pagemap::new(config, reservation, node, Unprepared, queue)
/// }
/// ```
///
/// Memory that was not revoked cannot be unmapped:
///
/// ```compile_fail,E0599
/// use pmem_rs::abstractions::kernel::{
///     fs::dax::Closed,
///     memremap::PagemapOperations, //
/// };
///
/// fn unmap<T: PagemapOperations>(closed: Closed<T>) {
///     let _ = closed.unmap();
/// }
/// ```
///
/// And what was closed cannot be used as if it were open:
///
/// ```compile_fail,E0382
/// use pmem_rs::abstractions::kernel::{
///     fs::dax::Pagemap,
///     memremap::PagemapOperations, //
/// };
///
/// fn close<T: PagemapOperations>(pages: Pagemap<T>) {
///     let closed = pages.close();
///     let _ = pages.reference();
///     drop(closed);
/// }
/// ```
pub struct Pagemap<T: PagemapOperations>(Owner<T>);

impl<T: PagemapOperations> Pagemap<T> {
    /// Makes the `struct page`s of a range and maps it. May sleep, takes the memory hotplug lock.
    ///
    /// References to files are put on `queue`; putting one may wait for a file system.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is not in the reservation, or is not aligned as the memory map needs
    /// it (`memremap_compat_align()`), [`ENOMEM`], and what the architecture fails with.
    pub fn new(
        config: PagemapConfig,
        reservation: MemRegion,
        node: Node,
        ops: T,
        queue: Ref<OwnedQueue>,
    ) -> Result<Self> {
        let registered = Registered::new()?;
        let name = CString::try_from_fmt(fmt!("{}", reservation.name().first()))?;
        let pool = InodePool::new(name, queue)?;
        // SAFETY: The owner does not drop the value before it has unmapped it. Nothing fails once
        // the value was initialised, which is the last that the count does.
        let inner = unsafe { PagemapInner::new(config, reservation, node, ops) }?;
        let pages = Counted::pin_init(inner)?;

        // INVARIANT: Just mapped.
        Ok(Self(Owner {
            pages: ManuallyDrop::new(pages),
            pool,
            disagreed: 0,
            registered: ManuallyDrop::new(registered),
        }))
    }

    /// Returns a reference to the pgmap, which keeps it; none once it was closed to mappings.
    pub fn reference(&self) -> Option<PagemapRef<T>> {
        self.0.pages.try_get()
    }

    /// Refuses translations that ask for a page frame number, and new references, and unmaps what
    /// files have mapped.
    ///
    /// So no page can be pinned any more that is not pinned already. Files that have pinned pages,
    /// or faults under way, are kept: the removal of a disk evicts files that have no reference,
    /// which waits for pins. The number of files that can be kept is limited; beyond that this
    /// waits, and says so.
    ///
    /// Returns what files have of the memory.
    ///
    /// Sleeps. Waits for mounts and unmounts of file systems with DAX that are under way.
    pub fn close_to_mappings(&mut self) -> Walked {
        let mut walked = Walked::default();
        self.0.pages.refuse_mappings();
        self.0.pages.kill();
        if !self.0.pages.is_exposed() {
            return walked;
        }

        let pages = &self.0.pages;
        let may_go = |inode: &Inode| !FileMapping::new(inode).count(pages).1;
        let mut walk = Walk::new(&self.0.pool, &may_go);
        while let Some(inode) = walk.next() {
            let file = FileMapping::new(inode);
            if !file.may_use(pages) {
                continue;
            }

            let (pages, is_pinned) = file.unmap(pages);
            walked.pages = walked.pages.saturating_add(pages);
            walked.inodes = walked.inodes.saturating_add(u64::from(pages != 0));
            if is_pinned {
                self.0.pool.keep(inode, &may_go);
            }
        }
        walked
    }

    /// Refuses all translations. Does not sleep.
    pub fn close(mut self) -> Closed<T> {
        self.0.pages.close_gate();
        self.0.pages.kill();

        Closed(self.0)
    }
}

impl<T: PagemapOperations> Deref for Pagemap<T> {
    type Target = PagemapInner<T>;

    fn deref(&self) -> &PagemapInner<T> {
        &self.0.pages
    }
}

/// The owner of a pgmap of which no translation succeeds any more.
pub struct Closed<T: PagemapOperations>(Owner<T>);

impl<T: PagemapOperations> Closed<T> {
    /// Takes the memory away from all files: unmaps it everywhere, waits for page faults that are
    /// under way, writes dirty pages back, and deletes the entries of pages that are not pinned.
    ///
    /// Sleeps. Waits for mounts and unmounts of file systems with DAX that are under way, and for
    /// page faults of files that use the memory, or may. Takes the invalidate lock of such files,
    /// so none of the locks that are taken inside of page faults may be held.
    pub fn revoke(mut self) -> (Revoked<T>, Walked) {
        let is_dead = self.0.pages.is_unused();
        let walked = self.0.walk();

        (
            Revoked {
                owner: self.0,
                is_due: !is_dead,
                next: 0,
            },
            walked,
        )
    }
}

/// The owner of a pgmap that was taken away from all files.
pub struct Revoked<T: PagemapOperations> {
    owner: Owner<T>,
    /// The last walk began while there were references to the pgmap, so that another one is due.
    is_due: bool,
    /// Pages before this one are not in use.
    next: u64,
}

impl<T: PagemapOperations> Revoked<T> {
    /// Goes through the files again, for pages that were pinned the last time. As
    /// [`Closed::revoke`].
    pub fn revoke(&mut self) -> Walked {
        self.is_due = !self.owner.pages.is_unused();
        self.owner.walk()
    }

    /// Finds a user of the memory. Sleeps; takes as long as there are exposed pages.
    pub fn first_user(&mut self) -> Option<User> {
        self.owner.first_user(&mut self.next, self.is_due)
    }

    /// Waits for a user to go, for at most `limit` milliseconds. Sleeps. Does not wait for
    /// [`User::PageCache`].
    pub fn wait_for(&mut self, user: User, limit: Msecs) {
        match user {
            User::Reference => {
                self.owner.pages.wait_timeout(limit);
            }
            User::Keeper => {
                // It may be below a file system that kept files keep. Those with pins stay: the
                // last reference to their superblock would be put under its lock, and wait for the
                // pins.
                let pages = &self.owner.pages;
                self.owner
                    .pool
                    .release(|inode| !FileMapping::new(inode).count(pages).1);
                if let Some(host) = self.owner.pages.host() {
                    host.wait_closed(limit);
                }
            }
            User::Pin => {
                if let Some(page) = self.owner.first_used(&mut self.next) {
                    page.wait_idle(limit);
                }
            }
            User::PageCache => {}
        }
    }

    /// Waits, for at most `limit` milliseconds, until the references to files that this has put are
    /// gone. Sleeps.
    pub fn wait_put(&self, limit: Msecs) {
        self.owner.pool.wait_put(limit);
    }

    /// Takes pages, mapping and reservation away. Sleeps: waits for grace periods and the memory
    /// hotplug lock.
    ///
    /// # Errors
    ///
    /// If there is a user, the owner is returned.
    pub fn unmap(mut self) -> Result<(), Self> {
        if self.first_user().is_some() {
            return Err(self);
        }
        // What was about to use a page when it was looked at has done so then.
        self.owner.pages.synchronize();
        self.next = 0;
        if self.first_user().is_some() {
            return Err(self);
        }

        // SAFETY: By its type the gate is closed, and the memory was revoked. No reference to the
        // pgmap is left, so no translation is under way; no keeper has an address; no page is in
        // use.
        unsafe { self.owner.unmap() };
        Ok(())
    }
}

impl<T: PagemapOperations> Deref for Revoked<T> {
    type Target = PagemapInner<T>;

    fn deref(&self) -> &PagemapInner<T> {
        &self.owner.pages
    }
}

/// What the tests of other files need too.
#[cfg(CONFIG_KUNIT = "y")]
pub(in crate::abstractions) mod testing {
    use super::*;

    /// A pgmap, and the queue that it needs.
    pub(in crate::abstractions) struct TestPagemap<T: PagemapOperations> {
        // In this order: the queue waits for the pgmap.
        pub(in crate::abstractions) pages: Pagemap<T>,
        pub(in crate::abstractions) queue: Counted<OwnedQueue>,
    }

    impl<T: PagemapOperations> TestPagemap<T> {
        /// Maps a range.
        pub(in crate::abstractions) fn new(
            config: PagemapConfig,
            reservation: MemRegion,
            ops: T,
        ) -> Result<Self> {
            let queue = Counted::new(OwnedQueue::for_io(c"pmem_rs_test")?)?;
            let hold = queue.try_get().ok_or(EINVAL)?;

            Ok(Self {
                pages: Pagemap::new(config, reservation, Node(0), ops, hold)?,
                queue,
            })
        }
    }

    impl<T: PagemapOperations> Deref for TestPagemap<T> {
        type Target = PagemapInner<T>;

        fn deref(&self) -> &PagemapInner<T> {
            &self.pages
        }
    }

    /// Memory that nothing is asked of.
    pub(in crate::abstractions) struct Silent;

    impl PagemapOperations for Silent {
        fn memory_failure(&self, _offset: u64, _len: u64, _flags: c_int) -> Result {
            Err(EOPNOTSUPP)
        }

        fn has_failed(&self, _offset: u64, _len: u64) {}
    }

    /// A section of the memory map, so that all architectures can map it.
    pub(in crate::abstractions) const LEN: kernel::io::ResourceSize = 128 << 20;

    /// The pages of a range where there is no memory; nothing may be read or written.
    pub(in crate::abstractions) fn pages() -> Result<TestPagemap<Silent>> {
        let start = crate::abstractions::kernel_ext::io::resource::free_range(LEN)?;
        let name = CString::try_from_fmt(fmt!("pmem_rs test"))?;

        TestPagemap::new(
            PagemapConfig::new(start, LEN)?,
            MemRegion::request(start, LEN, name)?,
            Silent,
        )
    }
}

#[kunit_tests(pmem_rs_fs_dax)]
mod tests {
    use super::{
        testing::{
            pages,
            TestPagemap, //
        },
        *, //
    };
    use crate::abstractions::bindings;

    /// A page of a pgmap that says that it has a reference.
    struct Referenced(*mut bindings::page);

    impl Referenced {
        fn new<T: PagemapOperations>(pages: &PagemapInner<T>, pgoff: u64) -> Self {
            // SAFETY: The frame has a page, which nothing else knows.
            let page = unsafe { bindings::pfn_to_page((pages.frames().start + pgoff) as c_ulong) };
            // SAFETY: The page stays until the test is over; the count is that of a page that was
            // just mapped.
            unsafe { (*page)._refcount.counter = 1 };
            Self(page)
        }
    }

    impl Drop for Referenced {
        fn drop(&mut self) {
            // SAFETY: The page is there, since it was in use until now.
            unsafe { (*self.0)._refcount.counter = 0 };
        }
    }

    #[test]
    fn memory_that_was_never_exposed_goes_when_it_is_dropped() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let (start, len) = (pages.phys(), pages.slice().len() as u64);
        let reference = pages.reference().ok_or(EINVAL)?;

        drop(reference);
        drop(pages);
        drop(queue);
        MemRegion::request(start, len, CString::try_from_fmt(fmt!("pmem_rs test"))?)?;
        Ok(())
    }

    #[test]
    fn a_reference_keeps_revoked_memory() -> Result {
        let TestPagemap { mut pages, queue } = pages()?;
        let reference = pages.reference().ok_or(EINVAL)?;

        pages.close_to_mappings();
        assert!(pages.reference().is_none());
        let (mut revoked, walked) = pages.close().revoke();
        assert_eq!(walked, Walked::default());
        assert_eq!(revoked.first_user(), Some(User::Reference));
        let Err(mut revoked) = revoked.unmap() else {
            return Err(EINVAL);
        };
        revoked.wait_for(User::Reference, 10);
        drop(reference);
        revoked.wait_for(User::Reference, 1000);
        assert!(revoked.unmap().is_ok());
        drop(queue);
        Ok(())
    }

    #[test]
    fn a_pinned_page_keeps_revoked_memory() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let page = Referenced::new(&pages, 5);

        // As long as it was not exposed, it cannot have been pinned.
        assert!(pages.first_used(0).is_none());
        pages.pages.expose(5, 1);
        assert_eq!(pages.count_used(0, 10_000).0.referenced, 1);
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        // The walk began while there was a reference, for all that is known.
        assert_eq!(revoked.first_user(), Some(User::PageCache));
        revoked.revoke();
        assert_eq!(revoked.first_user(), Some(User::Pin));
        let Err(mut revoked) = revoked.unmap() else {
            return Err(EINVAL);
        };
        revoked.wait_for(User::Pin, 10);
        assert_eq!(revoked.first_user(), Some(User::Pin));
        drop(page);
        assert_eq!(revoked.first_user(), None);
        assert!(revoked.unmap().is_ok());
        drop(queue);
        Ok(())
    }
}

/// Safe code that drops or forgets in the wrong order. What it leaks stays until reboot, so these
/// tests have a boot of their own (suite `misuse`). The suite also looks for an oops afterwards,
/// and that the module is not unloaded.
#[kunit_tests(pmem_rs_x_misuse)]
mod misuse {
    use super::{
        testing::{
            pages,
            TestPagemap, //
        },
        *, //
    };
    use crate::abstractions::{
        bindings,
        kernel::dax::{
            self,
            AccessMode,
            Extent,
            Properties,
            ReadLocked, //
        },
        kernel_ext::iov::IterSource, //
    };

    struct Memory;

    impl<P: PagemapOperations> dax::Operations<P> for Memory {
        fn direct_access<'g>(
            &'g self,
            _pages: &'g PagemapInner<P>,
            extent: Extent<'g>,
            _nr_pages: usize,
            _mode: AccessMode,
        ) -> Result<Extent<'g>> {
            Ok(extent)
        }

        fn zero_page_range(&self, _: ReadLocked<'_>, _: usize, _: usize) -> Result {
            Err(EIO)
        }

        fn recovery_write(
            &self,
            _: ReadLocked<'_>,
            _: usize,
            _: usize,
            _: usize,
            _: &mut IterSource<'_>,
        ) -> usize {
            0
        }
    }

    const PROPERTIES: Properties = Properties {
        synchronous: true,
        write_cache: false,
    };

    fn device<P: PagemapOperations>(pages: &Pagemap<P>) -> Result<dax::Registration<Memory, P>> {
        dax::Registration::new(Arc::new(Memory, GFP_KERNEL)?, pages.reference(), PROPERTIES)
    }

    /// Returns whether the range of a pgmap is still reserved, as that of a leaked one is.
    fn is_reserved(start: u64) -> Result<bool> {
        let name = CString::try_from_fmt(fmt!("pmem_rs test"))?;

        Ok(MemRegion::request(start, 4096, name).is_err())
    }

    /// The memory map of a leaked range is there: a fault that is between `dax_read_unlock` and
    /// `dax_insert_entry` writes to it.
    fn use_page(start: u64) {
        // SAFETY: The range was leaked, so its pages stay until reboot. No test gives it to others.
        unsafe {
            let page = bindings::pfn_to_page((start >> kernel::page::PAGE_SHIFT) as c_ulong);
            (*page)._refcount.counter = 1;
            (*page)._refcount.counter = 0;
        }
    }

    #[test]
    fn a_device_and_its_exposed_memory_that_are_just_dropped_leak() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.phys();
        let device = device(&pages)?;
        pages.pages.expose(0, 1);

        drop(device);
        drop(pages);
        assert!(is_reserved(start)?);
        use_page(start);
        // The leaked owner has a reference to it.
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn memory_that_is_dropped_before_its_device_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.phys();
        let device = device(&pages)?;
        pages.pages.expose(0, 1);

        drop(pages);
        assert!(is_reserved(start)?);
        drop(device);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn memory_whose_device_was_forgotten_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.phys();

        core::mem::forget(device(&pages)?);
        // This waits, in case that the last reference is just being put.
        drop(pages);
        assert!(is_reserved(start)?);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn revoked_memory_with_a_pin_that_is_dropped_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.phys();
        pages.pages.expose(0, 1);

        drop(pages.close().revoke());
        assert!(is_reserved(start)?);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn forgotten_memory_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.phys();

        core::mem::forget(pages);
        assert!(is_reserved(start)?);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }
}
