// SPDX-License-Identifier: GPL-2.0

//! Devices on the platform bus that stand for persistent memory, and the buses that their drivers make.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::nd::{Device, settle};
use crate::sysfs;

const BUS: &str = "/sys/bus/platform";

/// The device for memory that the firmware of a PC calls persistent, if there is any.
pub const LEGACY: &str = "e820_pmem";
/// The in-tree driver for it, which is called like the device, and its module.
pub const LEGACY_DRIVER: &str = "e820_pmem";
pub const LEGACY_MODULE: &str = "nd_e820";
/// The in-tree driver for nodes of a device tree, and its module.
pub const TREE_DRIVER: &str = "of_pmem";
/// The modules of the in-tree drivers.
pub const IN_TREE_MODULES: [&str; 2] = [LEGACY_MODULE, TREE_DRIVER];

/// A device on the platform bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformDevice(String);

impl PlatformDevice {
    /// Names a device, which need not exist.
    pub fn named(name: impl Into<String>) -> PlatformDevice {
        PlatformDevice(name.into())
    }

    /// All devices, sorted by name.
    pub fn all() -> Result<Vec<PlatformDevice>> {
        let names = sysfs::names(Path::new(BUS).join("devices"))?;
        Ok(names.into_iter().map(PlatformDevice).collect())
    }

    /// All devices that drivers for persistent memory want.
    pub fn all_with_memory() -> Result<Vec<PlatformDevice>> {
        let mut devices = PlatformDevice::all()?;
        devices.retain(|device| {
            let modalias = device.get("modalias").unwrap_or_default();
            device.0 == LEGACY || modalias.contains("Cpmem-region")
        });
        Ok(devices)
    }

    /// The path of an attribute.
    pub fn path(&self, attribute: &str) -> PathBuf {
        Path::new(BUS).join("devices").join(&self.0).join(attribute)
    }

    /// Reads an attribute.
    pub fn get(&self, attribute: &str) -> Result<String> {
        sysfs::read(self.path(attribute))
    }

    /// The name of the driver that holds the device.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Checks who holds the device.
    pub fn expect_driver(&self, driver: Option<&str>) -> Result<()> {
        let found = self.driver();
        ensure!(
            found.as_deref() == driver,
            "{self} is bound to {found:?}, expected {driver:?}"
        );
        Ok(())
    }

    fn order(&self, driver: &str, what: &str) -> io::Result<()> {
        sysfs::try_write(
            Path::new(BUS).join("drivers").join(driver).join(what),
            &self.0,
        )
    }

    /// Asks a driver to take the device and leaves the error as the kernel gave it.
    pub fn try_bind(&self, driver: &str) -> io::Result<()> {
        self.order(driver, "bind")
    }

    /// Asks a driver to take the device, and waits until its regions are there.
    pub fn bind(&self, driver: &str) -> Result<()> {
        self.try_bind(driver)
            .with_context(|| format!("binding {self} to {driver}"))?;
        self.expect_driver(Some(driver))?;
        settle()
    }

    /// Takes the device away from a driver and leaves the error as the kernel gave it.
    pub fn try_unbind(&self, driver: &str) -> io::Result<()> {
        self.order(driver, "unbind")
    }

    /// Takes the device away from the driver that holds it.
    pub fn unbind(&self) -> Result<()> {
        let driver = self
            .driver()
            .with_context(|| format!("{self} has no driver to unbind"))?;
        self.try_unbind(&driver)
            .with_context(|| format!("unbinding {self} from {driver}"))?;
        self.expect_driver(None)
    }

    /// Says which driver may take the device, and no other; none: whoever matches.
    pub fn set_override(&self, driver: Option<&str>) -> Result<()> {
        let line = format!("{}\n", driver.unwrap_or_default());
        sysfs::write(self.path("driver_override"), &line)
    }

    /// Offers the device to all drivers that are loaded.
    pub fn probe(&self) -> Result<()> {
        sysfs::write(Path::new(BUS).join("drivers_probe"), &self.0)?;
        settle()
    }

    /// The nd bus that the driver has made.
    pub fn bus(&self) -> Result<Device> {
        let names = sysfs::names(self.path(""))?;
        let name = names
            .into_iter()
            .find(|name| name.starts_with("ndbus"))
            .with_context(|| format!("{self} has no nd bus"))?;
        Ok(Device::named(name))
    }

    /// The regions on that bus, in the order of their addresses.
    pub fn regions(&self) -> Result<Vec<Device>> {
        let mut regions = sysfs::names(self.bus()?.path(""))?
            .into_iter()
            .filter(|name| name.starts_with("region"))
            .map(|name| {
                let region = Device::named(name);
                Ok((region.resource()?, region))
            })
            .collect::<Result<Vec<_>>>()?;
        regions.sort();
        Ok(regions.into_iter().map(|(_, region)| region).collect())
    }

    /// Where these are and how large, in bytes.
    pub fn ranges(&self) -> Result<Vec<(u64, u64)>> {
        self.regions()?
            .iter()
            .map(|region| Ok((region.resource()?, region.get("size")?.parse()?)))
            .collect()
    }

    /// What sysfs says about the bus, its regions and the namespaces in them.
    pub fn description(&self) -> Result<Description> {
        let mut found = BTreeMap::new();
        describe(&self.path("").join(self.bus()?.name()), "", &mut found)?;
        Ok(Description(found))
    }
}

/// Every attribute that can be read, by its path.
pub struct Description(BTreeMap<String, String>);

impl Description {
    /// Leaves out a region and what is in it.
    pub fn without(mut self, region: &Device) -> Description {
        let prefix = format!("{}/", region.name());
        self.0.retain(|key, _| !key.starts_with(&prefix));
        self
    }

    /// Checks that another one says the same.
    pub fn expect_same(&self, other: &Description) -> Result<()> {
        ensure!(
            self.0.len() > 20,
            "there is not much to compare: {:#?}",
            self.0
        );
        let keys: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|key| self.0.get(*key) != other.0.get(*key))
            .map(|key| format!("{key}: {:?}, {:?}", self.0.get(key), other.0.get(key)))
            .collect();
        ensure!(differences.is_empty(), "it differs: {differences:#?}");
        Ok(())
    }
}

/// Goes into the folders of regions and namespaces only, and leaves out the numbers of the next devices to
/// be configured.
fn describe(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) -> Result<()> {
    for name in sysfs::names(dir)? {
        let path = dir.join(&name);
        let key = format!("{prefix}{name}");
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() && (name.starts_with("region") || name.starts_with("namespace")) {
            describe(&path, &format!("{key}/"), found)?;
        } else if kind.is_file() && !name.ends_with("_seed") {
            // Some can only be written to.
            if let Ok(value) = fs::read_to_string(&path) {
                found.insert(key, value);
            }
        }
    }
    Ok(())
}

impl fmt::Display for PlatformDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
