// SPDX-License-Identifier: GPL-2.0

//! The functions that the teardown calls, on the primitives of [`kernel`](crate::kernel).
//!
//! They are models of those of the driver and its abstractions; each names what it stands for, and
//! has to be changed with it. What a type does when it is dropped too early is left out: it would
//! hide that a user was not waited for.

use super::{
    Parts,
    World,
    CLOSED,
    NO_FRAMES, //
};
use crate::defect::Defect;
use host::{
    teardown::{
        self,
        State,
        Teardown,
        TeardownOps,
        User, //
    },
    waiting::{
        Memmap,
        Waiting, //
    }, //
};
use loom::{
    sync::atomic::{
        fence,
        Ordering::{
            AcqRel,
            Acquire,
            Relaxed,
            Release,
            SeqCst, //
        }, //
    },
    thread, //
};

/// A disk that was added.
pub struct Disk(());

/// A disk that was removed.
pub struct RemovedDisk {
    /// Whether it has a reference to the pgmap.
    has_reference: bool,
}

/// A DAX device that is alive.
pub struct Dax(());

/// The memory, with access open.
pub struct Open(());

/// The memory, with access closed.
pub struct Closed(());

/// The memory after revocation from all files.
pub struct Revoked {
    /// The last walk began when there was no reference to the pgmap.
    is_complete: bool,
}

/// A reference to the module.
pub struct Module(());

impl TeardownOps for World {
    type Parts = Parts;
    type Disk = Disk;
    type RemovedDisk = RemovedDisk;
    type Dax = Dax;
    type Memory = Open;
    type Closed = Closed;
    type Revoked = Revoked;
    type Module = Module;

    fn with<R>(&self, f: impl FnOnce(&mut Teardown<Self>) -> R) -> R {
        f(&mut self.teardown.lock().unwrap())
    }

    /// `WaitQueue::wake_up`
    fn wake_up(&self) {
        let nr = self.wake_ups.get();
        self.wake_ups.set(nr + 1);
        if !self.has(Defect::WakeUpLost(nr)) {
            self.changed.wake_up();
        }
    }

    /// `WaitQueue::wait_until`. The condition is checked again only after a change.
    fn wait_until<R>(&self, mut condition: impl FnMut(&mut Teardown<Self>) -> Option<R>) -> R {
        let mut result = None;

        self.changed.wait_until(|| {
            result = self.with(|teardown| {
                let result = condition(teardown);
                if result.is_some() {
                    match &teardown.state {
                        State::Retired { .. } => self.seen.note("retired"),
                        State::Freeing { module: Some(_) } => {
                            self.seen.note("retired while it is freed");
                        }
                        State::Detached => self.seen.note("in time"),
                        State::Bound(_) => panic!("a wait ended early"),
                        // The end of a notice, or the beginning.
                        _ => {}
                    }
                }
                result
            });
            result.is_some()
        });
        result.unwrap()
    }

    fn announce(&self, _is_waited_for: bool) {
        let tell = |this: &Self| {
            this.announced.set(this.announced.get() + 1);
            assert_eq!(this.announced.get(), 1, "announcements");
        };
        if self.has(Defect::AnnouncedLate) {
            self.spawn(tell);
        } else {
            tell(self);
        }
    }

    /// The disk is looked at again when it was closed; in the driver, by polling.
    fn should_wait(&self, Parts(()): &Parts) -> bool {
        self.waiting().notice_goes_on()
            && self.openers.fetch_or(0, Acquire) != 0
            && !self.has(Defect::NoticeIgnored)
    }

    fn start_worker(&self) {
        self.workers.set(self.workers.get() + 1);
        assert_eq!(self.workers.get(), 1, "workers");

        self.enqueue(|this| {
            // The caller is not code of the module, or has no more code of it to run.
            if teardown::work(this).is_some() {
                this.module_returned.set(true);
                this.put_module();
            }
        });
    }

    /// The worker goes on when the device is dead, or after a timeout.
    fn start_kill_dax(&self) {
        if self.setup.killed_inline {
            self.kill_dax();
        } else if !self.setup.killed_late {
            self.enqueue(|this| this.kill_dax());
        }
    }

    /// The deadline passes at any moment: a thread that it wakes is not always scheduled at once.
    fn should_retire(&self, has_keeper: bool) -> bool {
        if self.has(Defect::NeverRetired) {
            return false;
        }
        self.waiting()
            .should_retire(has_keeper && !self.has(Defect::KeeperWaitedForever))
    }

    /// `try_module_get()`
    fn try_get_module(&self) -> Option<Module> {
        if self.setup.unloading {
            return None;
        }
        if self.setup.unloaded && !self.has(Defect::ModuleNotKept) {
            self.module_users.fetch_add(1, AcqRel);
        }
        Some(Module(()))
    }

    fn split(&self, Parts(()): Parts) -> (Disk, Dax, Open) {
        (Disk(()), Dax(()), Open(()))
    }

    /// `fs_dax::Pagemap::close_to_mappings`
    fn close_to_mappings(&self, _memory: &mut Open) {
        assert_eq!(self.announced.get(), 1, "revoked before it was announced");
        if self.setup.opened && self.setup.no_deadline {
            let may_be_open = self.physical.get()
                || self.signal.fetch_or(false, Acquire)
                || self.going_down.fetch_or(false, Acquire);
            let is_open = self.openers.fetch_or(0, Acquire) != 0;
            assert!(!is_open || may_be_open, "revoked while it is open");
        }
        if self.has(Defect::WalkBeforeClose) {
            self.walk(false);
        }

        self.close_access(NO_FRAMES);
        if !self.exposed.load(Relaxed) || !self.find_file() {
            return;
        }

        // Faults are not waited for. One that holds the lock may be about to map pages.
        let locks = !self.has(Defect::FilesNotLocked) && !self.has(Defect::NoInvalidateLock);
        let guard = locks.then(|| self.invalidate_lock.try_write());
        let has_fault = guard.as_ref().is_some_and(Result::is_err);
        self.unmap();
        if self.setup.closing && !self.has(Defect::FilesNotHeld) {
            // A locked entry may belong to a fault that has been admitted. If it is unlocked, the
            // effect of the fault is visible: the page has a reference.
            let is_locked = match self.setup.defect {
                Some(Defect::LockedNotHeld) => false,
                Some(Defect::LockedReadRelaxed) => self.entry.looks_locked(),
                _ => self.entry.is_locked(),
            };
            if has_fault || is_locked || self.page.is_referenced() {
                self.inode.fetch_add(1, AcqRel);
            }
        }
    }

    /// `del_gendisk()`
    fn remove_disk(&self, Disk(()): Disk) -> RemovedDisk {
        // `fs_bdev_mark_dead()` syncs file systems, which read and write through DAX.
        let refuses = self.refuses.get();
        assert!(!refuses, "refuses before the file systems are synced");
        // `fs_bdev_mark_dead()` evicts inodes without references.
        if self.setup.closing && self.inode.fetch_or(0, Acquire) == 0 && self.entry.has_page() {
            self.evict();
        }

        self.requests.kill();
        if !self.has(Defect::RequestsIgnored) {
            self.requests.wait(0);
        }
        let mut disk = RemovedDisk {
            has_reference: true,
        };
        self.check_for_keepers(&mut disk);
        disk
    }

    /// `fs_dax::Pagemap::close`
    fn close(&self, Open(()): Open) -> Closed {
        self.refuses.set(true);
        self.close_access(CLOSED);
        self.references.kill();
        Closed(())
    }

    /// `kill_dax()`, and the drop of the DAX device.
    fn kill(&self, Dax(()): Dax) {
        self.refuses.set(true);
        self.alive.store(false, Relaxed);
        if !self.has(Defect::ReadersIgnored) {
            self.srcu.synchronize();
        }
        self.references.put();
    }

    /// `fs_dax::Closed::revoke`
    fn revoke(&self, Closed(()): Closed) -> Revoked {
        let is_complete = match self.setup.defect {
            Some(Defect::RevokedUnwalked) => false,
            Some(Defect::WalkBeforeClose) => true,
            _ => self.walk(false),
        };
        if !is_complete {
            self.seen.note("walked early");
        }
        Revoked { is_complete }
    }

    fn after_revoke(&self) {}

    /// `fs_dax::Revoked::first_user`
    fn first_user(&self, memory: &mut Revoked, disk: &mut RemovedDisk) -> Option<User> {
        if self.setup.slow_search {
            self.returned.wait();
        }
        self.check_for_keepers(disk);

        if self.references.exceeds(u32::from(disk.has_reference))
            && !self.has(Defect::TranslationsIgnored)
        {
            Some(User::Reference)
        } else if disk.has_reference {
            Some(User::Keeper)
        } else if !memory.is_complete {
            Some(User::PageCache)
        } else {
            self.first_page_user()
        }
    }

    /// `fs_dax::Revoked::wait_for`
    fn wait_for(&self, user: User, memory: &mut Revoked, disk: &mut RemovedDisk) {
        match user {
            User::Reference => self.references.wait(u32::from(disk.has_reference)),
            User::Keeper => self
                .released
                .wait_until(|| !self.held.fetch_or(false, Acquire)),
            User::Pin => self.page.wait_idle(),
            User::PageCache => {
                if memory.is_complete {
                    self.seen.note("walked again");
                    // The thread that is about to put the page runs first.
                    thread::yield_now();
                }
                memory.is_complete =
                    self.walk(memory.is_complete) || self.has(Defect::TranslationsIgnored);
            }
        }
    }

    fn free(&self, _memory: Revoked, _disk: RemovedDisk) {
        if self.setup.slow_free {
            self.returned.wait();
        }
        if self.has(Defect::FreedLater) {
            self.spawn(|this| this.free_pages());
        } else {
            self.free_pages();
        }
    }
}

impl World {
    /// `fatal_signal_pending()`
    fn is_killed(&self) -> bool {
        self.killable.get() == Some(thread::current().id())
            && !self.has(Defect::SignalIgnored)
            && self.signal.fetch_or(false, Acquire)
    }

    /// `DeviceState::waiting`. Without a deadline the time stands still.
    fn waiting(&self) -> Waiting {
        Waiting {
            micros: if self.setup.no_deadline { 0 } else { 1000 },
            limit_ms: 1,
            is_killed: self.is_killed(),
            is_going_down: !self.has(Defect::GoingDownIgnored)
                && self.going_down.fetch_or(false, Acquire),
            memmap: if self.setup.on_medium {
                Memmap::Medium
            } else {
                Memmap::Ram
            },
        }
    }

    /// `AccessState::close_to`
    fn close_access(&self, step: u32) {
        self.access.fetch_max(step, Relaxed);
        if !self.has(Defect::NoBarrier) {
            fence(SeqCst);
        }
    }

    /// `fs::dax_inodes`: returns whether there is a file.
    fn find_file(&self) -> bool {
        !self.setup.evicting && self.entry.may_be_there()
    }

    /// `RemovedDisk`: puts its reference to the pgmap when it has no keeper any more.
    fn check_for_keepers(&self, disk: &mut RemovedDisk) {
        if disk.has_reference && (!self.held.load(Acquire) || self.has(Defect::KeepersIgnored)) {
            disk.has_reference = false;
            self.references.put();
        }
    }

    /// `PagemapInner::is_reachable_by_faults`. `DiskState::had_indirect_claim` is constant here.
    fn is_reachable_by_faults(&self) -> bool {
        let is_copied = self.setup.indirect && !self.has(Defect::CopiesIgnored);

        self.exposed.load(Relaxed) || is_copied
    }

    /// `Pagemap::first_used`
    fn first_page_user(&self) -> Option<User> {
        if !self.exposed.load(Relaxed) {
            return None;
        }
        let has_mapping = self.page.has_mapping();

        if self.page.is_referenced() {
            (!self.has(Defect::PinsIgnored)).then_some(User::Pin)
        } else if has_mapping {
            (!self.has(Defect::EntriesIgnored)).then_some(User::PageCache)
        } else {
            None
        }
    }

    /// The walk over the files, of which there is one. Returns whether all references to the pgmap
    /// had been put before. If the file cannot be mapped any more, `waits` is for the inode lock.
    fn walk(&self, waits: bool) -> bool {
        let is_complete = !self.references.exceeds(0);
        if !self.is_reachable_by_faults() || !self.find_file() {
            return is_complete;
        }

        // A thread that waits for a pin in `dax_break_layout()` holds the lock for writing.
        let inode_guard = if waits && !self.has(Defect::NoInodeLock) {
            self.inode_lock.read().ok()
        } else {
            self.inode_lock.try_read().ok()
        };
        let may_delete = inode_guard.is_some() || self.has(Defect::NoInodeLock);
        let locks = !self.has(Defect::NoInvalidateLock);
        let _guard = locks.then(|| self.invalidate_lock.write().unwrap());
        let rounds = if self.has(Defect::UnmappedOnce) { 1 } else { 2 };
        for _ in 0..rounds {
            self.unmap();
            if !self.has(Defect::LockedEntriesIgnored) {
                self.entry.wait_unlocked();
            }
        }
        if may_delete && self.entry.has_page() && !self.page.is_referenced() {
            self.delete_entry();
        }
        is_complete
    }

    /// `dax_delete_mapping_range()`
    pub(super) fn delete_entry(&self) {
        self.entry.wait_unlocked();
        // The kernel warns in this case.
        assert!(
            !self.page.is_referenced(),
            "the entry of a page that is in use is deleted"
        );
        self.page.set_mapping(false);
        self.entry.delete();
    }

    /// `PagemapInner::free`, and the end of the reservation. The memory must not be in use.
    fn free_pages(&self) {
        if self.has(Defect::UnreservedEarly) {
            self.reserved.swap(false, Release);
        }
        if self.exposed.load(Relaxed) && !self.has(Defect::NoGracePeriod) {
            self.rcu.synchronize();
        }

        self.freed.set(self.freed.get() + 1);
        assert!(!self.references.exceeds(0), "freed while it is referenced");
        self.page_table.free();
        self.entry.free();
        self.page.free();
        assert!(
            !self.held.fetch_or(false, AcqRel),
            "freed while the disk has a keeper"
        );
        self.memory.take();
        self.reserved.swap(false, Release);
    }

    fn put_module(&self) {
        if self.setup.unloaded && !self.has(Defect::ModuleNotKept) {
            self.module_users.fetch_sub(1, AcqRel);
            self.module_idle.wake_up();
        }
    }
}
