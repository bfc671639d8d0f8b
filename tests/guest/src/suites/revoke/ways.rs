// SPDX-License-Identifier: GPL-2.0

//! Ways in which a device is removed and added again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Way;
use super::site::Site;
use crate::driver::Driver;
use crate::nd::{disable_provider, enable_provider};
use crate::process::Child;

/// A step that takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);

impl Way {
    /// The number of ranges that are removed.
    pub fn ranges(self, site: &Site<'_>) -> u32 {
        if self == Way::Provider {
            site.regions()
        } else {
            1
        }
    }

    /// Removes the device, in a child process because that may never return, and returns how long
    /// it took.
    pub fn go(self, site: &Site<'_>, limit: Duration) -> Result<Duration> {
        // The in-tree driver only has to return some time.
        let limit = match site.lab.driver {
            Driver::PmemRs => limit,
            Driver::NdPmem => limit.max(HANGS),
        };
        let start = Instant::now();
        let (region, bound) = (site.lab.region(0)?, site.bound()?);
        let mut process = Child::start(format!("going away ({self:?})"), |_| match self {
            Way::Unbind => bound.unbind(),
            Way::Region => region.unbind(),
            Way::Provider => disable_provider(),
        })?;
        process.expect_done(limit)?;
        Ok(start.elapsed())
    }

    /// Adds the device again.
    pub fn come_back(self, site: &Site<'_>) -> Result<()> {
        let lab = site.lab;
        match self {
            Way::Unbind => site.bound()?.bind(lab.driver),
            Way::Region => lab.region(0)?.enable_region(),
            Way::Provider => enable_provider(),
        }
        .with_context(|| format!("coming back ({self:?})"))?;
        for region in 0..site.regions() {
            lab.holder_in(region)?.expect_driver(Some(lab.driver))?;
        }
        Ok(())
    }
}
