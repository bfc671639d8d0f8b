// SPDX-License-Identifier: GPL-2.0

//! The kernel's leak detector, where it is built in.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::sysfs;

const CONTROL: &str = "/sys/kernel/debug/kmemleak";
/// The age at which kmemleak reports an unreferenced object.
const AGE: Duration = Duration::from_secs(6);
/// How many scans must report an object before it counts as leaked.
const SCANS: u32 = 3;

/// Scans all memory. Fails if the detector has switched itself off.
pub fn scan() -> Result<()> {
    sysfs::write(CONTROL, "scan")
}

/// Forgets all current suspects, which are not due to the test that follows.
pub fn forget() -> Result<()> {
    scan()?;
    sysfs::write(CONTROL, "clear")
}

/// Stops the automatic scans: from now on only this program scans.
pub fn stop_automatic_scans() -> Result<()> {
    sysfs::write(CONTROL, "scan=off")
}

/// Scans for unreferenced objects and returns the reports about them.
///
/// An object may look unreferenced while its only pointer is in a register, moves between two
/// places that are scanned one after the other, or waits to be freed. A leak is permanent, so it is
/// reported by every scan.
pub fn suspects() -> Result<String> {
    let mut suspects = String::new();
    for _ in 0..SCANS {
        sleep(AGE);
        scan()?;
        scan()?;
        // Of the earlier reports, the file shows only those that still hold.
        suspects = sysfs::read(CONTROL)?;
        if suspects.is_empty() {
            break;
        }
    }
    Ok(suspects)
}
