// SPDX-License-Identifier: GPL-2.0

//! `Global` and the drop of `Installed`: the value is found without a reference to its owner.

use crate::{
    explore,
    finds,
    kernel::{
        Memory,
        PercpuRef,
        Srcu, //
    },
    spawn, //
};
use loom::sync::atomic::{
    AtomicBool,
    Ordering::{
        Acquire,
        Relaxed, //
    }, //
};
use std::rc::Rc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// The structure is freed without an RCU grace period after the pointer was cleared.
    NoGracePeriod,
    /// The grace period comes before the pointer is cleared.
    ClearedLate,
    /// The pointer is read before the RCU read-side section.
    ReadEarly,
}

fn get_and_drop_installed(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    struct Global {
        is_there: AtomicBool,
        rcu: Srcu,
        count: PercpuRef,
        /// The structure with the count and the value.
        structure: Memory,
    }
    move || {
        let global = Rc::new(Global {
            is_there: AtomicBool::new(true),
            rcu: Srcu::new(1, None),
            count: PercpuRef::new(0),
            structure: Memory::new(),
        });
        let user = spawn(&global, move |global| {
            let early = defect == Defect::ReadEarly && global.is_there.load(Acquire);
            global.rcu.read_lock(0);
            let found = early || global.is_there.load(Acquire);
            if found {
                // `percpu_ref_tryget_live()`
                global.structure.access();
            }
            let held = found && global.count.try_get();
            global.rcu.read_unlock(0);
            if held {
                global.structure.access();
                global.count.put();
            }
        });

        if defect == Defect::ClearedLate {
            global.rcu.synchronize();
        }
        global.is_there.swap(false, Relaxed);
        if !matches!(defect, Defect::NoGracePeriod | Defect::ClearedLate) {
            global.rcu.synchronize();
        }
        global.count.kill();
        global.count.wait(0);
        global.structure.take();
        user.join().unwrap();
    }
}

#[test]
fn a_global_value_is_found_only_while_installed() {
    explore(get_and_drop_installed(Defect::None));
}

#[test]
fn defects_of_the_global_value_are_found() {
    for defect in [
        Defect::NoGracePeriod,
        Defect::ClearedLate,
        Defect::ReadEarly,
    ] {
        finds("Causality violation", get_and_drop_installed(defect));
    }
}
