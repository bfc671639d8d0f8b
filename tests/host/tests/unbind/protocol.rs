// SPDX-License-Identifier: GPL-2.0

//! The protocol of `driver/unbind.rs`, step by step, on the primitives of [`kernel`](super::kernel),
//! and those who use the memory meanwhile.
//!
//! What decides, [`Lifecycle`] and [`Users`], is the driver's own code. The rest repeats the functions of
//! the same names there; who changes one changes the other. Left out is what waits a second time when
//! all is well: `Counted` and `Pagemap`, whose `Drop` would hide that somebody was not waited for.

use crate::kernel::{
    Cmpxchg,
    Completion,
    Entry,
    Memory,
    Page,
    PageTable,
    PercpuRef,
    Srcu,
    WaitQueue, //
};
use host::lifecycle::{
    Drained,
    Lifecycle,
    PageUse,
    State,
    StateCell,
    Step,
    Users,
    Walk, //
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
        RwLock, //
    },
    thread, //
};
use std::{
    cell::Cell,
    collections::BTreeMap,
    panic::{
        catch_unwind,
        AssertUnwindSafe, //
    },
    rc::Rc,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// What can be wrong with the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The walk does not wait for entries that are locked.
    LockedEntriesIgnored,
    /// The walk unmaps once, before it waits for locked entries.
    UnmappedOnce,
    /// The files are walked through only before the gate is closed.
    WalkBeforeGate,
    /// There is no gate. The device refuses only when it is not alive.
    NoGate,
    /// The gate is closed without a barrier after that.
    NoBarrier,
    /// A page is recorded as exposed only when the gate has been passed.
    ExposedLate,
    /// Who finds a page recorded as exposed passes the gate with only an acquire in between.
    ExposureAcquired,
    /// The walk does not take the invalidate lock.
    NoInvalidateLock,
    /// The device is said to be dead before those inside of it were waited for.
    DeathUnawaited,
    /// The memory is freed while the device is not dead.
    TranslationsIgnored,
    /// The memory is freed while pages are pinned.
    PinsIgnored,
    /// The memory is freed while an entry names a page.
    EntriesIgnored,
    /// The memory is freed while somebody has claimed the disk.
    ClaimsIgnored,
    /// Removing the disk does not wait for requests.
    RequestsIgnored,
    /// The deadline does not wait for the revocation.
    RetiredUnrevoked,
    /// The deadline waits for the last user, too.
    NeverRetired,
    /// A range is put on the list after it was retired.
    ListedLate,
    /// Unbind is not told that it is hopeless to wait.
    NeverHopeless,
    /// A range that was not retired after all stays on the list.
    StaysListed,
    /// A retired range that was freed stays on the list.
    NeverUnlisted,
    /// Unbind is told that all is done before it is.
    DoneEarly,
    /// The reservation goes before the memory.
    UnreservedEarly,
    /// The memory is freed while somebody may still be busy with what made it unused.
    NoGracePeriod,
    /// Files are not referenced before the disk is removed.
    FilesNotHeld,
    /// The worker uses what all devices share after unbind was told that all is done.
    SharedUsedLate,
}

/// How the world begins.
#[derive(Clone, Copy)]
pub struct Setup {
    pub defect: Option<Defect>,
    /// A process has mapped the page, and touched it.
    pub mapped: bool,
    /// The page is pinned; see [`World::unpin`].
    pub pinned: bool,
    /// Nobody has the file open any more, and its inode is on its way out; see [`World::evict`].
    pub evicting: bool,
    /// Somebody has claimed the disk, and has the address of the memory; see [`World::use_claim`].
    pub claimed: bool,
    /// Somebody is inside of a read-side section, and leaves it when unbind has returned; see
    /// [`World::leave`].
    pub stuck: bool,
    /// The file may be closed while the disk is removed; see [`World::use_and_close`].
    pub closing: bool,
    /// The deadline does not pass. Unbind returns early only if it is hopeless to wait.
    pub patient: bool,
    /// The module is unloaded after that; see [`World::unload`].
    pub unloading: bool,
    /// The worker kills the DAX device by itself, as when there is no queue that takes the work. For
    /// models that are not about that.
    pub killed_inline: bool,
    /// The work item that kills the DAX device does so only when unbind has returned; see
    /// [`World::kill_dax`].
    pub killed_late: bool,
    /// Users who hold on to the memory let go only when unbind has returned.
    pub stubborn: bool,
}

impl Setup {
    /// Bound, and used by nobody.
    pub const IDLE: Self = Self {
        defect: None,
        mapped: false,
        pinned: false,
        evicting: false,
        claimed: false,
        stuck: false,
        closing: false,
        patient: false,
        unloading: false,
        killed_inline: false,
        killed_late: false,
        stubborn: false,
    };

    /// Whether an entry of the page cache names the page.
    fn names(&self) -> bool {
        self.mapped || self.pinned || self.evicting
    }

    fn references(&self) -> u32 {
        u32::from(self.mapped) + u32::from(self.pinned)
    }
}

/// What was seen in all executions of a model, and how often.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<&'static str, u64>>>);

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
}

/// The places of readers in the domain of `dax_read_lock`.
#[derive(Clone, Copy)]
enum Reader {
    Fault,
    Other,
    Read,
    Late,
    Stuck,
}

impl Reader {
    const COUNT: usize = 5;
}

/// The places of readers in the domain of RCU (and RCU tasks).
#[derive(Clone, Copy)]
enum Busy {
    Putting,
    Evicting,
    Sharing,
}

impl Busy {
    const COUNT: usize = 3;
}

// The states of the gate.
const OPEN: u32 = 0;
const NO_FRAMES: u32 = 1;
const CLOSED: u32 = 2;

/// A device with one page, from bind to gone.
pub struct World<C: StateCell = Cmpxchg> {
    setup: Setup,
    seen: Seen,

    // The fields of `Unbind`.
    lifecycle: Lifecycle<C>,
    /// `is_dead` too.
    dead: Completion,
    /// `is_revoked`, for which unbind looks every second.
    revoked: Completion,
    hopeless: Completion,
    done: Completion,
    /// Completed by either.
    progress: Completion,
    listed: AtomicBool,
    /// `dax::Gate`
    gate: AtomicU32,

    // The memory.
    exposed: AtomicBool,
    reserved: AtomicBool,
    memory: Memory,
    page: Page,

    // The DAX device, the disk, a file, and a process that maps it.
    alive: AtomicBool,
    srcu: Srcu,
    rcu: Srcu,
    requests: PercpuRef,
    claimed: AtomicBool,
    closed: WaitQueue,
    inode: AtomicU32,
    invalidate_lock: RwLock<()>,
    entry: Entry,
    page_table: PageTable,

    // The module, and what all devices share.
    module_users: AtomicU32,
    module_idle: WaitQueue,
    installed: AtomicBool,
    shared_users: AtomicU32,
    worker_left: Completion,

    // What the model knows.
    returned: Completion,
    begun: Cell<bool>,
    freed: Cell<u32>,
    retired: Cell<Option<bool>>,
    drained: Cell<Option<Drained>>,
}

/// Threads in a world.
pub struct Model<C: StateCell + 'static = Cmpxchg> {
    pub setup: Setup,
    /// How often at most a thread is interrupted that could go on. With no limit loom goes through
    /// all executions, which takes too long for most models.
    pub preemptions: Option<usize>,
    pub run: fn(&Rc<World<C>>),
}

impl<C: StateCell + 'static> Model<C> {
    /// Goes through the executions, with a new world each. All of them must end well.
    ///
    /// `LOOM_MAX_PREEMPTIONS=3` makes it look further.
    pub fn explore(&self) -> Seen {
        let seen = Seen::default();
        let mut builder = Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(self.preemptions);

        let (setup, run, notes) = (self.setup, self.run, seen.clone());
        builder.check(move || run(&Rc::new(World::new(setup, notes.clone()))));
        seen
    }

    /// Goes through the executions until one fails, which must be with the expected message.
    #[track_caller]
    pub fn fails(&self, expected: &str) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.explore())) else {
            panic!("{:?} was not found", self.setup.defect);
        };

        let message = match payload.downcast_ref::<String>() {
            Some(message) => message.as_str(),
            None => payload.downcast_ref::<&str>().unwrap_or(&"?"),
        };
        assert!(
            message.contains(expected),
            "{:?} was found otherwise: {message}",
            self.setup.defect
        );
    }

    /// As [`Self::fails`], with a defect.
    #[track_caller]
    pub fn finds(&self, defect: Defect, expected: &str) {
        let setup = Setup {
            defect: Some(defect),
            ..self.setup
        };
        Self { setup, ..*self }.fails(expected);
    }
}

impl<C: StateCell + 'static> World<C> {
    fn new(setup: Setup, seen: Seen) -> Self {
        Self {
            setup,
            seen,
            lifecycle: Lifecycle::new(),
            dead: Completion::new(),
            revoked: Completion::new(),
            hopeless: Completion::new(),
            done: Completion::new(),
            progress: Completion::new(),
            gate: AtomicU32::new(OPEN),
            listed: AtomicBool::new(false),
            exposed: AtomicBool::new(setup.names() || setup.claimed),
            reserved: AtomicBool::new(true),
            memory: Memory::new(),
            page: Page::new(setup.references(), setup.names()),
            alive: AtomicBool::new(true),
            srcu: Srcu::new(Reader::COUNT, setup.stuck.then_some(Reader::Stuck as usize)),
            rcu: Srcu::new(Busy::COUNT, None),
            requests: PercpuRef::new(),
            claimed: AtomicBool::new(setup.claimed),
            closed: WaitQueue::default(),
            inode: AtomicU32::new(1),
            invalidate_lock: RwLock::new(()),
            entry: Entry::new(setup.names()),
            page_table: PageTable::new(setup.mapped),
            module_users: AtomicU32::new(0),
            module_idle: WaitQueue::default(),
            installed: AtomicBool::new(true),
            shared_users: AtomicU32::new(1),
            worker_left: Completion::new(),
            returned: Completion::new(),
            begun: Cell::new(false),
            freed: Cell::new(0),
            retired: Cell::new(None),
            drained: Cell::new(None),
        }
    }

    fn has(&self, defect: Defect) -> bool {
        self.setup.defect == Some(defect)
    }

    /// Runs something on another thread.
    pub fn spawn(self: &Rc<Self>, run: impl FnOnce(&Rc<Self>) + 'static) {
        let this = self.clone();
        thread::spawn(move || run(&this));
    }

    // ---- driver/unbind.rs

    /// `Unbind::run`. The deadline passes at any moment.
    pub fn unbind(self: &Rc<Self>) {
        if !self.lifecycle.begin() {
            self.seen.note("a second unbind");
            return;
        }
        assert!(!self.begun.replace(true), "begun twice");
        self.spawn(|this| this.take_away());

        if self.setup.patient {
            self.progress.wait();
        }
        if !self.has(Defect::RetiredUnrevoked) {
            self.revoked.wait();
        }
        let late = !self.setup.patient || self.hopeless.is_done();
        let retired =
            late && !self.has(Defect::NeverRetired) && !self.done.is_done() && self.retire();
        if !retired {
            self.done.wait();
        }

        self.retired.set(Some(retired));
        self.page_table.unbound();
        if retired {
            self.seen.note("retired");
        } else {
            self.seen.note("in time");
            assert_eq!(self.lifecycle.state(), State::Gone, "when unbind returns");
            assert!(
                !self.listed.fetch_or(false, AcqRel),
                "on the list, but not retired"
            );
        }
        self.returned.complete_all();
    }

    fn retire(&self) -> bool {
        if self.setup.unloading {
            self.module_users.fetch_add(1, AcqRel);
        }
        if !self.has(Defect::ListedLate) {
            self.list(true);
        }
        if !self.lifecycle.retire() {
            if !self.has(Defect::StaysListed) {
                self.list(false);
            }
            // `Unbind` keeps it, until the worker or unbind drops that.
            if self.setup.unloading {
                self.put_module();
            }
            return false;
        }
        if self.has(Defect::ListedLate) {
            self.list(true);
        }
        true
    }

    /// Puts the range on the list, or takes it off. The list has a lock.
    fn list(&self, add: bool) {
        let old = self.listed.swap(add, AcqRel);
        assert!(!(old && add), "on the list twice");
    }

    fn take_away(self: &Rc<Self>) {
        if self.has(Defect::WalkBeforeGate) {
            self.revoke();
        }

        self.close_gate(NO_FRAMES);
        if self.setup.closing && self.exposed.load(Relaxed) && !self.has(Defect::FilesNotHeld) {
            self.find_file();
        }
        self.remove_disk();
        self.close_gate(CLOSED);
        self.end_translations();
        self.drain();
        self.finish();
    }

    /// `Gate::close_to`
    fn close_gate(&self, step: u32) {
        self.gate.store(step, Relaxed);
        if !self.has(Defect::NoBarrier) {
            fence(SeqCst);
        }
    }

    /// `fs::dax_inodes`: returns whether there is a file, which stays then.
    fn find_file(&self) -> bool {
        let found = !self.setup.evicting && self.entry.may_be_there();
        if found && self.setup.closing {
            self.inode.fetch_add(1, AcqRel);
        }
        found
    }

    /// `del_gendisk`
    fn remove_disk(&self) {
        // `fs_bdev_mark_dead()` evicts inodes that nobody has.
        if self.setup.closing && self.inode.fetch_or(0, Acquire) == 0 && self.entry.names() {
            self.evict();
        }

        self.requests.kill();
        if !self.has(Defect::RequestsIgnored) {
            self.requests.wait();
        }
    }

    /// The worker goes on when the device is dead, or after a while.
    fn end_translations(self: &Rc<Self>) {
        if self.setup.killed_inline {
            self.kill_dax();
        } else if !self.setup.killed_late {
            self.spawn(|this| this.kill_dax());
        }
    }

    /// `kill_dax` of the DAX core, and what the work item does then.
    pub fn kill_dax(&self) {
        self.alive.store(false, Relaxed);
        if !self.has(Defect::DeathUnawaited) {
            self.srcu.synchronize();
        }

        self.dead.complete_all();
    }

    fn drain(&self) {
        let mut walk = Walk::None;
        if self.has(Defect::WalkBeforeGate) {
            walk = Walk::Complete;
            self.revoked.complete_all();
        }

        loop {
            let dead = self.dead.looks_done() || self.has(Defect::TranslationsIgnored);
            let page = if dead && walk == Walk::Complete {
                self.first_used()
            } else {
                None
            };
            let claimed = self.exposed.load(Relaxed) && self.claimed.load(Acquire);
            let users = Users {
                dead,
                walk,
                page: match page {
                    Some(PageUse::Referenced) if self.has(Defect::PinsIgnored) => None,
                    Some(PageUse::Cached) if self.has(Defect::EntriesIgnored) => None,
                    other => other,
                },
                claimed: claimed && !self.has(Defect::ClaimsIgnored),
            };

            match users.next_step() {
                Step::Walk => {
                    if walk == Walk::Complete {
                        self.seen.note("walked again");
                        // Whoever is about to let go of the page gets his chance.
                        thread::yield_now();
                    }
                    self.revoke();
                    walk = if dead {
                        Walk::Complete
                    } else {
                        self.seen.note("walked early");
                        Walk::Early
                    };
                    self.revoked.complete_all();
                }
                Step::AwaitTranslations => self.dead.wait(),
                Step::AwaitPage => self.page.wait_idle(),
                Step::AwaitClaims => {
                    if !self.has(Defect::NeverHopeless) {
                        self.hopeless.complete_all();
                        self.progress.complete_all();
                    }
                    self.closed
                        .wait_until(|| !self.claimed.fetch_or(false, Acquire));
                }
                Step::Free => return,
            }
        }
    }

    /// `Pagemap::first_used`
    fn first_used(&self) -> Option<PageUse> {
        if !self.exposed.load(Relaxed) {
            return None;
        }
        let named = self.page.is_named();

        if self.page.is_referenced() {
            Some(PageUse::Referenced)
        } else {
            named.then_some(PageUse::Cached)
        }
    }

    /// `Unbind::revoke`, `fs::dax_inodes`, and `FileMapping::revoke` for the only file.
    fn revoke(&self) {
        if !self.exposed.load(Relaxed) {
            return;
        }
        if !self.find_file() {
            return;
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
        if self.entry.names() && !self.page.is_referenced() {
            self.delete_entry();
        }
    }

    /// `dax_delete_mapping_range`
    fn delete_entry(&self) {
        self.entry.wait_unlocked();
        // The kernel warns in this case.
        assert!(
            !self.page.is_referenced(),
            "the entry of a page that is in use is deleted"
        );
        self.page.set_named(false);
        self.entry.delete();
    }

    fn finish(&self) {
        let drained = self.lifecycle.drained();
        self.drained.set(drained);
        if self.has(Defect::DoneEarly) {
            self.done.complete_all();
        }

        if self.has(Defect::UnreservedEarly) {
            self.reserved.swap(false, Release);
        }
        self.free();
        self.reserved.swap(false, Release);
        assert!(self.lifecycle.freed(), "freed, but not drained");

        if drained == Some(Drained::Late) && !self.has(Defect::NeverUnlisted) {
            self.list(false);
        }
        if !self.has(Defect::SharedUsedLate) {
            self.put_later();
        }
        self.done.complete_all();
        self.progress.complete_all();
        if self.has(Defect::SharedUsedLate) {
            self.put_later();
        }

        if self.setup.unloading {
            if drained == Some(Drained::Late) {
                self.put_module();
            }
            self.worker_left.complete_all();
        }
    }

    /// Needs the queue for a moment, which may be the last one who does.
    fn put_later(&self) {
        if !self.setup.unloading {
            return;
        }
        self.rcu.read_lock(Busy::Sharing as usize);
        let shared = self.installed.load(Acquire);
        if shared {
            self.shared_users.fetch_add(1, AcqRel);
        }
        self.rcu.read_unlock(Busy::Sharing as usize);

        if shared {
            let left = self.shared_users.fetch_sub(1, AcqRel) - 1;
            assert!(left != 0, "the queue is destroyed by its own worker");
        }
    }

    fn put_module(&self) {
        self.module_users.fetch_sub(1, AcqRel);
        self.module_idle.wake_up();
    }

    /// `rmmod`, as soon as nobody has a reference to the module.
    pub fn unload(&self) {
        self.module_idle
            .wait_until(|| self.module_users.fetch_or(0, AcqRel) == 0);

        // The drop of `Installed`
        self.installed.store(false, Relaxed);
        self.rcu.synchronize();
        let left = self.shared_users.fetch_sub(1, AcqRel) - 1;
        assert!(left == 0, "the code goes before the queue");
        self.worker_left.wait();
    }

    /// Frees pages and mapping. Nobody may use them.
    fn free(&self) {
        if self.exposed.load(Relaxed) && !self.has(Defect::NoGracePeriod) {
            self.rcu.synchronize();
        }

        self.freed.set(self.freed.get() + 1);
        self.page_table.free();
        self.entry.free();
        self.page.free();
        assert!(
            !self.claimed.fetch_or(false, AcqRel),
            "freed while somebody has claimed it"
        );
        self.memory.take();
    }

    // ---- Those who use the memory.

    /// `dax_iomap_direct_access()`: a translation, which is valid until the reader leaves.
    fn translate(&self, reader: Reader, frames: bool, inside: impl FnOnce()) -> bool {
        self.srcu.read_lock(reader as usize);
        let found = self.alive.load(Relaxed) && self.pass(frames);
        if found {
            self.memory.access();
            inside();
        }
        self.srcu.read_unlock(reader as usize);
        found
    }

    /// The end of `direct_access_callback`.
    fn pass(&self, frames: bool) -> bool {
        if frames && !self.has(Defect::ExposedLate) {
            self.expose();
        }
        let admitted = match self.gate.load(Relaxed) {
            OPEN => true,
            NO_FRAMES => !frames,
            _ => false,
        };
        if admitted && frames && self.has(Defect::ExposedLate) {
            self.expose();
        }
        admitted || self.has(Defect::NoGate)
    }

    /// `Exposure::add`
    fn expose(&self) {
        if !self.exposed.load(Acquire) {
            fence(SeqCst);
            self.exposed.swap(true, AcqRel);
            fence(SeqCst);
        } else if !self.has(Defect::ExposureAcquired) {
            fence(SeqCst);
        }
    }

    fn fault_by(&self, reader: Reader) -> bool {
        self.entry.lock();
        let found = self.translate(reader, true, || ());
        if found {
            self.page.set_named(true);
            self.entry.name();
            self.map();
        }
        self.entry.unlock();
        found
    }

    /// A fault of another file, on a page of the same chunk, which has no other effect.
    pub fn other_fault(&self) {
        self.translate(Reader::Other, true, || ());
    }

    /// A page fault on a file system that takes no lock of its own (erofs): the entry of the page cache
    /// is locked from before the translation until the page is mapped; the read-side section covers
    /// the translation only.
    pub fn fault(&self) {
        let mapped = self.fault_by(Reader::Fault);
        self.seen.note(if mapped { "mapped" } else { "SIGBUS" });
    }

    /// A page fault of a `MAP_SYNC` mapping (ext4, xfs): the entry is not locked while the file system
    /// makes its metadata durable, and nothing is translated after that. The invalidate lock is held
    /// all the time.
    pub fn sync_fault(&self) {
        let _guard = self.invalidate_lock.read().unwrap();

        self.entry.lock();
        let found = self.translate(Reader::Fault, true, || ());
        if found {
            self.page.set_named(true);
            self.entry.name();
        }
        self.entry.unlock();
        if !found {
            return;
        }

        // `dax_insert_pfn_mkwrite()`
        self.entry.lock();
        if self.entry.names() {
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

    /// `read()` or `write()` of a DAX file: they copy inside of the read-side section, and may hang there.
    pub fn read(&self) {
        self.translate(Reader::Read, false, || {
            self.hold_on();
            self.memory.access();
            self.seen.note("read");
        });
    }

    /// Whoever was inside of a read-side section from the beginning leaves it.
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

    /// `vmsplice()` or direct I/O: `get_user_pages_fast()`, and what follows.
    pub fn pin(&self) {
        if !self.page_table.is_mapped() || !self.page.try_get() {
            return;
        }
        if self.page_table.is_mapped() {
            self.seen.note("pinned");
            self.hold_on();
            self.memory.access();
        }
        self.put_page();
    }

    /// The last reference is not the end of it: `free_zone_device_folio()` looks at the page after that.
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

    /// Lets go of a page that was pinned before.
    pub fn unpin(&self) {
        self.hold_on();
        self.memory.access();
        self.put_page();
    }

    /// A program touches the file, pins the page, and unmaps and closes the file.
    pub fn use_and_close(&self) {
        if !self.setup.mapped {
            self.fault();
        }
        let pinned = self.page_table.is_mapped() && self.page.try_get();
        self.exit();
        self.inode.fetch_sub(1, AcqRel);
        if pinned {
            self.seen.note("pinned");
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
    pub fn use_claim(&self) {
        self.hold_on();
        self.memory.access();
        self.claimed.swap(false, Release);
        self.closed.wake_up();
    }

    fn hold_on(&self) {
        if self.setup.stubborn {
            self.returned.wait();
        }
    }

    /// Somebody looks at the list of retired ranges, and tries to bind the range.
    pub fn look(&self) {
        let before = self.lifecycle.state();
        let listed = self.listed.fetch_or(false, AcqRel);
        let after = self.lifecycle.state();

        // States do not come back, so it was that all the time.
        if before == State::Retired && after == State::Retired {
            self.seen.note("retired, when looked at");
            assert!(listed, "retired, but not on the list");
        }

        if !self.reserved.swap(true, AcqRel) {
            // It is his now.
            self.memory.take();
            self.seen.note("bound again");
            self.reserved.swap(false, Release);
        }
    }

    /// Whoever comes after unbind has returned gets an error.
    pub fn come_late(&self) {
        assert!(!self.fault_by(Reader::Late), "a fault found the device");
        assert!(!self.request(), "a request found the disk");
        assert!(!self.lifecycle.begin(), "unbound again");
    }
}

/// The end of an execution, when the last thread has gone.
impl<C: StateCell> Drop for World<C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert_eq!(self.freed.get(), 1, "times that it was freed");
        let drained = match self.retired.get() {
            Some(true) => Drained::Late,
            Some(false) => Drained::InTime,
            None => panic!("nobody took it away"),
        };
        assert_eq!(
            self.drained.get(),
            Some(drained),
            "drained, as unbind and the worker see it"
        );
        assert!(!self.listed.fetch_or(false, AcqRel), "still on the list");
    }
}
