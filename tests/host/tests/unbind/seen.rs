// SPDX-License-Identifier: GPL-2.0

//! The events of a model.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// Events in all executions of a model, and their number.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Seen {
    pub fn note(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }

    #[track_caller]
    pub fn assert(&self, all: &[&str]) {
        let seen = self.0.lock().unwrap();
        for what in all {
            assert!(seen.contains_key(what), "never {what}: {seen:?}");
        }
    }

    #[track_caller]
    pub fn assert_never(&self, all: &[&str]) {
        let seen = self.0.lock().unwrap();
        for what in all {
            assert!(!seen.contains_key(what), "{what}: {seen:?}");
        }
    }
}
