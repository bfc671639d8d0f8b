// SPDX-License-Identifier: GPL-2.0

//! `Flusher::flush_shared`: threads that share flushes. The model has the driver's own
//! `plain/shared_flush.rs`.

use crate::{
    exploration,
    explore,
    finds,
    spawn, //
};
use host::shared_flush::{
    FlushStep, //
    Queue,
    SharedFlush,
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
    /// The flushes do not know that the device sleeps.
    NotSuspended,
    /// The device sleeps while a flush is in progress.
    NotWaitedFor,
    /// The threads that wait for the end of the sleep are not woken.
    NotWokenAfterSleep,
    /// The teardown does not let flushes start.
    TornDownAsleep,
    /// The teardown lets flushes start, and does not keep the sleep from pausing them.
    OnlyUnpaused,
    /// The teardown does not wake the sleep, which waits for a flush in progress.
    PauseNotWoken,
}

/// The flush that fails, unless there is a defect or a sleep.
const FAILS: u32 = 1;
/// The error of a flush during the sleep.
const ASLEEP: u32 = u32::MAX;

struct Flusher {
    defect: Defect,
    shared: Mutex<SharedFlush<u32>>,
    even: Condvar,
    odd: Condvar,
    idle: Condvar,
    /// What each writer has written to the medium, and what is durable.
    written: Vec<AtomicBool>,
    durable: Vec<AtomicBool>,
    /// Whether each writer has called fsync.
    arrived: Vec<AtomicBool>,
    flushes: AtomicU32,
    /// A flush fails.
    fails: bool,
    /// The device sleeps.
    asleep: AtomicBool,
    /// Whether the device by which the PM core calls back is in its lists.
    has_sleep_device: AtomicBool,
}

impl Flusher {
    fn new(defect: Defect, writers: usize, fails: bool) -> Rc<Self> {
        let flags = || (0..writers).map(|_| AtomicBool::new(false)).collect();
        Rc::new(Self {
            defect,
            shared: Mutex::new(SharedFlush::new()),
            even: Condvar::new(),
            odd: Condvar::new(),
            idle: Condvar::new(),
            written: flags(),
            durable: flags(),
            arrived: flags(),
            flushes: AtomicU32::new(0),
            fails,
            asleep: AtomicBool::new(false),
            has_sleep_device: AtomicBool::new(true),
        })
    }

    fn flush(&self) -> Result<(), u32> {
        if self.asleep.load(Relaxed) {
            return Err(ASLEEP);
        }
        let number = self.flushes.load(Relaxed) + 1;
        self.flushes.store(number, Relaxed);
        let written: Vec<bool> = self
            .written
            .iter()
            .map(|bytes| bytes.load(Relaxed))
            .collect();
        // The host takes a while.
        loom::thread::yield_now();
        if self.asleep.load(Relaxed) {
            return Err(ASLEEP);
        }
        if number == FAILS && self.fails {
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
                FlushStep::Done(result) => return result,
                FlushStep::Wait(queue) => shared = self.queue(queue).wait(shared).unwrap(),
                FlushStep::Flush => {
                    drop(shared);
                    let result = self.flush();
                    shared = self.shared.lock().unwrap();
                    let ended = shared.end(result);
                    let is_paused = shared.is_paused();
                    drop(shared);
                    if is_paused {
                        self.idle.notify_all();
                    }
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

    /// Returns whether the device may sleep.
    fn suspend(&self) -> bool {
        let mut shared = self.shared.lock().unwrap();
        if self.defect != Defect::NotSuspended {
            shared.pause();
        }
        let waits = self.defect != Defect::NotWaitedFor;
        while waits && shared.is_paused() && shared.is_flushing() {
            shared = self.idle.wait(shared).unwrap();
        }
        shared.is_paused() || self.defect == Defect::NotSuspended
    }

    fn resume(&self) {
        self.shared.lock().unwrap().unpause();
        if self.defect != Defect::NotWokenAfterSleep {
            self.even.notify_all();
            self.odd.notify_all();
        }
    }

    /// The PM core may call a device that it has found before the device was removed. It does not
    /// find one later.
    fn sleep(&self) {
        if !self.suspend() {
            return;
        }
        self.asleep.store(true, Relaxed);
        self.asleep.store(false, Relaxed);
        if self.has_sleep_device.load(Relaxed) {
            self.resume();
        }
    }

    /// `Flusher::permit_for_good`
    fn permit_for_good(&self) {
        self.shared.lock().unwrap().permit_for_good();
        self.even.notify_all();
        self.odd.notify_all();
        if self.defect != Defect::PauseNotWoken {
            self.idle.notify_all();
        }
    }

    /// `AttachedDisk::drop`. A flush while the device sleeps fails, but ends.
    fn tear_down(&self, writer: usize) {
        self.written[writer].store(true, Relaxed);
        match self.defect {
            Defect::TornDownAsleep => {}
            Defect::OnlyUnpaused => self.resume(),
            _ => self.permit_for_good(),
        }
        self.has_sleep_device.store(false, Relaxed);
        match self.flush_shared(writer) {
            Ok(()) => assert!(
                self.durable[writer].load(Relaxed),
                "it is said to be durable, and is not"
            ),
            Err(error) => assert_eq!(error, ASLEEP),
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
            Err(ASLEEP) => panic!("it fails because of the sleep"),
            Err(number) => assert_eq!(number, FAILS),
        }
        let waited = self.flushes.load(Relaxed) - before;
        // One that was counted, but not started yet, one of its own, and one that began later.
        assert!(waited <= 3, "it has waited for {waited} flushes");
    }
}

/// The system sleeps once.
fn one_sleep(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let flusher = Flusher::new(defect, 2, false);
        let other = spawn(&flusher, move |flusher| flusher.write(1));
        let sleep = spawn(&flusher, move |flusher| flusher.sleep());
        flusher.write(0);
        other.join().unwrap();
        sleep.join().unwrap();
    }
}

/// The device is torn down while the system goes to sleep and wakes up, and while another thread
/// flushes.
fn teardown_beside_sleep(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let flusher = Flusher::new(defect, 2, false);
        let sleep = spawn(&flusher, move |flusher| flusher.sleep());
        let user = spawn(&flusher, move |flusher| {
            flusher.written[1].store(true, Relaxed);
            if flusher.flush_shared(1).is_ok() {
                assert!(
                    flusher.durable[1].load(Relaxed),
                    "it is said to be durable, and is not"
                );
            }
        });
        flusher.tear_down(0);
        user.join().unwrap();
        sleep.join().unwrap();
    }
}

fn writers(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let flusher = Flusher::new(defect, 3, defect == Defect::None);
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
fn a_sleep_breaks_no_flush() {
    // With 2 preemptions: each one more takes ten times as long.
    exploration::explore(2, one_sleep(Defect::None));
}

#[test]
fn defects_of_the_sleep_are_found() {
    for defect in [Defect::NotSuspended, Defect::NotWaitedFor] {
        finds("it fails because of the sleep", one_sleep(defect));
    }
    finds("deadlock", one_sleep(Defect::NotWokenAfterSleep));
}

#[test]
fn a_teardown_beside_a_sleep_ends() {
    exploration::explore(2, teardown_beside_sleep(Defect::None));
}

#[test]
fn defects_of_a_teardown_beside_a_sleep_are_found() {
    for defect in [
        Defect::TornDownAsleep,
        Defect::OnlyUnpaused,
        Defect::PauseNotWoken,
    ] {
        exploration::finds("the defect", "deadlock", || {
            exploration::explore(2, teardown_beside_sleep(defect));
        });
    }
}

#[test]
fn defects_of_shared_flushes_are_found() {
    finds("it is said to be durable", writers(Defect::ArrivesLate));
    for defect in [Defect::NotWoken, Defect::NoneStartsTheNext] {
        finds("deadlock", writers(defect));
    }
}
