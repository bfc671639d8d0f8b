// SPDX-License-Identifier: GPL-2.0

//! Counters of the CPU: what it does in the kernel for this process and those that it starts.
//! Emulated CPUs have none.

use std::io;

use anyhow::Result;
use figures::{CACHE_MISSES, CYCLES, INSTRUCTIONS};
use perf_event::events::Hardware;
use perf_event::{Builder, CountAndTime, Counter};

const EVENTS: [(&str, Hardware); 3] = [
    (CYCLES, Hardware::CPU_CYCLES),
    (CACHE_MISSES, Hardware::CACHE_MISSES),
    (INSTRUCTIONS, Hardware::INSTRUCTIONS),
];

/// The counters that this CPU has, with their units.
pub struct Counters(Vec<(&'static str, Counter)>);

impl Counters {
    /// Starts those counters that there are.
    pub fn open() -> Counters {
        let counters = EVENTS.into_iter();
        Counters(
            counters
                .filter_map(|(unit, event)| Some((unit, start(event).ok()?)))
                .collect(),
        )
    }

    /// Why there are no cycles to be counted, if that is so.
    pub fn reason_for_none() -> Option<io::Error> {
        start(Hardware::CPU_CYCLES).err()
    }

    /// The units of the counters.
    pub fn units(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|(unit, _)| *unit)
    }

    /// Reads all counters.
    pub fn read(&mut self) -> Result<Vec<CountAndTime>> {
        let counters = self.0.iter_mut();
        counters
            .map(|(_, counter)| Ok(counter.read_count_and_time()?))
            .collect()
    }

    /// What was counted since then. There is no figure for a counter that the kernel had no place
    /// for on the CPU. One that had a place for part of the time is extrapolated.
    pub fn since(&mut self, before: &[CountAndTime]) -> Result<Vec<Option<f64>>> {
        let now = self.read()?;
        let pairs = before.iter().zip(&now);
        Ok(pairs.map(|(before, now)| difference(before, now)).collect())
    }
}

fn difference(before: &CountAndTime, now: &CountAndTime) -> Option<f64> {
    let running = now.time_running.checked_sub(before.time_running)?;
    let enabled = now.time_enabled.checked_sub(before.time_enabled)?;
    let count = now.count.checked_sub(before.count)?;
    (running > 0).then(|| count as f64 * enabled as f64 / running as f64)
}

fn start(event: Hardware) -> io::Result<Counter> {
    let mut builder = Builder::new().kind(event);
    builder.include_kernel().exclude_user(true).inherit(true);
    let mut counter = builder.build()?;
    counter.enable()?;
    Ok(counter)
}
