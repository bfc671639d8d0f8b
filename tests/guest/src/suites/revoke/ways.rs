// SPDX-License-Identifier: GPL-2.0

//! Ways in which a device goes away, and how it comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Way;
use super::site::Site;
use crate::driver::Driver;
use crate::nd::{disable_provider, enable_provider};
use crate::process::Child;

/// What takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);

impl Way {
    /// How many ranges go.
    pub fn ranges(self, site: &Site<'_>) -> u32 {
        if self == Way::Provider {
            site.regions()
        } else {
            1
        }
    }

    /// Takes the device away, in a process of its own because that may never end, and says how long
    /// it took.
    pub fn go(self, site: &Site<'_>, limit: Duration) -> Result<Duration> {
        // Who has promised nothing is only asked to come to an end.
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

    /// Brings the device back.
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
