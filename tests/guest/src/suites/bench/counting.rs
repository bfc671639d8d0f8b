// SPDX-License-Identifier: GPL-2.0

//! Calibration of the instruction counter: work with a known number of instructions.
//!
//! The guest does not see the counts, so each test only does the work, under labels that the runner
//! knows.

use anyhow::Result;

use super::pair::Pair;
use crate::counter::{counted, known, learn, watch};
use crate::disk::Access;
use crate::driver::Driver;
use crate::lab::Lab;
use crate::suites::{Suite, Test};
use std::os::unix::fs::FileExt;

pub const SUITE: Suite = Suite {
    name: "counting",
    tests: &[
        Test::step("known_code", known_code),
        Test::step("reads_of_both_drivers", reads_of_both_drivers).within(120),
    ],
};

/// The runner compares this many results.
const TIMES: usize = 2;
const READS: u64 = 20;

fn known_code(_: &mut Lab) -> Result<()> {
    known::watch();
    for _ in 0..TIMES {
        counted("known", known::run);
    }
    Ok(())
}

fn reads_of_both_drivers(lab: &mut Lab) -> Result<()> {
    let pair = Pair::ready(lab)?;
    learn(&[Driver::NdPmem, Driver::PmemRs].map(Driver::name))?;
    for side in pair.sides() {
        let disk = side.disk.open(Access::Direct)?;
        let mut buffer = crate::sectors::Buffer::of_pages(4096, 1);
        watch(side.driver.name())?;
        for _ in 0..TIMES {
            counted(side.driver.name(), || {
                (0..READS).try_for_each(|index| disk.read_exact_at(&mut buffer, index * 4096))
            })?;
        }
    }
    Ok(())
}
