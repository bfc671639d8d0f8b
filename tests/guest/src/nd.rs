// SPDX-License-Identifier: GPL-2.0

//! The nd bus in sysfs: regions, namespaces and what claims them.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::driver::Driver;
use crate::errno;
use crate::sysfs;

const DEVICES: &str = "/sys/bus/nd/devices";
const DRIVERS: &str = "/sys/bus/nd/drivers";
/// The driver that makes a bus of the NVDIMMs that the firmware announces, and its device.
const PROVIDER_DRIVER: &str = "/sys/bus/platform/drivers/acpi-nfit";
const PROVIDER: &str = "ACPI0012:00";

/// A device on the nd bus: a region, a namespace, or a pfn, btt or dax device that claims one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device(String);

impl Device {
    /// Names a device, which need not exist.
    pub fn named(name: impl Into<String>) -> Device {
        Device(name.into())
    }

    /// All devices, sorted by name.
    pub fn all() -> Result<Vec<Device>> {
        Ok(sysfs::names(DEVICES)?.into_iter().map(Device).collect())
    }

    /// The devices whose name starts with `kind`, such as `namespace` or `pfn`.
    pub fn all_of(kind: &str) -> Result<Vec<Device>> {
        Ok(Device::all()?
            .into_iter()
            .filter(|device| device.0.starts_with(kind))
            .collect())
    }

    /// The name on the bus, such as `namespace0.0`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The path of an attribute.
    pub fn path(&self, attribute: &str) -> PathBuf {
        Path::new(DEVICES).join(&self.0).join(attribute)
    }

    /// Reads an attribute.
    pub fn get(&self, attribute: &str) -> Result<String> {
        sysfs::read(self.path(attribute))
    }

    /// Writes an attribute.
    pub fn set(&self, attribute: &str, value: &str) -> Result<()> {
        sysfs::write(self.path(attribute), value)
    }

    /// The name of the driver that holds the device.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Asks a driver to take the device and leaves the error as the kernel gave it.
    pub fn try_bind(&self, driver: Driver) -> io::Result<()> {
        sysfs::try_write(Path::new(DRIVERS).join(driver.name()).join("bind"), &self.0)
    }

    /// Lets a region have its namespaces again, after it was unbound.
    pub fn enable_region(&self) -> Result<()> {
        sysfs::write(Path::new(DRIVERS).join("nd_region/bind"), &self.0)?;
        settle()
    }

    /// Takes a region away from its driver and leaves the error as the kernel gave it.
    pub fn try_unbind_region(&self) -> io::Result<()> {
        sysfs::try_write(Path::new(DRIVERS).join("nd_region/unbind"), &self.0)
    }

    /// Asks a driver to take the device, and checks that it did.
    pub fn bind(&self, driver: Driver) -> Result<()> {
        self.try_bind(driver)
            .with_context(|| format!("binding {self} to {}", driver.name()))?;
        self.expect_driver(Some(driver))
    }

    /// Takes the device away from a driver and leaves the error as the kernel gave it.
    pub fn try_unbind(&self, driver: Driver) -> io::Result<()> {
        sysfs::try_write(
            Path::new(DRIVERS).join(driver.name()).join("unbind"),
            &self.0,
        )
    }

    /// Takes the device away from the driver that holds it.
    pub fn unbind(&self) -> Result<()> {
        let driver = self
            .driver()
            .with_context(|| format!("{self} has no driver to unbind"))?;
        sysfs::write(Path::new(DRIVERS).join(driver).join("unbind"), &self.0)?;
        self.expect_driver(None)
    }

    /// Checks who holds the device.
    pub fn expect_driver(&self, driver: Option<Driver>) -> Result<()> {
        let found = self.driver();
        ensure!(
            found.as_deref() == driver.map(Driver::name),
            "{self} is bound to {found:?}, expected {:?}",
            driver.map(Driver::name),
        );
        Ok(())
    }

    /// Gives up the namespace that this pfn, btt or dax device has claimed.
    pub fn give_up_namespace(&self) -> Result<()> {
        // An empty write would not reach the kernel, an empty line does.
        self.set("namespace", "\n")?;
        settle()
    }

    /// The physical address where the device starts. Disabled pfn devices do not tell.
    pub fn resource(&self) -> Result<u64> {
        let text = self.get("resource")?;
        let digits = text.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).with_context(|| format!("{self}: resource is `{text}`"))
    }

    /// The block device that the driver made of this nd device.
    pub fn disk_name(&self) -> Result<String> {
        let disks = sysfs::names(self.path("block"))?;
        ensure!(
            disks.len() == 1,
            "{self} has the disks {disks:?}, expected one"
        );
        Ok(disks.into_iter().next().unwrap_or_default())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Waits until libnvdimm has probed everything that it registered so far, which it does in the
/// background. A bus that goes meanwhile has nothing to probe.
pub fn settle() -> Result<()> {
    const GONE: &[Errno] = &[Errno::ENOENT, Errno::ENODEV, Errno::ENXIO, Errno::EIO];
    for bus in Device::all_of("ndbus")? {
        match bus.get("wait_probe") {
            Err(error) if !errno::of(&error).is_some_and(|errno| GONE.contains(&errno)) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes all NVDIMMs away that the firmware announces, and the bus that they are on.
pub fn disable_provider() -> Result<()> {
    sysfs::write(Path::new(PROVIDER_DRIVER).join("unbind"), PROVIDER)
}

/// Brings them back.
pub fn enable_provider() -> Result<()> {
    sysfs::write(Path::new(PROVIDER_DRIVER).join("bind"), PROVIDER)?;
    settle()
}

/// Brings back what is disabled, provider or regions.
pub fn enable_all() -> Result<()> {
    let present = Path::new("/sys/bus/platform/devices").join(PROVIDER);
    if present.exists() && !present.join("driver").exists() {
        enable_provider()?;
    }
    for region in Device::all_of("region")? {
        if region.driver().is_none() {
            region.enable_region()?;
        }
    }
    Ok(())
}
