// SPDX-License-Identifier: GPL-2.0

//! The state of each cache line of a range of persistent memory.
//!
//! - An ordinary store makes the line *dirty*: it is in the cache for any time.
//! - `clwb` and `clflushopt` make a dirty line *pending*. `clflush` does the same, and waits.
//! - A non-temporal store bypasses the cache, and makes the line pending, too. A dirty line stays
//!   dirty.
//! - `sfence` and `mfence` wait for pending lines.
//!
//! Real CPUs also wait at instructions with a `lock` prefix, and at some others. These are ignored
//! here: no code may rely on them, and they are so frequent that a missing fence would hardly ever
//! be detected.

use std::ops::Range;

/// The size of a line in bytes.
pub const LINE: u64 = 64;

const DIRTY: u8 = 1;
const PENDING: u8 = 2;
/// The line was stored to since [`Lines::begin`].
const WRITTEN: u8 = 4;

/// The state of a range of whole lines.
pub struct Lines {
    range: Range<u64>,
    states: Vec<u8>,
    /// The lines that are pending, and possibly some that no longer are.
    pending: Vec<usize>,
}

/// The state of a part of the range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The number of lines.
    pub lines: u64,
    /// The number of lines that were stored to since [`Lines::begin`].
    pub written: u64,
    /// The number of dirty lines.
    pub dirty: u64,
    /// The number of lines that are pending and not dirty.
    pub pending: u64,
}

impl Lines {
    /// Makes the state of a range of addresses, all lines of which are durable.
    pub fn new(range: Range<u64>) -> Lines {
        let range = range.start / LINE * LINE..range.end.next_multiple_of(LINE);
        let lines = (range.end - range.start) / LINE;
        Lines {
            range,
            states: vec![0; lines as usize],
            pending: Vec::new(),
        }
    }

    /// The numbers of the lines of a range of addresses, limited to the known range.
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

    /// A non-temporal store.
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

    /// Starts to record which lines are stored to.
    pub fn begin(&mut self) {
        for state in &mut self.states {
            *state &= !WRITTEN;
        }
    }

    /// The state of a part of the range.
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
