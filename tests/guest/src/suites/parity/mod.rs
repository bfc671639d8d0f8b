// SPDX-License-Identifier: GPL-2.0

//! Parity of the two drivers: everything that a user can ask about a disk is asked about one disk
//! of each driver, in every mode, and the answers are compared. [`differences`] lists the intended
//! differences with their reasons. Another difference is a failure, and so is a missing one.

mod differences;
mod facts;
mod tables;

use anyhow::{Result, ensure};

use super::{Suite, Test};
use crate::driver::Driver;
use crate::lab::{Lab, Skip, holder};
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use facts::{Facts, Fixture};

pub const SUITE: Suite = Suite {
    name: "parity",
    tests: &[
        Test::new("raw", |lab| compare(lab, Mode::Raw)).within(120),
        Test::new("fsdax_mem", |lab| compare(lab, Mode::FsdaxMem)).within(120),
        Test::new("fsdax_dev", |lab| compare(lab, Mode::FsdaxDev)).within(120),
        Test::new("sector", |lab| compare(lab, Mode::Sector)).within(120),
        Test::new("devdax", |lab| compare(lab, Mode::Devdax)).within(120),
    ],
};

fn compare(lab: &mut Lab, mode: Mode) -> Result<()> {
    if !lab.driver.other().is_available()? {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    let mut ours = Fixture::new(lab, Driver::PmemRs, 0)?;
    let mut theirs = Fixture::new(lab, Driver::NdPmem, 1)?;
    for fixture in [&mut ours, &mut theirs] {
        let made = ndctl::reconfigure(fixture.namespace(), mode)?;
        fixture.record_disk(made.blockdev)?;
    }
    lab.driver.other().load()?;
    let (mut of_ours, mut of_theirs) = (Facts::default(), Facts::default());
    for (fixture, facts) in [(&mut ours, &mut of_ours), (&mut theirs, &mut of_theirs)] {
        bind_to_driver(fixture)?;
        fixture.collect(facts)?;
    }
    ensure!(of_theirs.len() > 20, "only {} facts", of_theirs.len());
    println!("{} facts are compared", of_theirs.len());
    differences::judge(mode, &of_ours, &of_theirs)
}

/// Binds the device of a fixture to the fixture's driver.
fn bind_to_driver(fixture: &Fixture) -> Result<()> {
    let bound: Device = holder(fixture.namespace())?;
    // devdax has a driver of its own.
    if bound.name().starts_with("dax") || bound.driver().as_deref() == Some(fixture.driver().name())
    {
        return Ok(());
    }
    bound.unbind()?;
    bound.bind(fixture.driver())
}
