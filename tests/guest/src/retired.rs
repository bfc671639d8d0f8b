// SPDX-License-Identifier: GPL-2.0

//! Ranges that the driver has retired: it could not free them on unbind because their pages were
//! still in use.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::driver::Driver;
use crate::sysfs;

/// The debugfs file that lists them, one a line.
const LIST: &str = "/sys/kernel/debug/pmem_rs/retired";
/// The suffix of the name of such a range in `/proc/iomem`.
const MARK: &str = "(retired by pmem_rs)";
/// The modprobe configuration with the options of the module.
const OPTIONS: &str = "/etc/modprobe.d/revoke-timeout.conf";
/// The module parameter with the timeout, in milliseconds.
const PARAMETER: &str = "/sys/module/pmem_rs/parameters/revoke_timeout_ms";

/// The default of the parameter.
const DEFAULT: &str = "10000";

/// The timeout of most tests.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// Sets how long the driver waits for users of pages before it retires a range, for waits in
/// progress and after a reload. The in-tree driver has no such timeout.
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

/// Undoes [`set_timeout`].
pub fn reset_timeout() -> Result<()> {
    if Path::new(OPTIONS).exists() {
        fs::remove_file(OPTIONS)?;
    }
    if Path::new(PARAMETER).exists() {
        sysfs::write(PARAMETER, DEFAULT)?;
    }
    Ok(())
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

/// Checks that `count` ranges are retired, and that debugfs and `/proc/iomem` agree.
pub fn expect(count: usize) -> Result<Vec<String>> {
    let (list, reserved) = (list()?, reserved()?);
    ensure!(
        list.len() == count && reserved.len() == count,
        "{count} ranges should be retired; {LIST} has {list:#?}, /proc/iomem {reserved:#?}"
    );
    Ok(list)
}

/// Waits until no range is retired any more.
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
