// SPDX-License-Identifier: GPL-2.0

//! The two drivers in one guest: each has an NVDIMM, and both NVDIMMs have the same size.

use anyhow::Result;

use crate::disk::Disk;
use crate::driver::Driver;
use crate::lab::{Lab, holder};
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};

/// A driver and its device.
#[derive(Clone)]
pub struct Side {
    pub driver: Driver,
    /// The index of the region of its NVDIMM.
    region: u32,
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
    /// Makes each driver's NVDIMM an fsdax namespace, unless it is one already.
    pub fn ready(lab: &Lab) -> Result<Pair> {
        for driver in [Driver::NdPmem, Driver::PmemRs] {
            if !driver.is_loaded() {
                driver.load()?;
            }
        }
        let ours = u32::from(lab.swapped);
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
    fn ready(lab: &Lab, driver: Driver, region: u32) -> Result<Side> {
        let namespace = lab.namespace(region)?;
        // The size of a namespace is known only while it has a driver.
        let side = Side::taken(driver, region, namespace)?;
        let now = ndctl::show(&side.namespace)?;
        let whole = now.size >> 20 >= WHOLE_MIB - MARGIN_MIB;
        if now.mode == "fsdax" && whole {
            Ok(side)
        } else {
            side.resized(WHOLE_MIB)
        }
    }

    /// Binds a namespace to the driver, whichever driver is bound to it.
    fn taken(driver: Driver, region: u32, namespace: Device) -> Result<Side> {
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
            region,
            namespace,
            bound,
            disk,
        })
    }

    /// The same driver with a namespace of another size, in MiB. All data are lost.
    pub fn resized(&self, mib: u64) -> Result<Side> {
        let size = format!("{mib}M");
        ndctl::reconfigure_with(&self.namespace, Mode::FsdaxMem, &["-s", &size])?;
        Side::taken(self.driver, self.region, self.namespace.clone())
    }
}
