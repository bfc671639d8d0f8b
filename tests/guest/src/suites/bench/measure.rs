// SPDX-License-Identifier: GPL-2.0

//! How a case is measured: alternately on both drivers, several times.

use std::time::{Duration, Instant};

use anyhow::Result;
use figures::{COUNTER, MARK, Series};

use super::cpu::Counters;
use super::pair::{Pair, Side};
use crate::counter::{counted, watch};
use crate::lab::Lab;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The duration of operations.
    Time,
    /// The number of instructions of operations. The plugin records it.
    Count,
}

/// Operations on a device of one driver.
pub trait Work {
    /// Prepares a run. This is not measured.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs this many operations.
    fn run(&mut self, operations: u32) -> Result<()>;
}

/// One operation to be measured.
pub struct Case {
    pub amount: Amount,
    /// The module whose instructions are counted, if it is not the driver.
    pub module: Option<&'static str>,
    pub setup: fn(&Side) -> Result<Box<dyn Work>>,
}

/// The number of operations in a run.
#[derive(Clone, Copy)]
pub enum Amount {
    /// As many as take a while, when they are timed.
    Many,
    /// This many, prepared by `Work::prepare`.
    Exactly(u32),
}

impl Case {
    /// Operations that can be repeated without preparation.
    pub const fn many(setup: fn(&Side) -> Result<Box<dyn Work>>) -> Case {
        Case {
            amount: Amount::Many,
            module: None,
            setup,
        }
    }

    /// Operations that have to be prepared.
    pub const fn exactly(operations: u32, setup: fn(&Side) -> Result<Box<dyn Work>>) -> Case {
        Case {
            amount: Amount::Exactly(operations),
            module: None,
            setup,
        }
    }
}

/// How many runs of each driver are timed in one boot.
pub const ROUNDS: usize = 6;
/// How many runs of each driver are counted: enough that occasional work of the kernel, such as
/// writeback, does not show.
const COUNTED_ROUNDS: usize = 3;
/// The wanted duration of a run.
const RUN: Duration = Duration::from_millis(100);
/// The number of operations from which the duration is estimated.
const SAMPLE: u32 = 16;
const MOST: u32 = 200_000;
/// The number of operations that are counted.
const COUNTED: u32 = 50;

/// Measures a case in one of the two modes.
pub fn measure(lab: &Lab, mode: Mode, name: &str, case: &Case) -> Result<()> {
    let pair = Pair::ready(lab)?;
    match mode {
        Mode::Time => time(&pair, name, case),
        Mode::Count => count(&pair, name, case),
    }
}

/// The figures of a run, for each operation.
struct Figures {
    nanoseconds: f64,
    /// Those of the CPU's counters.
    counts: Vec<Option<f64>>,
}

fn timed(work: &mut dyn Work, operations: u32, counters: &mut Counters) -> Result<Figures> {
    work.prepare()?;
    let before = counters.read()?;
    let start = Instant::now();
    work.run(operations)?;
    let duration = start.elapsed();
    let operations = f64::from(operations);
    Ok(Figures {
        nanoseconds: duration.as_nanos() as f64 / operations,
        counts: counters
            .since(&before)?
            .into_iter()
            .map(|count| Some(count? / operations))
            .collect(),
    })
}

fn time(pair: &Pair, name: &str, case: &Case) -> Result<()> {
    let [theirs, ours] = pair.sides();
    let (mut theirs, mut ours) = ((case.setup)(theirs)?, (case.setup)(ours)?);
    let (theirs, ours) = (theirs.as_mut(), ours.as_mut());
    let mut counters = Counters::open();
    let operations = match case.amount {
        Amount::Exactly(operations) => {
            timed(theirs, operations, &mut counters)?;
            timed(ours, operations, &mut counters)?;
            operations
        }
        Amount::Many => {
            // The first operations are slower.
            timed(theirs, SAMPLE, &mut counters)?;
            let theirs = timed(theirs, SAMPLE, &mut counters)?.nanoseconds;
            let slower = theirs.max(timed(ours, SAMPLE, &mut counters)?.nanoseconds);
            ((RUN.as_nanos() as f64 / slower) as u32).clamp(1, MOST)
        }
    };
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(if goes_first(round) {
            let theirs = timed(theirs, operations, &mut counters)?;
            [theirs, timed(ours, operations, &mut counters)?]
        } else {
            let ours = timed(ours, operations, &mut counters)?;
            [timed(theirs, operations, &mut counters)?, ours]
        });
    }
    let figures = |of: &dyn Fn(&Figures) -> Option<f64>| -> Vec<[Option<f64>; 2]> {
        let rounds = rounds.iter();
        rounds
            .map(|[theirs, ours]| [of(theirs), of(ours)])
            .collect()
    };
    report(name, "time", "ns", figures(&|run| Some(run.nanoseconds)))?;
    for (index, unit) in counters.units().enumerate() {
        report(name, COUNTER, unit, figures(&|run| run.counts[index]))?;
    }
    Ok(())
}

/// Whether the in-tree driver goes first in a round: the drivers take turns.
pub fn goes_first(round: usize) -> bool {
    round % 2 == 0
}

/// Reports the figures of nd_pmem and pmem_rs to the runner, in pairs.
pub fn report(case: &str, mode: &str, unit: &str, rounds: Vec<[Option<f64>; 2]>) -> Result<()> {
    let series = Series {
        rounds,
        ..Series::new(case, mode, unit)
    };
    println!("{MARK}{}", serde_json::to_string(&series)?);
    Ok(())
}

fn count(pair: &Pair, name: &str, case: &Case) -> Result<()> {
    let operations = match case.amount {
        Amount::Exactly(operations) => operations,
        Amount::Many => COUNTED,
    };
    for side in pair.sides() {
        let driver = side.driver.name();
        let mut work = (case.setup)(side)?;
        watch(case.module.unwrap_or(driver))?;
        work.prepare()?;
        work.run(operations)?;
        for _ in 0..COUNTED_ROUNDS {
            work.prepare()?;
            counted(&format!("{name} {driver} {operations}"), || {
                work.run(operations)
            })?;
        }
    }
    Ok(())
}
