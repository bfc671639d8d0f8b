// SPDX-License-Identifier: GPL-2.0

//! The two drivers side by side in one guest: each has an NVDIMM, and both are of the same size.

use anyhow::Result;

use crate::disk::Disk;
use crate::driver::Driver;
use crate::lab::{Lab, holder};
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};

/// A driver and its device.
pub struct Side {
    pub driver: Driver,
    /// Which NVDIMM it has.
    region: u32,
    pub namespace: Device,
    /// What the driver is bound to.
    pub bound: Device,
    pub disk: Disk,
}

/// The in-tree driver first, as in everything that is said about both.
pub struct Pair {
    pub nd_pmem: Side,
    pub pmem_rs: Side,
}

impl Pair {
    /// Gives each driver its NVDIMM, as an fsdax namespace. What is so already stays as it is.
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

    /// Both.
    pub fn sides(&self) -> [&Side; 2] {
        [&self.nd_pmem, &self.pmem_rs]
    }
}

/// How large the namespaces are, unless a case wants it otherwise: the whole NVDIMM.
const WHOLE_MIB: u64 = 1152;
/// How much an info block and the like may take of it.
const MARGIN_MIB: u64 = 16;

impl Side {
    fn ready(lab: &Lab, driver: Driver, region: u32) -> Result<Side> {
        let namespace = lab.namespace(region)?;
        // Nobody tells the size of a namespace without a driver.
        let side = Side::taken(driver, region, namespace)?;
        let now = ndctl::show(&side.namespace)?;
        let whole = now.size >> 20 >= WHOLE_MIB - MARGIN_MIB;
        if now.mode == "fsdax" && whole {
            Ok(side)
        } else {
            side.resized(WHOLE_MIB)
        }
    }

    /// Gives a namespace to the driver, whoever has it.
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

    /// The same driver with another size of namespace, in MiB. Everything in it is lost.
    pub fn resized(&self, mib: u64) -> Result<Side> {
        let size = format!("{mib}M");
        ndctl::reconfigure_with(&self.namespace, Mode::FsdaxMem, &["-s", &size])?;
        Side::taken(self.driver, self.region, self.namespace.clone())
    }
}
