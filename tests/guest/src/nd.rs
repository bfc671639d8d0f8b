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
/// The driver that registers a bus for the NVDIMMs of the firmware.
const PROVIDER_DRIVER: &str = "/sys/bus/platform/drivers/acpi-nfit";
const PROVIDER: &str = "ACPI0012:00";

/// A device on the nd bus: a region, a namespace, or a pfn, btt or dax device that claims one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device(String);

impl Device {
    /// Names a device. It need not exist.
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

    /// The bytes that were exposed since pmem_rs was bound to the device.
    pub fn exposed(&self) -> Result<usize> {
        let devices = sysfs::read("/sys/kernel/debug/pmem_rs/devices")?;
        let name = format!("{} ", self.0);
        let line = devices
            .lines()
            .find(|line| line.starts_with(&name))
            .with_context(|| format!("{name} is not in {devices:?}"))?;
        let (_, rest) = line.split_once("exposed: ").context("no size")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse::<usize>()? << 10)
    }

    /// The name of the driver that is bound to the device.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Binds a driver to the device and returns the kernel's error unchanged.
    pub fn try_bind(&self, driver: Driver) -> io::Result<()> {
        sysfs::try_write(Path::new(DRIVERS).join(driver.name()).join("bind"), &self.0)
    }

    /// Binds a region to its driver again.
    pub fn enable_region(&self) -> Result<()> {
        sysfs::write(Path::new(DRIVERS).join("nd_region/bind"), &self.0)?;
        settle()
    }

    /// Unbinds a region from its driver and returns the kernel's error unchanged.
    pub fn try_unbind_region(&self) -> io::Result<()> {
        sysfs::try_write(Path::new(DRIVERS).join("nd_region/unbind"), &self.0)
    }

    /// Binds a driver to the device, and checks that it is bound.
    pub fn bind(&self, driver: Driver) -> Result<()> {
        self.try_bind(driver)
            .with_context(|| format!("binding {self} to {}", driver.name()))?;
        self.expect_driver(Some(driver))
    }

    /// Unbinds a driver from the device and returns the kernel's error unchanged.
    pub fn try_unbind(&self, driver: Driver) -> io::Result<()> {
        sysfs::try_write(
            Path::new(DRIVERS).join(driver.name()).join("unbind"),
            &self.0,
        )
    }

    /// Unbinds the device from its driver.
    pub fn unbind(&self) -> Result<()> {
        let driver = self
            .driver()
            .with_context(|| format!("{self} has no driver to unbind"))?;
        sysfs::write(Path::new(DRIVERS).join(driver).join("unbind"), &self.0)?;
        self.expect_driver(None)
    }

    /// Checks which driver is bound to the device.
    pub fn expect_driver(&self, driver: Option<Driver>) -> Result<()> {
        let found = self.driver();
        ensure!(
            found.as_deref() == driver.map(Driver::name),
            "{self} is bound to {found:?}, expected {:?}",
            driver.map(Driver::name),
        );
        Ok(())
    }

    /// Releases the namespace that this pfn, btt or dax device has claimed.
    pub fn give_up_namespace(&self) -> Result<()> {
        // The kernel does not see an empty write, but it sees an empty line.
        self.set("namespace", "\n")?;
        settle()
    }

    /// The physical start address of the device. Disabled pfn devices do not have it.
    pub fn resource(&self) -> Result<u64> {
        let text = self.get("resource")?;
        let digits = text.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).with_context(|| format!("{self}: resource is `{text}`"))
    }

    /// The block device that the driver has created for this nd device.
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

/// Waits until libnvdimm has probed all devices registered so far, which happens asynchronously. A
/// bus that is removed meanwhile has nothing left to probe.
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

/// Removes all NVDIMMs of the firmware, and their bus.
pub fn disable_provider() -> Result<()> {
    sysfs::write(Path::new(PROVIDER_DRIVER).join("unbind"), PROVIDER)
}

/// Adds them again.
pub fn enable_provider() -> Result<()> {
    sysfs::write(Path::new(PROVIDER_DRIVER).join("bind"), PROVIDER)?;
    settle()
}

/// Enables the provider and all regions.
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
