// SPDX-License-Identifier: GPL-2.0

//! Ranges that the driver could not free when their device was taken away, because somebody still
//! uses their pages.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::driver::Driver;
use crate::sysfs;

/// Where the driver lists them, one a line.
const LIST: &str = "/sys/kernel/debug/pmem_rs/retired";
/// How the name of such a range ends in `/proc/iomem`.
const MARK: &str = "(retired by pmem_rs)";
/// What `modprobe` loads the module with.
const OPTIONS: &str = "/etc/modprobe.d/revoke-timeout.conf";
/// How long the driver waits, in milliseconds.
const PARAMETER: &str = "/sys/module/pmem_rs/parameters/revoke_timeout_ms";

/// How long most tests let the driver wait.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// Makes the driver wait so long for users of pages before it retires a range: where it is waiting already,
/// from now on, and when it was loaded anew. The in-tree driver knows no such thing.
pub fn set_timeout(driver: Driver, timeout: Duration) -> Result<()> {
    if driver != Driver::PmemRs {
        return Ok(());
    }
    let milliseconds = timeout.as_millis().to_string();
    let options = format!(
        "options {} revoke_timeout_ms={milliseconds}\n",
        driver.name()
    );
    fs::write(OPTIONS, options)?;
    sysfs::write(PARAMETER, &milliseconds)
}

/// The lines of the driver's list.
pub fn list() -> Result<Vec<String>> {
    if !Path::new(LIST).exists() {
        return Ok(Vec::new());
    }
    Ok(sysfs::read(LIST)?.lines().map(str::to_owned).collect())
}

/// The ranges that `/proc/iomem` calls retired.
pub fn reserved() -> Result<Vec<String>> {
    let iomem = fs::read_to_string("/proc/iomem").context("reading /proc/iomem")?;
    Ok(iomem
        .lines()
        .filter(|line| line.ends_with(MARK))
        .map(|line| line.trim_start().to_owned())
        .collect())
}

/// Checks that a number of ranges is retired, and that both places say so.
pub fn expect(count: usize) -> Result<Vec<String>> {
    let (list, reserved) = (list()?, reserved()?);
    ensure!(
        list.len() == count && reserved.len() == count,
        "{count} ranges should be retired; {LIST} has {list:#?}, /proc/iomem {reserved:#?}"
    );
    Ok(list)
}

/// Waits until nothing is retired any more.
pub fn await_none(limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let (list, reserved) = (list()?, reserved()?);
        if list.is_empty() && reserved.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "still retired after {limit:?}: {list:#?}, in /proc/iomem {reserved:#?}"
        );
        sleep(Duration::from_millis(20));
    }
}
