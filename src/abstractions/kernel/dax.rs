// SPDX-License-Identifier: GPL-2.0

//! DAX devices: memory that file systems give to user space as it is.
//!
//! A translation turns an offset in a device into a kernel address and a page frame number. It is
//! valid while `dax_read_lock` is held and the device is alive. [`ReadLocked`] is the proof of the
//! first, the DAX core checks the second before it calls a driver, and [`Extent`], which is the
//! result, borrows from the proof.
//!
//! A [`Registration`] has a reference to the pgmap of its memory ([`PagemapRef`]), which it puts
//! when the device is dead: `kill_dax` has waited for all read-side sections then. So a pgmap
//! without references has no translation under way. The DAX core uses the results for longer. A
//! page fault uses address and page frame number after it has released the lock, with its entry in
//! the page cache locked (`dax_insert_entry()`, `dax_iomap_copy_around()`), and it leaves page
//! table entries and entries of page caches behind. To find those is the part of
//! [`fs_dax`](crate::abstractions::kernel::fs::dax).
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use crate::abstractions::{
    bindings,
    kernel::{
        block::gendisk::{
            self,
            DiskState,
            GenDisk, //
        },
        memremap::{
            PagemapInner,
            PagemapOperations,
            PagemapRef,
            Pages, //
        }, //
    },
    kernel_ext::{
        iov::IterSource,
        module::Registered, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    device,
    error::{
        from_err_ptr,
        to_result, //
    },
    new_mutex,
    page::PAGE_MASK,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex,
        UniqueArc, //
    },
    types::NotThreadSafe, //
};

/// The proof that this thread holds `dax_read_lock` for `'g`.
///
/// The lock is an SRCU read-side section that all DAX devices of the system share: sleeping is
/// allowed inside, and every `kill_dax`, of whichever device, waits for it. The DAX core takes it
/// around every call of [`Operations`], which is where this comes from.
///
/// # Invariants
///
/// The lock is held for `'g`.
#[derive(Clone, Copy)]
pub struct ReadLocked<'g>(PhantomData<(&'g (), NotThreadSafe)>);

/// Pages of persistent memory as the DAX core wants them: with a kernel address and a page frame
/// number, under a held `dax_read_lock`.
///
/// Only the DAX device makes one, of its own memory. A driver can shorten it and hand it back.
///
/// # Examples
///
/// An extent cannot be kept for longer than the lock is held:
///
/// ```compile_fail,E0521
/// use kernel::{
///     prelude::*,
///     workqueue, //
/// };
/// use pmem_rs::abstractions::kernel::dax::Extent;
///
/// fn keep(extent: Extent<'_>) -> Result {
///     workqueue::system().try_spawn(GFP_KERNEL, move || {
///         let _ = extent.nr_pages();
///     })?;
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// The `nr_pages` pages from `pgoff` on, and the first one in any case, are pages of `pages`, which
/// is borrowed for as long as the lock is held.
pub struct Extent<'g> {
    pages: &'g Pages,
    pgoff: usize,
    nr_pages: usize,
}

impl<'g> Extent<'g> {
    /// Returns all pages from `pgoff` on, or [`None`] if there are none.
    #[inline]
    fn new(_locked: ReadLocked<'g>, pages: &'g Pages, pgoff: usize) -> Option<Self> {
        let nr_pages = pages.nr_from(pgoff)?;

        // INVARIANT: As there are so many, and by the lifetime.
        Some(Self {
            pages,
            pgoff,
            nr_pages,
        })
    }

    /// Returns the first `nr_pages` pages, or all if there are fewer.
    pub fn truncate(self, nr_pages: usize) -> Self {
        // INVARIANT: A part of what upholds it.
        Self {
            nr_pages: self.nr_pages.min(nr_pages),
            ..self
        }
    }

    /// Returns the first page frame number of the first `nr_pages` pages, or all if there are
    /// fewer, unless the gate is closed to mappings. They are exposed from here on: page tables,
    /// page caches and pins may refer to them after the lock was released. At least one page counts
    /// as exposed.
    #[inline]
    fn expose(&self, nr_pages: usize) -> Option<usize> {
        // SAFETY: By the type invariant there is such a page.
        if !unsafe { self.pages.are_exposed(self.pgoff, nr_pages) } {
            self.pages.expose(self.pgoff, nr_pages.min(self.nr_pages));
        }
        if !self.pages.gate.admits_mapping() {
            return None;
        }
        Some(self.pages.pfn(self.pgoff))
    }

    /// Returns the address of the first page.
    #[inline]
    fn addr(&self) -> *mut u8 {
        self.pages.addr(self.pgoff)
    }

    /// Returns the offset of the first page in the data.
    #[inline]
    pub fn pgoff(&self) -> usize {
        self.pgoff
    }

    /// Returns the number of pages.
    #[inline]
    pub fn nr_pages(&self) -> usize {
        self.nr_pages
    }
}

/// What a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// An ordinary access, which must not meet bad memory.
    Normal,
    /// A write that is to heal bad memory, by [`Operations::recovery_write`].
    RecoveryWrite,
}

/// The operations of a DAX device.
///
/// All of them are called in process context under `dax_read_lock`, by several threads at once, and
/// may sleep.
///
/// # Examples
///
/// Memory that never fails, and cannot be zeroed by the DAX core:
///
/// ```no_run
/// use kernel::{
///     prelude::*,
///     sync::Arc, //
/// };
/// use pmem_rs::abstractions::{
///     kernel::{
///         dax::{
///             self,
///             AccessMode,
///             Extent,
///             Properties,
///             ReadLocked, //
///         },
///         fs::dax::Pagemap,
///         memremap::{
///             PagemapInner,
///             PagemapOperations, //
///         }, //
///     },
///     kernel_ext::iov::IterSource, //
/// };
///
/// struct Memory;
///
/// impl<P: PagemapOperations> dax::Operations<P> for Memory {
///     fn direct_access<'g>(
///         &'g self,
///         _pages: &'g PagemapInner<P>,
///         extent: Extent<'g>,
///         _nr_pages: usize,
///         _mode: AccessMode,
///     ) -> Result<Extent<'g>> {
///         Ok(extent)
///     }
///
///     fn zero_page_range(
///         &self,
///         _locked: ReadLocked<'_>,
///         _pgoff: usize,
///         _nr_pages: usize,
///     ) -> Result {
///         Err(EIO)
///     }
///
///     fn recovery_write(
///         &self,
///         _locked: ReadLocked<'_>,
///         _pgoff: usize,
///         _offset: usize,
///         _len: usize,
///         _source: &mut IterSource<'_>,
///     ) -> usize {
///         0
///     }
/// }
///
/// // The device keeps the pgmap. If the pgmap is dropped first, it is leaked, with a warning.
/// fn register<P: PagemapOperations>(
///     memory: Arc<Memory>,
///     pages: &Pagemap<P>,
/// ) -> Result<dax::Registration<Memory, P>> {
///     let properties = Properties {
///         synchronous: true,
///         write_cache: true,
///     };
///
///     dax::Registration::new(memory, pages.reference(), properties)
/// }
/// ```
pub trait Operations<P: PagemapOperations>: Send + Sync + 'static {
    /// Translates `nr_pages` pages. `extent` has all pages of `pages` from the first of these on.
    ///
    /// Returns the pages from the first on that may be accessed: fewer than `nr_pages`, but at
    /// least one, if that is where the good memory ends; it may be more.
    ///
    /// # Errors
    ///
    /// [`EHWPOISON`] if there is bad memory among them and `mode` is [`AccessMode::Normal`].
    ///
    /// [`EHWPOISON`]: kernel::error::Error
    fn direct_access<'g>(
        &'g self,
        pages: &'g PagemapInner<P>,
        extent: Extent<'g>,
        nr_pages: usize,
        mode: AccessMode,
    ) -> Result<Extent<'g>>;

    /// Overwrites `nr_pages` pages from `pgoff` on with zeroes, past the CPU caches.
    fn zero_page_range(&self, locked: ReadLocked<'_>, pgoff: usize, nr_pages: usize) -> Result;

    /// Writes `len` bytes from `source` to `offset` bytes into page `pgoff`, clearing poison on the
    /// way. Returns how many bytes were written; none if the memory cannot be healed.
    fn recovery_write(
        &self,
        locked: ReadLocked<'_>,
        pgoff: usize,
        offset: usize,
        len: usize,
        source: &mut IterSource<'_>,
    ) -> usize;
}

/// What the DAX core is told about a device when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// A CPU cache flush is all that durability takes (`MAP_SYNC` is possible).
    pub synchronous: bool,
    /// CPU caches are not durable, so the DAX core must flush them.
    pub write_cache: bool,
}

/// A counted reference to a `struct dax_device`, alive or dead.
///
/// # Invariants
///
/// `dev` is a valid `struct dax_device`, one of whose references is ours; it is dead before the
/// last [`Arc`] of this goes.
#[pin_data(PinnedDrop)]
pub struct Handle {
    dev: NonNull<bindings::dax_device>,
    /// Set once the holder has been released. The lock is held across `notify_failure()`, because
    /// the DAX core does not serialise that against `fs_put_dax()`.
    #[pin]
    is_released: Mutex<bool>,
}

// SAFETY: References to a DAX device may be put from any thread.
unsafe impl Send for Handle {}

// SAFETY: The methods of `Handle` may be called by several threads at once.
unsafe impl Sync for Handle {}

impl Handle {
    /// Returns whether the DAX core flushes the CPU caches on behalf of the device.
    pub fn write_cache(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { bindings::dax_write_cache_enabled(self.dev.as_ptr()) }
    }

    /// Tells the DAX core whether to flush the CPU caches on behalf of the device.
    pub fn set_write_cache(&self, enabled: bool) {
        // SAFETY: By the type invariant the device is valid; the flag is set atomically.
        unsafe { bindings::dax_write_cache(self.dev.as_ptr(), enabled) };
    }

    /// Tells the holder of the device, a file system or a mapped device, that `len` bytes from
    /// `offset` on have failed. May sleep, takes locks of the holder.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if there is no holder or it does not handle failures, [`ENXIO`] if the device
    /// is dead, and what the holder returns.
    pub fn notify_failure(&self, offset: u64, len: u64, flags: c_int) -> Result {
        let is_released = self.is_released.lock();
        if *is_released {
            return Err(EOPNOTSUPP);
        }

        // SAFETY: By the type invariant the device is valid; it may be dead.
        to_result(unsafe {
            bindings::dax_holder_notify_failure(self.dev.as_ptr(), offset, len, flags)
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Handle {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the reference is ours to put.
        unsafe { bindings::put_dax(self.dev.as_ptr()) };
    }
}

/// A DAX device that is alive.
///
/// Dropping it kills the device: it is not found any more, no translation begins afterwards, and
/// those under way have finished. That waits for all `dax_read_lock` sections of the system, so
/// none of the locks that are taken inside of them (`mmap_lock`, `invalidate_lock`, `s_umount`) may
/// be held.
///
/// If the disk through which it was found has been removed, the device is taken from its holder
/// before that. File systems have been shut down by the removal, or are being unmounted, and the
/// failure handler of xfs, which `kill_dax` calls, must not run then (`docs/kernel-bugs.md`).
///
/// # Invariants
///
/// The device of `handle` was made by `alloc_dax` with `private`, a box in its raw form, as its
/// private data, and is alive.
pub struct Registration<T: Operations<P>, P: PagemapOperations> {
    /// Goes before the device dies: what finds the device under `dax_read_lock` relies on
    /// `kill_dax` waiting for the lock.
    host: Option<Host>,
    handle: Arc<Handle>,
    private: NonNull<Private<T, P>>,
    // Goes last.
    _registered: Registered,
}

/// The private data of a DAX device.
struct Private<T, P: PagemapOperations> {
    pages: Option<PagemapRef<P>>,
    data: Arc<T>,
}

// SAFETY: A device may be killed by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Operations<P>, P: PagemapOperations> Send for Registration<T, P> {}

// SAFETY: Through a shared reference only the handle is accessible, which is `Sync`.
unsafe impl<T: Operations<P>, P: PagemapOperations> Sync for Registration<T, P> {}

impl<T: Operations<P>, P: PagemapOperations> Registration<T, P> {
    const OPS: bindings::dax_operations = bindings::dax_operations {
        direct_access: Some(Self::direct_access_callback),
        zero_page_range: Some(Self::zero_page_range_callback),
        recovery_write: Some(Self::recovery_write_callback),
    };

    /// Those of a device without pages.
    const NO_OPS: bindings::dax_operations = bindings::dax_operations {
        direct_access: Some(refuse_direct_access),
        zero_page_range: Some(refuse_zero_page_range),
        recovery_write: None,
    };

    /// Makes a device for the memory of `pages`. It is not found until it has a host. Without
    /// pages, it translates nothing. May sleep.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] on architectures that cannot have DAX devices.
    pub fn new(data: Arc<T>, pages: Option<PagemapRef<P>>, properties: Properties) -> Result<Self> {
        let registered = Registered::new()?;
        // First of all, since a device that is alive cannot be put.
        let slot = UniqueArc::new_uninit(GFP_KERNEL)?;
        let ops: &'static bindings::dax_operations = if pages.is_some() {
            &Self::OPS
        } else {
            &Self::NO_OPS
        };
        let private = KBox::into_raw(KBox::new(Private { pages, data }, GFP_KERNEL)?);

        // SAFETY: The operations match the type of the private data, which lives until after the
        // device is dead.
        let dev = from_err_ptr(unsafe { bindings::alloc_dax(private.cast(), ops) })
            .and_then(|dev| NonNull::new(dev).ok_or(ENOMEM))
            .inspect_err(|_| {
                // SAFETY: The pointer comes from `into_raw`, and no device refers to it.
                drop(unsafe { KBox::from_raw(private) });
            })?;

        // SAFETY: The device is valid and known to nothing else.
        unsafe {
            // Writes of the DAX core go past the CPU caches, its reads survive machine checks.
            bindings::set_dax_nocache(dev.as_ptr());
            bindings::set_dax_nomc(dev.as_ptr());
            if properties.synchronous {
                bindings::set_dax_synchronous(dev.as_ptr());
            }
            bindings::dax_write_cache(dev.as_ptr(), properties.write_cache);
        }

        // INVARIANT: One reference came with the device. It is dead before the last `Arc` goes,
        // since the registration has one until it has killed it.
        let handle = slot.pin_init_with(pin_init!(Handle {
            dev,
            is_released <- new_mutex!(false, "pmem_rs::dax_holder"),
        }));
        let handle = match handle {
            Ok(handle) => handle.into(),
            Err(never) => match never {},
        };

        // INVARIANT: The device was made with `private`.
        Ok(Self {
            host: None,
            handle,
            // SAFETY: The pointer of a box is not null.
            private: unsafe { NonNull::new_unchecked(private) },
            _registered: registered,
        })
    }

    /// Lets file systems find the device through a disk that is not added yet. May sleep.
    ///
    /// For them to look for it, the queue of the disk must have [`Features::DAX`] too.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the device, another one of the same memory, or the disk has been a host before.
    ///
    /// [`Features::DAX`]: crate::abstractions::kernel::block::gendisk::Features::DAX
    pub fn set_host<D: gendisk::Operations>(&mut self, disk: &GenDisk<D>) -> Result {
        if self.host.is_some() {
            return Err(EBUSY);
        }
        // First: what is found through the disk is looked for through it when the memory goes.
        // SAFETY: By the type invariant the box is there; it is only read.
        if let Some(pages) = unsafe { &(*self.private.as_ptr()).pages } {
            pages.set_host(disk.state())?;
        }
        let device = disk.device();

        // SAFETY: Both are valid. The entry is removed before either reference is put.
        to_result(unsafe { bindings::dax_add_host(self.handle.dev.as_ptr(), disk.as_raw()) })?;

        // INVARIANT: `dax_add_host` has succeeded.
        self.host = Some(Host {
            // SAFETY: The pointer of a disk is never null.
            disk: unsafe { NonNull::new_unchecked(disk.as_raw()) },
            state: disk.state(),
            _device: device,
        });
        Ok(())
    }

    /// Takes the device from its holder, so that the holder is not told when it dies. May sleep,
    /// and waits for a holder that is being told of a failure.
    ///
    /// The device must not be found any more.
    fn release_holder(&self) {
        let dev = self.handle.dev.as_ptr();
        let mut is_released = self.handle.is_released.lock();
        *is_released = true;
        // SAFETY: By the type invariant the device is valid. `fs_put_dax` clears the operations of
        // the holder, and the holder if it is still the one that was read. The holder itself may
        // let go of the device now or later. It puts a reference, which is not the holder's but the
        // one that is taken here. The holder is not told of a failure meanwhile, nor later, by the
        // lock. A thread that found the device before it lost its host may still become its holder
        // after this: then `kill_dax` tells it, or `fs_put_dax` warns.
        unsafe {
            let holder = bindings::dax_holder(dev);
            if !holder.is_null() && !bindings::igrab(bindings::dax_inode(dev)).is_null() {
                bindings::fs_put_dax(dev, holder);
            }
        }
    }

    /// Returns a reference to the device that may outlive its death.
    pub fn handle(&self) -> Arc<Handle> {
        self.handle.clone()
    }

    /// Returns the memory and the data of a device, unless it is dying.
    ///
    /// # Safety
    ///
    /// `dev` must be a device of a `Registration<T, P>` that was made with pages, and `dax_read_lock`
    /// be held for `'g`, since before the DAX core saw the device alive.
    #[inline]
    unsafe fn private<'g>(
        dev: *mut bindings::dax_device,
        _locked: ReadLocked<'g>,
    ) -> Option<(&'g PagemapInner<P>, &'g T)> {
        // SAFETY: By the safety requirements the device is valid.
        let private = unsafe { bindings::dax_get_private(dev) };

        // SAFETY: If it is not null, the private data is a box in its raw form.
        // `Registration::drop` drops it only after `kill_dax`, which waits for the lock that is
        // held for `'g`.
        let Private { pages, data } = unsafe { private.cast::<Private<T, P>>().as_ref() }?;
        // SAFETY: By the safety requirements there are pages.
        let pages = unsafe { pages.as_ref().unwrap_unchecked() };
        Some((pages, data))
    }

    /// # Safety
    ///
    /// For the DAX core only: `dev` must be a device of a `Registration<T, P>` with pages, and
    /// `dax_read_lock` be held since `dev` was seen alive; `kaddr` and `pfn` must be null or valid
    /// for writing.
    unsafe extern "C" fn direct_access_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: c_long,
        mode: bindings::dax_access_mode,
        kaddr: *mut *mut c_void,
        pfn: *mut c_ulong,
    ) -> c_long {
        // INVARIANT: By the safety requirements. `dax_direct_access` asserts it, in `dax_alive`.
        let locked = ReadLocked(PhantomData);
        // SAFETY: By the safety requirements.
        let Some((pages, data)) = (unsafe { Self::private(dev, locked) }) else {
            return ENXIO.to_errno() as c_long;
        };
        let mode = match mode {
            bindings::dax_access_mode_DAX_RECOVERY_WRITE => AccessMode::RecoveryWrite,
            _ => AccessMode::Normal,
        };
        let Some(extent) = Extent::new(locked, &pages.pages, pgoff) else {
            return ENXIO.to_errno() as c_long;
        };
        // `dax_direct_access` refuses a negative number.
        let nr_pages = nr_pages as usize;

        let extent = match data.direct_access(pages, extent, nr_pages, mode) {
            Ok(extent) => extent,
            Err(err) => return err.to_errno() as c_long,
        };
        // SAFETY: By the safety requirements. What becomes of the results after the lock is
        // released is what revocation is for (`docs/lifetimes.md`).
        unsafe {
            // A caller that asks for a page frame number is going to map it, or to keep it.
            if pfn.is_null() {
                if !extent.pages.gate.admits_access() {
                    return ENXIO.to_errno() as c_long;
                }
            } else {
                let Some(first) = extent.expose(nr_pages) else {
                    return ENXIO.to_errno() as c_long;
                };
                *pfn = first;
            }
            if !kaddr.is_null() {
                *kaddr = extent.addr().cast();
            }
        }

        // No overflow: an extent has fewer pages than there are addresses.
        extent.nr_pages() as c_long
    }

    /// # Safety
    ///
    /// For the DAX core only: `dev` must be a device of a `Registration<T, P>` with
    /// pages, and `dax_read_lock` be held since `dev` was seen alive.
    unsafe extern "C" fn zero_page_range_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: usize,
    ) -> c_int {
        // INVARIANT: By the safety requirements; the caller is `dax_zero_page_range`.
        let locked = ReadLocked(PhantomData);
        // SAFETY: By the safety requirements.
        let Some((pages, data)) = (unsafe { Self::private(dev, locked) }) else {
            return ENXIO.to_errno();
        };
        if !pages.pages.gate.admits_access() {
            return ENXIO.to_errno();
        }

        match data.zero_page_range(locked, pgoff, nr_pages) {
            Ok(()) => 0,
            Err(err) => err.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the DAX core only: `dev` must be a device of a `Registration<T, P>` with pages, and
    /// `dax_read_lock` be held since `dev` was seen alive; `iter` must be a valid source, for the
    /// use of this call alone.
    unsafe extern "C" fn recovery_write_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        addr: *mut c_void,
        len: usize,
        iter: *mut bindings::iov_iter,
    ) -> usize {
        // INVARIANT: By the safety requirements. The caller is `dax_iomap_iter`, by way of
        // `dax_recovery_write`; it holds the lock since it translated `addr`.
        let locked = ReadLocked(PhantomData);
        // SAFETY: By the safety requirements.
        let Some((_, data)) = (unsafe { Self::private(dev, locked) }) else {
            return 0;
        };
        // SAFETY: By the safety requirements.
        let mut source = unsafe { IterSource::from_raw(iter) };

        // The page is `pgoff`. The address adds the offset in it.
        let offset = addr.addr() & !PAGE_MASK;
        data.recovery_write(locked, pgoff, offset, len, &mut source)
    }
}

impl<T: Operations<P>, P: PagemapOperations> Drop for Registration<T, P> {
    fn drop(&mut self) {
        if let Some(host) = self.host.take() {
            let is_removed = host.state.is_removed();
            drop(host);
            if is_removed {
                self.release_holder();
            }
        }

        // SAFETY: By the type invariant the device is alive, and ours to kill.
        unsafe { bindings::kill_dax(self.handle.dev.as_ptr()) };

        // SAFETY: By the type invariant the pointer comes from `into_raw`. The device is dead and
        // no thread is inside of its operations, so the data is not used any more.
        drop(unsafe { KBox::from_raw(self.private.as_ptr()) });
    }
}

/// # Safety
///
/// For the DAX core only, which may call it for any device.
unsafe extern "C" fn refuse_direct_access(
    _dev: *mut bindings::dax_device,
    _pgoff: c_ulong,
    _nr_pages: c_long,
    _mode: bindings::dax_access_mode,
    _kaddr: *mut *mut c_void,
    _pfn: *mut c_ulong,
) -> c_long {
    ENXIO.to_errno() as c_long
}

/// # Safety
///
/// For the DAX core only, which may call it for any device.
unsafe extern "C" fn refuse_zero_page_range(
    _dev: *mut bindings::dax_device,
    _pgoff: c_ulong,
    _nr_pages: usize,
) -> c_int {
    ENXIO.to_errno()
}

/// The connection of a disk to a DAX device, by which file systems find the device.
///
/// # Invariants
///
/// `dax_add_host` was called for `disk`, whose reference `_device` is ours.
struct Host {
    disk: NonNull<bindings::gendisk>,
    state: Arc<DiskState>,
    _device: ARef<device::Device>,
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk is valid and has an entry.
        unsafe { bindings::dax_remove_host(self.disk.as_ptr()) };
    }
}

#[kunit_tests(pmem_rs_dax)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::fs::dax::testing::{
        pages,
        Silent,
        TestPagemap, //
        LEN,
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
        workqueue, //
    };

    const PROPERTIES: Properties = Properties {
        synchronous: true,
        write_cache: false,
    };

    /// How many pages there are.
    const PAGES: usize = LEN as usize / PAGE_SIZE;

    struct Memory;

    impl Operations<Silent> for Memory {
        fn direct_access<'g>(
            &'g self,
            _pages: &'g PagemapInner<Silent>,
            extent: Extent<'g>,
            _nr_pages: usize,
            mode: AccessMode,
        ) -> Result<Extent<'g>> {
            if mode == AccessMode::RecoveryWrite {
                return Err(EHWPOISON);
            }
            Ok(extent)
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
            pgoff + offset + len
        }
    }

    type Device = Registration<Memory, Silent>;

    /// A device, and its memory. What was exposed has to be revoked.
    struct Lab {
        device: Device,
        memory: TestPagemap<Silent>,
    }

    impl Lab {
        fn new() -> Result<Self> {
            let memory = pages()?;
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

        /// Takes the memory away, which has no users.
        fn end(self) -> Result {
            let Self { device, memory } = self;

            drop(device);
            let (mut revoked, _) = memory.pages.close().revoke();
            while let Some(user) = revoked.first_user() {
                revoked.wait_for(user, 1000);
                revoked.revoke();
            }
            revoked.unmap().map_err(|_| EBUSY)
        }
    }

    /// `dax_direct_access()` under `dax_read_lock()`, as a file system calls it.
    fn access(handle: &Handle, pgoff: usize, mode: bindings::dax_access_mode) -> (c_long, usize) {
        let mut pfn = 0;
        // SAFETY: The device is valid, and the lock is held around the call. The address, which is
        // not asked for, would be of no use after it.
        let pages = unsafe {
            let id = bindings::dax_read_lock();
            let pages = bindings::dax_direct_access(
                handle.dev.as_ptr(),
                pgoff,
                4,
                mode,
                null_mut(),
                &mut pfn,
            );
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
    fn a_gate_that_closes_refuses_frames_first() -> Result {
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
                    handle.dev.as_ptr(),
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
        lab.memory.close_gate();
        assert_eq!(access(&handle, 0, normal).0, enxio);
        assert_eq!(address(), enxio);
        // It stays closed.
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

    #[test]
    fn a_dead_device_translates_nothing() -> Result {
        let Lab { device, memory } = Lab::new()?;
        let handle = device.handle();

        drop(device);
        let normal = bindings::dax_access_mode_DAX_ACCESS;
        assert_eq!(access(&handle, 0, normal).0, ENXIO.to_errno() as c_long);
        assert!(handle.notify_failure(0, 1, 0) == Err(ENXIO));
        drop(memory);
        Ok(())
    }

    // What the DAX core calls after it has seen the device alive may see it die meanwhile.
    #[test]
    fn a_dying_device_is_told_from_a_live_one() -> Result {
        let Lab { device, memory } = Lab::new()?;
        let handle = device.handle();
        let dev = handle.dev.as_ptr();
        // SAFETY: The lock is held, as far as a device without users can tell.
        let zero = |pgoff| unsafe { Device::zero_page_range_callback(dev, pgoff, 1) };

        assert_eq!(zero(3), 0);
        assert_eq!(zero(4), ERANGE.to_errno());
        drop(device);
        assert_eq!(zero(3), ENXIO.to_errno());
        // SAFETY: As above; the iterator is not used.
        let written =
            unsafe { Device::recovery_write_callback(dev, 1, null_mut(), PAGE_SIZE, null_mut()) };
        assert_eq!(written, 0);
        drop(memory);
        Ok(())
    }

    #[test]
    fn a_recovery_is_told_page_and_offset() -> Result {
        let lab = Lab::new()?;
        let addr = core::ptr::without_provenance_mut::<c_void>(5 * PAGE_SIZE + 7);

        // SAFETY: The lock is held, as far as a device without users can tell; the iterator is not
        // used.
        let sum = unsafe {
            Device::recovery_write_callback(
                lab.device.handle.dev.as_ptr(),
                100,
                addr,
                4000,
                null_mut(),
            )
        };
        assert_eq!(sum, 100 + 7 + 4000);
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
    fn death_waits_for_those_who_translate() -> Result {
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
