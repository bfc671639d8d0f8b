// SPDX-License-Identifier: GPL-2.0

//! `Flusher`: writes that end after the next flush.

use crate::{
    explore,
    finds,
    kernel::WaitQueue,
    spawn, //
};
use loom::sync::{
    atomic::{
        fence,
        AtomicBool,
        Ordering::{
            AcqRel,
            Acquire,
            Relaxed,
            SeqCst, //
        }, //
    },
    Mutex, //
};
use std::rc::Rc;

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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// The flush comes before the list is taken.
    FlushedFirst,
    /// A request is added to the list after the work was queued.
    PushedLate,
}

const WRITERS: usize = 2;

struct Flusher {
    defect: Defect,
    waiting: Mutex<Vec<usize>>,
    work: Work,
    /// What each writer has written to the medium, and whether its request has ended.
    written: [AtomicBool; WRITERS],
    ended: [AtomicBool; WRITERS],
}

impl Flusher {
    fn new(defect: Defect) -> Rc<Self> {
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
        if self.defect == Defect::PushedLate {
            self.work.enqueue();
        }
        self.waiting.lock().unwrap().push(writer);
        if self.defect != Defect::PushedLate {
            self.work.enqueue();
        }
    }

    /// Returns which writes are durable: those that are ordered before the flush, and others by
    /// chance.
    fn flush(&self) -> [bool; WRITERS] {
        [0, 1].map(|writer| self.written[writer].load(Relaxed))
    }

    fn flush_waiting(&self) {
        let early = (self.defect == Defect::FlushedFirst).then(|| self.flush());
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

fn two_writers(defect: Defect) -> impl Fn() + Sync + Send + 'static {
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
    explore(two_writers(Defect::None));
}

#[test]
fn defects_of_the_list_are_found() {
    finds(
        "ended before it was durable",
        two_writers(Defect::FlushedFirst),
    );
    finds("never ended", two_writers(Defect::PushedLate));
}
