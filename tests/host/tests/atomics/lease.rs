// SPDX-License-Identifier: GPL-2.0

//! `Lease`: told by a work item, given back by its holder, and by the exit of its module.
//!
//! The state is the real one, `handover.rs`; `held_lease.rs` is repeated.

// Only messages use the rest.
#[allow(dead_code)]
#[path = "../../../../src/abstractions/kernel/lease/handover.rs"]
mod handover;

use crate::{
    explore,
    finds,
    kernel::{
        Memory,
        WaitQueue, //
    },
    spawn, //
};
use handover::{
    Call,
    Handover, //
};
use loom::sync::Mutex;
use std::rc::Rc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// Giving the lease back does not wait for the callback that runs.
    NotAwaited,
    /// A callback that gives the lease back waits for itself.
    AwaitsItself,
    /// The call counts as ended before it begins.
    EndsEarly,
    /// The module of the holder is not kept during a call.
    NotKept,
    /// The thread that waits for a callback is not woken.
    WakeUpLost,
    /// Calls begin before the lease is in all lists.
    OpenEarly,
}

/// The module of the holder.
struct Module {
    references: u32,
    going: bool,
}

struct Lease {
    defect: Defect,
    /// Whether the callback gives the lease back.
    answers: bool,
    handover: Mutex<Handover<u32>>,
    idle: WaitQueue,
    parts: Memory,
    /// What the holder has: the lease, until it takes it to give it back.
    held: Mutex<bool>,
    module: Mutex<Module>,
    unused: WaitQueue,
    code: Memory,
    returned: Mutex<bool>,
    told: Mutex<u32>,
    changed: WaitQueue,
}

const HOLDER: u32 = 0;
const WORKER: u32 = 1;

impl Lease {
    fn new(defect: Defect, answers: bool) -> Rc<Self> {
        let mut handover = Handover::new();
        if defect == Defect::OpenEarly {
            handover.open();
        }
        Rc::new(Self {
            defect,
            answers,
            handover: Mutex::new(handover),
            idle: WaitQueue::default(),
            parts: Memory::new(),
            held: Mutex::new(false),
            module: Mutex::new(Module {
                references: 0,
                going: false,
            }),
            unused: WaitQueue::default(),
            code: Memory::new(),
            returned: Mutex::new(false),
            told: Mutex::new(0),
            changed: WaitQueue::default(),
        })
    }

    /// The end of `Lease::new()`: the parts are complete, and then calls are permitted.
    fn open(&self) {
        self.parts.take();
        *self.held.lock().unwrap() = true;
        let has_calls = self.handover.lock().unwrap().open();
        if has_calls {
            self.make_calls(WORKER);
        }
    }

    fn try_module_get(&self) -> Option<()> {
        if self.defect == Defect::NotKept {
            return Some(());
        }
        let mut module = self.module.lock().unwrap();
        if module.going {
            return None;
        }
        module.references += 1;
        Some(())
    }

    fn module_put(&self) {
        if self.defect != Defect::NotKept {
            self.module.lock().unwrap().references -= 1;
            self.unused.wake_up();
        }
    }

    /// `Lease::make_calls()`.
    fn make_calls(&self, thread: u32) {
        loop {
            let next = self
                .handover
                .lock()
                .unwrap()
                .begin(thread, || self.try_module_get());
            let Some((call, ())) = next else {
                return;
            };
            if self.defect == Defect::EndsEarly {
                self.handover.lock().unwrap().end();
            }
            self.callback(call, thread);
            self.module_put();
            self.handover.lock().unwrap().end();
            if self.defect != Defect::WakeUpLost {
                self.idle.wake_up();
            }
        }
    }

    /// The callbacks of the holder.
    fn callback(&self, call: Call, thread: u32) {
        self.code.access();
        if call == Call::Revoke {
            *self.told.lock().unwrap() += 1;
            if self.answers {
                self.put(thread);
            } else {
                self.parts.access();
            }
        }
        self.code.access();
    }

    /// The holder gives the lease back, if it has it.
    fn put(&self, thread: u32) {
        if !std::mem::take(&mut *self.held.lock().unwrap()) {
            return;
        }
        // `Lease::give_back()`
        self.handover.lock().unwrap().give_back();
        if self.defect != Defect::NotAwaited {
            self.idle.wait_until(|| {
                let waits_as = if self.defect == Defect::AwaitsItself {
                    u32::MAX
                } else {
                    thread
                };
                self.handover.lock().unwrap().may_end(waits_as)
            });
        }
        self.parts.take();
        *self.returned.lock().unwrap() = true;
        self.changed.wake_up();
    }

    /// rmmod of the holder, which is tried until its module is not in use.
    fn unload(&self) {
        self.unused.wait_until(|| {
            let mut module = self.module.lock().unwrap();
            module.going = module.references == 0;
            module.going
        });
        self.put(HOLDER);
        self.code.take();
    }

    /// The unbind, and the work item that it queues.
    fn request_return(&self) {
        if self.handover.lock().unwrap().request_return() {
            self.make_calls(WORKER);
        }
    }

    fn await_returned(&self) {
        self.changed.wait_until(|| *self.returned.lock().unwrap());
        assert!(*self.told.lock().unwrap() <= 1, "told twice");
    }
}

/// The device goes, and memory fails, while another thread of the holder gives the lease back.
fn revoked_and_put(defect: Defect, answers: bool) -> impl Fn() + Sync + Send + 'static {
    revoked_while(defect, answers, |lease| lease.put(HOLDER))
}

/// The same while the module of the holder is unloaded.
fn revoked_and_unloaded(defect: Defect, answers: bool) -> impl Fn() + Sync + Send + 'static {
    revoked_while(defect, answers, Lease::unload)
}

fn revoked_while(
    defect: Defect,
    answers: bool,
    work: impl Fn(&Lease) + Sync + Send + 'static,
) -> impl Fn() + Sync + Send + 'static {
    move || {
        let lease = Lease::new(defect, answers);
        lease.open();
        let unbind = spawn(&lease, |lease| {
            lease.handover.lock().unwrap().fail(0, 1);
            lease.request_return();
            lease.await_returned();
        });
        work(&lease);
        unbind.join().unwrap();
    }
}

/// The device goes while the lease is being taken. The work item is run by one thread or the other.
fn revoked_while_taken(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let lease = Lease::new(defect, true);
        let unbind = spawn(&lease, Lease::request_return);
        lease.open();
        unbind.join().unwrap();
        lease.await_returned();
        assert!(*lease.told.lock().unwrap() == 1, "not told");
    }
}

#[test]
fn a_lease_is_given_back_once_and_not_used_after() {
    for answers in [false, true] {
        explore(revoked_and_put(Defect::None, answers));
        explore(revoked_and_unloaded(Defect::None, answers));
    }
    explore(revoked_while_taken(Defect::None));
}

#[test]
fn defects_of_leases_are_found() {
    for defect in [Defect::NotAwaited, Defect::EndsEarly] {
        finds("Causality violation", revoked_and_put(defect, false));
    }
    finds("deadlock", revoked_and_put(Defect::WakeUpLost, false));
    finds("deadlock", revoked_and_put(Defect::AwaitsItself, true));
    finds(
        "Causality violation",
        revoked_and_unloaded(Defect::NotKept, true),
    );
    finds("deadlock", revoked_while_taken(Defect::OpenEarly));
}

#[test]
fn many_failures_are_told_in_few_calls() {
    // A range in each of more places than are kept apart.
    let mut handover = Handover::<u32>::new();
    handover.open();
    for place in 0..10 {
        assert!(handover.fail(place * 100, 10));
    }
    let mut told = Vec::new();
    while let Some((call, ())) = handover.begin(WORKER, || Some(())) {
        assert!(!handover.may_end(HOLDER) && handover.may_end(WORKER));
        assert!(handover.begin(HOLDER, || Some(())).is_none());
        handover.end();
        match call {
            Call::BadMemory { offset, len } => told.push(offset..offset + len),
            Call::Revoke => panic!("told of nothing"),
        }
    }
    assert_eq!(told.len(), 4);
    for place in 0..10 {
        let bytes = place * 100..place * 100 + 10;
        let covers =
            |range: &std::ops::Range<u64>| range.start <= bytes.start && bytes.end <= range.end;
        assert!(told.iter().any(covers), "{bytes:?} is not in {told:?}");
    }

    handover.give_back();
    assert!(!handover.fail(0, 1) && !handover.request_return());
    assert!(handover.begin(WORKER, || Some(())).is_none());
}
