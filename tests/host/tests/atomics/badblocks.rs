// SPDX-License-Identifier: GPL-2.0

//! `badblocks::Index`: no bad sector is known to be good, although the list changes without notice.

use crate::{
    explore,
    finds,
    spawn, //
};
use loom::sync::atomic::{
    fence,
    AtomicBool,
    AtomicU32,
    Ordering::{
        Acquire,
        Relaxed,
        Release, //
    }, //
};
use std::rc::Rc;

/// No list has this number. An odd one, which a list has while it changes, is not enough.
const INVALID: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// The number that says that the index is invalid is one that a list has while it changes.
    OddInvalid,
    /// The words are written while the index is valid for the earlier list.
    NotInvalidated,
    /// The new number is written before the words.
    PublishedEarly,
    /// The words that are read may be older than the number.
    Unordered,
    /// The number is not read again after several words were read.
    NotReadAgain,
}

/// A list with one sector, which becomes bad, and its index. The two words of the index both have
/// the state of the sector.
struct Badblocks {
    defect: Defect,
    sequence: AtomicU32,
    bad: AtomicU32,
    update: AtomicBool,
    index: AtomicU32,
    words: [AtomicU32; 2],
}

impl Badblocks {
    /// `badblocks_set()`, by C code.
    fn set(&self) {
        self.sequence.store(1, Relaxed);
        fence(Release);
        self.bad.store(1, Relaxed);
        self.sequence.store(2, Release);
    }

    /// `update_index` and `Index::make`.
    fn update_index(&self) {
        let sequence = self.sequence.load(Relaxed);
        if sequence & 1 != 0 || self.index.load(Acquire) == sequence {
            return;
        }
        fence(Acquire);
        if self.update.swap(true, Acquire) {
            return;
        }
        let bad = self.bad.load(Relaxed);
        fence(Acquire);
        if self.sequence.load(Relaxed) == sequence {
            if self.defect != Defect::NotInvalidated {
                let invalid = if self.defect == Defect::OddInvalid {
                    1
                } else {
                    INVALID
                };
                self.index.store(invalid, Relaxed);
            }
            if self.defect == Defect::PublishedEarly {
                self.index.store(sequence, Release);
            }
            fence(Release);
            for word in &self.words {
                word.store(bad, Relaxed);
            }
            self.index.store(sequence, Release);
        }
        self.update.store(false, Release);
    }

    /// `is_known_good`. Also returns the number of the list.
    fn is_known_good(&self) -> (bool, u32) {
        let sequence = self.sequence.load(Relaxed);
        let order = if self.defect == Defect::Unordered {
            Relaxed
        } else {
            Acquire
        };
        let is_known = self.index.load(order) == sequence;
        (is_known && self.words[0].load(Relaxed) == 0, sequence)
    }

    /// `Index::is_good`: the words, if they are of one list.
    fn words(&self) -> Option<[u32; 2]> {
        let sequence = self.sequence.load(Relaxed);
        if self.index.load(Acquire) != sequence {
            return None;
        }
        let words = [&self.words[0], &self.words[1]].map(|word| word.load(Relaxed));
        fence(Acquire);
        let is_valid = self.defect == Defect::NotReadAgain || self.index.load(Relaxed) == sequence;
        is_valid.then_some(words)
    }
}

fn change_and_check(defect: Defect) -> impl Fn() + Sync + Send + 'static {
    move || {
        let list = Rc::new(Badblocks {
            defect,
            sequence: AtomicU32::new(0),
            bad: AtomicU32::new(0),
            update: AtomicBool::new(false),
            index: AtomicU32::new(0),
            words: [0, 0].map(AtomicU32::new),
        });
        let reader = spawn(&list, |list| {
            let (is_good, sequence) = list.is_known_good();
            assert!(
                !is_good || sequence == 0,
                "a bad sector is known to be good"
            );
        });
        let other = spawn(&list, |list| {
            if let Some([first, second]) = list.words() {
                assert_eq!(first, second, "words of two lists");
            }
        });

        list.set();
        assert!(!list.is_known_good().0, "a bad sector is known to be good");
        list.update_index();
        assert!(!list.is_known_good().0, "a bad sector is known to be good");
        reader.join().unwrap();
        other.join().unwrap();
    }
}

#[test]
fn a_bad_sector_is_never_known_to_be_good() {
    explore(change_and_check(Defect::None));
}

#[test]
fn defects_of_the_index_are_found() {
    finds(
        "a bad sector is known to be good",
        change_and_check(Defect::Unordered),
    );
    for defect in [
        Defect::OddInvalid,
        Defect::NotInvalidated,
        Defect::PublishedEarly,
        Defect::NotReadAgain,
    ] {
        finds("words of two lists", change_and_check(defect));
    }
}
