// SPDX-License-Identifier: GPL-2.0

//! The state of each cache line of a range of persistent memory.
//!
//! - An ordinary store leaves the line *dirty*: it is in the cache, for as long as that likes.
//! - `clwb` and `clflushopt` send a dirty line on its way: it is *pending*. `clflush` does the same, and waits.
//! - A non-temporal store goes past the cache, and is pending, too. It does not clean what is dirty.
//! - `sfence` and `mfence` wait for what is pending.
//!
//! Real CPUs wait at instructions with a `lock` prefix as well, and at some others. Here they do not: no code may
//! rely on them, and they are so frequent that a missing fence would hardly ever be seen.

use std::ops::Range;

/// The size of a line in bytes.
pub const LINE: u64 = 64;

const DIRTY: u8 = 1;
const PENDING: u8 = 2;
/// It was stored to since [`Lines::begin`].
const WRITTEN: u8 = 4;

/// What is known of a range, which is whole lines.
pub struct Lines {
    range: Range<u64>,
    states: Vec<u8>,
    /// The lines that are pending, and maybe some that are not any more.
    pending: Vec<usize>,
}

/// What is known of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many lines it has.
    pub lines: u64,
    /// How many of them were stored to since [`Lines::begin`].
    pub written: u64,
    /// How many are dirty.
    pub dirty: u64,
    /// How many are pending, and not dirty.
    pub pending: u64,
}

impl Lines {
    /// Takes all lines of a range of addresses for durable.
    pub fn new(range: Range<u64>) -> Lines {
        let range = range.start / LINE * LINE..range.end.next_multiple_of(LINE);
        let lines = (range.end - range.start) / LINE;
        Lines {
            range,
            states: vec![0; lines as usize],
            pending: Vec::new(),
        }
    }

    /// The numbers of the lines of a range of addresses, as far as they are known.
    fn numbers(&self, range: Range<u64>) -> Range<usize> {
        let start = range.start.max(self.range.start);
        let end = range.end.min(self.range.end);
        if start >= end {
            return 0..0;
        }
        let number = |address| ((address - self.range.start) / LINE) as usize;
        number(start)..number(end - 1) + 1
    }

    /// An ordinary store.
    pub fn store(&mut self, range: Range<u64>) {
        for number in self.numbers(range) {
            self.states[number] |= DIRTY | WRITTEN;
        }
    }

    /// A store past the caches.
    pub fn store_past_caches(&mut self, range: Range<u64>) {
        for number in self.numbers(range) {
            self.states[number] |= WRITTEN;
            self.send(number);
        }
    }

    /// `clwb` or `clflushopt` of the line with this address.
    pub fn write_back(&mut self, address: u64) {
        for number in self.numbers(address..address + 1) {
            if self.states[number] & DIRTY != 0 {
                self.states[number] &= !DIRTY;
                self.send(number);
            }
        }
    }

    /// `clflush` of the line with this address.
    pub fn write_back_and_wait(&mut self, address: u64) {
        for number in self.numbers(address..address + 1) {
            self.states[number] &= !DIRTY;
        }
    }

    fn send(&mut self, number: usize) {
        if self.states[number] & PENDING == 0 {
            self.states[number] |= PENDING;
            self.pending.push(number);
        }
    }

    /// `sfence` or `mfence`.
    pub fn fence(&mut self) {
        for number in self.pending.drain(..) {
            self.states[number] &= !PENDING;
        }
    }

    /// From here on it counts which lines are stored to.
    pub fn begin(&mut self) {
        for state in &mut self.states {
            *state &= !WRITTEN;
        }
    }

    /// What is known of a part.
    pub fn summary(&self, range: Range<u64>) -> Summary {
        let mut summary = Summary::default();
        for &state in &self.states[self.numbers(range)] {
            summary.lines += 1;
            summary.written += u64::from(state & WRITTEN != 0);
            summary.dirty += u64::from(state & DIRTY != 0);
            summary.pending += u64::from(state & (DIRTY | PENDING) == PENDING);
        }
        summary
    }
}
