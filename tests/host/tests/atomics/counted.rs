// SPDX-License-Identifier: GPL-2.0

//! `Counted`: killed by its owner, and dropped after the last reference.

use crate::{
    explore,
    finds,
    kernel::{
        Memory,
        PercpuRef, //
    },
    spawn, //
};
use std::rc::Rc;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// The count is not killed: a reference may be taken after the last one was put.
    NotKilled,
    /// References are not waited for.
    NotAwaited,
}

fn drop_counted(defect: Defect) -> impl Fn() + Sync + Send + 'static {
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

        let has_no_holds = if defect == Defect::NotKilled {
            !inner.count.exceeds(0)
        } else {
            inner.count.kill();
            if defect != Defect::NotAwaited {
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
    explore(drop_counted(Defect::None));
}

#[test]
fn defects_of_the_count_are_found() {
    for defect in [Defect::NotKilled, Defect::NotAwaited] {
        finds("Causality violation", drop_counted(defect));
    }
}
