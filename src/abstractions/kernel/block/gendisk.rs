// SPDX-License-Identifier: GPL-2.0

//! Disks that take bios as they come (`submit_bio`), without a request queue of blk-mq.
//!
//! The kernel crate's `block::mq` is for drivers that work on requests.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`Documentation/block/biovecs.rst`](srctree/Documentation/block/biovecs.rst)

use crate::abstractions::{
    bindings,
    kernel::{
        badblocks::Badblocks,
        block::bio::Bio,
        kernfs::Dirent,
        numa::Node, //
    },
    kernel_ext::module::Registered, //
};
use core::{
    marker::PhantomData,
    ptr::{
        addr_of,
        addr_of_mut,
        NonNull, //
    },
};
use kernel::{
    container_of,
    device::{
        self,
        Bound, //
    },
    devres,
    error::{
        from_err_ptr,
        to_result, //
    },
    module::this_module,
    page::PAGE_SIZE,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow, //
    },
    time::Msecs,
    types::ForeignOwnable,
    ModuleMetadata, //
};

mod state;

pub(in crate::abstractions) use crate::abstractions::kernel::block::gendisk::state::DiskState;

/// What a queue can do (`BLK_FEAT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// Writes may sit in a cache until a flush.
    pub const WRITE_CACHE: Self = Self(bindings::BLK_FEAT_WRITE_CACHE);
    /// Single writes can be made durable.
    pub const FUA: Self = Self(bindings::BLK_FEAT_FUA);
    /// Requests end before `submit_bio` returns, so that there is no point in waiting for them.
    pub const SYNCHRONOUS: Self = Self(bindings::BLK_FEAT_SYNCHRONOUS);
    /// File systems may look for a DAX device.
    pub const DAX: Self = Self(bindings::BLK_FEAT_DAX);
}

impl core::ops::BitOr for Features {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// The limits of a queue, in bytes; see `struct queue_limits`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The smallest unit that the disk can address.
    pub logical_block_size: u32,
    /// The smallest unit that the disk can write without reading first.
    pub physical_block_size: u32,
    /// What the queue can do.
    pub features: Features,
}

/// The name of a disk, as in `/dev`.
pub struct DiskName(pub(in crate::abstractions) [c_char; bindings::DISK_NAME_LEN as usize]);

/// An attribute in sysfs that shows `0` or `1`, and takes what means no or yes to `kstrtobool()`.
pub struct BoolAttribute<T> {
    /// The directory in that of the disk.
    pub directory: &'static CStr,
    /// The name of the file, which all may read and root may write.
    pub name: &'static CStr,
    /// Returns the value.
    pub show: fn(&T) -> bool,
    /// Changes the value.
    pub store: fn(&T, bool) -> Result,
}

/// The operations of a disk.
///
/// # Examples
///
/// A disk that swallows writes:
///
/// ```no_run
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     prelude::*,
///     sync::Arc, //
/// };
/// use pmem_rs::abstractions::kernel::{
///     block::{
///         bio::{
///             Bio,
///             Operation,
///             Status, //
///         },
///         gendisk::{
///             self,
///             DiskName,
///             Features,
///             GenDisk,
///             Limits,
///             PAGE_BLOCK, //
///         }, //
///     },
///     numa::Node, //
/// };
///
/// struct Abyss;
///
/// impl gendisk::Operations for Abyss {
///     type OwnerModule = pmem_rs::Module;
///
///     fn submit_bio(&self, bio: Bio) {
///         let status = match bio.operation() {
///             Operation::Write => Status::OK,
///             _ => Status::NOTSUPP,
///         };
///
///         bio.end(status);
///     }
/// }
///
/// fn add(
///     name: &DiskName,
///     node: Node,
///     parent: &Device<Bound>,
/// ) -> Result<gendisk::Registration<Abyss>> {
///     let limits = Limits {
///         logical_block_size: 512,
///         physical_block_size: PAGE_BLOCK,
///         features: Features::WRITE_CACHE | Features::SYNCHRONOUS,
///     };
///     let data = Arc::new(Abyss, GFP_KERNEL)?;
///     let disk = GenDisk::new(name, limits, 2048, node, data)?;
///
///     // From here on it can be opened, until what is returned is dropped.
///     disk.register(parent)
/// }
/// ```
pub trait Operations: Send + Sync + Sized + 'static {
    /// The module that the operations belong to; it cannot be unloaded while the disk is open.
    type OwnerModule: ModuleMetadata;

    /// Carries out a request.
    ///
    /// Called in process context, may sleep; several requests may be under way at once. The
    /// request need not have ended when this returns. Requests may come from before the disk was
    /// added (while it is being added, for its partition table) until it is removed.
    fn submit_bio(&self, bio: Bio);

    /// An attribute that the disk has in sysfs beyond those of all disks.
    const ATTRIBUTE: Option<BoolAttribute<Self>> = None;

    /// The list that the sysfs attribute `badblocks` of the disk shows and changes.
    fn badblocks(&self) -> Option<&Badblocks> {
        None
    }
}

/// A disk that has not been added yet, so that it cannot be opened.
///
/// # Invariants
///
/// `disk` is a valid `struct gendisk` that is ours, its operations are those of `T`, and its
/// private data is an `Arc<T>` in its foreign form, which is ours too. The data of its queue is an
/// `Arc<DiskState>` in its raw form, which is put when the disk is open no more.
pub struct GenDisk<T: Operations> {
    disk: NonNull<bindings::gendisk>,
    state: Arc<DiskState>,
    data: *mut c_void,
    _data: PhantomData<Arc<T>>,
    // Goes last.
    _registered: Registered,
}

// SAFETY: A disk may be removed by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Operations> Send for GenDisk<T> {}

// SAFETY: The methods of `&GenDisk` may be called by several threads at once.
unsafe impl<T: Operations> Sync for GenDisk<T> {}

impl<T: Operations> GenDisk<T> {
    const OPS: bindings::block_device_operations = bindings::block_device_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        submit_bio: Some(Self::submit_bio_callback),
        release: Some(release_callback),
        ..ZEROED_OPS
    };

    /// Makes a disk of `sectors` sectors of 512 bytes. May sleep.
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
            // Memory can be copied in pieces of any size.
            max_hw_sectors: u32::MAX,
            features: limits.features.0,
            ..Default::default()
        };

        // SAFETY: The limits are valid for the call. The block layer checks them.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_alloc_disk(&mut lim, node.0, kernel::static_lock_class!().as_ptr())
        })?;
        let disk = NonNull::new(disk).ok_or(ENOMEM)?;
        // SAFETY: The disk is valid. What cannot be watched is put again.
        let state = unsafe { DiskState::new(disk) }.inspect_err(|_| {
            // SAFETY: The disk was just made, and is known to nothing else.
            unsafe { bindings::put_disk(disk.as_ptr()) };
        })?;

        let bad = data.badblocks().map(Badblocks::as_raw);
        let data = data.into_foreign();

        let ops: &'static bindings::block_device_operations = &Self::OPS;
        // SAFETY: The disk is valid and known to nothing else. The list of bad blocks belongs to
        // the data, which outlives the disk's presence in sysfs.
        unsafe {
            let raw = disk.as_ptr();
            (*raw).fops = ops;
            (*(*raw).queue).queuedata = Arc::into_raw(state.clone()).cast_mut().cast();
            (*raw).private_data = data;
            (*raw).disk_name = name.0;
            if let Some(bad) = bad {
                // CAST: The kernel crate's bindings know the type only by name.
                (*raw).bb = bad.as_ptr().cast();
            }
            bindings::set_capacity(raw, sectors);
        }

        // INVARIANT: As just set.
        Ok(Self {
            disk,
            state,
            data,
            _data: PhantomData,
            _registered: registered,
        })
    }

    /// Returns the state of the disk, which stays for as long as anything may have it open.
    pub(in crate::abstractions) fn state(&self) -> Arc<DiskState> {
        self.state.clone()
    }

    /// Returns the C structure.
    pub(in crate::abstractions) fn as_raw(&self) -> *mut bindings::gendisk {
        self.disk.as_ptr()
    }

    /// `disk_to_dev()`
    pub(in crate::abstractions) fn device_raw(&self) -> *mut bindings::device {
        // SAFETY: By the type invariant the disk is valid, and a disk always has `part0`.
        unsafe { addr_of_mut!((*(*self.disk.as_ptr()).part0).bd_device) }
    }

    /// Returns a reference to the device of the disk.
    pub(in crate::abstractions) fn device(&self) -> ARef<device::Device> {
        // SAFETY: The device is valid, it is part of the disk, of which we have a reference.
        unsafe { device::Device::get_device(self.device_raw()) }
    }

    /// Adds the disk, so that it appears in `/dev` and sysfs and can be opened. May sleep, and
    /// reads the partition table, for which requests are submitted.
    ///
    /// `parent` becomes the parent in the device tree. The disk is removed when it is unbound, if
    /// it is still there then.
    pub fn register(self, parent: &device::Device<Bound>) -> Result<Registration<T>> {
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        let raw_parent = core::ptr::from_ref(parent).cast_mut().cast();
        let groups = if T::ATTRIBUTE.is_some() {
            Self::GROUPS.as_ptr().cast_mut()
        } else {
            core::ptr::null_mut()
        };

        // SAFETY: The disk is valid and not added. `parent` is a valid device, of which the disk
        // takes a reference. The groups are in static memory.
        to_result(unsafe { bindings::device_add_disk(raw_parent, self.as_raw(), groups) })?;

        // SAFETY: The disk has just been added.
        unsafe { self.state.set_added() };
        // INVARIANT: The disk has been added.
        let registration = Registration { disk: self };

        let state = registration.disk.state();
        devres::register(parent, RemoveOnUnbind(state), GFP_KERNEL)?;
        Ok(registration)
    }

    /// # Safety
    ///
    /// For the block layer only: `bio` must have been submitted to a disk with these operations,
    /// and be handed over.
    unsafe extern "C" fn submit_bio_callback(bio: *mut bindings::bio) {
        let Some(bio) = NonNull::new(bio) else {
            return;
        };

        // SAFETY: By the safety requirements the request is valid, and the disk has these
        // operations, so its private data is an `Arc<T>`. It lives until `del_gendisk` has waited
        // for all that are inside of this function.
        let data = unsafe { Arc::<T>::borrow((*(*(*bio.as_ptr()).bi_bdev).bd_disk).private_data) };

        // SAFETY: By the safety requirements.
        data.submit_bio(unsafe { Bio::from_raw(bio) });
    }
}

// The tables for the attribute, if there is one; otherwise they are not used.
impl<T: Operations> GenDisk<T> {
    const ATTRIBUTE: bindings::device_attribute = bindings::device_attribute {
        // With lockdep there are more fields.
        #[allow(clippy::needless_update)]
        attr: bindings::attribute {
            name: match T::ATTRIBUTE {
                Some(attribute) => as_char_ptr_in_const_context(attribute.name),
                None => core::ptr::null(),
            },
            mode: 0o644,
            ..pin_init::zeroed()
        },
        __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
            show: Some(Self::show_callback),
        },
        __bindgen_anon_2: bindings::device_attribute__bindgen_ty_2 {
            store: Some(Self::store_callback),
        },
    };

    const ATTRIBUTES: &'static [*const bindings::attribute; 2] =
        &[&raw const Self::ATTRIBUTE_REF.attr, core::ptr::null()];

    const ATTRIBUTE_REF: &'static bindings::device_attribute = &Self::ATTRIBUTE;

    const GROUP: &'static bindings::attribute_group = &bindings::attribute_group {
        name: match T::ATTRIBUTE {
            Some(attribute) => as_char_ptr_in_const_context(attribute.directory),
            None => core::ptr::null(),
        },
        __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
            attrs_const: Self::ATTRIBUTES.as_ptr(),
        },
        ..pin_init::zeroed()
    };

    const GROUPS: &'static [*const bindings::attribute_group; 2] =
        &[&raw const *Self::GROUP, core::ptr::null()];

    /// Returns the data of the disk that a device is part of.
    ///
    /// # Safety
    ///
    /// `dev` must be the device of a `GenDisk<T>` that is not dropped during `'a`.
    unsafe fn data_of<'a>(dev: *mut bindings::device) -> ArcBorrow<'a, T> {
        // SAFETY: By the safety requirements; `dev_to_disk()`.
        unsafe {
            let part0 = container_of!(dev, bindings::block_device, bd_device);
            Arc::<T>::borrow((*(*part0).bd_disk).private_data)
        }
    }

    /// # Safety
    ///
    /// For sysfs only: `dev` must be the device of a `GenDisk<T>` that is being kept from deletion,
    /// `buf` a page.
    unsafe extern "C" fn show_callback(
        dev: *mut bindings::device,
        _attribute: *mut bindings::device_attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: By the safety requirements.
        let data = unsafe { Self::data_of(dev) };
        let value = T::ATTRIBUTE.is_some_and(|attribute| (attribute.show)(&data));

        // SAFETY: By the safety requirements.
        unsafe { bindings::sysfs_emit(buf, c"%d\n".as_char_ptr(), c_int::from(value)) as isize }
    }

    /// # Safety
    ///
    /// For sysfs only: `dev` must be the device of a `GenDisk<T>` that is being kept from deletion,
    /// `buf` a C string of `len` bytes.
    unsafe extern "C" fn store_callback(
        dev: *mut bindings::device,
        _attribute: *mut bindings::device_attribute,
        buf: *const c_char,
        len: usize,
    ) -> isize {
        let mut value = false;
        // SAFETY: By the safety requirements.
        let parsed = to_result(unsafe { bindings::kstrtobool(buf, &mut value) });

        let result = parsed.and_then(|()| {
            // SAFETY: By the safety requirements.
            let data = unsafe { Self::data_of(dev) };
            match T::ATTRIBUTE {
                Some(attribute) => (attribute.store)(&data, value),
                None => Err(EINVAL),
            }
        });
        match result {
            Ok(()) => len as isize,
            Err(err) => err.to_errno() as isize,
        }
    }
}

/// All fields null, for what a disk leaves out.
const ZEROED_OPS: bindings::block_device_operations = pin_init::zeroed();

/// # Safety
///
/// For the block layer only: `disk` must be a [`GenDisk`], with its open mutex held.
unsafe extern "C" fn release_callback(disk: *mut bindings::gendisk) {
    // SAFETY: By the safety requirements and the type invariant of `GenDisk`, the disk was open
    // until now, so the data of the queue is there.
    unsafe {
        let state = (*(*disk).queue).queuedata.cast::<DiskState>();
        (*state).closed.complete();
        if (*disk).private_data.is_null() && !is_open(disk) {
            drop(Arc::from_raw(state.cast_const()));
        }
    }
}

/// Returns whether a disk or a partition of it is open.
///
/// # Safety
///
/// The disk must be valid, with its open mutex held.
unsafe fn is_open(disk: *mut bindings::gendisk) -> bool {
    // SAFETY: By the safety requirements; the counter is changed under the mutex.
    unsafe { addr_of!((*(*disk).part0).bd_openers.counter).read_volatile() != 0 }
}

impl<T: Operations> Drop for GenDisk<T> {
    fn drop(&mut self) {
        let raw = self.disk.as_ptr();

        // SAFETY: By the type invariant the disk is ours; it has not been added, or been deleted
        // again, so it cannot be opened and the private data is not used any more. What still has
        // it open closes it under the mutex, and finds then that there is no private data.
        unsafe {
            let mutex = addr_of_mut!((*raw).open_mutex);
            bindings::mutex_lock(mutex);
            (*raw).private_data = core::ptr::null_mut();
            let state = (*(*raw).queue).queuedata.cast::<DiskState>();
            let is_open = is_open(raw);
            bindings::mutex_unlock(mutex);
            if !is_open {
                drop(Arc::from_raw(state.cast_const()));
            }

            bindings::put_disk(raw);
            drop(Arc::<T>::from_foreign(self.data));
        }
    }
}

/// Removes a disk when its parent is unbound.
struct RemoveOnUnbind(Arc<DiskState>);

impl Drop for RemoveOnUnbind {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// A disk that can be opened.
///
/// Dropping it [removes](Self::remove) the disk. So does the unbinding of the parent.
///
/// # Invariants
///
/// The disk has been added. It may have been removed since.
pub struct Registration<T: Operations> {
    disk: GenDisk<T>,
}

impl<T: Operations> Registration<T> {
    /// Returns the disk.
    pub(in crate::abstractions) fn disk(&self) -> &GenDisk<T> {
        &self.disk
    }

    /// Returns an attribute of the disk in sysfs, for notifications; none if the disk was removed.
    pub fn attribute(&self, name: &CStr) -> Option<Dirent> {
        self.disk.state.with_added(|_| {
            // SAFETY: The disk has been added, and is not being deleted during the call.
            unsafe { Dirent::of_device(self.disk.device_raw(), name) }
        })?
    }

    /// Removes the disk: no new request is accepted, file systems on it are told to sync and shut
    /// down, and threads inside of [`Operations::submit_bio`] are waited for. This sleeps; see
    /// `docs/lifetimes.md` for what it may wait for.
    pub fn remove(self) -> RemovedDisk {
        let state = self.disk.state();

        drop(self);
        RemovedDisk(state)
    }
}

impl<T: Operations> Drop for Registration<T> {
    fn drop(&mut self) {
        // What remains of it is dropped after this.
        self.disk.state.remove();
    }
}

/// A disk that was removed. Programs, file systems and device-mapper may still have it open.
pub struct RemovedDisk(Arc<DiskState>);

impl RemovedDisk {
    /// Waits until the disk or a partition of it is closed, for at most `limit` milliseconds.
    /// Sleeps.
    pub fn wait_closed(&self, limit: Msecs) {
        self.0.wait_closed(limit);
    }
}

/// The size of a page, as a limit of a queue.
pub const PAGE_BLOCK: u32 = PAGE_SIZE as u32;

#[kunit_tests(pmem_rs_gendisk)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::block::bio::{
        Operation,
        Status, //
    };
    use kernel::{
        faux,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
    };

    /// A disk that reads as nothing, and counts what it is asked for.
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

        fn submit_bio(&self, bio: Bio) {
            if bio.operation() == Operation::Read {
                self.reads.fetch_add(1, Relaxed);
                // Of a read there is nothing to be written from.
                let from: usize = bio.segments().map(|segment| segment.len()).sum();
                let to: usize = bio.segments_to_fill().map(|segment| segment.len()).sum();
                if from != 0 || to != bio.len() || bio.is_preflush() || bio.is_fua() {
                    self.odd.fetch_add(1, Relaxed);
                }
                self.bytes.fetch_add(to as u64, Relaxed);
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
            features: Features::WRITE_CACHE | Features::SYNCHRONOUS,
        };

        GenDisk::new(&name, limits, 2048, Node(0), data)
    }

    #[test]
    fn impossible_limits_are_refused() -> Result {
        assert!(disk(counter()?, 7).is_err_and(|err| err == EINVAL));
        assert!(disk(counter()?, 1 << 30).is_err_and(|err| err == EINVAL));
        Ok(())
    }

    #[test]
    fn limits_are_what_was_asked_for() -> Result {
        let disk = disk(counter()?, 4096)?;

        // SAFETY: The disk is valid, and nothing else knows it.
        let limits = unsafe { &(*(*disk.as_raw()).queue).limits };
        assert_eq!(limits.logical_block_size, 4096);
        assert_eq!(limits.physical_block_size, PAGE_BLOCK);
        assert!(limits.features & bindings::BLK_FEAT_WRITE_CACHE != 0);
        assert!(limits.features & bindings::BLK_FEAT_FUA == 0);
        assert!(limits.features & bindings::BLK_FEAT_DAX == 0);
        Ok(())
    }

    #[test]
    fn a_disk_that_was_not_added_lets_its_data_go() -> Result {
        let data = counter()?;

        drop(disk(data.clone(), 512)?);
        assert!(Arc::into_unique_or_drop(data).is_some());
        Ok(())
    }

    #[test]
    fn a_disk_is_asked_for_its_partitions_and_lets_its_data_go() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_gendisk", None)?;
        let data = counter()?;

        let disk = disk(data.clone(), 512)?.register(faux.as_ref().as_ref())?;
        assert!(data.reads.load(Relaxed) > 0);
        assert!(data.bytes.load(Relaxed) >= 512);
        assert_eq!(data.odd.load(Relaxed), 0);
        assert!(disk.attribute(c"ro").is_some());
        // It has no list of bad blocks.
        assert!(disk.attribute(c"badblocks").is_none());
        assert!(disk.attribute(c"holders").is_none());

        drop(disk);
        assert!(Arc::into_unique_or_drop(data).is_some());
        Ok(())
    }

    #[test]
    fn an_attribute_is_shown_and_stored() -> Result {
        let disk = disk(counter()?, 512)?;
        let dev = disk.device_raw();
        let mut page = KVec::from_elem(0_u8, PAGE_SIZE, GFP_KERNEL)?;
        // `sysfs_emit()` wants a page that is aligned as one; so large an allocation is.
        let buf: *mut c_char = page.as_mut_ptr().cast();
        type Disk = GenDisk<Counter>;

        // SAFETY: The disk is valid, and the buffers are what sysfs passes.
        unsafe {
            let store = |text: &CStr| {
                let len = text.to_bytes().len();
                Disk::store_callback(dev, core::ptr::null_mut(), text.as_char_ptr(), len)
            };
            assert_eq!(store(c"yes"), 3);
            assert_eq!(Disk::show_callback(dev, core::ptr::null_mut(), buf), 2);
            assert_eq!(page.first(), Some(&b'1'));
            assert_eq!(store(c"perhaps"), EINVAL.to_errno() as isize);
            assert_eq!(store(c"0\n"), 2);
            assert_eq!(Disk::show_callback(dev, core::ptr::null_mut(), buf), 2);
        }
        assert_eq!(page.first(), Some(&b'0'));
        Ok(())
    }
}
