// SPDX-License-Identifier: GPL-2.0

//! The users of the memory.

use super::{
    Busy,
    Reader,
    World,
    NO_FRAMES,
    OPEN, //
};
use crate::defect::Defect;
use host::teardown::{
    self,
    State, //
    TeardownOps,
};
use loom::sync::atomic::{
    fence,
    Ordering::{
        AcqRel,
        Acquire,
        Relaxed,
        Release,
        SeqCst, //
    }, //
};

impl World {
    /// `dax_iomap_direct_access()`: a translation, which is valid until the reader leaves.
    fn translate(&self, reader: Reader, frames: bool, inside: impl FnOnce()) -> bool {
        self.srcu.read_lock(reader as usize);
        let found = self.alive.load(Relaxed) && self.admits(frames);
        if found {
            self.memory.access();
            inside();
        }
        self.srcu.read_unlock(reader as usize);
        found
    }

    /// The end of `direct_access_callback`: `AccessState::permits_access` and
    /// `AccessState::permits_mapping`.
    fn admits(&self, frames: bool) -> bool {
        if frames {
            let was_exposed = !self.has(Defect::ExposedLate) && self.expose();
            let passes = was_exposed && self.has(Defect::ExposureAcquired);
            if !passes && !self.has(Defect::NoFaultBarrier) {
                fence(SeqCst);
            }
        }
        let admitted = match self.access.load(Relaxed) {
            OPEN => true,
            NO_FRAMES => !frames,
            _ => false,
        };
        if admitted && frames && self.has(Defect::ExposedLate) {
            self.expose();
        }
        admitted || self.has(Defect::AccessStateIgnored)
    }

    /// `Exposure::has` and `Exposure::add`: returns whether the page was exposed before.
    fn expose(&self) -> bool {
        let order = if self.has(Defect::ExposureAcquired) {
            Acquire
        } else {
            Relaxed
        };

        let was_exposed = self.exposed.load(order);
        if !was_exposed {
            self.exposed.swap(true, AcqRel);
        }
        was_exposed
    }

    fn fault_by(&self, reader: Reader) -> bool {
        self.entry.lock();
        let found = self.translate(reader, true, || ());
        if found {
            self.page.set_mapping(true);
            self.entry.set_page();
            self.map();
        }
        self.entry.unlock();
        found
    }

    /// The translation for a fault of another file, on a page of the same chunk. The rest of that
    /// fault has no effect here.
    pub fn other_fault(&self) {
        self.admits(true);
    }

    /// A page fault on a file system that takes no lock of its own (erofs): the entry of the page
    /// cache is locked from before the translation until the page is mapped; the read-side section
    /// covers the translation only.
    pub fn fault(&self) {
        let mapped = self.fault_by(Reader::Fault);
        self.seen.note(if mapped { "mapped" } else { "SIGBUS" });
    }

    /// A write fault that copies a shared block of this device to a page of another one
    /// (`dax_iomap_copy_around()`): the entry, which is going to name that page, is locked from
    /// before the translation until the end of the copy.
    pub fn copying_fault(&self) {
        self.entry.lock();
        if self.translate(Reader::Fault, false, || ()) {
            self.memory.access();
            self.seen.note("copied");
        }
        self.entry.unlock();
    }

    /// A page fault of a `MAP_SYNC` mapping (ext4, xfs): the entry is not locked while the file
    /// system makes its metadata durable, and nothing is translated after that. The invalidate lock
    /// is held all the time.
    pub fn sync_fault(&self) {
        let _guard = self.invalidate_lock.read().unwrap();

        self.entry.lock();
        let found = self.translate(Reader::Fault, true, || ());
        if found {
            self.page.set_mapping(true);
            self.entry.set_page();
        }
        self.entry.unlock();
        if !found {
            return;
        }

        // `dax_insert_pfn_mkwrite()`
        self.entry.lock();
        if self.entry.has_page() {
            self.map();
            self.seen.note("mapped");
        }
        self.entry.unlock();
    }

    /// `vmf_insert_page_mkwrite()`
    fn map(&self) {
        self.page.get();
        self.memory.access();
        self.page_table.map();
    }

    /// `unmap_mapping_pages()`
    pub(super) fn unmap(&self) {
        if self.page_table.unmap() {
            self.page.put();
        }
    }

    /// `read()` or `write()` of a DAX file: copies inside of the read-side section, and may hang
    /// there.
    pub fn read(&self) {
        self.translate(Reader::Read, false, || {
            self.hold_on();
            self.memory.access();
            self.seen.note("read");
        });
    }

    /// A reader that was inside of a read-side section from the beginning leaves it.
    pub fn leave(&self) {
        self.srcu.read_unlock(Reader::Stuck as usize);
    }

    /// A request: `submit_bio()` is inside of the queue while it copies.
    pub fn request(&self) -> bool {
        let entered = self.requests.try_get();
        if entered {
            self.memory.access();
            self.requests.put();
            self.seen.note("a request");
        }
        entered
    }

    /// `get_user_pages_fast()`
    fn try_pin(&self) -> bool {
        if !self.page_table.is_mapped() || !self.page.try_get() {
            return false;
        }
        if !self.page_table.is_mapped() {
            self.put_page();
            return false;
        }
        self.seen.note("pinned");
        true
    }

    /// `vmsplice()` or direct I/O, and the end of the pin.
    pub fn pin(&self) {
        if self.try_pin() {
            self.unpin();
        }
    }

    /// The page is still accessed after the last reference was put: `free_zone_device_folio()`
    /// reads it.
    fn put_page(&self) {
        self.rcu.read_lock(Busy::Putting as usize);
        self.page.put();
        self.memory.access();
        self.rcu.read_unlock(Busy::Putting as usize);
    }

    /// The end of a process that has mapped the file.
    pub fn exit(&self) {
        if self.page_table.unmap() {
            self.put_page();
        }
    }

    /// Unpins a page that was pinned from the beginning.
    pub fn unpin(&self) {
        self.hold_on();
        self.memory.access();
        self.put_page();
    }

    /// A program pins the page, if it has mapped it, and unmaps and closes the file.
    pub fn pin_and_close(&self) {
        let pinned = self.try_pin();
        self.exit();
        self.inode.fetch_sub(1, AcqRel);
        if pinned {
            self.unpin();
        }
    }

    /// The eviction of an inode, which waits for pins (`dax_break_layout_final()`).
    pub fn evict(&self) {
        self.page.wait_idle();
        self.delete_own_entry();
        self.seen.note("evicted");
    }

    /// The lock of the array disables interrupts.
    fn delete_own_entry(&self) {
        self.rcu.read_lock(Busy::Deleting as usize);
        self.delete_entry();
        self.rcu.read_unlock(Busy::Deleting as usize);
    }

    /// A truncate, which waits for pins (`dax_break_layout()`). While it sleeps, it has a pointer
    /// to the page without a reference, and the invalidate lock is not held.
    pub fn truncate(&self) {
        let _inode_guard = self.inode_lock.write().unwrap();
        let mut guard = self.invalidate_lock.write().unwrap();

        self.unmap();
        self.entry.wait_unlocked();
        if self.entry.has_page() {
            while self.page.read_references() != 0 {
                drop(guard);
                self.page.wait_idle();
                guard = self.invalidate_lock.write().unwrap();
                self.seen.note("waited to truncate");
            }
            self.delete_own_entry();
        }
        drop(guard);
        self.seen.note("truncated");
    }

    /// A program closes the disk, unless it is stubborn.
    pub fn close_disk(&self) {
        self.hold_on();
        self.openers.fetch_sub(1, AcqRel);
        self.changed.wake_up();
    }

    /// device-mapper uses the memory by an address of its own, and closes the disk.
    pub fn use_by_keeper(&self) {
        self.hold_on();
        self.memory.access();
        self.held.swap(false, Release);
        self.released.wake_up();
    }

    fn hold_on(&self) {
        if self.setup.stubborn {
            self.returned.wait();
        }
    }

    /// Reads the list of retired ranges, and binds the range again if it is free.
    pub fn read_list(&self) {
        self.with(|teardown| {
            if teardown.is_retired() {
                self.seen.note("retired, when looked at");
            }
            // The state comes first here, so that it is not freed meanwhile.
            if !matches!(teardown.state, State::Freeing { .. } | State::Detached) {
                let is_reserved = self.reserved.fetch_or(false, AcqRel);
                assert!(is_reserved, "in use, but not reserved");
            }
        });
        self.bind_again();
    }

    /// Binds the range, if it is not reserved, and unbinds it.
    fn bind_again(&self) {
        if !self.reserved.swap(true, AcqRel) {
            self.memory.access();
            self.seen.note("bound again");
            self.reserved.swap(false, Release);
        }
    }

    /// Accesses after unbind has returned get an error.
    pub fn access_late(&self) {
        assert!(!self.fault_by(Reader::Late), "a fault found the device");
        assert!(!self.request(), "a request found the disk");
        assert!(!teardown::begin(self), "unbound again");
    }
}
