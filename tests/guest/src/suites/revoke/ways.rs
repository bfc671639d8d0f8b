// SPDX-License-Identifier: GPL-2.0

//! Ways in which a device is removed and added again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Way;
use super::fixture::Fixture;
use crate::driver::Driver;
use crate::nd::{disable_provider, enable_provider};
use crate::process::Child;

/// A step that takes longer hangs. With the patches of `upstream/`, nd_pmem says after 30 s what it
/// waits for.
const HANGS: Duration = Duration::from_secs(45);

impl Way {
    /// The number of ranges that are removed.
    pub fn ranges(self, fixture: &Fixture<'_>) -> u32 {
        if self == Way::Provider {
            fixture.regions()
        } else {
            1
        }
    }

    /// Removes the device, in a child process because that may never return, and returns how long
    /// it took.
    pub fn go(self, fixture: &Fixture<'_>, limit: Duration) -> Result<Duration> {
        // The in-tree driver only has to return some time.
        let limit = match fixture.lab.driver {
            Driver::PmemRs => limit,
            Driver::NdPmem => limit.max(HANGS),
        };
        let start = Instant::now();
        let (region, bound) = (fixture.lab.region(0)?, fixture.bound()?);
        let mut process = Child::start(format!("going away ({self:?})"), |_| match self {
            Way::Unbind => bound.unbind(),
            Way::Region => region.unbind(),
            Way::Provider => disable_provider(),
        })?;
        process.expect_done(limit)?;
        Ok(start.elapsed())
    }

    /// Adds the device again.
    pub fn come_back(self, fixture: &Fixture<'_>) -> Result<()> {
        let lab = fixture.lab;
        match self {
            Way::Unbind => fixture.bound()?.bind(lab.driver),
            Way::Region => lab.region(0)?.enable_region(),
            Way::Provider => enable_provider(),
        }
        .with_context(|| format!("coming back ({self:?})"))?;
        for region in 0..fixture.regions() {
            lab.holder_in(region)?.expect_driver(Some(lab.driver))?;
        }
        Ok(())
    }
}
