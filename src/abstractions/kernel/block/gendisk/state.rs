// SPDX-License-Identifier: GPL-2.0

//! The state of a disk: whether it was removed, and which code in the kernel has claimed it.
//!
//! The state lives while anything may have the disk open.
//!
//! Lock order, outermost first:
//!
//! 1. `removal`. It is held across `del_gendisk()`, so it is outside all locks of file systems.
//! 2. `open_mutex` of the disk.
//! 3. `RemovedDisks::disks`.
//! 4. `partitions`.
//! 5. `bd_holder_lock` of the disk or a partition.

use super::{
    block_device::{
        BlockDevice,
        Claim, //
    },
    keepers, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::sync::completion::Completion;
use core::{
    iter::from_fn,
    ptr::{
        addr_of_mut,
        NonNull, //
    }, //
};
use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        ListLinks,
        TryNewListArc, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::Msecs, //
};

/// The largest number of partitions of a disk: `add_partition()` refuses larger numbers.
const PARTITIONS: usize = bindings::DISK_MAX_PARTS as usize - 1;

/// The state of a disk.
///
/// # Invariants
///
/// `disk` is the disk of `part0`, whose reference keeps the disk. The disk was added if
/// `removal.added`, and was deleted if `removal.removed`.
#[pin_data]
pub(in crate::abstractions) struct DiskState {
    pub(super) disk: NonNull<bindings::gendisk>,
    pub(super) part0: BlockDevice,
    /// Completed when the disk or a partition of it is closed.
    #[pin]
    pub(super) released: Completion,
    /// Programs cannot make the disk writable.
    read_only: Atomic<bool>,
    /// There was an indirect claim: something other than a file system whose `s_bdev` is on this
    /// disk may have got the DAX device, such as a device-mapper table, a lease, or a file system
    /// for a further device. Never reset.
    pub(super) had_indirect_claim: Atomic<bool>,
    /// The next close of the disk or of a partition may end a claim without holder operations
    /// ([`Self::has_unknown_claim`]). Written with `open_mutex` of the disk held.
    unknown_claim_may_end: Atomic<bool>,
    /// A claim that may have been one of device-mapper has ended while a keeper was in use, so that
    /// the keeper may have an address without a claim. Reset when no keeper is in use. Written with
    /// `open_mutex` of the disk held.
    keeper_may_lack_claim: Atomic<bool>,
    /// The number of [`Self::refuse_indirect`] that were not ended yet. Indirect claims are refused
    /// while it is not 0. Changed with `open_mutex` of the disk held.
    refusals: Atomic<usize>,
    #[pin]
    removal: Mutex<Removal>,
    /// Has room for all partitions.
    #[pin]
    partitions: Mutex<KVec<BlockDevice>>,
    /// In the list of removed disks.
    #[pin]
    links: ListLinks,
    #[pin]
    in_list: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for DiskState { tracked_by in_list: AtomicTracker; }
}

impl_list_item! {
    impl ListItem<0> for DiskState { using ListLinks { self.links }; }
}

/// A position in the list that [`DiskState::next_device`] goes through.
#[derive(Clone, Copy, Default)]
pub(in crate::abstractions) enum DevicePosition {
    /// The disk.
    #[default]
    Disk,
    /// The first partition after this number.
    Partition(c_ulong),
    /// The partition with this index among those that [`DiskState::find_partitions`] has found.
    Recorded(usize),
}

struct Removal {
    added: bool,
    removed: bool,
}

// SAFETY: All fields may be used and dropped by any thread.
unsafe impl Send for DiskState {}

// SAFETY: Fields that change are protected by the locks. The block layer protects the disk.
unsafe impl Sync for DiskState {}

impl DiskState {
    /// Creates the state of a disk that was not added.
    ///
    /// # Safety
    ///
    /// The disk must be valid.
    pub(super) unsafe fn new(disk: NonNull<bindings::gendisk>) -> Result<Arc<Self>> {
        // SAFETY: By the safety requirements the disk is valid, and a disk always has `part0`.
        let part0 = unsafe { BlockDevice::get((*disk.as_ptr()).part0) }.ok_or(ENXIO)?;

        let partitions = KVec::with_capacity(PARTITIONS, GFP_KERNEL)?;

        // INVARIANT: The reference was just taken, and the disk was not added.
        Arc::pin_init(
            try_pin_init!(Self {
                disk,
                part0,
                released <- Completion::new(),
                read_only: Atomic::new(false),
                had_indirect_claim: Atomic::new(false),
                unknown_claim_may_end: Atomic::new(false),
                keeper_may_lack_claim: Atomic::new(false),
                refusals: Atomic::new(0),
                removal <- new_mutex!(
                    Removal {
                        added: false,
                        removed: false,
                    },
                    "pmem_rs::DiskState::removal"
                ),
                partitions <- new_mutex!(partitions, "pmem_rs::DiskState::partitions"),
                links <- ListLinks::new(),
                in_list <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Records that the disk was added.
    ///
    /// # Safety
    ///
    /// The disk must have been added, and nothing else may call `del_gendisk()` for it.
    pub(super) unsafe fn set_added(&self) {
        // INVARIANT: By the safety requirements.
        self.removal.lock().added = true;
    }

    /// Removes the disk if it was added and not removed yet, and calls `then`. Another call waits
    /// until this one has ended. Sleeps, see `Registration::remove()`.
    pub(super) fn remove(&self, then: impl FnOnce()) {
        let mut removal = self.removal.lock();
        if !removal.added || removal.removed {
            return;
        }

        self.find_partitions();
        // SAFETY: By the type invariant the disk was added and not deleted.
        unsafe { bindings::del_gendisk(self.disk.as_ptr()) };
        // INVARIANT: The disk was just deleted.
        removal.removed = true;

        self.part0.revoke_cache();
        for partition in self.partitions.lock().iter() {
            partition.revoke_cache();
        }
        then();
    }

    /// Calls `f` with the disk if it was added and not removed. The disk is not removed meanwhile.
    pub(super) fn with_added<R>(&self, f: impl FnOnce(*mut bindings::gendisk) -> R) -> Option<R> {
        let removal = self.removal.lock();

        (removal.added && !removal.removed).then(|| f(self.disk.as_ptr()))
    }

    /// Sets the disk read-only or writable. May sleep. Does nothing if the disk is not added.
    pub(super) fn set_read_only(&self, read_only: bool) {
        self.with_added(|disk| {
            self.read_only.store(read_only, Relaxed);
            // SAFETY: The disk was added, and is not deleted during the call.
            unsafe { bindings::set_disk_ro(disk, read_only) };
        });
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only.load(Relaxed)
    }

    /// Records that something else than a file system on the disk itself may get the DAX device.
    /// Called with `open_mutex` of the disk held.
    ///
    /// ORDERING: it gets the device, and translates, after that. A translation has a full barrier
    /// before it reads the access state (`AccessState`).
    pub(super) fn record_indirect_claim(&self) {
        self.had_indirect_claim.store(true, Relaxed);
        self.unknown_claim_may_end.store(true, Relaxed);
    }

    /// Records that the disk or a partition was closed. Called with `open_mutex` of the disk held,
    /// after the claim of the opener has ended. May sleep.
    ///
    /// A device-mapper table that is replaced under another table gives up its claim. The table
    /// above may be one of a keeper that has translated through it, and still has the address. The
    /// module of a keeper is in use while it has an address, so this records whether one is in use
    /// when the claim ends.
    ///
    /// Once no claim without holder operations is left, a close by a program cannot end one, so
    /// `unknown_claim_may_end` is reset.
    pub(super) fn record_release(&self) {
        let may_end = self.unknown_claim_may_end.load(Relaxed);

        if may_end || self.keeper_may_lack_claim.load(Relaxed) {
            self.keeper_may_lack_claim
                .store(keepers::is_any_in_use(), Relaxed);
        }
        if may_end {
            let mut index = 0;
            let claims = from_fn(|| {
                self.next_partition(&mut index)
                    .map(|partition| partition.claim())
            });
            self.unknown_claim_may_end
                .store(self.has_unknown_claim(claims), Relaxed);
        }
        self.released.complete();
    }

    /// Calls `f` with `open_mutex` of the disk held, under which claims end. Sleeps.
    fn with_open_mutex<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: By the type invariant the disk is valid. The caller does not hold the lock.
        unsafe {
            let mutex = addr_of_mut!((*self.disk.as_ptr()).open_mutex);
            bindings::mutex_lock(mutex);
            let result = f();
            bindings::mutex_unlock(mutex);
            result
        }
    }

    /// Refuses claims by anything but programs and file systems on the disk itself, until
    /// [`Self::permit_indirect`] was called once for each call of this. When this returns, opens
    /// that were permitted before it are complete. Sleeps.
    pub(in crate::abstractions) fn refuse_indirect(&self) {
        self.with_open_mutex(|| self.refusals.fetch_add(1, Relaxed));
    }

    /// Ends one [`Self::refuse_indirect`]. Sleeps.
    pub(in crate::abstractions) fn permit_indirect(&self) {
        self.with_open_mutex(|| self.refusals.fetch_sub(1, Relaxed));
    }

    /// Returns whether such a claim is to be refused. Called with `open_mutex` of the disk held.
    pub(super) fn refuses_indirect(&self) -> bool {
        self.refusals.load(Relaxed) != 0
    }

    /// Returns whether the disk ever had an indirect claim.
    pub(in crate::abstractions) fn had_indirect_claim(&self) -> bool {
        self.had_indirect_claim.load(Relaxed)
    }

    /// Returns whether the removal of the disk calls the holder of the disk or of a partition, such
    /// as a file system: it has holder operations. May sleep.
    pub(in crate::abstractions) fn calls_holders(&self) -> bool {
        let mut index = 0;

        self.part0.claim().has_operations
            || from_fn(|| self.next_partition(&mut index))
                .any(|partition| partition.claim().has_operations)
    }

    /// Fills the table with the partitions of the disk.
    ///
    /// The disk must be added, and must not be removed meanwhile.
    fn find_partitions(&self) {
        let mut partitions = self.partitions.lock();
        let mut index = 0;

        partitions.clear();
        while let Some(partition) = self.next_partition(&mut index) {
            if partitions.push_within_capacity(partition).is_err() {
                break;
            }
        }
    }

    /// Returns the first partition after `index`, and sets `index` to its number. Passes over
    /// partitions that are being deleted.
    pub(super) fn next_partition(&self, index: &mut c_ulong) -> Option<BlockDevice> {
        loop {
            // SAFETY: By the type invariant the disk is valid. Its table contains block devices,
            // which are freed only after an RCU grace period.
            let (is_end, partition) = unsafe {
                bindings::rcu_read_lock();
                let found = bindings::xa_find_after(
                    addr_of_mut!((*self.disk.as_ptr()).part_tbl),
                    index,
                    c_ulong::MAX,
                    bindings::XA_PRESENT,
                );
                let partition = BlockDevice::get(found.cast());
                bindings::rcu_read_unlock();
                (found.is_null(), partition)
            };
            if is_end || partition.is_some() {
                return partition;
            }
        }
    }

    /// Returns the device at a position of the list of the disk and its partitions. If the disk has
    /// no partitions, the list has those that [`Self::find_partitions`] has found last: when the
    /// disk was removed, or for a suspension before.
    ///
    /// Begin with the default position. Each call moves it to the next device.
    pub(in crate::abstractions) fn next_device(
        &self,
        position: &mut DevicePosition,
    ) -> Option<BlockDevice> {
        loop {
            match position {
                DevicePosition::Disk => {
                    *position = DevicePosition::Partition(0);
                    return Some(self.part0.clone());
                }
                DevicePosition::Partition(index) => {
                    let is_first = *index == 0;
                    let partition = self.next_partition(index);
                    if partition.is_some() || !is_first {
                        return partition;
                    }
                    *position = DevicePosition::Recorded(0);
                }
                DevicePosition::Recorded(index) => {
                    let partitions = self.partitions.lock();
                    let recorded = partitions.get(*index)?.clone();

                    *index = index.saturating_add(1);
                    return Some(recorded);
                }
            }
        }
    }

    /// Adds the partitions of the disk, and then the disk, to a list. Returns whether the list had
    /// room for them.
    pub(in crate::abstractions) fn add_devices(
        &self,
        list: &mut KVec<BlockDevice>,
    ) -> Result<bool> {
        let mut index = 0;

        while let Some(partition) = self.next_partition(&mut index) {
            if list.push_within_capacity(partition).is_err() {
                return Ok(false);
            }
        }
        Ok(list.push_within_capacity(self.part0.clone()).is_ok())
    }

    /// Waits until all calls of `submit_bio` that have begun have returned. Their requests may end
    /// later, such as a write that waits for a flush. Sleeps.
    pub(in crate::abstractions) fn drain(&self) {
        // SAFETY: By the type invariant the disk is valid, and it keeps its queue. The queue is
        // thawed again, by the same thread.
        unsafe {
            let queue = (*self.disk.as_ptr()).queue;
            bindings::blk_mq_freeze_queue_nomemsave(queue);
            bindings::blk_mq_unfreeze_queue_nomemrestore(queue);
        }
    }

    /// As [`Self::has_keeper`], for a disk that is not removed. The result may change.
    pub(in crate::abstractions) fn may_have_keeper(&self) -> bool {
        if !keepers::is_any_loaded() {
            return false;
        }
        let removal = self.removal.lock();
        if removal.added && !removal.removed {
            self.find_partitions();
        }
        self.has_claim_of_keeper()
    }

    /// Returns whether code in the kernel may keep an address or page frame number of the memory
    /// behind this disk. May sleep.
    ///
    /// All translations must be refused before, so that code that is loaded later gets no address.
    /// Once this has returned false, nothing has an address. A later call may return true all the
    /// same, if a keeper is used for something else. Returns true for a disk that was added and not
    /// removed. A completion of `released` from before this call is lost.
    pub(in crate::abstractions) fn has_keeper(&self) -> bool {
        self.released.reinit();

        {
            let removal = self.removal.lock();
            if removal.added && !removal.removed {
                return true;
            }
        }
        keepers::is_any_loaded() && self.has_claim_of_keeper()
    }

    /// Returns whether there is a claim that may be one of a keeper, or was one. Sleeps.
    fn has_claim_of_keeper(&self) -> bool {
        // A claim that has just ended, and `keeper_may_lack_claim`, are seen together.
        self.with_open_mutex(|| {
            if self.keeper_may_lack_claim.load(Relaxed) {
                if keepers::is_any_in_use() {
                    return true;
                }
                self.keeper_may_lack_claim.store(false, Relaxed);
            }
            let partitions = self.partitions.lock();
            let claims = partitions.iter().map(BlockDevice::claim);
            self.has_unknown_claim(claims)
        })
    }

    /// Waits for at most `limit` milliseconds until the disk or a partition is closed. Sleeps.
    pub(in crate::abstractions) fn wait_released(&self, limit: Msecs) {
        self.released.wait_idle_timeout(limit);
    }

    /// Returns whether the disk, or one of its partitions, has this name and is claimed with holder
    /// operations, as by a file system. To be called for a disk that was removed. May sleep.
    pub(super) fn has_file_system_on(&self, name: &CStr) -> bool {
        let has = |device: &BlockDevice| device.name() == name && device.claim().has_operations;

        has(&self.part0) || self.partitions.lock().iter().any(has)
    }

    /// Returns the disk or the partition with this number. Called with `open_mutex` of the disk
    /// held.
    pub(super) fn device_with_number(&self, number: bindings::dev_t) -> Option<BlockDevice> {
        // SAFETY: A reference keeps the device, whose number does not change.
        let has_number = |device: &BlockDevice| unsafe { (*device.as_raw()).bd_dev == number };
        let mut index = 0;

        if has_number(&self.part0) {
            return Some(self.part0.clone());
        }
        from_fn(|| self.next_partition(&mut index)).find(has_number)
    }

    /// Returns whether there is a claim without holder operations by code in the kernel, or a claim
    /// of a partition other than those of the given claims.
    fn has_unknown_claim(&self, claims: impl Iterator<Item = Claim>) -> bool {
        // The callers hold `open_mutex` of the disk, so no claim begins or ends meanwhile
        // (`bd_finish_claiming()`, `bd_end_claim()`).
        let part0 = self.part0.claim();

        let mut of_partitions: c_int = 0;
        for claim in claims {
            if claim.is_unknown {
                return true;
            }
            of_partitions = of_partitions.saturating_add(claim.count);
        }

        // A claim of a partition also counts as a claim of the whole disk, whose holder then is the
        // same for all partitions (`bd_finish_claiming()`). If the sums differ, there is a claim of
        // the whole disk or of another partition.
        part0.is_unknown && part0.count != of_partitions
    }
}
