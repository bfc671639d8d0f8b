// SPDX-License-Identifier: GPL-2.0

//! Files whose file systems are shut down when a disk is removed, and that have pinned pages on
//! another device.
//!
//! A file system may be on several devices: an xfs with a realtime device or an external log, an
//! ext4 with an external journal, an erofs with further devices (from Linux 7.3 on).
//! `del_gendisk()` shuts all file systems down that have the disk open, and evicts their files that
//! nothing refers to (`fs_bdev_mark_dead()`). To evict a file it waits until no page of it is
//! pinned, whatever device the page is on, without a limit.
//!
//! C source: [`fs/super.c`](srctree/fs/super.c)

use super::mapping::FileMapping;
use crate::abstractions::kernel::{
    block::gendisk::{
        Operations,
        Registration,
        RemovedDisk, //
    },
    fs::{
        inode::Inode,
        inode_pool::InodePool,
        super_block::{
            Supers,
            Walk, //
        }, //
    },
    percpu_ref::Ref, //
};
use crate::abstractions::kernel_ext::{
    time::{
        sleep,
        Stopwatch, //
    },
    workqueue::OwnedQueue, //
};
use core::ops::Range;
use kernel::{
    impl_has_work,
    io::PhysAddr,
    new_work,
    page::PAGE_SHIFT,
    prelude::*,
    str::CString,
    sync::Arc,
    time::Msecs,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// The pause between two looks at the kept files, in milliseconds.
const INTERVAL: Msecs = 1000;

/// References to files with pinned pages on other devices, held while a disk is removed.
///
/// A worker puts a reference once no page of the file is pinned any more.
#[pin_data]
pub struct PinnedFiles {
    pool: Arc<InodePool>,
    queue: Ref<OwnedQueue>,
    #[pin]
    work: Work<PinnedFiles>,
}

impl_has_work! {
    impl HasWork<Self> for PinnedFiles { self.work }
}

impl WorkItem for PinnedFiles {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        loop {
            let began = Stopwatch::start();
            this.pool.release(may_put);
            if !this.pool.has_kept() {
                return;
            }
            // Files may be large. This takes a tenth of the time at most.
            let pause = Msecs::try_from(began.micros() / 100).unwrap_or(Msecs::MAX);
            sleep(pause.max(INTERVAL));
        }
    }
}

impl PinnedFiles {
    /// Allocates the room for the references, which are put on `queue`. `name` is for messages. May
    /// sleep.
    pub fn new(name: CString, queue: Ref<OwnedQueue>) -> Result<Arc<Self>> {
        let of_pool = queue.clone();

        Arc::pin_init(
            try_pin_init!(Self {
                pool: InodePool::new(name, of_pool)?,
                queue,
                work <- new_work!("pmem_rs::PinnedFiles::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Removes a disk as [`Registration::remove`] does, but does not wait for pins of memory other
    /// than `own`. Waits for pins of `own`, unless [`Pagemap::close_to_mappings`] has kept the
    /// files.
    ///
    /// Sleeps. If a file system has the disk as a further device (the log or the realtime device of
    /// an xfs, the journal of an ext4, a further device of an erofs), waits for mounts and unmounts
    /// of file systems of this type that are under way. Waits for pins of other memory in three
    /// cases:
    ///
    /// - More files are pinned than there is memory to keep.
    /// - A program pins a page after this has looked at its file.
    /// - A file system opens the disk after this has begun, or is being mounted then.
    ///
    /// [`Pagemap::close_to_mappings`]: super::Pagemap::close_to_mappings
    pub fn remove_disk<T: Operations>(
        self: &Arc<Self>,
        disk: Registration<T>,
        own: &Range<PhysAddr>,
    ) -> RemovedDisk {
        let own = own.start >> PAGE_SHIFT..own.end >> PAGE_SHIFT;
        let state = disk.state();

        // Otherwise no file system is shut down.
        if state.calls_holders() {
            let mut walk = Walk::new(&self.pool, Supers::ShutDownWith(&state), false, &may_put);
            while let Some(inode) = walk.next() {
                // A file above device-mapper may be on all devices of the table.
                let spans = state.had_indirect_claim() || inode.spans_devices();
                if FileMapping::new(inode).has_busy_entries_outside(&own, spans) {
                    self.pool.keep(inode, &may_put);
                }
            }
        }

        let removed = disk.remove();
        if self.pool.has_kept() {
            // An error means that the work is queued already.
            let _ = self.queue.enqueue(self.clone());
        }
        removed
    }

    /// Puts the references to files that have no pinned page any more, and waits for that for at
    /// most `limit` milliseconds. Sleeps.
    pub fn put_unpinned(&self, limit: Msecs) {
        self.pool.release(may_put);
        self.pool.wait_put(limit);
    }
}

/// Returns whether the reference to a kept file may be put: no page of it is pinned, and no entry
/// of it is locked. Does not sleep.
fn may_put(inode: &Inode) -> bool {
    !FileMapping::new(inode).has_busy_entries_outside(&(0..0), true)
}
