// SPDX-License-Identifier: GPL-2.0

//! The model of the environment of the teardown, on the primitives of [`kernel`](super::kernel),
//! and of the users of the memory.
//!
//! The unbinding thread, the worker, and the thread that kills the DAX device run the driver's own
//! code. The functions of [`Environment`] are models of those of the driver and its abstractions;
//! each names what it stands for, and has to be changed with it. What a type does when it is
//! dropped too early is left out: it would hide that a user was not waited for.

use crate::kernel::{
    Completion,
    Entry,
    Memory,
    Page,
    PageTable,
    PercpuRef,
    Srcu,
    WaitQueue, //
};
use host::teardown::{
    self,
    Environment,
    Outcome,
    State,
    Teardown,
    User, //
};
use loom::{
    model::Builder,
    sync::{
        atomic::{
            fence,
            AtomicBool,
            AtomicU32,
            Ordering::{
                AcqRel,
                Acquire,
                Relaxed,
                Release,
                SeqCst, //
            }, //
        },
        Mutex,
        RwLock, //
    },
    thread::{
        self,
        ThreadId, //
    }, //
};
use std::{
    cell::Cell,
    collections::BTreeMap,
    panic::{
        catch_unwind,
        AssertUnwindSafe, //
    },
    rc::{
        Rc,
        Weak, //
    },
    sync::Arc, //
};

/// A defect of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    // The walk over the files.
    /// The walk does not wait for entries that are locked.
    LockedEntriesIgnored,
    /// The walk unmaps once, before it waits for locked entries.
    UnmappedOnce,
    /// The invalidate lock is not taken.
    NoInvalidateLock,
    /// The files are walked only before access is closed.
    WalkBeforeClose,
    /// `revoke` returns before the files were walked, which happens later.
    RevokedUnwalked,

    // The access state.
    /// The access state is ignored. The device refuses only when it is not alive.
    AccessStateIgnored,
    /// There is no barrier after access is closed.
    NoBarrier,
    /// There is no barrier before a fault checks the access state.
    NoFaultBarrier,
    /// A page is recorded as exposed only after the access state was checked.
    ExposedLate,
    /// A fault whose page is already recorded as exposed has no barrier before it checks the access
    /// state; reading the record is an acquire.
    ExposureAcquired,

    // The users.
    /// The DAX device puts its reference to the pgmap before it has waited for its readers.
    ReadersIgnored,
    /// References to the pgmap are ignored.
    TranslationsIgnored,
    /// References to pages are ignored.
    PinsIgnored,
    /// Page cache entries of a page are ignored.
    EntriesIgnored,
    /// Holders of the disk are ignored.
    HoldersIgnored,
    /// Removing the disk does not wait for requests.
    RequestsIgnored,
    /// Files are not referenced before the disk is removed.
    FilesNotHeld,
    /// The search for such files does not take the invalidate lock.
    FilesNotLocked,
    /// Only files with pinned pages are referenced.
    LockedNotHeld,
    /// Whether an entry is locked is read without the lock of its array, and without an acquire.
    LockedReadRelaxed,

    // The wait.
    /// The unbinding thread waits for the last user.
    NeverRetired,
    /// The check that waiting is hopeless is missing.
    HolderWaitedForever,
    /// A fatal signal is ignored.
    SignalIgnored,
    /// The call of `wake_up` with this number, counted from 0, wakes no thread.
    WakeUpLost(u32),

    // The end.
    /// `free` returns before the memory is free.
    FreedLater,
    /// The reservation is released before the memory is freed.
    UnreservedEarly,
    /// The memory is freed without a grace period after its last use.
    NoGracePeriod,
    /// A reference to the module does not prevent its unloading.
    ModuleNotKept,
    /// The exit of the module does not wait for the work queues.
    QueuesNotDrained,
}

/// The initial state.
#[derive(Clone, Copy)]
pub struct Setup {
    pub defect: Option<Defect>,
    /// A process has mapped the page, and accessed it.
    pub mapped: bool,
    /// The page is pinned; see [`World::unpin`].
    pub pinned: bool,
    /// The file is closed, and its inode is being evicted; see [`World::evict`].
    pub evicting: bool,
    /// The disk has a holder with the address of the memory; see [`World::use_by_holder`].
    pub held: bool,
    /// A reader is inside of a read-side section until unbind has returned; see [`World::leave`].
    pub stuck: bool,
    /// The file may be closed while the disk is removed; see [`World::pin_and_close`].
    pub closing: bool,
    /// The deadline does not pass. Unbind returns early only if waiting is hopeless, or after a
    /// fatal signal.
    pub no_deadline: bool,
    /// Freeing is delayed until unbind has returned.
    pub slow_free: bool,
    /// The module is unloaded after that; see [`World::unload`].
    pub unloaded: bool,
    /// The module is being unloaded, so that references to it cannot be taken.
    pub unloading: bool,
    /// The worker kills the DAX device itself, for models of other aspects.
    pub killed_inline: bool,
    /// The DAX device is killed only after unbind has returned; see [`World::kill_dax`].
    pub killed_late: bool,
    /// Users release the memory only after unbind has returned.
    pub stubborn: bool,
}

impl Setup {
    /// Bound and idle.
    pub const IDLE: Self = Self {
        defect: None,
        mapped: false,
        pinned: false,
        evicting: false,
        held: false,
        stuck: false,
        closing: false,
        no_deadline: false,
        slow_free: false,
        unloaded: false,
        unloading: false,
        killed_inline: false,
        killed_late: false,
        stubborn: false,
    };

    /// Whether an entry of the page cache refers to the page.
    fn has_page(&self) -> bool {
        self.mapped || self.pinned || self.evicting
    }

    fn references(&self) -> u32 {
        u32::from(self.mapped) + u32::from(self.pinned)
    }
}

/// Events in all executions of a model, and their number.
#[derive(Clone, Default)]
pub struct Seen(Arc<std::sync::Mutex<BTreeMap<&'static str, u64>>>);

impl Seen {
    pub fn note(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }

    #[track_caller]
    pub fn assert(&self, all: &[&str]) {
        let seen = self.0.lock().unwrap();
        for what in all {
            assert!(seen.contains_key(what), "never {what}: {seen:?}");
        }
    }

    #[track_caller]
    pub fn assert_never(&self, all: &[&str]) {
        let seen = self.0.lock().unwrap();
        for what in all {
            assert!(!seen.contains_key(what), "{what}: {seen:?}");
        }
    }
}

/// The indices of readers in the domain of `dax_read_lock`.
#[derive(Clone, Copy)]
enum Reader {
    Fault,
    Read,
    Late,
    Stuck,
}

impl Reader {
    const COUNT: usize = 4;
}

/// The indices of readers in the domain of RCU (and RCU tasks).
#[derive(Clone, Copy)]
enum Busy {
    Putting,
    Evicting,
}

impl Busy {
    const COUNT: usize = 2;
}

// The access states.
const OPEN: u32 = 0;
const NO_FRAMES: u32 = 1;
const CLOSED: u32 = 2;

/// The parts of a bound device.
pub struct Parts(());

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

/// A device with one page, from bind to the end.
pub struct World {
    this: Weak<Self>,
    setup: Setup,
    seen: Seen,

    // `driver::unbind`
    teardown: Mutex<Teardown<Self>>,
    changed: WaitQueue,

    // The memory: `abstractions::memremap` and `abstractions::fs_dax`.
    access: AtomicU32,
    exposed: AtomicBool,
    references: PercpuRef,
    reserved: AtomicBool,
    memory: Memory,
    page: Page,

    // The DAX device, the disk, a file, and a process that maps it.
    alive: AtomicBool,
    srcu: Srcu,
    rcu: Srcu,
    requests: PercpuRef,
    held: AtomicBool,
    released: WaitQueue,
    inode: AtomicU32,
    invalidate_lock: RwLock<()>,
    entry: Entry,
    page_table: PageTable,

    // The module, and its work queue.
    module_users: AtomicU32,
    module_idle: WaitQueue,
    work_items: PercpuRef,
    code: Memory,

    // State of the model itself.
    killable: Cell<Option<ThreadId>>,
    signal: AtomicBool,
    returned: Completion,
    workers: Cell<u32>,
    wake_ups: Cell<u32>,
    /// The DAX device refuses reads and writes, or is about to.
    refuses: Cell<bool>,
    freed: Cell<u32>,
    retired: Cell<bool>,
    module_returned: Cell<bool>,
}

/// Threads that run concurrently in a world.
pub struct Model {
    pub setup: Setup,
    /// The maximum number of preemptions of a thread that could go on. Without it loom runs all
    /// executions, which takes too long for most models.
    pub preemptions: Option<usize>,
    pub run: fn(&Rc<World>),
}

impl Model {
    /// Runs the executions, each with a new world. None may fail.
    ///
    /// `LOOM_MAX_PREEMPTIONS=3` extends the search.
    pub fn explore(&self) -> Seen {
        let seen = Seen::default();
        let mut builder = Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(self.preemptions);

        let (setup, run, notes) = (self.setup, self.run, seen.clone());
        builder.check(move || run(&World::new(setup, notes.clone())));
        seen
    }

    /// Runs the executions with a defect, until one fails, which must be with the expected message.
    #[track_caller]
    pub fn finds(&self, defect: Defect, expected: &str) {
        let model = Self {
            setup: Setup {
                defect: Some(defect),
                ..self.setup
            },
            ..*self
        };
        let Err(payload) = catch_unwind(AssertUnwindSafe(|| model.explore())) else {
            panic!("{defect:?} was not found");
        };

        let message = match payload.downcast_ref::<String>() {
            Some(message) => message.as_str(),
            None => payload.downcast_ref::<&str>().unwrap_or(&"?"),
        };
        assert!(
            message.contains(expected),
            "{defect:?} was found otherwise: {message}",
        );
    }
}

impl World {
    fn new(setup: Setup, seen: Seen) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            setup,
            seen,
            teardown: Mutex::new(Teardown {
                state: State::Bound(Parts(())),
                dax: None,
            }),
            changed: WaitQueue::default(),
            access: AtomicU32::new(OPEN),
            exposed: AtomicBool::new(setup.has_page() || setup.held),
            // One of the DAX device, one of the disk.
            references: PercpuRef::new(2),
            reserved: AtomicBool::new(true),
            memory: Memory::new(),
            page: Page::new(setup.references(), setup.has_page()),
            alive: AtomicBool::new(true),
            srcu: Srcu::new(Reader::COUNT, setup.stuck.then_some(Reader::Stuck as usize)),
            rcu: Srcu::new(Busy::COUNT, None),
            requests: PercpuRef::new(0),
            held: AtomicBool::new(setup.held),
            released: WaitQueue::default(),
            inode: AtomicU32::new(1),
            invalidate_lock: RwLock::new(()),
            entry: Entry::new(setup.has_page()),
            page_table: PageTable::new(setup.mapped),
            module_users: AtomicU32::new(0),
            module_idle: WaitQueue::default(),
            work_items: PercpuRef::new(0),
            code: Memory::new(),
            killable: Cell::new(None),
            signal: AtomicBool::new(false),
            returned: Completion::new(),
            workers: Cell::new(0),
            wake_ups: Cell::new(0),
            refuses: Cell::new(false),
            freed: Cell::new(0),
            retired: Cell::new(false),
            module_returned: Cell::new(false),
        })
    }

    fn has(&self, defect: Defect) -> bool {
        self.setup.defect == Some(defect)
    }

    /// Runs a closure on another thread.
    pub fn spawn(&self, run: impl FnOnce(&Self) + 'static) -> thread::JoinHandle<()> {
        let this = self.this.upgrade().unwrap();
        thread::spawn(move || run(&this))
    }

    fn unloads(&self) -> bool {
        self.setup.unloaded || self.setup.unloading
    }

    /// Runs a work item of the module on another thread.
    fn enqueue(&self, run: impl FnOnce(&Self) + 'static) {
        if !self.unloads() {
            self.spawn(run);
            return;
        }

        assert!(self.work_items.try_get(), "queued after the module's exit");
        self.spawn(|this| {
            this.code.access();
            run(this);
            this.code.access();
            this.work_items.put();
        });
    }
}

// ---- The environment: the driver and its abstractions.

impl Environment for World {
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
                    self.seen.note(match &teardown.state {
                        State::Retired { .. } => "retired",
                        State::Freeing { module: Some(_) } => "retired while it is freed",
                        State::Gone => "in time",
                        _ => panic!("a wait ended early"),
                    });
                }
                result
            });
            result.is_some()
        });
        result.unwrap()
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
    fn should_retire(&self, has_holder: bool) -> bool {
        if self.has(Defect::NeverRetired) {
            return false;
        }
        let killed = self.killable.get() == Some(thread::current().id())
            && !self.has(Defect::SignalIgnored)
            && self.signal.fetch_or(false, Acquire);

        !self.setup.no_deadline || killed || (has_holder && !self.has(Defect::HolderWaitedForever))
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
        if self.has(Defect::WalkBeforeClose) {
            self.walk();
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
        self.check_for_holders(&mut disk);
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
            _ => self.walk(),
        };
        if !is_complete {
            self.seen.note("walked early");
        }
        Revoked { is_complete }
    }

    fn after_revoke(&self) {}

    /// `fs_dax::Revoked::first_user`
    fn first_user(&self, memory: &mut Revoked, disk: &mut RemovedDisk) -> Option<User> {
        self.check_for_holders(disk);

        if self.references.exceeds(u32::from(disk.has_reference))
            && !self.has(Defect::TranslationsIgnored)
        {
            Some(User::Translation)
        } else if disk.has_reference {
            Some(User::Holder)
        } else if !memory.is_complete {
            Some(User::PageCache)
        } else {
            self.first_page_user()
        }
    }

    /// `fs_dax::Revoked::wait_for`
    fn wait_for(&self, user: User, memory: &mut Revoked, disk: &mut RemovedDisk) {
        match user {
            User::Translation => self.references.wait(u32::from(disk.has_reference)),
            User::Holder => self
                .released
                .wait_until(|| !self.held.fetch_or(false, Acquire)),
            User::Pin => self.page.wait_idle(),
            User::PageCache => {
                if memory.is_complete {
                    self.seen.note("walked again");
                    // The thread that is about to put the page runs first.
                    thread::yield_now();
                }
                memory.is_complete = self.walk() || self.has(Defect::TranslationsIgnored);
            }
        }
    }

    fn free(&self, _memory: Revoked, _disk: RemovedDisk) {
        if self.setup.slow_free {
            self.returned.wait();
        }
        if self.has(Defect::FreedLater) {
            self.spawn(|this| this.unmap_pages());
        } else {
            self.unmap_pages();
        }
    }
}

impl World {
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

    /// `RemovedDisk`: puts its reference to the pgmap when it has no holder any more.
    fn check_for_holders(&self, disk: &mut RemovedDisk) {
        if disk.has_reference && (!self.held.load(Acquire) || self.has(Defect::HoldersIgnored)) {
            disk.has_reference = false;
            self.references.put();
        }
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
    /// had been put before.
    fn walk(&self) -> bool {
        let is_complete = !self.references.exceeds(0);
        if !self.exposed.load(Relaxed) || !self.find_file() {
            return is_complete;
        }

        let locks = !self.has(Defect::NoInvalidateLock);
        let _guard = locks.then(|| self.invalidate_lock.write().unwrap());
        let rounds = if self.has(Defect::UnmappedOnce) { 1 } else { 2 };
        for _ in 0..rounds {
            self.unmap();
            if !self.has(Defect::LockedEntriesIgnored) {
                self.entry.wait_unlocked();
            }
        }
        if self.entry.has_page() && !self.page.is_referenced() {
            self.delete_entry();
        }
        is_complete
    }

    /// `dax_delete_mapping_range()`
    fn delete_entry(&self) {
        self.entry.wait_unlocked();
        // The kernel warns in this case.
        assert!(
            !self.page.is_referenced(),
            "the entry of a page that is in use is deleted"
        );
        self.page.set_mapping(false);
        self.entry.delete();
    }

    /// `PagemapInner::unmap`, and the end of the reservation. The memory must not be in use.
    fn unmap_pages(&self) {
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
            "freed while the disk has a holder"
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

    // ---- The threads of the teardown.

    /// `Unbind::run`
    pub fn unbind(&self) -> Outcome {
        if !teardown::begin(self) {
            self.seen.note("a second unbind");
        }
        let end = teardown::wait(self);

        self.page_table.unbound();
        match end {
            Outcome::Freed => {
                assert_eq!(self.freed.get(), 1, "not free in time");
                self.memory.access();
            }
            Outcome::Retired => self.retired.set(true),
        }
        self.returned.complete_all();
        end
    }

    /// `Unbind::run` by a thread that gets a fatal signal at some moment; see [`Self::signal`].
    pub fn unbind_killable(&self) -> Outcome {
        self.killable.set(Some(thread::current().id()));
        self.unbind()
    }

    /// Sends the fatal signal.
    pub fn signal(&self) {
        self.signal.swap(true, AcqRel);
        self.changed.wake_up();
    }

    /// The thread that kills the DAX device.
    pub fn kill_dax(&self) {
        teardown::kill_dax(self);
    }

    /// `rmmod`: fails while there are references to the module, and is tried again.
    pub fn unload(&self) {
        self.module_idle
            .wait_until(|| self.module_users.fetch_or(0, AcqRel) == 0);

        let is_gone = self.with(|teardown| matches!(teardown.state, State::Gone));
        assert!(is_gone, "the module is unloaded before the range is freed");
        // The exit: `destroy_workqueue()`.
        self.work_items.kill();
        if !self.has(Defect::QueuesNotDrained) {
            self.work_items.wait(0);
        }
        self.code.take();
    }

    // ---- The users of the memory.

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

    /// The end of `direct_access_callback`: `AccessState::admits_access` and
    /// `AccessState::admits_mapping`.
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
    fn unmap(&self) {
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
        // The lock of the array disables interrupts.
        self.rcu.read_lock(Busy::Evicting as usize);
        self.delete_entry();
        self.rcu.read_unlock(Busy::Evicting as usize);
        self.seen.note("evicted");
    }

    /// device-mapper uses the memory by an address of its own, and closes the disk.
    pub fn use_by_holder(&self) {
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
            if !matches!(teardown.state, State::Freeing { .. } | State::Gone) {
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

/// The end of an execution, after the last thread.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert_eq!(self.freed.get(), 1, "times that it was freed");
        assert_eq!(
            self.retired.get(),
            self.module_returned.get(),
            "retired, as the unbinding thread and the worker see it"
        );
        let is_gone = self.with(|teardown| matches!(teardown.state, State::Gone));
        assert!(is_gone, "free, but not gone");
        assert!(!self.reserved.fetch_or(false, AcqRel), "still reserved");
    }
}
