// SPDX-License-Identifier: GPL-2.0

//! Platform devices for persistent memory, and the nd buses of their drivers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::nd::{Device, settle};
use crate::sysfs;

const BUS: &str = "/sys/bus/platform";

/// The device for persistent memory that the E820 table of a PC reports, if there is any.
pub const LEGACY: &str = "e820_pmem";
/// The in-tree driver for it, which has the same name as the device, and its module.
pub const LEGACY_DRIVER: &str = "e820_pmem";
pub const LEGACY_MODULE: &str = "nd_e820";
/// The in-tree driver for nodes of a device tree, and its module.
pub const TREE_DRIVER: &str = "of_pmem";
/// The module for the kind of device that machines of this architecture have.
pub const PLATFORM_MODULE: &str = if cfg!(target_arch = "x86_64") {
    LEGACY_MODULE
} else {
    TREE_DRIVER
};
/// The modules of the in-tree drivers.
pub const IN_TREE_MODULES: [&str; 2] = [LEGACY_MODULE, TREE_DRIVER];

/// A device on the platform bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformDevice(String);

impl PlatformDevice {
    /// Names a device. It need not exist.
    pub fn named(name: impl Into<String>) -> PlatformDevice {
        PlatformDevice(name.into())
    }

    /// All devices, sorted by name.
    pub fn all() -> Result<Vec<PlatformDevice>> {
        let names = sysfs::names(Path::new(BUS).join("devices"))?;
        Ok(names.into_iter().map(PlatformDevice).collect())
    }

    /// All devices that have drivers for persistent memory.
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

    /// The name of the driver that is bound to the device.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Checks which driver is bound to the device.
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

    /// Binds a driver to the device and returns the kernel's error unchanged.
    pub fn try_bind(&self, driver: &str) -> io::Result<()> {
        self.order(driver, "bind")
    }

    /// Binds a driver to the device, and waits until its regions exist.
    pub fn bind(&self, driver: &str) -> Result<()> {
        self.try_bind(driver)
            .with_context(|| format!("binding {self} to {driver}"))?;
        self.expect_driver(Some(driver))?;
        settle()
    }

    /// Unbinds a driver from the device and returns the kernel's error unchanged.
    pub fn try_unbind(&self, driver: &str) -> io::Result<()> {
        self.order(driver, "unbind")
    }

    /// Unbinds the device from its driver.
    pub fn unbind(&self) -> Result<()> {
        let driver = self
            .driver()
            .with_context(|| format!("{self} has no driver to unbind"))?;
        self.try_unbind(&driver)
            .with_context(|| format!("unbinding {self} from {driver}"))?;
        self.expect_driver(None)
    }

    /// Sets the only driver that may bind to the device; none allows every driver that matches.
    pub fn set_override(&self, driver: Option<&str>) -> Result<()> {
        let line = format!("{}\n", driver.unwrap_or_default());
        sysfs::write(self.path("driver_override"), &line)
    }

    /// Makes the kernel probe all loaded drivers for the device.
    pub fn probe(&self) -> Result<()> {
        sysfs::write(Path::new(BUS).join("drivers_probe"), &self.0)?;
        settle()
    }

    /// The nd bus that the driver has registered.
    pub fn bus(&self) -> Result<Device> {
        let names = sysfs::names(self.path(""))?;
        let name = names
            .into_iter()
            .find(|name| name.starts_with("ndbus"))
            .with_context(|| format!("{self} has no nd bus"))?;
        Ok(Device::named(name))
    }

    /// The regions on that bus, in the order of addresses.
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

    /// The start and size of each region, in bytes.
    pub fn ranges(&self) -> Result<Vec<(u64, u64)>> {
        self.regions()?
            .iter()
            .map(|region| Ok((region.resource()?, region.get("size")?.parse()?)))
            .collect()
    }

    /// All attributes of the bus, its regions and their namespaces.
    pub fn description(&self) -> Result<Description> {
        let mut found = BTreeMap::new();
        describe(&self.path("").join(self.bus()?.name()), "", &mut found)?;
        Ok(Description(found))
    }
}

/// The value of every readable attribute, by its path.
pub struct Description(BTreeMap<String, String>);

impl Description {
    /// Removes a region and its children from the description.
    pub fn without(mut self, region: &Device) -> Description {
        let prefix = format!("{}/", region.name());
        self.0.retain(|key, _| !key.starts_with(&prefix));
        self
    }

    /// Checks that two descriptions are equal.
    pub fn expect_same(&self, other: &Description) -> Result<()> {
        ensure!(self.0.len() > 20, "too few attributes: {:#?}", self.0);
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

/// Visits only the folders of regions and namespaces, and skips the seed attributes, whose numbers
/// vary.
fn describe(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) -> Result<()> {
    for name in sysfs::names(dir)? {
        let path = dir.join(&name);
        let key = format!("{prefix}{name}");
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() && (name.starts_with("region") || name.starts_with("namespace")) {
            describe(&path, &format!("{key}/"), found)?;
        } else if kind.is_file() && !name.ends_with("_seed") {
            // Some attributes are write-only.
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
