// SPDX-License-Identifier: GPL-2.0

//! A device from bind to the end, and the threads of its teardown.
//!
//! The unbinding thread, the worker, and the thread that kills the DAX device run the driver's own
//! code, on the models of `ops.rs`. `users.rs` has models of the users of the memory.

mod ops;
mod users;

use crate::{
    defect::Defect,
    kernel::{
        Completion,
        Entry,
        Memory,
        Page,
        PageTable,
        PercpuRef,
        Srcu,
        WaitQueue, //
    },
    seen::Seen,
    setup::Setup, //
};
use host::teardown::{
    self,
    Outcome,
    State,
    Teardown, //
    TeardownOps,
};
use loom::{
    sync::{
        atomic::{
            AtomicBool,
            AtomicU32,
            Ordering::AcqRel, //
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
    rc::{
        Rc,
        Weak, //
    }, //
};

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
    Deleting,
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
    openers: AtomicU32,
    inode: AtomicU32,
    inode_lock: RwLock<()>,
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
    going_down: AtomicBool,
    returned: Completion,
    announced: Cell<u32>,
    /// The provider is removed.
    physical: Cell<bool>,
    workers: Cell<u32>,
    wake_ups: Cell<u32>,
    /// The DAX device refuses reads and writes, or is about to.
    refuses: Cell<bool>,
    freed: Cell<u32>,
    retired: Cell<bool>,
    module_returned: Cell<bool>,
}

impl World {
    pub fn new(setup: Setup, seen: Seen) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            setup,
            seen,
            teardown: Mutex::new(Teardown {
                state: if setup.bound {
                    State::Bound(Parts(()))
                } else {
                    State::Leaving {
                        parts: Parts(()),
                        announced: true,
                    }
                },
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
            openers: AtomicU32::new(setup.opened.into()),
            inode: AtomicU32::new(1),
            inode_lock: RwLock::new(()),
            invalidate_lock: RwLock::new(()),
            entry: Entry::new(setup.has_page()),
            page_table: PageTable::new(setup.mapped),
            module_users: AtomicU32::new(0),
            module_idle: WaitQueue::default(),
            work_items: PercpuRef::new(0),
            code: Memory::new(),
            killable: Cell::new(None),
            signal: AtomicBool::new(false),
            going_down: AtomicBool::new(false),
            returned: Completion::new(),
            announced: Cell::new(u32::from(!setup.bound)),
            physical: Cell::new(false),
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

    /// `DeviceState::tear_down`
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

    /// `AttachedDisk::drop`
    pub fn leave_and_unbind(&self) -> Outcome {
        teardown::give_notice(self);
        self.unbind()
    }

    /// The same by a thread that gets a fatal signal at some moment.
    pub fn leave_and_unbind_killable(&self) -> Outcome {
        self.killable.set(Some(thread::current().id()));
        self.leave_and_unbind()
    }

    /// `Provider::provider_unbinding`
    pub fn remove_provider(&self) {
        self.physical.set(true);
        teardown::announce(self, false);
        teardown::begin(self);
    }

    /// `DeviceState::tear_down` by a thread that gets a fatal signal at some moment; see
    /// [`Self::signal`].
    pub fn unbind_killable(&self) -> Outcome {
        self.killable.set(Some(thread::current().id()));
        self.unbind()
    }

    /// Sends the fatal signal.
    pub fn signal(&self) {
        self.signal.swap(true, AcqRel);
        self.changed.wake_up();
    }

    /// `RebootPolicy::going_down`
    pub fn go_down(&self) {
        self.going_down.swap(true, AcqRel);
        if !self.has(Defect::NotWokenToGoDown) {
            self.changed.wake_up();
        }
    }

    /// The thread that kills the DAX device.
    pub fn kill_dax(&self) {
        teardown::kill_dax(self);
    }

    /// `rmmod`: fails while there are references to the module, and is tried again.
    pub fn unload(&self) {
        self.module_idle
            .wait_until(|| self.module_users.fetch_or(0, AcqRel) == 0);

        let is_gone = self.with(|teardown| matches!(teardown.state, State::Detached));
        assert!(is_gone, "the module is unloaded before the range is freed");
        // The exit: `destroy_workqueue()`.
        self.work_items.kill();
        if !self.has(Defect::QueuesNotDrained) {
            self.work_items.wait(0);
        }
        self.code.take();
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
        let is_gone = self.with(|teardown| matches!(teardown.state, State::Detached));
        assert!(is_gone, "free, but not gone");
        assert!(!self.reserved.fetch_or(false, AcqRel), "still reserved");
    }
}
