// SPDX-License-Identifier: GPL-2.0

//! What the kernel gives to the protocol, over loom's atomics.
//!
//! - Loom tries another order of two operations only if they are on the same loom object. So what is
//!   asserted is stored in the objects that it is about, as marks that users must never meet; a flag of
//!   its own would be looked at in one order only.
//! - What is done under a lock of the kernel is one read-modify-write operation: it returns the latest
//!   value, acquires and releases, and orders no other object. What is read without the lock is a load,
//!   which may return what was there before. Where there are such operations, values are swapped and
//!   not stored, because loom has an order for a store and a read-modify-write operation only if one
//!   has seen the other.
//! - Whoever waits sleeps, so that a deadlock is found. Time does not pass by itself: where the driver
//!   waits with a limit and looks again, the model waits until there is something new to be seen.
//! - `smp_mb()`, and what implies it, is a sequentially consistent fence.

use host::lifecycle::StateCell;
use loom::{
    cell::UnsafeCell,
    sync::atomic::{
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
    thread::{
        self,
        Thread, //
    },
};
use std::cell::RefCell;

/// A wait queue.
#[derive(Default)]
pub struct WaitQueue(RefCell<Vec<Thread>>);

impl WaitQueue {
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let me = thread::current();

        self.0.borrow_mut().push(me.clone());
        while !condition() {
            thread::park();
        }
        self.0.borrow_mut().retain(|other| other.id() != me.id());
    }

    pub fn wake_up(&self) {
        for sleeper in self.0.borrow().iter() {
            sleeper.unpark();
        }
    }
}

/// `struct completion`.
pub struct Completion {
    done: AtomicBool,
    queue: WaitQueue,
}

impl Completion {
    pub fn new() -> Self {
        Self {
            done: AtomicBool::new(false),
            queue: WaitQueue::default(),
        }
    }

    pub fn complete_all(&self) {
        self.done.swap(true, Release);
        self.queue.wake_up();
    }

    /// A wait whose time is up: whether it was in time.
    pub fn is_done(&self) -> bool {
        self.done.fetch_or(false, Acquire)
    }

    /// A look without the lock, which may miss it.
    pub fn looks_done(&self) -> bool {
        self.done.load(Acquire)
    }

    pub fn wait(&self) {
        self.queue.wait_until(|| self.is_done());
    }
}

/// The cell of a [`Lifecycle`](host::lifecycle::Lifecycle): `cmpxchg` is a full barrier where it
/// replaces the value, and nothing where it does not.
pub struct Cmpxchg(AtomicU32);

impl StateCell for Cmpxchg {
    fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    fn load(&self) -> u32 {
        self.0.load(Acquire)
    }

    fn replace(&self, old: u32, new: u32) -> bool {
        fence(SeqCst);
        let replaced = self.0.compare_exchange(old, new, AcqRel, Relaxed).is_ok();
        if replaced {
            fence(SeqCst);
        }
        replaced
    }
}

/// A cell that is looked at and changed in two steps, which is wrong.
pub struct Torn(AtomicU32);

impl StateCell for Torn {
    fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    fn load(&self) -> u32 {
        self.0.load(Acquire)
    }

    fn replace(&self, old: u32, new: u32) -> bool {
        let replaces = self.0.load(Acquire) == old;
        if replaces {
            self.0.store(new, Release);
        }
        replaces
    }
}

/// An SRCU domain. A reader has a place of its own, where he says that he is inside; both functions
/// are full barriers on the reader's side, as in the kernel. Only those are waited for who are inside
/// already.
pub struct Srcu {
    inside: Vec<AtomicBool>,
    queue: WaitQueue,
}

impl Srcu {
    pub fn new(readers: usize, inside: Option<usize>) -> Self {
        Self {
            inside: (0..readers)
                .map(|reader| AtomicBool::new(inside == Some(reader)))
                .collect(),
            queue: WaitQueue::default(),
        }
    }

    pub fn read_lock(&self, reader: usize) {
        self.inside[reader].store(true, Relaxed);
        fence(SeqCst);
    }

    pub fn read_unlock(&self, reader: usize) {
        self.inside[reader].swap(false, Release);
        self.queue.wake_up();
    }

    pub fn synchronize(&self) {
        fence(SeqCst);
        for inside in &self.inside {
            if inside.load(Acquire) {
                self.queue.wait_until(|| !inside.fetch_or(false, Acquire));
            }
        }
        fence(SeqCst);
    }
}

/// A `percpu_ref`, without the CPUs: whoever gets in is waited for, nobody gets in once it is killed.
pub struct PercpuRef {
    users: AtomicU32,
    queue: WaitQueue,
}

impl PercpuRef {
    const DEAD: u32 = 1 << 31;

    pub fn new() -> Self {
        Self {
            users: AtomicU32::new(0),
            queue: WaitQueue::default(),
        }
    }

    pub fn try_get(&self) -> bool {
        self.users
            .fetch_update(AcqRel, Acquire, |users| {
                (users & Self::DEAD == 0).then_some(users + 1)
            })
            .is_ok()
    }

    pub fn put(&self) {
        self.users.fetch_sub(1, AcqRel);
        self.queue.wake_up();
    }

    pub fn kill(&self) {
        self.users.fetch_or(Self::DEAD, AcqRel);
    }

    pub fn wait(&self) {
        self.queue
            .wait_until(|| self.users.fetch_or(0, Acquire) == Self::DEAD);
    }
}

/// The mark of what has been freed.
const FREED: u32 = 1 << 16;

/// An entry of the page cache of a DAX file, and the XArray that it is in.
pub struct Entry {
    word: AtomicU32,
    queue: WaitQueue,
}

impl Entry {
    const LOCKED: u32 = 1;
    /// It names the page.
    const NAMES: u32 = 2;

    pub fn new(names: bool) -> Self {
        Self {
            word: AtomicU32::new(if names { Self::NAMES } else { 0 }),
            queue: WaitQueue::default(),
        }
    }

    /// `grab_mapping_entry()`: changed under the spin lock of the array, which orders later accesses
    /// after it only as far as an acquire does.
    pub fn lock(&self) {
        self.queue
            .wait_until(|| self.word.fetch_or(Self::LOCKED, AcqRel) & Self::LOCKED == 0);
    }

    /// `dax_insert_entry()`
    pub fn name(&self) {
        let old = self.word.fetch_or(Self::NAMES, AcqRel);
        assert!(old & FREED == 0, "an entry names a page that is free");
    }

    pub fn unlock(&self) {
        self.word.fetch_and(!Self::LOCKED, AcqRel);
        self.queue.wake_up();
    }

    /// What can be seen without the lock: whether the file may use the page, or be about to.
    pub fn may_be_there(&self) -> bool {
        self.word.load(Relaxed) & (Self::LOCKED | Self::NAMES) != 0
    }

    /// Whether it names the page, as seen under the lock.
    pub fn names(&self) -> bool {
        self.word.fetch_or(0, AcqRel) & Self::NAMES != 0
    }

    pub fn wait_unlocked(&self) {
        self.queue
            .wait_until(|| self.word.fetch_or(0, AcqRel) & Self::LOCKED == 0);
    }

    pub fn delete(&self) {
        self.word.fetch_and(!Self::NAMES, AcqRel);
    }

    pub fn free(&self) {
        let old = self.word.fetch_or(FREED, AcqRel);
        assert!(old & Self::NAMES == 0, "freed while an entry names it");
    }
}

/// A place in a page table, with its lock.
pub struct PageTable(AtomicU32);

impl PageTable {
    const MAPPED: u32 = 1;
    /// Unbind has returned.
    const REVOKED: u32 = 2;

    pub fn new(mapped: bool) -> Self {
        Self(AtomicU32::new(u32::from(mapped)))
    }

    pub fn map(&self) {
        let old = self.0.fetch_or(Self::MAPPED, AcqRel);
        assert!(old & FREED == 0, "mapped after it was freed");
        assert!(old & Self::REVOKED == 0, "mapped after unbind returned");
    }

    /// Returns whether it was mapped.
    pub fn unmap(&self) -> bool {
        self.0.fetch_and(!Self::MAPPED, AcqRel) & Self::MAPPED != 0
    }

    /// Without the lock, as `get_user_pages_fast()` looks at it.
    pub fn is_mapped(&self) -> bool {
        self.0.load(Acquire) & Self::MAPPED != 0
    }

    pub fn unbound(&self) {
        let old = self.0.fetch_or(Self::REVOKED, AcqRel);
        assert!(old & Self::MAPPED == 0, "mapped when unbind returns");
    }

    pub fn free(&self) {
        let old = self.0.fetch_or(FREED, AcqRel);
        assert!(old & Self::MAPPED == 0, "freed while it is mapped");
    }
}

/// A `struct page`: how many references it has, and whether an entry names it (`folio->mapping`).
pub struct Page {
    references: AtomicU32,
    named: AtomicBool,
    queue: WaitQueue,
}

impl Page {
    pub fn new(references: u32, named: bool) -> Self {
        Self {
            references: AtomicU32::new(references),
            named: AtomicBool::new(named),
            queue: WaitQueue::default(),
        }
    }

    pub fn get(&self) {
        let old = self.references.fetch_add(1, AcqRel);
        assert!(old & FREED == 0, "a reference to a page that is free");
    }

    /// `try_get_folio()`
    pub fn try_get(&self) -> bool {
        self.references
            .fetch_update(AcqRel, Acquire, |count| {
                (count & !FREED != 0).then_some(count + 1)
            })
            .is_ok()
    }

    pub fn put(&self) {
        self.references.fetch_sub(1, AcqRel);
        self.queue.wake_up();
    }

    pub fn is_referenced(&self) -> bool {
        self.references.load(Acquire) & !FREED != 0
    }

    pub fn wait_idle(&self) {
        self.queue
            .wait_until(|| self.references.fetch_or(0, Acquire) & !FREED == 0);
    }

    pub fn is_named(&self) -> bool {
        self.named.load(Relaxed)
    }

    pub fn set_named(&self, named: bool) {
        self.named.store(named, Relaxed);
    }

    pub fn free(&self) {
        let old = self.references.fetch_or(FREED, AcqRel);
        assert!(old == 0, "freed while somebody has a reference");
    }
}

/// The memory itself, and its mapping in the kernel. An access that is not ordered before it is freed
/// is an error, whatever the order in which they happen.
pub struct Memory(UnsafeCell<()>);

impl Memory {
    pub fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    pub fn access(&self) {
        self.0.with(|_| ());
    }

    /// Takes it away, or gives it to somebody else.
    pub fn take(&self) {
        self.0.with_mut(|_| ());
    }
}
