// SPDX-License-Identifier: GPL-2.0

//! Models of what threads share besides the protocol of unbind, which [loom](https://docs.rs/loom) goes
//! through: flushes, the region, counts of users, and files that are put later.
//!
//! Each repeats what the function in its heading does; who changes one changes the other. The words on
//! loom in `unbind/main.rs` and `unbind/kernel.rs` hold here too. A model that finds nothing may be blind. So
//! each is run with defects as well, and has to find every one.

// Most of it is for the other models.
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
                Release,
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

/// Goes through the executions of `run`, which must all end well.
fn explore(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

/// Goes through them until one fails, which must be with the expected message.
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

/// Runs `work` with `shared` in a thread. What is shared is not [`Send`], but loom runs its threads one at a time,
/// in one thread of the host.
fn spawn<T: 'static>(shared: &Rc<T>, work: impl FnOnce(&T) + 'static) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || work(&shared))
}

/// A work item, and the thread that runs it.
///
/// `queue_work()` is a full barrier whether it queues or not. The mark that it is queued goes before it runs,
/// with a full barrier between the two.
struct Work {
    queued: AtomicBool,
    /// Nobody will queue it any more.
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

    /// `destroy_workqueue()`: what is queued still runs.
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
    /// A request is put on the list after the work was queued.
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

    /// Which writes it has made durable: those that are ordered before it, and others by chance.
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

// ---- `Flusher::report`: what the log says of flushes that fail.

struct Reports {
    torn: bool,
    has_failed: AtomicBool,
    failures: AtomicU32,
    recoveries: AtomicU32,
}

impl Reports {
    /// `xchg`, or what is wrong: a load and a store.
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
    /// Those inside are not waited for.
    NotAwaited,
    /// The pointer goes after those inside were waited for.
    ClearedLate,
    /// The pointer is read before the section begins.
    LoadedEarly,
    /// The section ends at once, as that of a guard that is called `_`.
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

        // `revoke`, and then the region goes.
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
fn nobody_uses_a_region_after_unbind() {
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

// ---- `Counted`: killed once, by whoever comes first, and dropped after the last hold.

#[derive(Clone, Copy, PartialEq, Eq)]
enum CountDefect {
    None,
    /// Whether it was killed is looked at and said in two steps.
    Torn,
    /// The holds are not waited for.
    NotAwaited,
}

fn two_kills(defect: CountDefect) -> impl Fn() + Sync + Send + 'static {
    struct Inner {
        count: PercpuRef,
        killed: AtomicBool,
        kills: AtomicU32,
        value: Memory,
    }
    move || {
        let inner = Rc::new(Inner {
            count: PercpuRef::new(),
            killed: AtomicBool::new(false),
            kills: AtomicU32::new(0),
            value: Memory::new(),
        });
        let kill = move |inner: &Inner| {
            let killed = if defect == CountDefect::Torn {
                let killed = inner.killed.load(Relaxed);
                inner.killed.store(true, Relaxed);
                killed
            } else {
                inner.killed.swap(true, Relaxed)
            };
            if !killed {
                // The kernel warns of a second one.
                let kills = inner.kills.fetch_add(1, Relaxed);
                assert_eq!(kills, 0, "killed twice");
                inner.count.kill();
            }
        };
        let user = spawn(&inner, |inner| {
            if inner.count.try_get() {
                inner.value.access();
                inner.count.put();
            }
        });
        let other = spawn(&inner, kill);

        // Who drops it has it alone: the other has returned.
        kill(&inner);
        other.join().unwrap();
        if defect != CountDefect::NotAwaited {
            inner.count.wait();
        }
        inner.value.take();
        user.join().unwrap();
    }
}

#[test]
fn a_count_is_killed_once_and_waited_for() {
    explore(two_kills(CountDefect::None));
}

#[test]
fn defects_of_the_count_are_found() {
    finds("killed twice", two_kills(CountDefect::Torn));
    finds("Causality violation", two_kills(CountDefect::NotAwaited));
}

// ---- `Unbind::put_later`: unbind waits until the files that were given away by then are put.

#[derive(Clone, Copy, PartialEq, Eq)]
enum PutDefect {
    None,
    /// The work item says that all are put without looking whether there are more.
    NotLooked,
    /// That there are more is said after the list was unlocked.
    SaidLate,
    /// The list is unlocked before it is said that it was empty.
    UnlockedEarly,
}

fn files_are_put(defect: PutDefect) -> impl Fn() + Sync + Send + 'static {
    struct Unbind {
        inodes: Mutex<Vec<u32>>,
        are_put: Resettable,
        work: Work,
        put: AtomicU32,
    }
    move || {
        let unbind = Rc::new(Unbind {
            inodes: Mutex::new(Vec::new()),
            are_put: Resettable::new(),
            work: Work::new(),
            put: AtomicU32::new(0),
        });
        let putter = spawn(&unbind, move |unbind| {
            unbind.work.serve(|| {
                let inodes = std::mem::take(&mut *unbind.inodes.lock().unwrap());
                unbind.put.fetch_add(inodes.len() as u32, AcqRel);
                let waiting = unbind.inodes.lock().unwrap();
                let done = waiting.is_empty() || defect == PutDefect::NotLooked;
                let waiting = (defect != PutDefect::UnlockedEarly).then_some(waiting);
                if done {
                    unbind.are_put.complete_all();
                }
                drop(waiting);
            });
        });

        for file in 0..2 {
            let mut waiting = unbind.inodes.lock().unwrap();
            waiting.push(file);
            if defect == PutDefect::SaidLate {
                drop(waiting);
            } else {
                unbind.are_put.reinit();
                drop(waiting);
            }
            unbind.work.enqueue();
            if defect == PutDefect::SaidLate {
                unbind.are_put.reinit();
            }
        }
        unbind.are_put.wait();
        assert_eq!(unbind.put.load(Acquire), 2, "files are not put");
        unbind.work.close();
        putter.join().unwrap();
    }
}

/// A `struct completion` that is used again.
struct Resettable {
    done: AtomicBool,
    queue: WaitQueue,
}

impl Resettable {
    /// All that there are, none, are put.
    fn new() -> Self {
        Self {
            done: AtomicBool::new(true),
            queue: WaitQueue::default(),
        }
    }

    fn reinit(&self) {
        self.done.swap(false, AcqRel);
    }

    fn complete_all(&self) {
        self.done.swap(true, AcqRel);
        self.queue.wake_up();
    }

    fn wait(&self) {
        self.queue.wait_until(|| self.done.fetch_or(false, AcqRel));
    }
}

#[test]
fn files_that_were_given_away_are_put() {
    explore(files_are_put(PutDefect::None));
}

#[test]
fn defects_of_putting_files_are_found() {
    finds("files are not put", files_are_put(PutDefect::NotLooked));
    finds("deadlock", files_are_put(PutDefect::SaidLate));
    finds("files are not put", files_are_put(PutDefect::UnlockedEarly));
}

// ---- `Unbind::finish` and `Unbind::wait`: who sees that it is done sees what was done.

#[derive(Clone, Copy, PartialEq, Eq)]
enum DoneDefect {
    None,
    /// It is said before it is done.
    SaidEarly,
    /// It is said without a release.
    Relaxed,
    /// Nobody is woken up.
    NotWoken,
}

fn done(defect: DoneDefect) -> impl Fn() + Sync + Send + 'static {
    struct Unbind {
        memory: Memory,
        is_done: AtomicBool,
        progress: WaitQueue,
    }
    move || {
        let unbind = Rc::new(Unbind {
            memory: Memory::new(),
            is_done: AtomicBool::new(false),
            progress: WaitQueue::default(),
        });
        let worker = spawn(&unbind, move |unbind| {
            if defect != DoneDefect::SaidEarly {
                unbind.memory.take();
            }
            let order = if defect == DoneDefect::Relaxed {
                Relaxed
            } else {
                Release
            };
            unbind.is_done.store(true, order);
            if defect == DoneDefect::SaidEarly {
                unbind.memory.take();
            }
            if defect == DoneDefect::None {
                unbind.progress.wake_up();
            }
        });
        // Loom orders all that a thread does after it was woken. So who is to find that there is no other order only
        // looks.
        let is_done = || unbind.is_done.load(Acquire);
        let only_looks = matches!(defect, DoneDefect::SaidEarly | DoneDefect::Relaxed);
        if !only_looks {
            unbind.progress.wait_until(is_done);
        }
        if !only_looks || is_done() {
            // It can be bound again.
            unbind.memory.take();
        }
        worker.join().unwrap();
    }
}

#[test]
fn who_sees_that_it_is_done_sees_what_was_done() {
    explore(done(DoneDefect::None));
}

#[test]
fn defects_of_the_last_word_are_found() {
    finds("Causality violation", done(DoneDefect::SaidEarly));
    finds("Causality violation", done(DoneDefect::Relaxed));
    finds("deadlock", done(DoneDefect::NotWoken));
}
