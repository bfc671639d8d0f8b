// SPDX-License-Identifier: GPL-2.0

//! The kernel's leak detector, where it is built in.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::sysfs;

const CONTROL: &str = "/sys/kernel/debug/kmemleak";
/// An object that nothing points to is reported if it is still so a while after its allocation.
const AGE: Duration = Duration::from_secs(6);

/// Looks at all memory. Fails if the detector has switched itself off.
pub fn scan() -> Result<()> {
    sysfs::write(CONTROL, "scan")
}

/// Forgets what is suspected so far, which is not the work of what comes next.
pub fn forget() -> Result<()> {
    scan()?;
    sysfs::write(CONTROL, "clear")
}

/// Looks for objects that nothing points to. Returns the reports about them.
pub fn suspects() -> Result<String> {
    sleep(AGE);
    // What is in a register or on its way between two places is missed the first time.
    for _ in 0..2 {
        scan()?;
    }
    sysfs::read(CONTROL)
}
