// SPDX-License-Identifier: GPL-2.0

//! The two drivers side by side: each has a device, and both devices have the same size. In a guest
//! that is the namespace of an NVDIMM. On a user's machine the namespaces are named.

use anyhow::Result;

use crate::disk::Disk;
use crate::driver::Driver;
use crate::lab::{Lab, Skip, holder};
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};

/// A driver and its device.
#[derive(Clone)]
pub struct Side {
    pub driver: Driver,
    /// Whether the namespace may be reconfigured.
    resizable: bool,
    pub namespace: Device,
    /// The device to which the driver is bound.
    pub bound: Device,
    pub disk: Disk,
}

/// Both drivers, the in-tree driver first, as in all output.
pub struct Pair {
    pub nd_pmem: Side,
    pub pmem_rs: Side,
}

impl Pair {
    /// Binds each driver to its device. Makes an NVDIMM an fsdax namespace unless it is one.
    pub fn ready(lab: &Lab) -> Result<Pair> {
        for driver in [Driver::NdPmem, Driver::PmemRs] {
            if !driver.is_loaded() {
                driver.load()?;
            }
        }
        let ours = usize::from(lab.swapped);
        Ok(Pair {
            nd_pmem: Side::ready(lab, Driver::NdPmem, 1 - ours)?,
            pmem_rs: Side::ready(lab, Driver::PmemRs, ours)?,
        })
    }

    /// Both sides.
    pub fn sides(&self) -> [&Side; 2] {
        [&self.nd_pmem, &self.pmem_rs]
    }
}

/// The size of the namespaces by default: the whole NVDIMM.
const WHOLE_MIB: u64 = 1152;
/// How many MiB an info block and other metadata may take of it.
const MARGIN_MIB: u64 = 16;

impl Side {
    fn ready(lab: &Lab, driver: Driver, index: usize) -> Result<Side> {
        if let Some(named) = &lab.namespaces {
            return Side::taken(driver, false, named[index].clone());
        }
        let namespace = lab.namespace(index.try_into()?)?;
        // The size of a namespace is known only while it has a driver.
        let side = Side::taken(driver, true, namespace)?;
        let now = ndctl::show(&side.namespace)?;
        let whole = now.size >> 20 >= WHOLE_MIB - MARGIN_MIB;
        if now.mode == "fsdax" && whole {
            Ok(side)
        } else {
            side.resized(WHOLE_MIB)
        }
    }

    /// Binds a namespace to the driver, whichever driver is bound to it.
    fn taken(driver: Driver, resizable: bool, namespace: Device) -> Result<Side> {
        settle()?;
        let bound = holder(&namespace)?;
        match bound.driver() {
            Some(name) if name == driver.name() => {}
            Some(_) => {
                bound.unbind()?;
                bound.bind(driver)?;
            }
            None => bound.bind(driver)?,
        }
        let disk = Disk::named(bound.disk_name()?);
        Ok(Side {
            driver,
            resizable,
            namespace,
            bound,
            disk,
        })
    }

    /// The same driver with a namespace of another size, in MiB. All data are lost.
    pub fn resized(&self, mib: u64) -> Result<Side> {
        if !self.resizable {
            return Err(Skip("the namespaces keep their size").into());
        }
        let size = format!("{mib}M");
        ndctl::reconfigure_with(&self.namespace, Mode::FsdaxMem, &["-s", &size])?;
        Side::taken(self.driver, self.resizable, self.namespace.clone())
    }
}
