// SPDX-License-Identifier: GPL-2.0

//! A CXL memory device with persistent memory. User space makes the region in a window of
//! addresses; libnvdimm then has a region of the same name.

use std::path::Path;

use anyhow::Result;

use crate::command::run;
use crate::nd::settle;
use crate::sysfs;

const MODULES: [&str; 5] = ["cxl_acpi", "cxl_pci", "cxl_mem", "cxl_port", "cxl_pmem"];
const DEVICES: &str = "/sys/bus/cxl/devices";
/// The driver that makes the window, and the bus of libnvdimm.
const PROVIDER_DRIVER: &str = "/sys/bus/platform/drivers/cxl_acpi";
const PROVIDER: &str = "ACPI0017:00";
/// The window and the only device.
const WINDOW: &str = "decoder0.0";
const DEVICE: &str = "mem0";

/// Loads the drivers, enables the device and makes its region. Changes nothing that is there.
pub fn enable() -> Result<()> {
    let modules = [&["-a"], &MODULES[..]].concat();
    run("modprobe", &modules)?;
    if !Path::new(PROVIDER_DRIVER).join(PROVIDER).exists() {
        sysfs::write(Path::new(PROVIDER_DRIVER).join("bind"), PROVIDER)?;
    }
    run("cxl", &["enable-memdev", DEVICE])?;
    for region in regions()? {
        let path = Path::new(DEVICES).join(&region);
        if path.join("driver").exists() {
            return settle();
        }
        // A region that has lost its device cannot get it back.
        sysfs::write(
            Path::new(DEVICES).join(WINDOW).join("delete_region"),
            &region,
        )?;
    }
    let whole = ["-t", "pmem", "-m", "-d", WINDOW, "-w", "1", DEVICE];
    run("cxl", &[&["create-region"], &whole[..]].concat())?;
    settle()
}

fn regions() -> Result<Vec<String>> {
    let mut names = sysfs::names(DEVICES)?;
    names.retain(|name| name.starts_with("region"));
    Ok(names)
}

/// Disables the region.
pub fn disable_region() -> Result<()> {
    run("cxl", &["disable-region", "all"]).map(drop)
}

/// Enables the region again.
pub fn enable_region() -> Result<()> {
    run("cxl", &["enable-region", "all"])?;
    settle()
}

/// Disables the device, which is part of a region.
pub fn disable_device() -> Result<()> {
    run("cxl", &["disable-memdev", "-f", DEVICE]).map(drop)
}

/// Unbinds the driver that has made the window.
pub fn disable_provider() -> Result<()> {
    sysfs::write(Path::new(PROVIDER_DRIVER).join("unbind"), PROVIDER)
}
