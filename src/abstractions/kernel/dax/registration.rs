// SPDX-License-Identifier: GPL-2.0

//! DAX devices that are alive.

use super::{
    callbacks::Private,
    device::Handle,
    host::Host,
    operations::Operations, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::{
    block::gendisk::{
        self,
        GenDisk, //
    },
    memremap::{
        PagemapOperations,
        PagemapRef, //
    }, //
};
use crate::abstractions::kernel_ext::module::Registered;
use core::ptr::{
    null,
    NonNull, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The properties of a device that the DAX core asks for.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// Data is durable after a CPU cache flush alone, so `MAP_SYNC` is possible.
    pub synchronous: bool,
    /// CPU caches are not durable, so the DAX core must flush them.
    pub write_cache: bool,
}

/// A DAX device that is alive.
///
/// Dropping it kills the device: it can no longer be found, no translation begins, and all
/// translations have ended. Sleeps, and waits for all `dax_read_lock` sections of the system. So
/// none of the locks that are taken inside of them (`mmap_lock`, `invalidate_lock`, `s_umount`) may
/// be held.
///
/// If the device had a host, its holder is released before the device is killed, whether the disk
/// was removed or not. Otherwise `kill_dax()` would call the failure handler of the file system.
/// That of xfs must not run while xfs is being unmounted (`docs/kernel-bugs.md`).
///
/// # Examples
///
/// A driver cannot release the holder of a device that is alive:
///
/// ```compile_fail,E0624
/// use pmem_rs::abstractions::kernel::dax::Handle;
///
/// fn release(device: &Handle) {
///     device.release_holder();
/// }
/// ```
///
/// # Invariants
///
/// The device of `handle` was made by `alloc_dax` with `private`, a box in its raw form, as its
/// private data, and is alive.
pub struct Registration<T: Operations<P>, P: PagemapOperations> {
    /// Dropped before the device is killed: a thread that finds the device by its disk, under
    /// `dax_read_lock`, relies on `kill_dax` waiting for the lock.
    host: Option<Host>,
    handle: Arc<Handle>,
    private: NonNull<Private<T, P>>,
    // Dropped last.
    _registered: Registered,
}

// SAFETY: A device may be killed by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Operations<P>, P: PagemapOperations> Send for Registration<T, P> {}

// SAFETY: Through a shared reference only the handle is accessible, which is `Sync`.
unsafe impl<T: Operations<P>, P: PagemapOperations> Sync for Registration<T, P> {}

impl<T: Operations<P>, P: PagemapOperations> Registration<T, P> {
    /// Makes a device for the memory of `pgmap`. File systems do not find it until it has a host.
    /// Without a pgmap, all translations fail. May sleep.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] on architectures that cannot have DAX devices.
    pub fn new(data: Arc<T>, pgmap: Option<PagemapRef<P>>, properties: Properties) -> Result<Self> {
        let registered = Registered::new()?;
        let raw_pgmap = pgmap.as_ref().map_or(null(), |pgmap| pgmap.as_raw());
        let private = KBox::new(Private::new(data, pgmap), GFP_KERNEL)?;
        let ops = private.ops();
        let private = KBox::into_raw(private);

        // SAFETY: The operations are those for the private data, which is dropped after the device
        // was killed. The registration kills it, and has a reference until then.
        let handle = unsafe { Handle::new(private.cast(), ops, raw_pgmap) }.inspect_err(|_| {
            // SAFETY: The pointer comes from `into_raw`, and no device refers to it.
            drop(unsafe { KBox::from_raw(private) });
        })?;

        let dev = handle.as_raw();
        // SAFETY: The device is valid and known to nothing else.
        unsafe {
            // Writes of the DAX core go past the CPU caches, its reads survive machine checks.
            bindings::set_dax_nocache(dev);
            bindings::set_dax_nomc(dev);
            if properties.synchronous {
                bindings::set_dax_synchronous(dev);
            }
            bindings::dax_write_cache(dev, properties.write_cache);
        }

        // INVARIANT: The device was made with `private`.
        Ok(Self {
            host: None,
            handle,
            // SAFETY: The pointer of a box is not null.
            private: unsafe { NonNull::new_unchecked(private) },
            _registered: registered,
        })
    }

    /// Connects the device to a disk that is not added yet, by which file systems find it. May
    /// sleep.
    ///
    /// File systems look for it only if the queue of the disk has [`Features::DAX`].
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device, another one of the same memory, or the disk is connected already.
    ///
    /// [`Features::DAX`]: crate::abstractions::kernel::block::gendisk::Features::DAX
    pub fn set_host<D: gendisk::Operations>(&mut self, disk: &GenDisk<D>) -> Result {
        if self.host.is_some() {
            return Err(EBUSY);
        }
        // First, because the pgmap must know each disk by which a holder may find the device.
        // SAFETY: By the type invariant the box is there; it is only read.
        if let Some(pgmap) = unsafe { self.private.as_ref() }.pgmap() {
            pgmap.set_host(disk.state())?;
        }

        self.host = Some(Host::new(&self.handle, disk)?);
        Ok(())
    }

    /// Returns a reference to the device, which may be kept after it was killed.
    pub fn handle(&self) -> Arc<Handle> {
        self.handle.clone()
    }
}

impl<T: Operations<P>, P: PagemapOperations> Drop for Registration<T, P> {
    fn drop(&mut self) {
        // The holder is released, whether the disk was removed or not: `kill_dax()` would call the
        // failure handler of xfs, which must not run while xfs is being unmounted.
        if let Some(host) = self.host.take() {
            drop(host);
            self.handle.release_holder();
        }

        // SAFETY: By the type invariant the device is alive, and ours to kill.
        unsafe { bindings::kill_dax(self.handle.as_raw()) };

        // SAFETY: By the type invariant the pointer comes from `into_raw`. The device is dead and
        // no thread is in its operations, so the data is not used any more.
        drop(unsafe { KBox::from_raw(self.private.as_ptr()) });
    }
}

#[kunit_tests(pmem_rs_dax)]
mod tests {
    use super::*;
    use crate::abstractions::compat::error::code::EOPNOTSUPP;
    use crate::abstractions::{
        kernel::{
            dax::{
                AccessMode,
                Extent,
                ReadLocked, //
            },
            fs::dax::testing::{
                pages,
                pages_that_may_fail,
                Silent,
                TestPagemap, //
                LEN,
            },
            memremap::{
                Failure,
                PagemapInner, //
            },
        },
        kernel_ext::iov::IterSource, //
    };
    use core::ptr::null_mut;
    use kernel::{
        page::PAGE_SIZE,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Completion, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        types::Opaque,
        workqueue, //
    };

    const PROPERTIES: Properties = Properties {
        synchronous: true,
        write_cache: false,
    };

    /// The number of pages.
    const PAGES: usize = LEN as usize / PAGE_SIZE;

    struct Memory;

    impl<P: PagemapOperations> Operations<P> for Memory {
        fn direct_access<'g>(
            &'g self,
            _pages: &'g PagemapInner<P>,
            extent: Extent<'g>,
            _nr_pages: usize,
            mode: AccessMode,
        ) -> Result<Extent<'g>> {
            match (extent.pgoff(), mode) {
                (0, AccessMode::RecoveryWrite) => Err(EHWPOISON),
                (16, _) => Ok(extent.truncate(1)),
                _ => Ok(extent),
            }
        }

        fn zero_page_range(&self, _: ReadLocked<'_>, pgoff: usize, nr_pages: usize) -> Result {
            if (pgoff, nr_pages) == (3, 1) {
                Ok(())
            } else {
                Err(ERANGE)
            }
        }

        fn recovery_write(
            &self,
            _: ReadLocked<'_>,
            pgoff: usize,
            offset: usize,
            len: usize,
            _: &mut IterSource<'_>,
        ) -> usize {
            if pgoff == 0 {
                return len + 1;
            }
            len - pgoff - offset
        }
    }

    type Device = Registration<Memory, Silent>;
    type Callbacks = Private<Memory, Silent>;

    /// A device, and its memory. Exposed memory has to be revoked before the drop.
    struct Lab<P: PagemapOperations = Silent> {
        device: Registration<Memory, P>,
        memory: TestPagemap<P>,
    }

    impl Lab {
        fn new() -> Result<Self> {
            Self::of(pages()?)
        }
    }

    impl<P: PagemapOperations> Lab<P> {
        fn of(memory: TestPagemap<P>) -> Result<Self> {
            let device = Registration::new(
                Arc::new(Memory, GFP_KERNEL)?,
                memory.pages.reference(),
                PROPERTIES,
            )?;

            Ok(Self { device, memory })
        }

        /// The first page frame number.
        fn first(&self) -> usize {
            self.memory.frames().start as usize
        }

        /// Kills the device and frees the memory, which has no users.
        fn end(self) -> Result {
            let Self { device, memory } = self;

            drop(device);
            let (mut revoked, _) = memory.pages.close().revoke();
            while let Some(user) = revoked.first_user() {
                revoked.wait_for(user, 1000);
                revoked.revoke();
            }
            revoked.free().map_err(|_| EBUSY)
        }
    }

    /// Calls `dax_direct_access()` under `dax_read_lock()`, as a file system does.
    fn access(handle: &Handle, pgoff: usize, mode: bindings::dax_access_mode) -> (c_long, usize) {
        let mut pfn = 0;
        // SAFETY: The device is valid, and the lock is held around the call.
        let pages = unsafe {
            let id = bindings::dax_read_lock();
            let pages =
                bindings::dax_direct_access(handle.as_raw(), pgoff, 4, mode, null_mut(), &mut pfn);
            bindings::dax_read_unlock(id);
            pages
        };
        (pages, pfn)
    }

    #[test]
    fn a_translation_is_what_the_driver_says() -> Result {
        let lab = Lab::new()?;
        let (handle, first) = (lab.device.handle(), lab.first());
        let normal = bindings::dax_access_mode_DAX_ACCESS;

        // The DAX core does not return more than was asked for.
        assert!(access(&handle, 0, normal) == (4, first));
        assert!(access(&handle, PAGES - 2, normal) == (2, first + PAGES - 2));
        assert_eq!(access(&handle, PAGES, normal).0, ENXIO.to_errno() as c_long);
        let recovery = bindings::dax_access_mode_DAX_RECOVERY_WRITE;
        assert_eq!(
            access(&handle, 0, recovery).0,
            EHWPOISON.to_errno() as c_long
        );
        lab.end()
    }

    #[test]
    fn a_failed_page_is_not_translated() -> Result {
        let lab = Lab::of(pages_that_may_fail()?)?;
        let handle = lab.device.handle();
        let (normal, recovery) = (
            bindings::dax_access_mode_DAX_ACCESS,
            bindings::dax_access_mode_DAX_RECOVERY_WRITE,
        );
        let ehwpoison = EHWPOISON.to_errno() as c_long;

        assert_eq!(access(&handle, 0, normal).0, 4);
        let pgmap = lab.memory.as_raw().cast_mut();
        // SAFETY: The pgmap stays during the call. The memory management calls it like this.
        unsafe {
            let report = (*(*pgmap).ops).memory_failure.ok_or(EINVAL)?;
            report(pgmap, (lab.first() + 3) as c_ulong, 1, 0);
            report(pgmap, (lab.first() + 17) as c_ulong, 1, 0);
        }
        // The driver would translate it.
        assert_eq!(access(&handle, 0, normal).0, ehwpoison);
        assert_eq!(access(&handle, 3, normal).0, ehwpoison);
        assert!(access(&handle, 4, normal) == (4, lab.first() + 4));
        // The driver returns the page before it only.
        assert_eq!(access(&handle, 16, normal).0, ehwpoison);
        // What the driver says about a recovery write stands.
        assert!(access(&handle, 3, recovery) == (4, lab.first() + 3));
        lab.end()
    }

    #[test]
    fn page_frame_numbers_are_refused_before_access() -> Result {
        let lab = Lab::new()?;
        let normal = bindings::dax_access_mode_DAX_ACCESS;
        let enxio = ENXIO.to_errno() as c_long;
        let handle = lab.device.handle();
        let address = || {
            let mut address = null_mut();
            // SAFETY: The device is valid, and the lock is held.
            unsafe {
                let id = bindings::dax_read_lock();
                let pages = bindings::dax_direct_access(
                    handle.as_raw(),
                    0,
                    1,
                    normal,
                    &mut address,
                    null_mut(),
                );
                bindings::dax_read_unlock(id);
                pages
            }
        };

        assert_eq!(access(&handle, 0, normal).0, 4);
        assert_eq!(address(), 1);
        lab.memory.refuse_mappings();
        assert_eq!(access(&handle, 0, normal).0, enxio);
        assert_eq!(address(), 1);
        lab.memory.refuse_access();
        assert_eq!(access(&handle, 0, normal).0, enxio);
        assert_eq!(address(), enxio);
        // All accesses stay refused.
        lab.memory.refuse_mappings();
        assert_eq!(address(), enxio);
        lab.end()
    }

    #[test]
    fn a_device_without_pages_translates_nothing() -> Result {
        let device: Device = Registration::new(Arc::new(Memory, GFP_KERNEL)?, None, PROPERTIES)?;
        let normal = bindings::dax_access_mode_DAX_ACCESS;

        assert_eq!(
            access(&device.handle(), 0, normal).0,
            ENXIO.to_errno() as c_long
        );
        Ok(())
    }

    /// Notifies the holder of a device, which must have none, of a failure of the first page.
    fn notify_failure(handle: &Handle, memory: &PagemapInner<Silent>) -> Result {
        let data = (memory.data_start(), memory.size());
        // SAFETY: The pgmap stays during the call. Nothing uses the memory, so it may have failed.
        let failure = unsafe {
            Failure::new(
                &*Opaque::cast_from(memory.as_raw()),
                data,
                memory.frames().start as c_ulong,
                1,
                0,
            )
        };

        handle.notify_failure(&failure.ok_or(ERANGE)?)
    }

    #[test]
    fn only_failures_of_its_own_memory_are_reported() -> Result {
        let (lab, other) = (Lab::new()?, Lab::new()?);
        let none = Device::new(Arc::new(Memory, GFP_KERNEL)?, None, PROPERTIES)?;
        let handle = lab.device.handle();

        // There is no holder.
        assert!(notify_failure(&handle, &lab.memory) == Err(EOPNOTSUPP));
        assert!(notify_failure(&handle, &other.memory) == Err(EINVAL));
        assert!(notify_failure(&none.handle(), &lab.memory) == Err(EINVAL));
        Ok(())
    }

    #[test]
    fn a_dead_device_translates_nothing() -> Result {
        let Lab { device, memory } = Lab::new()?;
        let handle = device.handle();

        drop(device);
        let normal = bindings::dax_access_mode_DAX_ACCESS;
        assert_eq!(access(&handle, 0, normal).0, ENXIO.to_errno() as c_long);
        assert!(notify_failure(&handle, &memory) == Err(ENXIO));
        drop(memory);
        Ok(())
    }

    // The device may be killed after the DAX core has seen it alive and before the callback.
    #[test]
    fn callbacks_of_a_dead_device_fail() -> Result {
        let Lab { device, memory } = Lab::new()?;
        let handle = device.handle();
        let dev = handle.as_raw();
        // SAFETY: Nothing else uses the device, so that the lock is not needed.
        let zero = |pgoff| unsafe { Callbacks::zero_page_range_callback(dev, pgoff, 1) };

        assert_eq!(zero(3), 0);
        assert_eq!(zero(4), ERANGE.to_errno());
        drop(device);
        assert_eq!(zero(3), ENXIO.to_errno());
        // SAFETY: Nothing else uses the device, so that the lock is not needed. The iterator is not
        // used.
        let written = unsafe {
            Callbacks::recovery_write_callback(dev, 1, null_mut(), PAGE_SIZE, null_mut())
        };
        assert_eq!(written, 0);
        drop(memory);
        Ok(())
    }

    #[test]
    fn a_recovery_write_gets_page_and_offset() -> Result {
        let lab = Lab::new()?;
        let addr = core::ptr::without_provenance_mut::<c_void>(5 * PAGE_SIZE + 7);

        // SAFETY: Nothing else uses the device, so that the lock is not needed. The iterator is not
        // used.
        let write = |pgoff| unsafe {
            let dev = lab.device.handle.as_raw();
            Callbacks::recovery_write_callback(dev, pgoff, addr, 4000, null_mut())
        };
        assert_eq!(write(100), 4000 - 100 - 7);
        // A driver that says too much is not believed.
        assert_eq!(write(0), 4000);
        Ok(())
    }

    #[test]
    fn the_write_cache_can_be_switched() -> Result {
        let lab = Lab::new()?;
        let handle = lab.device.handle();

        assert!(!handle.write_cache());
        handle.set_write_cache(true);
        assert!(handle.write_cache());
        Ok(())
    }

    #[pin_data]
    struct Reader {
        #[pin]
        entered: Completion,
        left: Atomic<bool>,
    }

    #[test]
    fn a_drop_waits_for_read_locked_sections() -> Result {
        let Lab { device, memory } = Lab::new()?;
        let reader = Arc::pin_init(
            pin_init!(Reader {
                entered <- Completion::new(),
                left: Atomic::new(false),
            }),
            GFP_KERNEL,
        )?;

        let inside = reader.clone();
        workqueue::system().try_spawn(GFP_KERNEL, move || {
            // SAFETY: May be called from any context.
            let id = unsafe { bindings::dax_read_lock() };
            inside.entered.complete_all();
            fsleep(Delta::from_millis(100));
            inside.left.store(true, Relaxed);
            // SAFETY: `id` comes from `dax_read_lock`, on this thread.
            unsafe { bindings::dax_read_unlock(id) };
        })?;

        reader.entered.wait_for_completion();
        drop(device);
        assert!(reader.left.load(Relaxed));
        drop(memory);
        Ok(())
    }
}
