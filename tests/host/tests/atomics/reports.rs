// SPDX-License-Identifier: GPL-2.0

//! `Flusher::report`: messages about failed flushes.

use crate::{
    explore,
    finds,
    spawn, //
};
use loom::sync::atomic::{
    AtomicBool,
    AtomicU32,
    Ordering::{
        Acquire,
        Relaxed, //
    }, //
};
use std::rc::Rc;

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
