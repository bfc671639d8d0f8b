// SPDX-License-Identifier: GPL-2.0

//! The kernel's leak detector, where it is built in.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::sysfs;

const CONTROL: &str = "/sys/kernel/debug/kmemleak";
/// An object that nothing points to is reported if it is still so a while after its allocation.
const AGE: Duration = Duration::from_secs(6);
/// How often to look before something counts as lost.
const LOOKS: u32 = 3;

/// Looks at all memory. Fails if the detector has switched itself off.
pub fn scan() -> Result<()> {
    sysfs::write(CONTROL, "scan")
}

/// Forgets what is suspected so far, which is not the work of what comes next.
pub fn forget() -> Result<()> {
    scan()?;
    sysfs::write(CONTROL, "clear")
}

/// From now on nobody looks but this program.
pub fn be_quiet() -> Result<()> {
    sysfs::write(CONTROL, "scan=off")
}

/// Looks for objects that nothing points to. Returns the reports about them.
///
/// An object may look lost while its only pointer is in a register, on its way between two places that are scanned
/// one after the other, or waits to be freed. A leak stays one, so it has to be seen in every look.
pub fn suspects() -> Result<String> {
    let mut suspects = String::new();
    for _ in 0..LOOKS {
        sleep(AGE);
        scan()?;
        scan()?;
        // Of what was reported before, this shows only what is still lost.
        suspects = sysfs::read(CONTROL)?;
        if suspects.is_empty() {
            break;
        }
    }
    Ok(suspects)
}
