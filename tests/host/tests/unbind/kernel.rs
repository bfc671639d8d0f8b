// SPDX-License-Identifier: GPL-2.0

//! The primitives of the kernel for the models, over loom's atomics.
//!
//! - Loom tries another order of two operations only if they are on the same loom object. So
//!   assertions use marks in the objects themselves, which users must never find; a flag of its own
//!   would be read in one order only.
//! - An operation under a lock of the kernel is one read-modify-write operation: it returns the
//!   latest value, acquires and releases, and orders no other object. A read without the lock is a
//!   load, which may return an older value. Where there are such operations, values are swapped and
//!   not stored, because loom orders a store and a read-modify-write operation only if one has seen
//!   the other.
//! - A waiting thread sleeps, so that a deadlock is found. Time does not pass by itself: where the
//!   driver waits with a limit and checks again, the model waits for a change.
//! - `smp_mb()`, and what implies it, is a sequentially consistent fence.

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

    pub fn wait(&self) {
        self.queue.wait_until(|| self.done.fetch_or(false, Acquire));
    }
}

/// An SRCU domain. A reader sets a mark of its own while it is inside. Both functions are full
/// barriers on the reader's side, as in the kernel. `synchronize` waits for the readers that are
/// inside when it begins.
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

/// A `percpu_ref`, without the CPUs: once it is killed, no new reference can be taken, and the end
/// of the existing ones can be waited for.
pub struct PercpuRef {
    references: AtomicU32,
    queue: WaitQueue,
}

impl PercpuRef {
    const DEAD: u32 = 1 << 31;

    pub fn new(references: u32) -> Self {
        Self {
            references: AtomicU32::new(references),
            queue: WaitQueue::default(),
        }
    }

    pub fn try_get(&self) -> bool {
        self.references
            .fetch_update(AcqRel, Acquire, |references| {
                (references & Self::DEAD == 0).then_some(references + 1)
            })
            .is_ok()
    }

    pub fn put(&self) {
        self.references.fetch_sub(1, AcqRel);
        self.queue.wake_up();
    }

    pub fn kill(&self) {
        self.references.fetch_or(Self::DEAD, AcqRel);
    }

    /// Whether there are more references than this, once it is killed. The last put may be missed.
    pub fn exceeds(&self, references: u32) -> bool {
        self.references.load(Acquire) & !Self::DEAD > references
    }

    /// Waits, once it is killed, until there are no more references than this.
    pub fn wait(&self, references: u32) {
        let allowed = Self::DEAD..=Self::DEAD | references;
        self.queue
            .wait_until(|| allowed.contains(&self.references.fetch_or(0, Acquire)));
    }
}

/// The mark of freed objects.
const FREED: u32 = 1 << 16;

/// An entry of the page cache of a DAX file, and its XArray.
pub struct Entry {
    word: AtomicU32,
    queue: WaitQueue,
}

impl Entry {
    const LOCKED: u32 = 1;
    /// The entry refers to the page.
    const HAS_PAGE: u32 = 2;

    pub fn new(names: bool) -> Self {
        Self {
            word: AtomicU32::new(if names { Self::HAS_PAGE } else { 0 }),
            queue: WaitQueue::default(),
        }
    }

    /// `grab_mapping_entry()`: changed under the spin lock of the array, which orders later
    /// accesses after it only as an acquire does.
    pub fn lock(&self) {
        self.queue
            .wait_until(|| self.word.fetch_or(Self::LOCKED, AcqRel) & Self::LOCKED == 0);
    }

    /// `dax_insert_entry()`
    pub fn set_page(&self) {
        let old = self.word.fetch_or(Self::HAS_PAGE, AcqRel);
        assert!(old & FREED == 0, "an entry refers to a free page");
    }

    pub fn unlock(&self) {
        self.word.fetch_and(!Self::LOCKED, AcqRel);
        self.queue.wake_up();
    }

    /// Whether the file uses the page, or is about to, as read without the lock.
    pub fn may_be_there(&self) -> bool {
        self.word.load(Relaxed) & (Self::LOCKED | Self::HAS_PAGE) != 0
    }

    /// Whether the entry is locked, as read under the lock of the array.
    pub fn is_locked(&self) -> bool {
        self.word.fetch_or(0, AcqRel) & Self::LOCKED != 0
    }

    /// Whether the entry is locked, as read without the lock of the array.
    pub fn looks_locked(&self) -> bool {
        self.word.load(Relaxed) & Self::LOCKED != 0
    }

    /// Whether the entry refers to the page, as read under the lock.
    pub fn has_page(&self) -> bool {
        self.word.fetch_or(0, AcqRel) & Self::HAS_PAGE != 0
    }

    pub fn wait_unlocked(&self) {
        self.queue
            .wait_until(|| self.word.fetch_or(0, AcqRel) & Self::LOCKED == 0);
    }

    pub fn delete(&self) {
        self.word.fetch_and(!Self::HAS_PAGE, AcqRel);
    }

    pub fn free(&self) {
        let old = self.word.fetch_or(FREED, AcqRel);
        assert!(
            old & Self::HAS_PAGE == 0,
            "freed while an entry refers to it"
        );
    }
}

/// A page table entry, with the lock of its table.
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

    /// Unmaps the page, and returns whether it was mapped.
    pub fn unmap(&self) -> bool {
        self.0.fetch_and(!Self::MAPPED, AcqRel) & Self::MAPPED != 0
    }

    /// Whether the page is mapped, as `get_user_pages_fast()` reads it without the lock.
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

/// A `struct page`: its reference count, and whether an entry refers to it (`folio->mapping`).
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

    /// `page_ref_count()` by a thread that has no reference.
    pub fn read_references(&self) -> u32 {
        let references = self.references.load(Acquire);
        assert!(references & FREED == 0, "a page that is free is read");
        references
    }

    pub fn is_referenced(&self) -> bool {
        self.references.load(Acquire) & !FREED != 0
    }

    pub fn wait_idle(&self) {
        self.queue
            .wait_until(|| self.references.fetch_or(0, Acquire) & !FREED == 0);
    }

    pub fn has_mapping(&self) -> bool {
        self.named.load(Relaxed)
    }

    pub fn set_mapping(&self, named: bool) {
        self.named.store(named, Relaxed);
    }

    pub fn free(&self) {
        let old = self.references.fetch_or(FREED, AcqRel);
        assert!(old == 0, "freed while there is a reference");
    }
}

/// The memory itself, and its mapping in the kernel; or the code of the module. An access that is
/// not ordered before its end is an error, whatever the order in which they happen.
pub struct Memory(UnsafeCell<()>);

impl Memory {
    pub fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    pub fn access(&self) {
        self.0.with(|_| ());
    }

    /// Frees it, or uses it as its next owner.
    pub fn take(&self) {
        self.0.with_mut(|_| ());
    }
}
