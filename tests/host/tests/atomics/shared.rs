// SPDX-License-Identifier: GPL-2.0

//! `Flusher::flush_shared`: threads that share flushes. The model has the driver's own
//! `plain/shared_flush.rs`.

use crate::{
    explore,
    finds,
    spawn, //
};
use host::shared_flush::{
    Queue,
    SharedFlush,
    Step, //
};
use loom::sync::{
    atomic::{
        AtomicBool,
        AtomicU32,
        Ordering::Relaxed, //
    },
    Condvar,
    Mutex, //
};
use std::rc::Rc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A thread shares the flush that is in progress when it arrives.
    ArrivesLate,
    /// The threads that have waited are not woken.
    NotWoken,
    /// No thread that waits for the next flush is woken.
    NoneStartsTheNext,
}

const WRITERS: usize = 3;
/// The flush that fails if there is no defect.
const FAILS: u32 = 1;

struct Flusher {
    defect: Defect,
    shared: Mutex<SharedFlush<u32>>,
    even: Condvar,
    odd: Condvar,
    /// What each writer has written to the medium, and what is durable.
    written: [AtomicBool; WRITERS],
    durable: [AtomicBool; WRITERS],
    /// Whether each writer has called fsync.
    arrived: [AtomicBool; WRITERS],
    flushes: AtomicU32,
}

impl Flusher {
    fn flush(&self) -> Result<(), u32> {
        let number = self.flushes.load(Relaxed) + 1;
        self.flushes.store(number, Relaxed);
        let written: Vec<bool> = self
            .written
            .iter()
            .map(|bytes| bytes.load(Relaxed))
            .collect();
        // The host takes a while.
        loom::thread::yield_now();
        if number == FAILS && self.defect == Defect::None {
            // What a failed flush should have made durable is lost. The error can be reported to
            // threads that have called fsync by now.
            for (writer, written) in written.into_iter().enumerate() {
                if written && self.arrived[writer].load(Relaxed) {
                    self.written[writer].store(false, Relaxed);
                }
            }
            return Err(number);
        }
        for (durable, written) in self.durable.iter().zip(written) {
            durable.fetch_or(written, Relaxed);
        }
        Ok(())
    }

    fn flush_shared(&self, writer: usize) -> Result<(), u32> {
        let mut shared = self.shared.lock().unwrap();
        self.arrived[writer].store(true, Relaxed);
        let ticket = if self.defect == Defect::ArrivesLate {
            // The ticket of a thread that has arrived before the flush in progress.
            SharedFlush::<u32>::new().arrive()
        } else {
            shared.arrive()
        };
        loop {
            match shared.step(ticket) {
                Step::Done(result) => return result,
                Step::Wait(queue) => shared = self.queue(queue).wait(shared).unwrap(),
                Step::Flush => {
                    drop(shared);
                    let result = self.flush();
                    let ended = self.shared.lock().unwrap().end(result);
                    if self.defect != Defect::NoneStartsTheNext {
                        self.queue(ended.next()).notify_one();
                    }
                    if self.defect != Defect::NotWoken {
                        self.queue(ended).notify_all();
                    }
                    shared = self.shared.lock().unwrap();
                }
            }
        }
    }

    fn queue(&self, queue: Queue) -> &Condvar {
        match queue {
            Queue::Even => &self.even,
            Queue::Odd => &self.odd,
        }
    }

    /// Writes, and flushes.
    fn write(&self, writer: usize) {
        self.written[writer].store(true, Relaxed);
        let before = self.flushes.load(Relaxed);
        match self.flush_shared(writer) {
            Ok(()) => assert!(
                self.durable[writer].load(Relaxed),
                "it is said to be durable, and is not"
            ),
            Err(number) => assert_eq!(number, FAILS),
        }
        let waited = self.flushes.load(Relaxed) - before;
        // One that was counted, but not started yet, one of its own, and one that began later.
        assert!(waited <= 3, "it has waited for {waited} flushes");
    }
}

fn writers(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let flusher = Rc::new(Flusher {
            defect,
            shared: Mutex::new(SharedFlush::new()),
            even: Condvar::new(),
            odd: Condvar::new(),
            written: [false; WRITERS].map(AtomicBool::new),
            durable: [false; WRITERS].map(AtomicBool::new),
            arrived: [false; WRITERS].map(AtomicBool::new),
            flushes: AtomicU32::new(0),
        });
        let others = [1, 2].map(|writer| spawn(&flusher, move |flusher| flusher.write(writer)));
        flusher.write(0);
        for other in others {
            other.join().unwrap();
        }
    }
}

#[test]
fn a_flush_is_shared_only_if_it_starts_later() {
    explore(writers(Defect::None));
}

#[test]
fn defects_of_shared_flushes_are_found() {
    finds("it is said to be durable", writers(Defect::ArrivesLate));
    for defect in [Defect::NotWoken, Defect::NoneStartsTheNext] {
        finds("deadlock", writers(defect));
    }
}
