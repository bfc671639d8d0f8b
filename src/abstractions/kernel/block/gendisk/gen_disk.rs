// SPDX-License-Identifier: GPL-2.0

//! Disks, before, during and after their registration.

use super::{
    attribute::Tables,
    holder::{
        major_of,
        Holder, //
    },
    limits::Limits,
    operations::Operations,
    removed,
    state::DiskState, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::module::this_module;
use crate::abstractions::kernel::{
    badblocks::Badblocks,
    block::bio::Bio,
    kernfs::Dirent,
    kobject,
    numa::Node, //
};
use crate::abstractions::kernel_ext::module::Registered;
use core::{
    marker::PhantomData,
    ptr::{
        addr_of,
        addr_of_mut,
        NonNull, //
    }, //
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    devres,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow, //
    },
    types::ForeignOwnable, //
};

/// The name of a disk in `/dev`.
pub struct DiskName(pub(in crate::abstractions) [c_char; bindings::DISK_NAME_LEN as usize]);

/// A disk. It cannot be opened until [`Self::register`] has added it and put it into a
/// [`Registration`].
///
/// # Invariants
///
/// - `disk` is a valid `struct gendisk` that `self` owns. Its operations are those of `T`.
/// - Its private data is `data`, an `Arc<T>` in its foreign form, which `self` owns.
/// - The data of its queue is an `Arc<DiskState>` in its raw form, which is put once the disk is no
///   longer open.
pub struct GenDisk<T: Operations> {
    disk: NonNull<bindings::gendisk>,
    state: Arc<DiskState>,
    data: *mut c_void,
    _data: PhantomData<Arc<T>>,
    // Dropped last.
    _registered: Registered,
}

// SAFETY: A disk may be removed by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Operations> Send for GenDisk<T> {}

// SAFETY: The methods of `&GenDisk` may be called by several threads concurrently.
unsafe impl<T: Operations> Sync for GenDisk<T> {}

impl<T: Operations> GenDisk<T> {
    const OPS: bindings::block_device_operations = bindings::block_device_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        submit_bio: Some(Self::submit_bio_callback),
        open: Some(open_callback),
        release: Some(release_callback),
        set_read_only: Some(set_read_only_callback),
        free_disk: Some(free_disk_callback),
        ..ZEROED_OPS
    };

    /// Allocates a disk of `sectors` sectors of 512 bytes. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the block layer does not accept the limits.
    pub fn new(
        name: &DiskName,
        limits: Limits,
        sectors: u64,
        node: Node,
        data: Arc<T>,
    ) -> Result<Self> {
        let registered = Registered::new()?;
        let mut lim = bindings::queue_limits {
            logical_block_size: limits.logical_block_size,
            physical_block_size: limits.physical_block_size,
            // Memory can be copied in requests of any size.
            max_hw_sectors: u32::MAX,
            max_write_zeroes_sectors: limits.max_write_zeroes >> bindings::SECTOR_SHIFT,
            features: limits.features.0,
            ..Default::default()
        };

        // SAFETY: The limits are valid for the call. The block layer checks them.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_alloc_disk(&mut lim, node.0, kernel::static_lock_class!().as_ptr())
        })?;
        let disk = NonNull::new(disk).ok_or(ENOMEM)?;
        // SAFETY: The disk is valid.
        let state = unsafe { DiskState::new(disk) }.inspect_err(|_| {
            // SAFETY: The disk was just allocated, and nothing else has a reference to it.
            unsafe { bindings::put_disk(disk.as_ptr()) };
        })?;

        let bad = data.badblocks().map(Badblocks::as_raw);
        let data = data.into_foreign();

        let ops: &'static bindings::block_device_operations = &Self::OPS;
        // SAFETY: The disk is valid, and nothing else has a reference to it. The list of bad blocks
        // belongs to the data, which is dropped after the disk has left sysfs.
        unsafe {
            let raw = disk.as_ptr();
            (*raw).fops = ops;
            (*(*raw).queue).queuedata = Arc::into_raw(state.clone()).cast_mut().cast();
            (*raw).private_data = data;
            (*raw).disk_name = name.0;
            if let Some(bad) = bad {
                // CAST: `struct badblocks` is opaque in the bindings of the kernel crate.
                (*raw).bb = bad.as_ptr().cast();
            }
            bindings::set_capacity(raw, sectors);
        }

        // INVARIANT: The fields of the disk were just set.
        Ok(Self {
            disk,
            state,
            data,
            _data: PhantomData,
            _registered: registered,
        })
    }

    pub(in crate::abstractions) fn state(&self) -> Arc<DiskState> {
        self.state.clone()
    }

    pub(in crate::abstractions) fn as_raw(&self) -> *mut bindings::gendisk {
        self.disk.as_ptr()
    }

    /// Returns the device of the disk (`disk_to_dev()`).
    pub(in crate::abstractions) fn device_raw(&self) -> *mut bindings::device {
        // SAFETY: By the type invariant the disk is valid, and a disk always has `part0`.
        unsafe { addr_of_mut!((*(*self.disk.as_ptr()).part0).bd_device) }
    }

    /// Takes a reference to the device of the disk.
    pub(in crate::abstractions) fn device(&self) -> ARef<device::Device> {
        // SAFETY: The device is part of the disk, to which `self` has a reference.
        unsafe { device::Device::get_device(self.device_raw()) }
    }

    /// Adds the disk (`device_add_disk()`), so it appears in `/dev` and sysfs and can be opened.
    ///
    /// May sleep. The block layer reads the partition table, so it submits requests before this
    /// returns. `parent` becomes the parent in the device tree. When it is unbound, the disk is
    /// removed, unless it was removed before. The module is not unloaded before that.
    pub fn register(self, parent: &device::Device<Bound>) -> Result<Registration<T>> {
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        let raw_parent = core::ptr::from_ref(parent).cast_mut().cast();
        let groups = if T::ATTRIBUTE.is_some() {
            Tables::<T>::GROUPS.as_ptr().cast_mut()
        } else {
            core::ptr::null_mut()
        };

        let (registered, of_disk) = (Registered::new()?, Registered::new()?);
        // SAFETY: The disk is valid and was not added. `parent` is a valid device, to which the
        // disk takes a reference. The groups are in static memory.
        to_result(unsafe { bindings::device_add_disk(raw_parent, self.as_raw(), groups) })?;

        // For `free_disk_callback`, which is called for each disk that was added.
        of_disk.into_raw();
        // SAFETY: The disk was just added. Only its state calls `del_gendisk()`.
        unsafe { self.state.set_added() };
        // INVARIANT: The disk was added.
        let registration = Registration { disk: self };

        let on_unbind = RemoveOnUnbind {
            state: registration.disk.state(),
            _registered: registered,
        };
        devres::register(parent, on_unbind, GFP_KERNEL)?;
        Ok(registration)
    }

    /// # Safety
    ///
    /// Called by the block layer only. `bio` must have been submitted to a `GenDisk<T>`, and its
    /// ownership passes to this function.
    unsafe extern "C" fn submit_bio_callback(bio: *mut bindings::bio) {
        let Some(bio) = NonNull::new(bio) else {
            return;
        };

        // SAFETY: By the safety requirements the request is valid, and the private data of its disk
        // is an `Arc<T>`. The data outlives this call, for which `del_gendisk()` waits.
        let data = unsafe { Arc::<T>::borrow((*(*(*bio.as_ptr()).bi_bdev).bd_disk).private_data) };

        // SAFETY: By the safety requirements this function owns the request.
        T::submit_bio(data, unsafe { Bio::from_raw(bio) });
    }
}

/// The operations that a disk does not have.
const ZEROED_OPS: bindings::block_device_operations = pin_init::zeroed();

/// # Safety
///
/// Called by the block layer only. `disk` must be that of a [`GenDisk`] that is added, and its
/// `open_mutex` must be held. If `mode` has `BLK_OPEN_EXCL`, the claim in progress must be that of
/// the opener, of the disk or a partition.
unsafe extern "C" fn open_callback(
    disk: *mut bindings::gendisk,
    mode: bindings::blk_mode_t,
) -> c_int {
    // SAFETY: By the safety requirements the disk is valid. The claim may change concurrently,
    // hence the volatile read. It is that of the opener, and used below, only if `mode` has
    // `BLK_OPEN_EXCL`. The number of a device does not change.
    let (holder, number) = unsafe {
        let part0 = (*disk).part0;
        let holder = Holder(addr_of!((*part0).bd_claiming).read_volatile());
        (holder, (*part0).bd_dev)
    };

    // SAFETY: By the safety requirements the disk is added. So by the type invariant of `GenDisk`
    // the data of its queue is a `DiskState`.
    let state = unsafe { &*(*(*disk).queue).queuedata.cast::<DiskState>() };

    if holder.is_indirect(mode, number) {
        if state.refuses_indirect() {
            return EBUSY.to_errno();
        }
        state.record_indirect_claim();
    } else if mode & bindings::BLK_OPEN_EXCL != 0 {
        let device = holder
            .number_of_new_superblock(major_of(number))
            .and_then(|opened| state.device_with_number(opened));
        if device.is_some_and(|device| removed::has_name_of(&device)) {
            return EBUSY.to_errno();
        }
    }
    0
}

/// # Safety
///
/// Called by the block layer only. `disk` must be that of a [`GenDisk`], and its `open_mutex` must
/// be held.
unsafe extern "C" fn release_callback(disk: *mut bindings::gendisk) {
    // SAFETY: By the safety requirements the disk was open until now. So by the type invariant of
    // `GenDisk` the data of its queue is a `DiskState`.
    unsafe {
        let state = (*(*disk).queue).queuedata.cast::<DiskState>();
        (*state).record_release();
        if (*disk).private_data.is_null() && !is_open(disk) {
            removed::forget(&*state);
            drop(Arc::from_raw(state.cast_const()));
        }
    }
}

/// # Safety
///
/// Called by the block layer only, for an opener of `bdev`, which must be a [`GenDisk`] or a
/// partition of one.
unsafe extern "C" fn set_read_only_callback(
    bdev: *mut bindings::block_device,
    read_only: bool,
) -> c_int {
    // SAFETY: By the safety requirements the disk is open. So by the type invariant of `GenDisk`
    // the data of its queue is a `DiskState`.
    let state = unsafe { &*(*(*(*bdev).bd_disk).queue).queuedata.cast::<DiskState>() };

    if !read_only && state.is_read_only() {
        return EROFS.to_errno();
    }
    0
}

/// Drops the [`Registered`] that keeps the operations of the disk. `disk_release()` reads them when
/// the last reference to the disk is put. That may be the reference of an opener that has put its
/// reference to the module before.
///
/// # Safety
///
/// Called by the block layer only, once for a [`GenDisk`] that was added.
unsafe extern "C" fn free_disk_callback(_disk: *mut bindings::gendisk) {
    // SAFETY: `register` has called `into_raw()` for this disk.
    drop(unsafe { Registered::from_raw() });
}

/// Returns whether a disk or a partition of it is open. The result changes with its `open_mutex`
/// held.
///
/// # Safety
///
/// The disk must be valid.
unsafe fn is_open(disk: *mut bindings::gendisk) -> bool {
    // SAFETY: By the safety requirements the disk is valid. The counter is atomic.
    unsafe { addr_of!((*(*disk).part0).bd_openers.counter).read_volatile() != 0 }
}

impl<T: Operations> Drop for GenDisk<T> {
    fn drop(&mut self) {
        let raw = self.disk.as_ptr();

        // SAFETY: By the type invariant `self` owns the disk. The disk was not added, or was
        // deleted, so it cannot be opened and the block layer no longer uses the private data. If
        // openers are left, the last one closes the disk under the mutex, finds no private data,
        // and drops the state.
        unsafe {
            let mutex = addr_of_mut!((*raw).open_mutex);
            bindings::mutex_lock(mutex);
            (*raw).private_data = core::ptr::null_mut();
            let state = (*(*raw).queue).queuedata.cast::<DiskState>();
            let is_open = is_open(raw);
            bindings::mutex_unlock(mutex);
            if !is_open {
                removed::forget(&*state);
                drop(Arc::from_raw(state.cast_const()));
            }

            bindings::put_disk(raw);
            drop(Arc::<T>::from_foreign(self.data));
        }
    }
}

/// Removes a disk when its parent is unbound.
///
/// The parent may be bound to a driver of another module, which is not unbound when this one is
/// unloaded. So this is a registration of the module ([`Registered`]) for as long as devres may
/// drop it, even if the disk was removed.
struct RemoveOnUnbind {
    state: Arc<DiskState>,
    // Dropped last.
    _registered: Registered,
}

impl Drop for RemoveOnUnbind {
    fn drop(&mut self) {
        removed::remove(&self.state);
    }
}

/// The registration of a disk.
///
/// Dropping it [removes](Self::remove) the disk. The unbinding of the parent removes it too. A
/// removal waits for threads that execute a request, or read or write an attribute. So none of them
/// may drop it, nor call [`Self::set_read_only`], [`Self::attribute`] or [`Self::notify_change`],
/// which wait for a removal: the two would wait for each other for ever.
///
/// # Invariants
///
/// The disk was added. It may have been removed since.
pub struct Registration<T: Operations> {
    disk: GenDisk<T>,
}

impl<T: Operations> Registration<T> {
    /// Returns the data of the disk.
    pub fn data(&self) -> ArcBorrow<'_, T> {
        // SAFETY: By the type invariant of `GenDisk` it owns the data, which is not borrowed
        // mutably.
        unsafe { Arc::<T>::borrow(self.disk.data) }
    }

    pub(in crate::abstractions) fn state(&self) -> Arc<DiskState> {
        self.disk.state()
    }

    /// Sets the disk read-only or writable (`set_disk_ro()`). May sleep.
    ///
    /// While it is read-only, programs cannot make it writable (`BLKROSET` fails with [`EROFS`]). A
    /// disk or partition that a program has set read-only stays so.
    pub fn set_read_only(&self, read_only: bool) {
        self.disk.state.set_read_only(read_only);
    }

    /// Returns a sysfs attribute of the disk, for notifications.
    ///
    /// Returns [`None`] if there is no such attribute, if the disk was removed, or if there are
    /// 65536 such references in the module already.
    pub fn attribute(&self, name: &CStr) -> Option<Dirent> {
        self.disk.state.with_added(|_| {
            // SAFETY: The disk was added, and is not deleted during the call.
            unsafe { Dirent::of_device(self.disk.device_raw(), name) }
        })?
    }

    /// Returns whether the disk or a partition of it is open, by a program or in the kernel. It may
    /// be opened and closed at any time.
    pub fn is_open(&self) -> bool {
        // SAFETY: By the type invariant of `GenDisk` the disk is valid.
        unsafe { is_open(self.disk.as_raw()) }
    }

    /// Sends a `change` uevent of the disk with one or more variables `NAME=value`. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENXIO`] if the disk was removed, [`EINVAL`] if the variables have more than 1 KiB.
    pub fn notify_change<const N: usize>(&self, variables: [&CStr; N]) -> Result {
        self.disk
            .state
            .with_added(|_| {
                // SAFETY: The disk was added, and is not deleted during the call. So its parent is
                // bound, and is not deleted either.
                unsafe { kobject::notify_change(self.disk.device_raw(), variables) }
            })
            .ok_or(ENXIO)?
    }

    /// Removes the disk (`del_gendisk()`).
    ///
    /// New requests are refused. File systems on the disk sync and shut down. Calls of
    /// [`Operations::submit_bio`] in progress are waited for. Sleeps; `docs/lifetimes.md` says what
    /// this may wait for.
    pub fn remove(self) -> RemovedDisk {
        drop(self);
        RemovedDisk(())
    }
}

impl<T: Operations> Drop for Registration<T> {
    fn drop(&mut self) {
        // The `GenDisk` is dropped after this.
        removed::remove(&self.disk.state);
    }
}

/// A disk that was removed. Programs, file systems and device-mapper may still have it open.
pub struct RemovedDisk(());

#[kunit_tests(pmem_rs_gendisk)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::block::gendisk::{
        keepers::{
            is_any_loaded,
            testing::UsedKeeper, //
        },
        BlockDevice,
        FrozenDevice, //
    };
    use crate::abstractions::kernel::block::{
        bio::Status,
        gendisk::{
            limits::{
                Features,
                PAGE_BLOCK, //
            },
            operations::BoolAttribute, //
        }, //
    };
    use crate::abstractions::kernel::fs::dax::{
        testing::{
            pages,
            Silent,
            TestPagemap, //
        },
        Pagemap,
        Revoked,
        User, //
    };
    use core::ptr::null;
    use kernel::{
        faux,
        page::PAGE_SIZE,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
    };

    /// A disk that fails requests, and counts its reads.
    struct Counter {
        reads: Atomic<u64>,
        bytes: Atomic<u64>,
        odd: Atomic<u64>,
    }

    impl Operations for Counter {
        type OwnerModule = crate::LocalModule;

        const ATTRIBUTE: Option<BoolAttribute<Self>> = Some(BoolAttribute {
            directory: c"test",
            name: c"odd",
            show: |counter| counter.odd.load(Relaxed) != 0,
            store: |counter, value| {
                counter.odd.store(u64::from(value), Relaxed);
                Ok(())
            },
        });

        fn submit_bio(this: ArcBorrow<'_, Self>, bio: Bio) {
            if let Some(segments) = bio.segments_to_fill() {
                this.reads.fetch_add(1, Relaxed);
                // The memory of a read is accessible in one direction only.
                let to: usize = segments.map(|segment| segment.len()).sum();
                if bio.segments().is_some() || to != bio.len() || bio.is_preflush() || bio.is_fua()
                {
                    this.odd.fetch_add(1, Relaxed);
                }
                this.bytes.fetch_add(to as u64, Relaxed);
            }
            if let Some(accounting) = bio.start_accounting() {
                accounting.end();
            }
            bio.end(Status::IOERR);
        }
    }

    fn counter() -> Result<Arc<Counter>> {
        Ok(Arc::new(
            Counter {
                reads: Atomic::new(0),
                bytes: Atomic::new(0),
                odd: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    fn disk(data: Arc<Counter>, logical_block_size: u32) -> Result<GenDisk<Counter>> {
        let mut name = DiskName([0; bindings::DISK_NAME_LEN as usize]);
        for (to, from) in name.0.iter_mut().zip(b"pmem_rs_test") {
            *to = *from as c_char;
        }
        let limits = Limits {
            logical_block_size,
            physical_block_size: PAGE_BLOCK,
            max_write_zeroes: 1 << 20,
            features: Features::WRITE_CACHE | Features::SYNCHRONOUS,
        };

        GenDisk::new(&name, limits, 2048, Node(0), data)
    }

    #[test]
    fn claims_are_refused_until_the_last_refusal_ends() -> Result {
        let disk = disk(counter()?, 4096)?;
        let state = disk.state();

        state.refuse_indirect();
        state.refuse_indirect();
        state.permit_indirect();
        assert!(state.refuses_indirect());
        state.permit_indirect();
        assert!(!state.refuses_indirect());
        Ok(())
    }

    #[test]
    fn invalid_limits_are_refused() -> Result {
        assert!(disk(counter()?, 7).is_err_and(|err| err == EINVAL));
        assert!(disk(counter()?, 1 << 30).is_err_and(|err| err == EINVAL));
        Ok(())
    }

    #[test]
    fn the_queue_has_the_limits() -> Result {
        let disk = disk(counter()?, 4096)?;

        // SAFETY: The disk is valid, and nothing else has a reference to it.
        let limits = unsafe { &(*(*disk.as_raw()).queue).limits };
        assert_eq!(limits.logical_block_size, 4096);
        assert_eq!(limits.max_write_zeroes_sectors, 2048);
        assert_eq!(limits.physical_block_size, PAGE_BLOCK);
        assert!(limits.features & bindings::BLK_FEAT_WRITE_CACHE != 0);
        assert!(limits.features & bindings::BLK_FEAT_FUA == 0);
        assert!(limits.features & bindings::BLK_FEAT_DAX == 0);
        Ok(())
    }

    #[test]
    fn a_disk_that_was_not_added_drops_its_data() -> Result {
        let data = counter()?;

        drop(disk(data.clone(), 512)?);
        assert!(Arc::into_unique_or_drop(data).is_some());
        Ok(())
    }

    #[test]
    fn a_disk_reads_its_partition_table_and_drops_its_data() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_gendisk", None)?;
        let data = counter()?;

        let disk = disk(data.clone(), 512)?.register(faux.as_ref().as_ref())?;
        assert!(data.reads.load(Relaxed) > 0);
        assert!(data.bytes.load(Relaxed) >= 512);
        assert_eq!(data.odd.load(Relaxed), 0);
        assert!(disk.attribute(c"ro").is_some());
        // `disk_scan_partitions()` opened the disk. A kernel thread closes a file later
        // (`delayed_fput()`).
        let mut tries = 0;
        while disk.is_open() && tries < 1000 {
            fsleep(Delta::from_millis(10));
            tries += 1;
        }
        assert!(!disk.is_open());
        disk.notify_change([c"A=b"])?;
        // It has no list of bad blocks.
        assert!(disk.attribute(c"badblocks").is_none());
        assert!(disk.attribute(c"holders").is_none());

        drop(disk);
        assert!(Arc::into_unique_or_drop(data).is_some());
        Ok(())
    }

    #[test]
    fn a_disk_is_counted_until_its_last_reference() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_gendisk", None)?;
        let before = Registered::count();
        let disk = disk(counter()?, 512)?.register(faux.as_ref().as_ref())?;
        let device = disk.disk.device();

        drop(disk);
        drop(faux);
        fsleep(Delta::from_millis(100));
        assert!(Registered::count() > before);
        drop(device);
        // An opener may still have the disk (see above).
        let mut tries = 0;
        while Registered::count() > before && tries < 1000 {
            fsleep(Delta::from_millis(10));
            tries += 1;
        }
        assert!(Registered::count() <= before);
        Ok(())
    }

    #[test]
    fn what_devres_will_drop_is_counted() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_gendisk", None)?;
        let before = Registered::count();

        drop(disk(counter()?, 512)?.register(faux.as_ref().as_ref())?);
        assert!(Registered::count() > before);
        drop(faux);
        // An opener may still have the disk (see above).
        let mut tries = 0;
        while Registered::count() > before && tries < 1000 {
            fsleep(Delta::from_millis(10));
            tries += 1;
        }
        assert!(Registered::count() <= before);
        Ok(())
    }

    /// A claim of a disk without holder operations, as those of device-mapper.
    struct PlainClaim(NonNull<bindings::file>);

    impl PlainClaim {
        fn new<T: Operations>(disk: &Registration<T>) -> Result<Self> {
            let holder = c"pmem_rs test".as_char_ptr().cast_mut().cast();

            // SAFETY: The disk was added. The holder is static, and is only compared.
            let file = from_err_ptr(unsafe {
                let number = (*(*disk.disk.as_raw()).part0).bd_dev;
                bindings::bdev_file_open_by_dev(number, bindings::BLK_OPEN_READ, holder, null())
            })?;
            NonNull::new(file).map(Self).ok_or(ENXIO)
        }
    }

    impl Drop for PlainClaim {
        fn drop(&mut self) {
            // SAFETY: The file was opened, and is not used after this. Tests run in threads of the
            // kernel, with no locks held. device-mapper does the same (`close_table_device()`).
            unsafe { bindings::__fput_sync(self.0.as_ptr()) };
        }
    }

    /// Memory that was exposed and revoked. The disk that was its host is removed by now.
    fn revoked_memory(
        pages: Pagemap<Silent>,
        with_disk: impl FnOnce(&Registration<Counter>) -> Result,
    ) -> Result<Revoked<Silent>> {
        let faux = faux::Registration::new(c"pmem_rs_gendisk", None)?;
        let disk = disk(counter()?, 512)?;

        pages.set_host(disk.state())?;
        let disk = disk.register(faux.as_ref().as_ref())?;
        with_disk(&disk)?;
        pages.page_states.expose(0, 1);
        drop(disk);
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        revoked.revoke();
        Ok(revoked)
    }

    #[test]
    fn a_claim_keeps_memory_while_a_keeper_is_loaded() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let mut claim = None;
        let mut revoked = revoked_memory(pages, |disk| {
            claim = Some(PlainClaim::new(disk)?);
            Ok(())
        })?;

        // A claim of other code keeps no address. The module stays loaded, and may be already.
        let was_loaded = is_any_loaded();
        let before = revoked.first_user();
        let keeper = UsedKeeper::load()?;
        let claimed = revoked.first_user();
        let Err(mut revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        // The keeper may be above another table, by which it has got the address.
        drop(claim);
        let claim_has_ended = revoked.first_user();
        let Err(mut revoked) = revoked.free() else {
            return Err(EINVAL);
        };
        drop(keeper);
        let unused = revoked.first_user();
        let is_free = revoked.free().is_ok();

        assert_eq!(before, was_loaded.then_some(User::Keeper));
        assert_eq!(claimed, Some(User::Keeper));
        assert_eq!(claim_has_ended, Some(User::Keeper));
        assert_eq!(unused, None);
        assert!(is_free);
        drop(queue);
        Ok(())
    }

    #[test]
    fn a_keeper_of_something_else_keeps_no_memory() -> Result {
        let TestPagemap { pages, queue } = pages()?;
        let keeper = UsedKeeper::load()?;
        let mut revoked = revoked_memory(pages, |_| Ok(()))?;

        let user = revoked.first_user();
        let is_free = revoked.free().is_ok();

        assert_eq!(user, None);
        assert!(is_free);
        drop(keeper);
        drop(queue);
        Ok(())
    }

    /// Returns the users of memory of which nothing was exposed: after a walk that began while
    /// there was a reference, and after another one. Frees it.
    fn users_of_unexposed_memory(claimed: bool) -> Result<[Option<User>; 2]> {
        let TestPagemap { pages, queue } = pages()?;
        let faux = faux::Registration::new(c"pmem_rs_gendisk", None)?;
        let disk = disk(counter()?, 512)?;

        pages.set_host(disk.state())?;
        let disk = disk.register(faux.as_ref().as_ref())?;
        if claimed {
            drop(PlainClaim::new(&disk)?);
        }
        let reference = pages.reference();
        drop(disk);
        let (mut revoked, _) = pages.close().revoke();
        drop(reference);
        revoked.wait_for(User::Reference, 1000);
        let early = revoked.first_user();
        revoked.revoke();
        let late = revoked.first_user();
        revoked.free().map_err(|_| EBUSY)?;
        drop(queue);
        Ok([early, late])
    }

    #[test]
    fn memory_below_another_device_is_walked_if_nothing_was_exposed() -> Result {
        assert_eq!(users_of_unexposed_memory(false)?, [None, None]);
        assert_eq!(
            users_of_unexposed_memory(true)?,
            [Some(User::PageCache), None]
        );
        Ok(())
    }

    #[test]
    fn a_freeze_that_something_else_has_put_is_not_put_again() -> Result {
        let disk = disk(counter()?, 512)?;
        // SAFETY: The disk is valid, and a disk always has `part0`.
        let part0 = unsafe { (*disk.as_raw()).part0 };
        let freeze = || {
            // SAFETY: The disk keeps its device.
            let device = unsafe { BlockDevice::get(part0) }.ok_or(ENXIO)?;
            FrozenDevice::new(device).map_err(|(_, err)| err)
        };

        let (mut first, mut second) = (freeze()?, freeze()?);
        assert_eq!(first.thaw(), Ok(()));
        assert_eq!(first.thaw(), Ok(()));
        // SAFETY: The disk keeps its device. `emergency_thaw_all()` does this.
        assert_eq!(unsafe { bindings::bdev_thaw(part0) }, 0);
        assert_eq!(second.thaw(), Ok(()));
        // SAFETY: As above. Nothing is left to be thawed.
        assert_eq!(unsafe { bindings::bdev_thaw(part0) }, EINVAL.to_errno());
        assert_eq!(freeze()?.thaw(), Ok(()));
        Ok(())
    }

    #[test]
    fn a_partition_that_is_being_deleted_hides_no_other() -> Result {
        let disk = disk(counter()?, 512)?;
        let dying = KBox::<bindings::block_device>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        // SAFETY: The disk is valid, and nothing else uses its table. Its own device stands for a
        // partition. The other one has no references, as when it is being deleted.
        unsafe {
            let table = addr_of_mut!((*disk.as_raw()).part_tbl);
            let store = |index, device: *const bindings::block_device| {
                let entry = device.cast_mut().cast();
                bindings::xa_err(bindings::xa_store(
                    table,
                    index,
                    entry,
                    bindings::GFP_KERNEL,
                ))
            };
            assert_eq!(store(1, dying.as_ptr()), 0);
            assert_eq!(store(2, (*disk.as_raw()).part0), 0);
        }

        let mut devices = KVec::with_capacity(2, GFP_KERNEL)?;
        let had_room = disk.state().add_devices(&mut devices);
        let found = devices.len();
        // SAFETY: As above.
        unsafe {
            let table = addr_of_mut!((*disk.as_raw()).part_tbl);
            bindings::xa_erase(table, 1);
            bindings::xa_erase(table, 2);
        }
        // The partition, and the disk.
        assert_eq!(had_room, Ok(true));
        assert_eq!(found, 2);
        Ok(())
    }

    #[test]
    fn an_attribute_is_shown_and_stored() -> Result {
        let disk = disk(counter()?, 512)?;
        let dev = disk.device_raw();
        let mut page = KVec::from_elem(0_u8, PAGE_SIZE, GFP_KERNEL)?;
        // `sysfs_emit()` needs an aligned page. An allocation of this size is aligned.
        let buf: *mut c_char = page.as_mut_ptr().cast();
        type Attribute = Tables<Counter>;

        // SAFETY: The disk is valid, and the buffers are those that sysfs passes.
        unsafe {
            let store = |text: &CStr| {
                let len = text.to_bytes().len();
                Attribute::store_callback(dev, core::ptr::null_mut(), text.as_char_ptr(), len)
            };
            assert_eq!(store(c"yes"), 3);
            assert_eq!(Attribute::show_callback(dev, core::ptr::null_mut(), buf), 2);
            assert_eq!(page.first(), Some(&b'1'));
            assert_eq!(store(c"perhaps"), EINVAL.to_errno() as isize);
            assert_eq!(store(c"0\n"), 2);
            assert_eq!(Attribute::show_callback(dev, core::ptr::null_mut(), buf), 2);
        }
        assert_eq!(page.first(), Some(&b'0'));
        Ok(())
    }
}
