// SPDX-License-Identifier: GPL-2.0

//! virtio-pmem devices on the PCI bus, and their hotplug.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::nd::{Device, settle};
use crate::sysfs;

const RESCAN: &str = "/sys/bus/pci/rescan";

/// How long a hotplugged device may take to appear.
const PLUG_LIMIT: Duration = Duration::from_secs(20);

/// A virtio-pmem device: a provider with one region.
#[derive(Clone, Debug)]
pub struct VirtioPmem {
    /// Its region.
    pub region: Device,
    /// The PCI device.
    path: PathBuf,
}

impl VirtioPmem {
    /// All that there are.
    pub fn all() -> Result<Vec<VirtioPmem>> {
        let mut found = Vec::new();
        for region in Device::all_of("region")? {
            let path = fs::canonicalize(region.path(""))?;
            let is_virtio = |dir: &&std::path::Path| {
                let name = dir.file_name().map(|name| name.to_string_lossy());
                name.is_some_and(|name| name.starts_with("virtio"))
            };
            // The virtio device is a child of the PCI device.
            let virtio = path.ancestors().find(is_virtio);
            if let Some(pci) = virtio.and_then(|virtio| virtio.parent()) {
                let path = pci.to_owned();
                found.push(VirtioPmem { region, path });
            }
        }
        Ok(found)
    }

    /// The device that the machine was started with.
    pub fn first() -> Result<VirtioPmem> {
        let all = VirtioPmem::all()?;
        all.into_iter()
            .find(|device| !device.is_pluggable())
            .context("there is no virtio-pmem device")
    }

    /// The hotplugged device, which is behind a bridge.
    pub fn plugged() -> Result<Option<VirtioPmem>> {
        let all = VirtioPmem::all()?;
        Ok(all.into_iter().find(VirtioPmem::is_pluggable))
    }

    fn is_pluggable(&self) -> bool {
        self.path.parent().is_some_and(|parent| {
            // The root of the bus is not a device: it lacks this attribute.
            parent.join("class").exists()
        })
    }

    /// Waits until a hotplugged device has appeared.
    pub fn await_plugged() -> Result<VirtioPmem> {
        let deadline = Instant::now() + PLUG_LIMIT;
        loop {
            if let Some(device) = VirtioPmem::plugged()? {
                settle()?;
                return Ok(device);
            }
            ensure!(
                Instant::now() < deadline,
                "the device that was plugged in is not there after {PLUG_LIMIT:?}"
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// Removes the device from the kernel, as an unplug does. The machine keeps it.
    pub fn remove(&self) -> Result<()> {
        sysfs::write(self.path.join("remove"), "1")
    }

    /// Makes the kernel scan the bus again.
    pub fn rescan() -> Result<()> {
        sysfs::write(RESCAN, "1")?;
        settle()
    }
}
