// SPDX-License-Identifier: GPL-2.0

//! The driver under test, as a module that can be loaded and removed.

use std::ffi::CString;
use std::io;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use nix::kmod::{DeleteModuleFlags, delete_module};

use crate::command::run;
use crate::coverage;
use crate::nd::{Device, settle};
use crate::sysfs;

/// A driver for NVDIMM namespaces.
///
/// The module and its nd driver have the same name, for both drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Driver {
    /// The driver of this project.
    PmemRs,
    /// The in-tree driver, which serves as the reference of the tests.
    NdPmem,
}

impl Driver {
    /// The name of the module and of the driver on the nd bus.
    pub fn name(self) -> &'static str {
        match self {
            Driver::PmemRs => "pmem_rs",
            Driver::NdPmem => "nd_pmem",
        }
    }

    /// The driver that competes for the same devices.
    pub fn other(self) -> Driver {
        match self {
            Driver::PmemRs => Driver::NdPmem,
            Driver::NdPmem => Driver::PmemRs,
        }
    }

    /// Loads the module and waits until it has bound the existing devices.
    pub fn load(self) -> Result<()> {
        match self {
            Driver::PmemRs => coverage::loading(|| run("modprobe", &[self.name()]))?,
            Driver::NdPmem => run("modprobe", &[self.name()])?,
        };
        settle()
    }

    /// Removes the module, which unbinds it from all its devices.
    pub fn unload(self) -> Result<()> {
        run("rmmod", &[self.name()])?;
        coverage::unloaded();
        Ok(())
    }

    /// Removes the module although it is in use, as `rmmod -f` does. The kernel is tainted then.
    pub fn unload_by_force(self) -> io::Result<()> {
        let name = CString::new(self.name())?;
        delete_module(
            &name,
            DeleteModuleFlags::O_NONBLOCK | DeleteModuleFlags::O_TRUNC,
        )?;
        coverage::unloaded();
        Ok(())
    }

    /// Whether the module is loaded.
    pub fn is_loaded(self) -> bool {
        Path::new("/sys/module").join(self.name()).exists()
    }

    /// Whether the module is part of the guest image.
    pub fn is_available(self) -> Result<bool> {
        let release = sysfs::read("/proc/sys/kernel/osrelease")?;
        let modules = sysfs::read(format!("/lib/modules/{release}/modules.dep"))?;
        Ok(modules.contains(&format!("/{}.ko", self.name())))
    }

    /// The devices on the nd bus that are bound to this driver.
    pub fn devices(self) -> Result<Vec<Device>> {
        let devices = Device::all()?;
        Ok(devices
            .into_iter()
            .filter(|device| device.driver().as_deref() == Some(self.name()))
            .collect())
    }
}
