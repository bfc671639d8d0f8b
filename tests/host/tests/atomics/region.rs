// SPDX-License-Identifier: GPL-2.0

//! `RegionAccess`: the region is used only while it is bound.

use crate::{
    explore,
    finds,
    kernel::{
        Memory,
        Srcu, //
    },
    spawn, //
};
use loom::sync::atomic::{
    AtomicBool,
    Ordering::Relaxed, //
};
use std::rc::Rc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
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

fn flush_and_unbind(defect: Defect) -> impl Fn() + Sync + Send + 'static {
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
                let bound = if defect == Defect::LoadedEarly {
                    early
                } else {
                    access.bound.load(Relaxed)
                };
                if defect == Defect::LeftEarly {
                    access.srcu.read_unlock(reader);
                }
                if bound {
                    access.region.access();
                }
                if defect != Defect::LeftEarly {
                    access.srcu.read_unlock(reader);
                }
            }
        };
        let readers = [0, 1].map(|reader| spawn(&access, with(reader)));

        // `revoke`, followed by the end of the region.
        if defect != Defect::ClearedLate {
            access.bound.store(false, Relaxed);
        }
        if defect != Defect::NotAwaited {
            access.srcu.synchronize();
        }
        if defect == Defect::ClearedLate {
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
    explore(flush_and_unbind(Defect::None));
}

#[test]
fn defects_of_the_access_to_the_region_are_found() {
    for defect in [
        Defect::NotAwaited,
        Defect::ClearedLate,
        Defect::LoadedEarly,
        Defect::LeftEarly,
    ] {
        finds("Causality violation", flush_and_unbind(defect));
    }
}
