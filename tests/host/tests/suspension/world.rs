// SPDX-License-Identifier: GPL-2.0

//! The functions that a suspension calls, and the programs that write. Each model names what it
//! stands for, and has to be changed with it.

use crate::kernel::WaitQueue;
use host::suspension::{
    work,
    Cause,
    Phase,
    Suspension, //
    SuspensionOps,
};
use loom::{
    sync::{
        atomic::{
            AtomicBool,
            AtomicU32,
            Ordering::{
                AcqRel,
                Acquire,
                Relaxed, //
            }, //
        },
        Mutex, //
    },
    thread::{
        self,
        JoinHandle, //
    }, //
};
use std::{
    cell::{
        Cell,
        RefCell, //
    },
    ops::Deref,
    rc::Rc, //
};

/// What is wrong in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    None,
    /// Writes that are being executed are not waited for.
    NotDrained,
    /// A write that has waited for a flush is not waited for.
    NotSettled,
    /// A write is added to the list although writes are no longer held.
    CheckedOnce,
    /// Pages are unmapped before the file system is frozen.
    UnmappedFirst,
    /// Pages are not unmapped.
    NotUnmapped,
    /// A fatal signal does not end the wait.
    SignalIgnored,
}

/// The page, which a program has mapped: a flag, and how many stores there were.
const MAPPED: u32 = 1 << 16;

/// `q_usage_counter`
#[derive(Default)]
struct Usage {
    is_frozen: bool,
    requests: u32,
}

/// `Held` of `Pmem`
#[derive(Default)]
struct Held {
    bios: u32,
    deferred: u32,
}

#[derive(Default)]
struct Fs {
    is_frozen: bool,
}

/// The data of the models. What is shared is not [`Send`], but loom runs its threads one at a time,
/// in one thread of the host.
pub struct Shared {
    defect: Defect,
    suspension: Mutex<Suspension<()>>,
    changed: WaitQueue,
    threads: RefCell<Vec<JoinHandle<()>>>,
    /// Read with the lock held, in which loom switches no threads.
    has_time: Cell<bool>,
    is_killed: Cell<bool>,
    fails: Cell<bool>,
    has_other_user: Cell<bool>,
    /// A call of write that the freeze waits for, and whether it has ended.
    is_writing: AtomicBool,
    ended: WaitQueue,
    /// The page, and the file system that it belongs to.
    page: AtomicU32,
    fs: Mutex<Fs>,
    thawed: WaitQueue,
    /// The queue, `IoState::writes_blocked`, `Pmem::held`, and the writes that were executed.
    usage: Mutex<Usage>,
    left: WaitQueue,
    is_closed: AtomicBool,
    held: Mutex<Held>,
    settled: WaitQueue,
    written: AtomicU32,
    /// How many writes and stores there are at the end.
    expected: Cell<[u32; 2]>,
}

#[derive(Clone)]
pub struct World(Rc<Shared>);

impl Deref for World {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl World {
    pub fn new(defect: Defect) -> Self {
        Self(Rc::new(Shared {
            defect,
            suspension: Mutex::new(Suspension::default()),
            changed: WaitQueue::default(),
            threads: RefCell::new(Vec::new()),
            has_time: Cell::new(true),
            is_killed: Cell::new(false),
            fails: Cell::new(false),
            has_other_user: Cell::new(false),
            is_writing: AtomicBool::new(false),
            ended: WaitQueue::default(),
            page: AtomicU32::new(MAPPED),
            fs: Mutex::new(Fs::default()),
            thawed: WaitQueue::default(),
            usage: Mutex::new(Usage::default()),
            left: WaitQueue::default(),
            is_closed: AtomicBool::new(false),
            held: Mutex::new(Held::default()),
            settled: WaitQueue::default(),
            written: AtomicU32::new(0),
            expected: Cell::new([0, 0]),
        }))
    }

    pub fn spawn(&self, work: impl FnOnce(&World) + 'static) {
        let world = self.clone();

        self.threads
            .borrow_mut()
            .push(thread::spawn(move || work(&world)));
    }

    /// Waits for all threads, and checks what is left.
    pub fn end(&self) {
        loop {
            let thread = self.threads.borrow_mut().pop();
            let Some(thread) = thread else { break };
            thread.join().unwrap();
        }
        assert_eq!(self.suspension.lock().unwrap().phase, Phase::Live);
        assert!(!self.fs.lock().unwrap().is_frozen, "it stays frozen");
        let [writes, stores] = self.expected.get();
        assert_eq!(self.held.lock().unwrap().bios, 0, "a write is not executed");
        assert_eq!(self.written.load(Acquire), writes, "writes");
        assert_eq!(self.page.load(Acquire) & !MAPPED, stores, "stores");
    }

    /// Checks that the medium does not change while the disk is suspended.
    pub fn expect_still(&self) {
        let look = || {
            (
                self.written.fetch_or(0, AcqRel),
                self.page.fetch_or(0, AcqRel) & !MAPPED,
            )
        };
        let before = look();

        thread::yield_now();
        assert_eq!(before, look(), "the medium has changed");
    }

    /// Time passes.
    pub fn pass_time(&self) {
        self.has_time.set(false);
        self.changed.wake_up();
    }

    /// A fatal signal of the thread that suspends the disk.
    pub fn signal(&self) {
        self.is_killed.set(true);
        self.changed.wake_up();
    }

    /// The next step fails.
    pub fn fail(&self) {
        self.fails.set(true);
    }

    /// There is a file system that is not frozen, or that there is none any more.
    pub fn set_other_user(&self, is_there: bool) {
        self.has_other_user.set(is_there);
    }

    /// A call of write is under way.
    pub fn begin_call(&self) {
        self.is_writing.swap(true, AcqRel);
    }

    /// It ends.
    pub fn end_call(&self) {
        self.is_writing.swap(false, AcqRel);
        self.ended.wake_up();
    }

    /// `FITHAW`
    pub fn thaw_by_another(&self) {
        self.fs.lock().unwrap().is_frozen = false;
        self.thawed.wake_up();
    }

    /// `DeviceState::wait_resumed`
    pub fn wait_live(&self) {
        self.wait_until(|suspension| (suspension.phase == Phase::Live).then_some(()));
    }

    /// A store to the mapped page, and the write fault that it needs if the page is not mapped.
    pub fn store(&self) {
        let [writes, stores] = self.expected.get();
        self.expected.set([writes, stores + 1]);

        let store = |page| (page & MAPPED != 0).then_some(page + 1);
        while self.page.fetch_update(AcqRel, Acquire, store).is_err() {
            // `sb_start_pagefault()`, which the freeze waits for.
            self.thawed.wait_until(|| {
                let fs = self.fs.lock().unwrap();
                if !fs.is_frozen {
                    self.page.fetch_or(MAPPED, AcqRel);
                }
                !fs.is_frozen
            });
        }
    }

    /// `submit_bio()` and `Pmem::execute` of a write.
    pub fn write(&self) {
        let [writes, stores] = self.expected.get();
        self.expected.set([writes + 1, stores]);

        self.left.wait_until(|| {
            let mut usage = self.usage.lock().unwrap();
            usage.requests += u32::from(!usage.is_frozen);
            !usage.is_frozen
        });
        self.execute();
        self.usage.lock().unwrap().requests -= 1;
        self.left.wake_up();
    }

    fn execute(&self) {
        if self.is_closed.load(Relaxed) {
            // `Pmem::hold`
            let mut held = self.held.lock().unwrap();
            if self.defect == Defect::CheckedOnce || self.is_closed.load(Relaxed) {
                held.bios += 1;
                return;
            }
        }
        self.written.fetch_add(1, AcqRel);
    }

    /// `Preflush::run` of a write, which was submitted before.
    pub fn write_after_flush(&self) {
        let [writes, stores] = self.expected.get();
        self.expected.set([writes + 1, stores]);

        // `Pmem::execute_deferred`
        {
            let mut held = self.held.lock().unwrap();
            if self.is_closed.load(Relaxed) {
                held.bios += 1;
                return;
            }
            held.deferred += 1;
        }
        self.written.fetch_add(1, AcqRel);
        self.held.lock().unwrap().deferred -= 1;
        self.settled.wake_up();
    }

    fn unmap_page(&self) {
        if self.defect != Defect::NotUnmapped {
            self.page.fetch_and(!MAPPED, AcqRel);
        }
    }
}

impl SuspensionOps for World {
    type Frozen = ();
    type Held = ();
    type Failure = ();

    fn with<R>(&self, f: impl FnOnce(&mut Suspension<()>) -> R) -> R {
        f(&mut self.suspension.lock().unwrap())
    }

    /// `WaitQueue::wake_up`
    fn wake_up(&self) {
        self.changed.wake_up();
    }

    /// `WaitQueue::wait_until`. The condition is checked again only after a change.
    fn wait_until<R>(&self, mut condition: impl FnMut(&mut Suspension<()>) -> Option<R>) -> R {
        let mut result = None;

        self.changed.wait_until(|| {
            result = self.with(&mut condition);
            result.is_some()
        });
        result.unwrap()
    }

    fn may_begin(&self) -> bool {
        true
    }

    fn has_time(&self) -> bool {
        self.has_time.get()
    }

    fn is_killed(&self) -> bool {
        self.defect != Defect::SignalIgnored && self.is_killed.get()
    }

    fn start_worker(&self) {
        self.spawn(work);
    }

    fn announce(&self) {}

    /// `Freezer::freeze`
    fn freeze(&self) -> Result<(), ()> {
        if self.fails.replace(false) {
            return Err(());
        }
        if self.defect == Defect::UnmappedFirst {
            self.unmap_page();
        }
        self.ended
            .wait_until(|| !self.is_writing.fetch_or(false, AcqRel));
        self.fs.lock().unwrap().is_frozen = true;
        Ok(())
    }

    /// `Unmapper::unmap_frozen_files`
    fn unmap(&self, _frozen: &()) -> Result<(), ()> {
        if self.defect != Defect::UnmappedFirst {
            self.unmap_page();
        }
        Ok(())
    }

    /// `Pmem::start_holding`
    fn hold(&self, _frozen: &()) {
        let _held = self.held.lock().unwrap();

        self.is_closed.store(true, Relaxed);
    }

    /// `Freezer::drain`, `Pmem::wait_deferred`, `Freezer::first_unfrozen`
    fn settle(&self, _frozen: &()) -> Result<(), ()> {
        if self.defect != Defect::NotDrained {
            self.usage.lock().unwrap().is_frozen = true;
            self.left
                .wait_until(|| self.usage.lock().unwrap().requests == 0);
            self.usage.lock().unwrap().is_frozen = false;
            self.left.wake_up();
        }
        if self.defect != Defect::NotSettled {
            self.settled
                .wait_until(|| self.held.lock().unwrap().deferred == 0);
        }
        if self.has_other_user.get() {
            return Err(());
        }
        Ok(())
    }

    /// `Pmem::release_writes`
    fn release(&self, _held: ()) {
        let held = {
            let mut held = self.held.lock().unwrap();
            self.is_closed.store(false, Relaxed);
            std::mem::take(&mut held.bios)
        };
        for _ in 0..held {
            self.execute();
        }
    }

    /// `Frozen::thaw`
    fn thaw(&self, _frozen: ()) -> bool {
        let was_frozen = std::mem::replace(&mut self.fs.lock().unwrap().is_frozen, false);

        self.thawed.wake_up();
        was_frozen
    }

    fn report(&self, _cause: Cause, _was_suspended: bool) {}
}
