// SPDX-License-Identifier: GPL-2.0

//! The states of the owner of a pgmap, as types that consume each other.

use super::{
    owner::{
        Owner,
        User, //
    },
    unmapper::Unmapper,
    walk::Walked, //
};
use crate::abstractions::kernel::{
    memremap::{
        PagemapConfig,
        PagemapInner,
        PagemapOperations,
        PagemapRef, //
    },
    numa::Node,
    percpu_ref::Ref, //
};
use crate::abstractions::kernel_ext::{
    io::resource::MemRegion,
    time::Stopwatch,
    workqueue::OwnedQueue, //
};
use core::ops::Deref;
use kernel::{
    prelude::*,
    time::Msecs, //
};

/// The owner of a pgmap whose translations succeed. After [`Self::close_to_mappings`] only those
/// without page frame numbers do.
///
/// It dereferences to [`PagemapInner`]. Offsets are those in the data.
///
/// # Examples
///
/// ```no_run
/// use kernel::prelude::*;
/// use kernel::str::CString;
/// use pmem_rs::abstractions::kernel::fs::dax::Pagemap;
/// use pmem_rs::abstractions::kernel::memremap::{
///     Failure,
///     PagemapConfig,
///     PagemapOperations, //
/// };
/// use pmem_rs::abstractions::kernel::numa::Node;
/// use pmem_rs::abstractions::kernel::percpu_ref::Ref;
/// use pmem_rs::abstractions::kernel_ext::io::resource::MemRegion;
/// use pmem_rs::abstractions::kernel_ext::workqueue::OwnedQueue;
///
/// struct Unprepared;
///
/// impl PagemapOperations for Unprepared {
///     fn memory_failure(&self, _failure: &Failure<'_>) -> Result {
///         // The memory management then kills the users.
///         Err(EOPNOTSUPP)
///     }
///
///     fn record_failure(&self, _offset: u64, _len: u64) {}
/// }
///
/// fn map(
///     reservation: MemRegion,
///     node: Node,
///     queue: Ref<OwnedQueue>,
/// ) -> Result<Pagemap<Unprepared>> {
///     let config = PagemapConfig::new(reservation.start(), reservation.len())?;
///
///     // A value that need not be pinned is its own initialiser.
///     Pagemap::new(config, reservation, node, Ok(Unprepared), queue)
/// }
/// ```
///
/// Memory that was not revoked cannot be freed:
///
/// ```compile_fail,E0599
/// use pmem_rs::abstractions::kernel::fs::dax::Closed;
/// use pmem_rs::abstractions::kernel::memremap::PagemapOperations;
///
/// fn free<T: PagemapOperations>(closed: Closed<T>) {
///     let _ = closed.free();
/// }
/// ```
///
/// Only the walk revokes memory from files. Its range is that of the pgmap, and cannot be chosen:
///
/// ```compile_fail,E0603
/// use pmem_rs::abstractions::kernel::fs::dax::mapping::FileMapping;
/// ```
///
/// ```compile_fail,E0061
/// use pmem_rs::abstractions::kernel::fs::dax::Closed;
/// use pmem_rs::abstractions::kernel::memremap::PagemapOperations;
///
/// fn revoke<T: PagemapOperations>(closed: Closed<T>) {
///     let _ = closed.revoke(&(0..u64::MAX));
/// }
/// ```
///
/// A closed pgmap cannot be used as an open one:
///
/// ```compile_fail,E0382
/// use pmem_rs::abstractions::kernel::fs::dax::Pagemap;
/// use pmem_rs::abstractions::kernel::memremap::PagemapOperations;
///
/// fn close<T: PagemapOperations>(pages: Pagemap<T>) {
///     let closed = pages.close();
///     let _ = pages.reference();
///     drop(closed);
/// }
/// ```
pub struct Pagemap<T: PagemapOperations>(Owner<T>);

impl<T: PagemapOperations> Pagemap<T> {
    /// Makes the `struct page`s of a range and maps it. May sleep. Takes the memory hotplug lock.
    ///
    /// References to files are put on `queue`. Putting one may wait for a file system.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is not in the reservation, or is not aligned as the memory map needs
    /// it (`compat_align`, `start_align`), [`ENODEV`] while the module is being unloaded,
    /// [`ENOMEM`], and the errors of `ops` and of the architecture.
    pub fn new(
        config: PagemapConfig<'_>,
        reservation: MemRegion,
        node: Node,
        ops: impl PinInit<T, Error>,
        queue: Ref<OwnedQueue>,
    ) -> Result<Self> {
        Owner::new(config, reservation, node, ops, queue).map(Self)
    }

    /// Returns a reference to the pgmap, which keeps it, or [`None`] after
    /// [`Self::close_to_mappings`].
    pub fn reference(&self) -> Option<PagemapRef<T>> {
        self.0.pgmap().try_get()
    }

    /// Refuses translations that ask for a page frame number, and new references, and unmaps all
    /// files that may use the memory. Returns how many files have pages of it, and how many pages.
    ///
    /// No page can be pinned after this that is not pinned already, unless a fault that is under
    /// way maps it. Files with pinned pages or faults under way are kept, because the removal of a
    /// disk evicts files without a reference, which waits for pins. If there is no memory to keep
    /// more files, this waits and logs that it does.
    ///
    /// Sleeps. If the disk ever had an indirect claim, waits for mounts and unmounts of file
    /// systems with DAX that are under way.
    pub fn close_to_mappings(&mut self) -> Walked {
        self.0.refuse_mappings();
        self.0.unmap_files()
    }

    /// Returns a reference with which the files can be unmapped, or [`None`] after
    /// [`Self::close_to_mappings`].
    pub fn unmapper(&self) -> Option<Unmapper<T>> {
        self.0.unmapper()
    }

    /// Refuses all translations and new references. May sleep.
    pub fn close(mut self) -> Closed<T> {
        self.0.refuse_access();
        Closed(self.0)
    }
}

impl<T: PagemapOperations> Deref for Pagemap<T> {
    type Target = PagemapInner<T>;

    fn deref(&self) -> &PagemapInner<T> {
        self.0.pgmap()
    }
}

/// The owner of a pgmap whose translations all fail.
pub struct Closed<T: PagemapOperations>(Owner<T>);

impl<T: PagemapOperations> Closed<T> {
    /// Revokes the memory from all files: unmaps it everywhere, waits for page faults that are
    /// under way, writes dirty pages back, and deletes the entries of pages that are not pinned.
    /// Entries of files that a thread writes to or truncates stay until [`Revoked::revoke`].
    ///
    /// Sleeps. Waits for page faults of files that may use the memory, and, if the disk ever had an
    /// indirect claim, for mounts and unmounts of file systems with DAX that are under way.
    /// Takes the inode lock (`i_rwsem`) of such files if it is free, and the invalidate lock. So
    /// neither `mmap_lock` nor the locks that are taken inside of page faults may be held.
    pub fn revoke(self) -> (Revoked<T>, Walked) {
        let mut revoked = Revoked {
            owner: self.0,
            walk_needed: true,
            next: 0,
            released: None,
        };
        let walked = revoked.revoke();

        (revoked, walked)
    }
}

/// The owner of a pgmap that was revoked from all files.
pub struct Revoked<T: PagemapOperations> {
    pub(super) owner: Owner<T>,
    /// The last walk began while there were references to the pgmap, so another one is needed.
    walk_needed: bool,
    /// Page frames before this one were idle when they were last checked.
    next: u64,
    /// The time since kept files were looked at the last time, and the duration of that in
    /// microseconds.
    released: Option<(Stopwatch, u64)>,
}

impl<T: PagemapOperations> Revoked<T> {
    /// Revokes the memory again, as [`Closed::revoke`], from files that still have entries. If that
    /// deletes pages of the files that [`Pagemap::close_to_mappings`] has kept, only those are
    /// looked at, and the result is empty.
    ///
    /// Once no file is mapped any more, this also waits for threads that write to a file without
    /// pinned pages, or truncate it. A signal ends this wait.
    pub fn revoke(&mut self) -> Walked {
        self.owner.revoke_again(&mut self.walk_needed)
    }

    /// Returns a user of the memory, or [`None`] if it can be freed. Sleeps. Takes time in
    /// proportion to the exposed pages.
    pub fn first_user(&mut self) -> Option<User> {
        self.owner.first_user(&mut self.next, self.walk_needed)
    }

    /// Waits until a user is gone, for at most `limit` milliseconds. Sleeps. Returns at once for
    /// [`User::PageCache`].
    pub fn wait_for(&mut self, user: User, limit: Msecs) {
        self.release_files();
        match user {
            User::Reference => {
                self.owner.pgmap().wait_timeout(limit);
            }
            User::Keeper => {
                if let Some(host) = self.owner.pgmap().host() {
                    host.wait_released(limit);
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

    /// Puts the references to kept files without pins. They hold their file system, which may hold
    /// a device-mapper table, and that table may be the keeper. Files with pins stay: the last
    /// reference to their superblock would be put under its lock, and wait for the pins.
    fn release_files(&mut self) {
        // Files may be large. At most a tenth of the time is spent here.
        if let Some((last, took)) = &self.released {
            if last.micros() < took.saturating_mul(10) {
                return;
            }
        }

        let began = Stopwatch::start();
        self.owner.release_files();
        self.released = Some((Stopwatch::start(), began.micros()));
    }

    /// Waits, for at most `limit` milliseconds, until the worker has put all references to files
    /// that are not kept. Sleeps.
    pub fn wait_put(&self, limit: Msecs) {
        self.owner.wait_put(limit);
    }

    /// Frees pages, mapping and reservation. Sleeps. Waits for grace periods and the memory hotplug
    /// lock.
    ///
    /// # Errors
    ///
    /// If there is a user, the owner is returned.
    pub fn free(mut self) -> Result<(), Self> {
        if self.first_user().is_some() {
            return Err(self);
        }
        // A thread may use a page just after it was seen idle, until a grace period has passed.
        self.owner.pgmap().synchronize();
        self.next = 0;
        if self.first_user().is_some() {
            return Err(self);
        }

        // SAFETY: By the type, translations are refused and the memory was revoked. No reference to
        // the pgmap is left, so no translation is under way; no keeper has an address; no page is
        // in use.
        unsafe { self.owner.free() };
        Ok(())
    }
}

impl<T: PagemapOperations> Deref for Revoked<T> {
    type Target = PagemapInner<T>;

    fn deref(&self) -> &PagemapInner<T> {
        self.owner.pgmap()
    }
}

#[kunit_tests(pmem_rs_fs_dax)]
mod tests {
    use super::*;
    use crate::abstractions::{
        kernel::fs::dax::testing::{
            associate,
            associate_with_several,
            pages,
            pages_on_medium,
            Referenced,
            TestFile,
            TestPagemap, //
        },
        kernel_ext::sync::completion::Completion, //
    };
    use kernel::{
        str::CString,
        sync::Arc, //
    };

    #[test]
    fn memory_that_was_never_exposed_goes_when_it_is_dropped() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let (start, len) = (pages.data_start(), pages.size() as u64);
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
        let Err(mut revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        revoked.wait_for(User::Reference, 10);
        drop(reference);
        revoked.wait_for(User::Reference, 1000);
        assert!(revoked.free().is_ok());
        drop(queue);
        Ok(())
    }

    #[test]
    fn a_pinned_page_keeps_revoked_memory() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let page = Referenced::new(&pages, 5);

        // A page that was not exposed is not checked: it cannot have been pinned.
        assert!(pages.first_used(0).is_none());
        pages.page_states.expose(5, 1);
        assert_eq!(pages.count_used(0, 10_000).0.referenced, 1);
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        // The walk may have begun while there was a reference.
        assert_eq!(revoked.first_user(), Some(User::PageCache));
        revoked.revoke();
        assert_eq!(revoked.first_user(), Some(User::Pin));
        let Err(mut revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        revoked.wait_for(User::Pin, 10);
        assert_eq!(revoked.first_user(), Some(User::Pin));
        drop(page);
        assert_eq!(revoked.first_user(), None);
        assert!(revoked.free().is_ok());
        drop(queue);
        Ok(())
    }

    #[test]
    fn a_page_of_a_file_keeps_revoked_memory() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let frame = pages.frames().start + 5;
        let file = TestFile::new()?;

        pages.page_states.expose(5, 1);
        // No walk finds the file. The page has no reference.
        associate(frame, file.mapping().as_raw());
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        revoked.revoke();
        let of_a_file = revoked.first_user();
        let Err(mut revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        associate_with_several(frame, 1);
        let of_several = revoked.first_user();
        let Err(revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        associate_with_several(frame, 0);
        let is_free = revoked.free().is_ok();

        assert_eq!(of_a_file, Some(User::PageCache));
        assert_eq!(of_several, Some(User::PageCache));
        assert!(is_free);
        drop(queue);
        Ok(())
    }

    #[test]
    fn dropped_memory_with_its_pages_on_the_media_waits_for_its_users() -> Result {
        let TestPagemap { pages, queue } = pages_on_medium()?;
        let (start, len) = (pages.data_start(), pages.size() as u64);
        let reference = pages.reference().ok_or(EINVAL)?;
        let page = Referenced::new(&pages, 5);
        pages.page_states.expose(5, 1);

        let dropping = OwnedQueue::new(c"pmem_rs_test_drop")?;
        let dropped = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let done = dropped.clone();
        dropping.try_spawn(GFP_KERNEL, move || {
            drop(pages);
            done.complete_all();
        })?;
        // Each is longer than the pause between two walks. The users of memory that has gone must
        // not be used, even by a test that fails.
        let waits_for_reference = !dropped.wait_timeout(1500);
        if waits_for_reference {
            drop(reference);
        } else {
            core::mem::forget(reference);
        }
        let waits_for_pin = waits_for_reference && !dropped.wait_timeout(2500);
        if waits_for_pin {
            drop(page);
        } else {
            core::mem::forget(page);
        }
        let ends = dropped.wait_timeout(10_000);

        assert!(waits_for_reference);
        assert!(waits_for_pin);
        assert!(ends);
        drop(dropping);
        drop(queue);
        // It was not leaked.
        MemRegion::request(start, len, CString::try_from_fmt(fmt!("pmem_rs test"))?)?;
        Ok(())
    }
}

/// Safe code that drops or forgets values in the wrong order. What it leaks stays until reboot, so
/// these tests have a boot of their own (suite `misuse`). The suite also checks that there was no
/// oops, and that the module cannot be unloaded.
#[kunit_tests(pmem_rs_x_misuse)]
mod misuse {
    use super::*;
    use crate::abstractions::{
        kernel::{
            dax::{
                self,
                AccessMode,
                Extent,
                Properties,
                ReadLocked, //
            },
            fs::dax::testing::{
                is_reserved,
                pages,
                use_page,
                TestPagemap, //
            }, //
        },
        kernel_ext::iov::IterSource, //
    };
    use kernel::sync::Arc;

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

    #[test]
    fn a_device_and_its_exposed_memory_that_are_just_dropped_leak() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.data_start();
        let device = device(&pages)?;
        pages.page_states.expose(0, 1);

        drop(device);
        drop(pages);
        assert!(is_reserved(start)?);
        use_page(start);
        // Leaked like the memory. Only an owner that was forgotten would still have a reference to
        // it.
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn memory_that_is_dropped_before_its_device_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.data_start();
        let device = device(&pages)?;
        pages.page_states.expose(0, 1);

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
        let start = pages.data_start();

        core::mem::forget(device(&pages)?);
        // Waits, because the last reference could be about to be put.
        drop(pages);
        assert!(is_reserved(start)?);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn revoked_memory_that_is_dropped_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.data_start();
        pages.page_states.expose(0, 1);

        drop(pages.close().revoke());
        assert!(is_reserved(start)?);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }

    #[test]
    fn forgotten_memory_leaks() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let start = pages.data_start();

        core::mem::forget(pages);
        assert!(is_reserved(start)?);
        use_page(start);
        core::mem::forget(queue);
        Ok(())
    }
}
