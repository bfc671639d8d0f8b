// SPDX-License-Identifier: GPL-2.0

//! The state of a disk, for as long as anything may have it open: whether it was removed, and which
//! code in the kernel has claimed it.

use crate::abstractions::kernel::block::gendisk::bindings;
use crate::abstractions::kernel_ext::{
    module_list::Code,
    sync::completion::Completion, //
};
use core::ptr::{
    addr_of,
    addr_of_mut,
    NonNull, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::Msecs, //
};

/// The code in this kernel that keeps an address or page frame numbers which `dax_direct_access`
/// returned, for longer than it holds `dax_read_lock`, and cannot be told that they go. Its devices
/// are opened by device-mapper, without holder operations.
///
/// Vetted, as the list of all callers is (`rust-bindings/vetted`). A module from out of the tree
/// that does the same is not known here.
const KEEPERS: &[Code] = &[
    Code {
        built_in: cfg!(CONFIG_DM_WRITECACHE = "y"),
        module: c"dm_writecache",
    },
    Code {
        built_in: cfg!(CONFIG_DM_PCACHE = "y"),
        module: c"dm_pcache",
    },
];

/// How many partitions are looked at one by one. A claim of another one counts as unknown.
const PARTITIONS: usize = 16;

/// The state of a disk, which stays for as long as anything may have it open.
///
/// # Invariants
///
/// `disk` is the disk of `whole`, whose reference keeps it. It was added if `removal.added`, and
/// deleted if `removal.removed`.
#[pin_data]
pub(in crate::abstractions) struct DiskState {
    disk: NonNull<bindings::gendisk>,
    whole: BlockDevice,
    /// Completed when the disk or a partition of it is closed.
    #[pin]
    pub(super) closed: Completion,
    /// Lock order: outside of all locks of file systems, since it is held across `del_gendisk()`.
    #[pin]
    removal: Mutex<Removal>,
    /// Lock order: inside of `removal`, outside of `bd_holder_lock`.
    #[pin]
    partitions: Mutex<Partitions>,
}

/// The partitions that are looked at one by one.
type Partitions = [Option<BlockDevice>; PARTITIONS];

struct Removal {
    added: bool,
    removed: bool,
}

// SAFETY: All of it may be used and put by any thread.
unsafe impl Send for DiskState {}

// SAFETY: What changes is protected by the lock, or by that of the block layer.
unsafe impl Sync for DiskState {}

impl DiskState {
    /// # Safety
    ///
    /// The disk must be valid.
    pub(super) unsafe fn new(disk: NonNull<bindings::gendisk>) -> Result<Arc<Self>> {
        // SAFETY: By the safety requirements; a disk always has `part0`.
        let whole = unsafe { BlockDevice::get((*disk.as_ptr()).part0) }.ok_or(ENXIO)?;

        // INVARIANT: The reference was just taken, and the disk was not added.
        Arc::pin_init(
            try_pin_init!(Self {
                disk,
                whole,
                closed <- Completion::new(),
                removal <- new_mutex!(
                    Removal {
                        added: false,
                        removed: false,
                    },
                    "pmem_rs::DiskState::removal"
                ),
                partitions <- new_mutex!(
                    [const { None }; PARTITIONS],
                    "pmem_rs::DiskState::partitions"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// Remembers that the disk was added.
    ///
    /// # Safety
    ///
    /// The disk must have been added, and nothing else may call `del_gendisk` for it.
    pub(super) unsafe fn set_added(&self) {
        // INVARIANT: By the safety requirements.
        self.removal.lock().added = true;
    }

    /// Removes the disk, if it was added and has not been removed. Sleeps, see
    /// `Registration::remove`.
    pub(super) fn remove(&self) {
        let mut removal = self.removal.lock();
        if !removal.added || removal.removed {
            return;
        }

        self.find_partitions();
        // SAFETY: By the type invariant the disk has been added, and not been deleted.
        unsafe { bindings::del_gendisk(self.disk.as_ptr()) };
        // INVARIANT: Just deleted.
        removal.removed = true;
    }

    /// Calls `f` with the disk, if it is added. It is not removed meanwhile.
    pub(super) fn with_added<R>(&self, f: impl FnOnce(*mut bindings::gendisk) -> R) -> Option<R> {
        let removal = self.removal.lock();

        (removal.added && !removal.removed).then(|| f(self.disk.as_ptr()))
    }

    /// Returns whether the disk was removed. Waits for a removal that is under way.
    pub(in crate::abstractions) fn is_removed(&self) -> bool {
        self.removal.lock().removed
    }

    /// Replaces the table by the partitions that there are, as far as they fit in. The disk must be
    /// added, and not be removed meanwhile.
    fn find_partitions(&self) {
        let disk = self.disk.as_ptr();
        let mut partitions = self.partitions.lock();
        let mut index: c_ulong = 0;

        for place in partitions.iter_mut() {
            // SAFETY: By the type invariant the disk is valid. Its table has block devices, which
            // are freed only after an RCU grace period.
            *place = unsafe {
                bindings::rcu_read_lock();
                let found = bindings::xa_find_after(
                    addr_of_mut!((*disk).part_tbl),
                    &mut index,
                    c_ulong::MAX,
                    bindings::XA_PRESENT,
                );
                let partition = BlockDevice::get(found.cast());
                bindings::rcu_read_unlock();
                partition
            };
        }
    }

    /// Returns whether a mapping in the kernel may keep an address or page frame numbers of memory
    /// that is found through this disk. May sleep.
    ///
    /// The gate of the memory must be closed: code that is loaded later gets no address. Once the
    /// answer was no, it stays so.
    pub(in crate::abstractions) fn has_keeper(&self) -> bool {
        self.closed.reinit();

        {
            let removal = self.removal.lock();
            if removal.added && !removal.removed {
                return true;
            }
        }
        KEEPERS.iter().any(Code::is_there) && self.has_unknown_claim(&self.partitions.lock())
    }

    /// Waits until the disk or a partition is closed, for at most `limit` milliseconds. Sleeps.
    pub(in crate::abstractions) fn wait_closed(&self, limit: Msecs) {
        self.closed.wait_idle_timeout(limit);
    }

    /// Returns whether there is a claim of the kernel without holder operations, or one of which
    /// nothing is known.
    fn has_unknown_claim(&self, partitions: &Partitions) -> bool {
        // The whole disk comes first: a claim of a partition that is given up after that makes the
        // answer yes, not no.
        let whole = self.whole.claim();

        let mut of_partitions: c_int = 0;
        for partition in partitions.iter().filter_map(Option::as_ref) {
            let claim = partition.claim();
            if claim.is_unknown {
                return true;
            }
            of_partitions = of_partitions.saturating_add(claim.count);
        }

        // Claims of partitions count as claims of the whole disk too, with a holder that stands for
        // all of them (`bd_finish_claiming()`). Claims of a partition that is not in the table are
        // among the others.
        whole.is_unknown && whole.count != of_partitions
    }
}

/// The claim of a disk or partition.
struct Claim {
    /// There is a holder without holder operations, which is not a program's.
    is_unknown: bool,
    count: c_int,
}

/// A reference to a disk or partition.
///
/// # Invariants
///
/// One reference of the device is ours.
pub(super) struct BlockDevice(NonNull<bindings::block_device>);

// SAFETY: References may be used and put by any thread.
unsafe impl Send for BlockDevice {}

impl BlockDevice {
    /// Takes a reference, unless the last one is just being put.
    ///
    /// # Safety
    ///
    /// `bdev` must be null, or not be freed during the call.
    pub(super) unsafe fn get(bdev: *mut bindings::block_device) -> Option<Self> {
        let bdev = NonNull::new(bdev)?;
        // SAFETY: By the safety requirements.
        let kobj = unsafe {
            bindings::kobject_get_unless_zero(addr_of_mut!((*bdev.as_ptr()).bd_device.kobj))
        };

        if kobj.is_null() {
            return None;
        }
        // INVARIANT: The reference was just taken.
        Some(Self(bdev))
    }

    /// Looks at the claim of the device. May sleep.
    fn claim(&self) -> Claim {
        let raw = self.0.as_ptr();

        // SAFETY: By the type invariant the device is valid. Holder and operations change together
        // under the lock; the number is only read.
        unsafe {
            let lock = addr_of_mut!((*raw).bd_holder_lock);
            bindings::mutex_lock(lock);
            let holder = (*raw).bd_holder.cast_const();
            let claim = Claim {
                is_unknown: !holder.is_null()
                    && (*raw).bd_holder_ops.is_null()
                    && !self.is_file(holder),
                count: addr_of!((*raw).bd_holders).read_volatile(),
            };
            bindings::mutex_unlock(lock);
            claim
        }
    }

    /// Returns whether a holder is a file by which a program has opened the device with `O_EXCL`:
    /// then it is the `struct file` itself (`blkdev_open()`).
    ///
    /// A holder may be any number, the address of a string for instance. So it is read as memory
    /// that may not be there. Only a file of this device has the device's mapping in that place.
    fn is_file(&self, holder: *const c_void) -> bool {
        let mut mapping: *mut bindings::address_space = core::ptr::null_mut();
        let field = holder.wrapping_byte_add(core::mem::offset_of!(bindings::file, f_mapping));

        // SAFETY: The function survives whatever the address is; it writes to a local variable. The
        // device is valid by the type invariant.
        unsafe {
            bindings::copy_from_kernel_nofault(
                (&raw mut mapping).cast(),
                field,
                core::mem::size_of_val(&mapping),
            ) == 0
                && mapping == (*self.0.as_ptr()).bd_mapping
        }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::put_device(addr_of_mut!((*self.0.as_ptr()).bd_device)) };
    }
}

#[kunit_tests(pmem_rs_disk_state)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_being_freed_is_left_alone() -> Result {
        let mut device = KBox::<bindings::block_device>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let bdev = device.as_mut_ptr();

        // SAFETY: The device is there; no reference to it is left, which is all that is looked at.
        let (found, references) = unsafe {
            (
                BlockDevice::get(bdev).is_some(),
                (*bdev).bd_device.kobj.kref.refcount.refs.counter,
            )
        };
        assert!(!found);
        assert_eq!(references, 0);
        Ok(())
    }
}
