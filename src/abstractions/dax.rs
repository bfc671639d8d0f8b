// SPDX-License-Identifier: GPL-2.0

//! DAX devices: memory that file systems give to user space as it is.
//!
//! A translation turns an offset in a device into a kernel address and a page frame number. It is
//! valid while `dax_read_lock` is held and the device is alive. [`ReadLocked`] is the proof of the
//! first, the DAX core checks the second before it calls a driver, and [`Extent`], which is the
//! result, borrows from the proof. Dropping a [`Registration`] (`kill_dax`) waits for all read-side
//! sections, so afterwards no translation exists outside of what the DAX core and the file systems
//! have made of it: page table entries, and the entries of their page caches.
//!
//! C header: [`include/linux/dax.h`](srctree/include/linux/dax.h)

use super::{
    atomic::read_once,
    bindings,
    gendisk::{
        self,
        GenDisk, //
    },
    memremap::Pages,
    uio::IterSource, //
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
        atomic::{
            Atomic,
            Relaxed, //
        },
        barrier::{
            smp_mb,
            Full, //
        },
        Arc,
        ArcBorrow,
        Mutex,
        UniqueArc, //
    },
    types::{
        ForeignOwnable,
        NotThreadSafe, //
    },
};

mod mapping;

pub use mapping::{
    FileMapping,
    Revoked, //
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
/// # Examples
///
/// Not even of pages that stay for ever can an extent be kept for longer than the lock is held:
///
/// ```compile_fail,E0521
/// use pmem_rs::abstractions::{
///     dax::{
///         Extent,
///         ReadLocked, //
///     },
///     memremap::{
///         Pagemap,
///         PagemapOperations, //
///     },
/// };
///
/// fn keep<T: PagemapOperations>(
///     locked: ReadLocked<'_>,
///     pages: &'static Pagemap<T>,
///     kept: &mut Option<Extent<'static>>,
/// ) {
///     *kept = pages.extent(locked, 0);
/// }
/// ```
///
/// # Invariants
///
/// The `nr_pages` pages from `pgoff` on, and the first one in any case, are pages of `pages`, which is borrowed for as
/// long as the lock is held.
pub struct Extent<'g> {
    pages: &'g Pages,
    pgoff: usize,
    nr_pages: usize,
}

impl<'g> Extent<'g> {
    /// Returns all pages from `pgoff` on, or [`None`] if there are none.
    #[inline]
    pub(super) fn new(_locked: ReadLocked<'g>, pages: &'g Pages, pgoff: usize) -> Option<Self> {
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

    /// Returns the first page frame number of the first `nr_pages` pages, or all if there are fewer, unless the gate
    /// is closed to those who ask for one. They are exposed from here on: page tables, page caches and pins may
    /// refer to them after the guard is gone. Who asks for no page is told the first one all the same.
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

/// What a device still admits. It is closed in two steps, before `kill_dax`, which may take as long as
/// anybody stays inside of a `dax_read_lock` section.
///
/// Closing is a store and a full barrier. A page fault locks an entry in the page cache of its file,
/// enters a `dax_read_lock` section, which is a full barrier too, records what it exposes, passes another full
/// barrier, and looks at the gate. So once the gate is closed, whoever got past it is seen: his exposure is
/// recorded, and his entry is locked, or done.
pub struct Gate(Atomic<u32>);

impl Gate {
    const OPEN: u32 = 0;
    const NO_FRAMES: u32 = 1;
    const CLOSED: u32 = 2;

    /// An open gate.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Atomic::new(Self::OPEN))
    }

    /// Admits nobody any more who asks for page frame numbers, to map the memory or to keep it. Those who
    /// read and write go on.
    pub fn close_to_mappings(&self) {
        self.close_to(Self::NO_FRAMES);
    }

    /// Admits nobody any more.
    pub fn close(&self) {
        self.close_to(Self::CLOSED);
    }

    fn close_to(&self, step: u32) {
        self.0.store(step, Relaxed);
        smp_mb(Full);
    }

    /// Looks whether somebody may pass who reads or writes.
    #[inline]
    fn admits_access(&self) -> bool {
        read_once(&self.0) != Self::CLOSED
    }

    /// Looks whether somebody may pass who asks for page frame numbers. What he exposes must have been recorded.
    ///
    /// A full barrier: whoever does not see the record after he has closed the gate is seen here.
    #[inline]
    fn admits_mapping(&self) -> bool {
        smp_mb(Full);
        read_once(&self.0) == Self::OPEN
    }
}

/// The operations of a DAX device.
///
/// All of them are called in process context under `dax_read_lock`, by several threads at once, and
/// may sleep.
///
/// # Examples
///
/// Memory that never fails:
///
/// ```no_run
/// use kernel::{
///     page::PAGE_SIZE,
///     prelude::*,
///     sync::Arc, //
/// };
/// use pmem_rs::abstractions::{
///     dax::{
///         self,
///         AccessMode,
///         Extent,
///         Gate,
///         Properties,
///         ReadLocked, //
///     },
///     memremap::{
///         Pagemap,
///         PagemapOperations, //
///     },
///     uio::IterSource, //
/// };
///
/// struct Memory<T: PagemapOperations>(Pagemap<T>);
///
/// impl<T: PagemapOperations> dax::Operations for Memory<T> {
///     fn gate(&self) -> Option<&Gate> {
///         Some(self.0.gate())
///     }
///
///     fn direct_access<'g>(
///         &'g self,
///         locked: ReadLocked<'g>,
///         pgoff: usize,
///         _nr_pages: usize,
///         _mode: AccessMode,
///     ) -> Result<Extent<'g>> {
///         self.0.extent(locked, pgoff).ok_or(ENXIO)
///     }
///
///     fn zero_page_range(
///         &self,
///         _locked: ReadLocked<'_>,
///         pgoff: usize,
///         nr_pages: usize,
///     ) -> Result {
///         let offset = pgoff.checked_mul(PAGE_SIZE).ok_or(ERANGE)?;
///         let len = nr_pages.checked_mul(PAGE_SIZE).ok_or(ERANGE)?;
///
///         self.0.slice().get(offset, len).ok_or(ERANGE)?.zero();
///         Ok(())
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
/// fn register<T: PagemapOperations>(
///     memory: Arc<Memory<T>>,
/// ) -> Result<dax::Registration<Memory<T>>> {
///     let properties = Properties {
///         synchronous: true,
///         write_cache: true,
///     };
///
///     dax::Registration::new(memory, properties)
/// }
/// ```
pub trait Operations: Send + Sync + 'static {
    /// Returns the gate of the memory, if it has pages.
    fn gate(&self) -> Option<&Gate>;

    /// Translates `nr_pages` pages from `pgoff` on.
    ///
    /// Returns the pages from `pgoff` on that may be accessed: fewer than `nr_pages`, but at least
    /// one, if that is where the good memory ends; it may be more.
    ///
    /// # Errors
    ///
    /// - [`EHWPOISON`] if there is bad memory among them and `mode` is [`AccessMode::Normal`].
    /// - [`ENXIO`] if the device has no such page.
    ///
    /// [`EHWPOISON`]: kernel::error::Error
    fn direct_access<'g>(
        &'g self,
        locked: ReadLocked<'g>,
        pgoff: usize,
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
    /// Whether there is no holder any more. Held while he is told of a failure: the DAX core does not keep him
    /// from being released meanwhile.
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
/// Dropping it kills the device: nobody finds it any more, no translation begins afterwards, and those
/// under way have finished. That waits for all `dax_read_lock` sections of the system, so none of the locks that
/// are taken inside of them (`mmap_lock`, `invalidate_lock`, `s_umount`) may be held.
///
/// # Invariants
///
/// The device of `handle` was made by `alloc_dax` with `data` as its private data, and is alive.
pub struct Registration<T: Operations> {
    /// Goes before the device dies: who finds the device under `dax_read_lock` relies on
    /// `kill_dax` waiting for him.
    host: Option<Host>,
    handle: Arc<Handle>,
    data: *mut c_void,
    _data: PhantomData<Arc<T>>,
}

// SAFETY: A device may be killed by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Operations> Send for Registration<T> {}

// SAFETY: Through a shared reference only the handle is accessible, which is `Sync`.
unsafe impl<T: Operations> Sync for Registration<T> {}

impl<T: Operations> Registration<T> {
    const OPS: bindings::dax_operations = bindings::dax_operations {
        direct_access: Some(Self::direct_access_callback),
        zero_page_range: Some(Self::zero_page_range_callback),
        recovery_write: Some(Self::recovery_write_callback),
    };

    /// Makes a device. Nobody can find it until it has a host. May sleep.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] on architectures that cannot have DAX devices.
    pub fn new(data: Arc<T>, properties: Properties) -> Result<Self> {
        // First of all, since a device that is alive cannot be put.
        let slot = UniqueArc::new_uninit(GFP_KERNEL)?;
        let data = data.into_foreign();
        let ops: &'static bindings::dax_operations = &Self::OPS;

        // SAFETY: The operations match the type of the private data, which lives until after the
        // device is dead.
        let dev = from_err_ptr(unsafe { bindings::alloc_dax(data, ops) })
            .and_then(|dev| NonNull::new(dev).ok_or(ENOMEM))
            .inspect_err(|_| {
                // SAFETY: The pointer comes from `into_foreign`, and no device refers to it.
                drop(unsafe { Arc::<T>::from_foreign(data) });
            })?;

        // SAFETY: The device is valid and known to nobody else.
        unsafe {
            // Writes of the DAX core go past the CPU caches, its reads survive machine checks.
            bindings::set_dax_nocache(dev.as_ptr());
            bindings::set_dax_nomc(dev.as_ptr());
            if properties.synchronous {
                bindings::set_dax_synchronous(dev.as_ptr());
            }
            bindings::dax_write_cache(dev.as_ptr(), properties.write_cache);
        }

        // INVARIANT: One reference came with the device. It is dead before the last `Arc` goes, since the
        // registration has one until it has killed it.
        let handle = slot.pin_init_with(pin_init!(Handle {
            dev,
            is_released <- new_mutex!(false, "pmem_rs::dax_holder"),
        }));
        let handle = match handle {
            Ok(handle) => handle.into(),
            Err(never) => match never {},
        };

        // INVARIANT: The device was made with `data`.
        Ok(Self {
            host: None,
            handle,
            data,
            _data: PhantomData,
        })
    }

    /// Lets file systems find the device through a disk that is not added yet. May sleep.
    ///
    /// For them to look for it, the queue of the disk must have [`Features::DAX`] too. A device has
    /// one host; another one takes the place of the first.
    ///
    /// [`Features::DAX`]: super::gendisk::Features::DAX
    pub fn set_host<D: gendisk::Operations>(&mut self, disk: &GenDisk<D>) -> Result {
        let device = disk.device();

        // SAFETY: Both are valid. The entry is removed before either reference is put.
        to_result(unsafe { bindings::dax_add_host(self.handle.dev.as_ptr(), disk.as_raw()) })?;

        // INVARIANT: `dax_add_host` has succeeded.
        self.host = Some(Host {
            // SAFETY: The pointer of a disk is never null.
            disk: unsafe { NonNull::new_unchecked(disk.as_raw()) },
            _device: device,
        });
        Ok(())
    }

    /// Takes the device from its holder, so that he is not told when it dies; and nobody finds it any more.
    /// May sleep, and waits for a holder who is being told of a failure.
    ///
    /// For a device whose disk was removed: file systems on it have been shut down by that, unless they are being
    /// unmounted. What `kill_dax` has to say finds those in pieces (`docs/kernel-bugs.md`).
    pub fn release_holder(&mut self) {
        self.host = None;

        let dev = self.handle.dev.as_ptr();
        let mut is_released = self.handle.is_released.lock();
        *is_released = true;
        // SAFETY: By the type invariant the device is valid. `fs_put_dax` takes the holder away if it is still
        // the same, so it does not matter if he lets go of it himself now or later. (If another one came in
        // between, who would have to have found the device before `host` went, it warns.) It puts a reference,
        // which is not the holder's but the one that is taken here. He is not told of a failure meanwhile, nor
        // later, by the lock.
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

    /// Returns the private data of a device, unless it is dying.
    ///
    /// # Safety
    ///
    /// `dev` must be a device of a `Registration<T>`, and `dax_read_lock` be held for `'g`, since
    /// before the DAX core saw the device alive.
    unsafe fn data<'g>(
        dev: *mut bindings::dax_device,
        _locked: ReadLocked<'g>,
    ) -> Option<ArcBorrow<'g, T>> {
        // SAFETY: By the safety requirements the device is valid.
        let data = NonNull::new(unsafe { bindings::dax_get_private(dev) })?;

        // SAFETY: The private data is an `Arc<T>` in its foreign form. `Registration::drop` lets go
        // of it only after `kill_dax`, which waits for the lock that is held for `'g`.
        Some(unsafe { Arc::<T>::borrow(data.as_ptr()) })
    }

    /// # Safety
    ///
    /// For the DAX core only: `dev` must be a device of a `Registration<T>`, and `dax_read_lock` be
    /// held since `dev` was seen alive; `kaddr` and `pfn` must be null or
    /// valid for writing.
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
        let Some(data) = (unsafe { Self::data(dev, locked) }) else {
            return ENXIO.to_errno() as c_long;
        };
        let mode = match mode {
            bindings::dax_access_mode_DAX_RECOVERY_WRITE => AccessMode::RecoveryWrite,
            _ => AccessMode::Normal,
        };
        // `dax_direct_access` refuses a negative number.
        let nr_pages = nr_pages as usize;

        let extent = match data.direct_access(locked, pgoff, nr_pages, mode) {
            Ok(extent) => extent,
            Err(err) => return err.to_errno() as c_long,
        };
        // SAFETY: By the safety requirements. What becomes of the results after the lock is released
        // is what revocation is for (`docs/lifetimes.md`).
        unsafe {
            // Only those ask for a page frame who are going to map it, or to keep it.
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
    /// For the DAX core only: `dev` must be a device of a `Registration<T>`, and `dax_read_lock` be
    /// held since `dev` was seen alive.
    unsafe extern "C" fn zero_page_range_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: usize,
    ) -> c_int {
        // INVARIANT: By the safety requirements; the caller is `dax_zero_page_range`.
        let locked = ReadLocked(PhantomData);
        // SAFETY: By the safety requirements.
        let Some(data) = (unsafe { Self::data(dev, locked) }) else {
            return ENXIO.to_errno();
        };

        if !data.gate().is_some_and(Gate::admits_access) {
            return ENXIO.to_errno();
        }

        match data.zero_page_range(locked, pgoff, nr_pages) {
            Ok(()) => 0,
            Err(err) => err.to_errno(),
        }
    }

    /// # Safety
    ///
    /// For the DAX core only: `dev` must be a device of a `Registration<T>`, and `dax_read_lock` be
    /// held since `dev` was seen alive; `iter` must be a valid source, for
    /// the use of this call alone.
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
        let Some(data) = (unsafe { Self::data(dev, locked) }) else {
            return 0;
        };
        // SAFETY: By the safety requirements.
        let mut source = unsafe { IterSource::from_raw(iter) };

        // Of the address only the offset in the page is news: the page is `pgoff`.
        let offset = addr.addr() & !PAGE_MASK;
        data.recovery_write(locked, pgoff, offset, len, &mut source)
    }
}

impl<T: Operations> Drop for Registration<T> {
    fn drop(&mut self) {
        self.host = None;

        // SAFETY: By the type invariant the device is alive, and ours to kill.
        unsafe { bindings::kill_dax(self.handle.dev.as_ptr()) };

        // SAFETY: By the type invariant the pointer comes from `into_foreign`. The device is dead
        // and nobody is inside of its operations, so nobody uses the data any more.
        drop(unsafe { Arc::<T>::from_foreign(self.data) });
    }
}

/// The connection of a disk to a DAX device, by which file systems find the device.
///
/// # Invariants
///
/// `dax_add_host` was called for `disk`, whose reference `_device` is ours.
struct Host {
    disk: NonNull<bindings::gendisk>,
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
    use crate::abstractions::memremap::Exposure;
    use core::ptr::null_mut;
    use kernel::{
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

    /// Eight pages of ordinary memory, from which nothing is read, and the page frame number 1234.
    struct Memory(Pages, #[expect(dead_code)] KVec<u8>);

    const PAGE_SIZE: usize = kernel::page::PAGE_SIZE;

    impl Operations for Memory {
        fn gate(&self) -> Option<&Gate> {
            Some(&self.0.gate)
        }

        fn direct_access<'g>(
            &'g self,
            locked: ReadLocked<'g>,
            pgoff: usize,
            _nr_pages: usize,
            mode: AccessMode,
        ) -> Result<Extent<'g>> {
            if mode == AccessMode::RecoveryWrite {
                return Err(EHWPOISON);
            }
            Extent::new(locked, &self.0, pgoff).ok_or(ENXIO)
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

    fn memory() -> Result<Arc<Memory>> {
        let mut bytes = KVec::from_elem(0, 8 * PAGE_SIZE, GFP_KERNEL)?;
        let addr = NonNull::new(bytes.as_mut_ptr()).ok_or(EINVAL)?;
        // SAFETY: The vector, which stays as long, has the bytes. Nobody uses the number.
        let pages = unsafe { Pages::new(addr, 1234, 8, Exposure::new(&(1234..1242))?) };

        Ok(Arc::new(Memory(pages, bytes), GFP_KERNEL)?)
    }

    fn device() -> Result<Registration<Memory>> {
        Registration::new(memory()?, PROPERTIES)
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
        let device = device()?;
        let handle = device.handle();
        let normal = bindings::dax_access_mode_DAX_ACCESS;

        assert!(access(&handle, 0, normal) == (4, 1234));
        assert!(access(&handle, 6, normal) == (2, 1240));
        assert_eq!(access(&handle, 9, normal).0, ENXIO.to_errno() as c_long);
        let recovery = bindings::dax_access_mode_DAX_RECOVERY_WRITE;
        assert_eq!(
            access(&handle, 0, recovery).0,
            EHWPOISON.to_errno() as c_long
        );
        Ok(())
    }

    #[test]
    fn a_gate_that_closes_refuses_frames_first() -> Result {
        let data = memory()?;
        let device = Registration::new(data.clone(), PROPERTIES)?;
        let normal = bindings::dax_access_mode_DAX_ACCESS;
        let enxio = ENXIO.to_errno() as c_long;
        let handle = device.handle();
        let address = || {
            let mut address = null_mut();
            // SAFETY: As in `access`.
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
        data.0.gate.close_to_mappings();
        assert_eq!(access(&handle, 0, normal).0, enxio);
        assert_eq!(address(), 1);
        data.0.gate.close();
        assert_eq!(access(&handle, 0, normal).0, enxio);
        assert_eq!(address(), enxio);
        Ok(())
    }

    #[test]
    fn a_dead_device_translates_nothing() -> Result {
        let device = device()?;
        let handle = device.handle();

        drop(device);
        let normal = bindings::dax_access_mode_DAX_ACCESS;
        assert_eq!(access(&handle, 0, normal).0, ENXIO.to_errno() as c_long);
        assert!(handle.notify_failure(0, 1, 0) == Err(ENXIO));
        Ok(())
    }

    // What the DAX core calls after it has seen the device alive may see it die meanwhile.
    #[test]
    fn a_dying_device_is_told_from_a_live_one() -> Result {
        let device = device()?;
        let handle = device.handle();
        let dev = handle.dev.as_ptr();
        type Device = Registration<Memory>;
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
        Ok(())
    }

    #[test]
    fn a_recovery_is_told_page_and_offset() -> Result {
        let device = device()?;
        let addr = core::ptr::without_provenance_mut::<c_void>(5 * PAGE_SIZE + 7);

        // SAFETY: The lock is held, as far as a device without users can tell; the iterator is not
        // used.
        let sum = unsafe {
            Registration::<Memory>::recovery_write_callback(
                device.handle.dev.as_ptr(),
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
        let device = device()?;
        let handle = device.handle();

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
        let device = device()?;
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
        Ok(())
    }
}
