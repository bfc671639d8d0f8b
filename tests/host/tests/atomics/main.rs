// SPDX-License-Identifier: GPL-2.0

//! Models of shared state other than teardown, for [loom](https://docs.rs/loom): flushes, the
//! region, and counts of users.
//!
//! Each model repeats the function that its heading names, and has to be changed with it. What
//! `unbind/main.rs` and `unbind/kernel.rs` say about loom holds here too. To show that a model
//! finds defects, each is also run with some, and must find every one.

// Most of it is used by the other models only.
#[allow(dead_code)]
#[path = "../unbind/kernel.rs"]
mod kernel;

use kernel::{
    Memory,
    PercpuRef,
    Srcu,
    WaitQueue, //
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
                SeqCst, //
            }, //
        },
        Mutex, //
    },
    thread, //
};
use std::{
    panic::{
        catch_unwind,
        AssertUnwindSafe, //
    },
    rc::Rc, //
};

/// Runs all executions of `run`, none of which may fail.
fn explore(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

/// Runs executions until one fails, which must be with the expected message.
#[track_caller]
fn finds(expected: &str, run: impl Fn() + Sync + Send + 'static) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(|| explore(run))) else {
        panic!("`{expected}` was not found");
    };
    let message = match payload.downcast_ref::<String>() {
        Some(message) => message.as_str(),
        None => payload.downcast_ref::<&str>().unwrap_or(&"?"),
    };
    assert!(message.contains(expected), "found otherwise: {message}");
}

/// Runs `work` with `shared` in a thread. What is shared is not [`Send`], but loom runs its threads
/// one at a time, in one thread of the host.
fn spawn<T: 'static>(shared: &Rc<T>, work: impl FnOnce(&T) + 'static) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || work(&shared))
}

/// A work item, and the thread that runs it.
///
/// `queue_work()` is a full barrier whether it queues or not. The pending bit is cleared before the
/// work runs, with a full barrier between the two.
struct Work {
    queued: AtomicBool,
    /// Set when the work can no longer be queued.
    closed: AtomicBool,
    queue: WaitQueue,
}

impl Work {
    fn new() -> Self {
        Self {
            queued: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            queue: WaitQueue::default(),
        }
    }

    fn enqueue(&self) {
        fence(SeqCst);
        self.queued.swap(true, AcqRel);
        self.queue.wake_up();
    }

    /// `destroy_workqueue()`: queued work still runs.
    fn close(&self) {
        self.closed.swap(true, AcqRel);
        self.queue.wake_up();
    }

    fn serve(&self, mut run: impl FnMut()) {
        loop {
            let mut closed = false;
            self.queue.wait_until(|| {
                closed = self.closed.fetch_or(false, AcqRel);
                closed || self.queued.fetch_or(false, AcqRel)
            });
            if self.queued.swap(false, AcqRel) {
                fence(SeqCst);
                run();
            } else if closed {
                return;
            }
        }
    }
}

// ---- `Flusher`: writes that end after the next flush.

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlushDefect {
    None,
    /// The flush comes before the list is taken.
    FlushedFirst,
    /// A request is added to the list after the work was queued.
    PushedLate,
}

const WRITERS: usize = 2;

struct Flusher {
    defect: FlushDefect,
    waiting: Mutex<Vec<usize>>,
    work: Work,
    /// What each writer has written to the medium, and whether its request has ended.
    written: [AtomicBool; WRITERS],
    ended: [AtomicBool; WRITERS],
}

impl Flusher {
    fn new(defect: FlushDefect) -> Rc<Self> {
        Rc::new(Self {
            defect,
            waiting: Mutex::new(Vec::new()),
            work: Work::new(),
            written: [false, false].map(AtomicBool::new),
            ended: [false, false].map(AtomicBool::new),
        })
    }

    fn flush_and_end(&self, writer: usize) {
        self.written[writer].store(true, Relaxed);
        if self.defect == FlushDefect::PushedLate {
            self.work.enqueue();
        }
        self.waiting.lock().unwrap().push(writer);
        if self.defect != FlushDefect::PushedLate {
            self.work.enqueue();
        }
    }

    /// Returns which writes are durable: those that are ordered before the flush, and others by
    /// chance.
    fn flush(&self) -> [bool; WRITERS] {
        [0, 1].map(|writer| self.written[writer].load(Relaxed))
    }

    fn flush_waiting(&self) {
        let early = (self.defect == FlushDefect::FlushedFirst).then(|| self.flush());
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        if waiting.is_empty() {
            return;
        }
        let durable = early.unwrap_or_else(|| self.flush());
        for writer in waiting {
            assert!(durable[writer], "ended before it was durable");
            let ended = self.ended[writer].swap(true, AcqRel);
            assert!(!ended, "ended twice");
        }
    }
}

fn two_writers(defect: FlushDefect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let flusher = Flusher::new(defect);
        let worker = spawn(&flusher, |flusher| {
            flusher.work.serve(|| flusher.flush_waiting());
        });
        let other = spawn(&flusher, |flusher| flusher.flush_and_end(1));
        flusher.flush_and_end(0);
        other.join().unwrap();
        flusher.work.close();
        worker.join().unwrap();
        for ended in &flusher.ended {
            assert!(ended.load(Acquire), "never ended");
        }
    }
}

#[test]
fn a_request_ends_once_and_after_a_flush_of_its_data() {
    explore(two_writers(FlushDefect::None));
}

#[test]
fn defects_of_the_list_are_found() {
    finds(
        "ended before it was durable",
        two_writers(FlushDefect::FlushedFirst),
    );
    finds("never ended", two_writers(FlushDefect::PushedLate));
}

// ---- `Flusher::report`: messages about failed flushes.

struct Reports {
    torn: bool,
    has_failed: AtomicBool,
    failures: AtomicU32,
    recoveries: AtomicU32,
}

impl Reports {
    /// `xchg`, or as a defect a load and a store.
    fn exchange(&self, new: bool) -> bool {
        if self.torn {
            let old = self.has_failed.load(Relaxed);
            self.has_failed.store(new, Relaxed);
            return old;
        }
        self.has_failed.swap(new, Relaxed)
    }

    fn flush(&self, succeeds: bool) {
        if !succeeds || self.has_failed.load(Relaxed) {
            self.report(succeeds);
        }
    }

    fn report(&self, succeeds: bool) {
        if succeeds {
            if self.exchange(false) {
                self.recoveries.fetch_add(1, Relaxed);
            }
            return;
        }
        if self.has_failed.load(Relaxed) || self.exchange(true) {
            return;
        }
        self.failures.fetch_add(1, Relaxed);
    }
}

fn three_flushes(torn: bool) -> impl Fn() + Sync + Send + 'static {
    move || {
        let reports = Rc::new(Reports {
            torn,
            has_failed: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            recoveries: AtomicU32::new(0),
        });
        let others =
            [false, true].map(|succeeds| spawn(&reports, move |reports| reports.flush(succeeds)));
        reports.flush(false);
        for other in others {
            other.join().unwrap();
        }

        let [failures, recoveries] =
            [&reports.failures, &reports.recoveries].map(|count| count.load(Acquire));
        assert!(failures >= 1, "a failure was not reported");
        assert_eq!(
            failures - recoveries,
            u32::from(reports.has_failed.load(Acquire)),
            "reports that do not come in pairs"
        );
    }
}

#[test]
fn a_failure_is_reported_once_until_flushes_succeed() {
    explore(three_flushes(false));
}

#[test]
fn reports_that_are_not_exchanged_are_found() {
    finds("reports that do not come in pairs", three_flushes(true));
}

// ---- `RegionAccess`: the region is used only while it is bound.

#[derive(Clone, Copy, PartialEq, Eq)]
enum RegionDefect {
    None,
    /// Readers inside of a section are not waited for.
    NotAwaited,
    /// The pointer is cleared after readers were waited for.
    ClearedLate,
    /// The pointer is read before the section begins.
    LoadedEarly,
    /// The section ends at once, as that of a guard named `_`.
    LeftEarly,
}

fn flush_and_unbind(defect: RegionDefect) -> impl Fn() + Sync + Send + 'static {
    struct Access {
        srcu: Srcu,
        bound: AtomicBool,
        region: Memory,
    }
    move || {
        let access = Rc::new(Access {
            srcu: Srcu::new(2, None),
            bound: AtomicBool::new(true),
            region: Memory::new(),
        });
        let with = |reader| {
            move |access: &Access| {
                let early = access.bound.load(Relaxed);
                access.srcu.read_lock(reader);
                let bound = if defect == RegionDefect::LoadedEarly {
                    early
                } else {
                    access.bound.load(Relaxed)
                };
                if defect == RegionDefect::LeftEarly {
                    access.srcu.read_unlock(reader);
                }
                if bound {
                    access.region.access();
                }
                if defect != RegionDefect::LeftEarly {
                    access.srcu.read_unlock(reader);
                }
            }
        };
        let readers = [0, 1].map(|reader| spawn(&access, with(reader)));

        // `revoke`, followed by the end of the region.
        if defect != RegionDefect::ClearedLate {
            access.bound.store(false, Relaxed);
        }
        if defect != RegionDefect::NotAwaited {
            access.srcu.synchronize();
        }
        if defect == RegionDefect::ClearedLate {
            access.bound.store(false, Relaxed);
        }
        access.region.take();
        for reader in readers {
            reader.join().unwrap();
        }
    }
}

#[test]
fn a_region_is_not_used_after_unbind() {
    explore(flush_and_unbind(RegionDefect::None));
}

#[test]
fn defects_of_the_access_to_the_region_are_found() {
    for defect in [
        RegionDefect::NotAwaited,
        RegionDefect::ClearedLate,
        RegionDefect::LoadedEarly,
        RegionDefect::LeftEarly,
    ] {
        finds("Causality violation", flush_and_unbind(defect));
    }
}

// ---- `Counted`: killed by its owner, and dropped after the last reference.

#[derive(Clone, Copy, PartialEq, Eq)]
enum CountDefect {
    None,
    /// The count is not killed: a reference may be taken after the last one was put.
    NotKilled,
    /// References are not waited for.
    NotAwaited,
}

fn drop_counted(defect: CountDefect) -> impl Fn() + Sync + Send + 'static {
    struct Inner {
        count: PercpuRef,
        value: Memory,
    }
    move || {
        let inner = Rc::new(Inner {
            count: PercpuRef::new(0),
            value: Memory::new(),
        });
        let users = [0, 1].map(|_| {
            spawn(&inner, |inner| {
                if inner.count.try_get() {
                    inner.value.access();
                    inner.count.put();
                }
            })
        });

        let has_no_holds = if defect == CountDefect::NotKilled {
            !inner.count.exceeds(0)
        } else {
            inner.count.kill();
            if defect != CountDefect::NotAwaited {
                inner.count.wait(0);
            }
            true
        };
        if has_no_holds {
            inner.value.take();
        }
        for user in users {
            user.join().unwrap();
        }
    }
}

#[test]
fn a_value_is_dropped_after_the_last_reference() {
    explore(drop_counted(CountDefect::None));
}

#[test]
fn defects_of_the_count_are_found() {
    for defect in [CountDefect::NotKilled, CountDefect::NotAwaited] {
        finds("Causality violation", drop_counted(defect));
    }
}

// ---- `Global` and the drop of `Installed`: the value is found without a reference to its owner.

#[derive(Clone, Copy, PartialEq, Eq)]
enum GlobalDefect {
    None,
    /// The structure is freed without an RCU grace period after the pointer was cleared.
    NoGracePeriod,
    /// The grace period comes before the pointer is cleared.
    ClearedLate,
    /// The pointer is read before the RCU read-side section.
    ReadEarly,
}

fn get_and_drop_installed(defect: GlobalDefect) -> impl Fn() + Sync + Send + 'static {
    struct Place {
        is_there: AtomicBool,
        rcu: Srcu,
        count: PercpuRef,
        /// The structure with the count and the value.
        structure: Memory,
    }
    move || {
        let place = Rc::new(Place {
            is_there: AtomicBool::new(true),
            rcu: Srcu::new(1, None),
            count: PercpuRef::new(0),
            structure: Memory::new(),
        });
        let user = spawn(&place, move |place| {
            let early = defect == GlobalDefect::ReadEarly && place.is_there.load(Acquire);
            place.rcu.read_lock(0);
            let found = early || place.is_there.load(Acquire);
            if found {
                // `percpu_ref_tryget_live()`
                place.structure.access();
            }
            let held = found && place.count.try_get();
            place.rcu.read_unlock(0);
            if held {
                place.structure.access();
                place.count.put();
            }
        });

        if defect == GlobalDefect::ClearedLate {
            place.rcu.synchronize();
        }
        place.is_there.swap(false, Relaxed);
        if !matches!(
            defect,
            GlobalDefect::NoGracePeriod | GlobalDefect::ClearedLate
        ) {
            place.rcu.synchronize();
        }
        place.count.kill();
        place.count.wait(0);
        place.structure.take();
        user.join().unwrap();
    }
}

#[test]
fn a_global_value_is_found_only_while_installed() {
    explore(get_and_drop_installed(GlobalDefect::None));
}

#[test]
fn defects_of_the_global_place_are_found() {
    for defect in [
        GlobalDefect::NoGracePeriod,
        GlobalDefect::ClearedLate,
        GlobalDefect::ReadEarly,
    ] {
        finds("Causality violation", get_and_drop_installed(defect));
    }
}
