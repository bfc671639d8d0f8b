// SPDX-License-Identifier: GPL-2.0

//! What a test gets to work with.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cli::TestArgs;
use crate::disk::Disk;
use crate::driver::Driver;
use crate::nd::Device;
use crate::ndctl::{self, Mode};

/// The bench on which a test works: a driver, the machine's regions and a source of chance.
pub struct Lab {
    /// The driver under test.
    pub driver: Driver,
    /// How long a test goes on that could go on for ever.
    pub stress: Duration,
    /// Whether the second NVDIMM belongs to the driver under test, not the first, when both are compared.
    pub swapped: bool,
    /// What chance starts from.
    pub seed: u64,
    /// How many boots of the same campaign there were before.
    pub round: u64,
    /// Chance, the same in every run with the same seed.
    pub random: ChaCha8Rng,
}

/// A namespace that was prepared for a test and the disk that it became.
pub struct Prepared {
    /// The namespace device.
    pub namespace: Device,
    /// What the driver is bound to: the namespace itself if it is raw, else what claims it.
    pub bound: Device,
    /// The disk.
    pub disk: Disk,
}

impl Lab {
    /// Sets up a bench. Every test has a `stream` of its own, so that it does the same whichever
    /// tests run before it, and so has every boot.
    pub fn new(args: &TestArgs, stream: u64) -> Lab {
        let mut random = ChaCha8Rng::seed_from_u64(args.seed);
        random.set_stream((args.round << 32) | stream);
        Lab {
            driver: args.driver,
            stress: args.stress(),
            swapped: args.swapped,
            seed: args.seed,
            round: args.round,
            random,
        }
    }

    /// The region that comes at this place in the order of addresses. Its name says so only until the
    /// provider has gone and come back.
    pub fn region(&self, place: u32) -> Result<Device> {
        let mut regions = Device::all_of("region")?
            .into_iter()
            .map(|region| Ok((region.resource()?, region)))
            .collect::<Result<Vec<_>>>()?;
        regions.sort();
        let (_, region) = regions
            .into_iter()
            .nth(place as usize)
            .with_context(|| format!("there are not more than {place} regions"))?;
        Ok(region)
    }

    /// The first namespace of a region that is not empty.
    pub fn namespace(&self, region: u32) -> Result<Device> {
        let region = self.region(region)?;
        let prefix = format!("{}.", region.name().replace("region", "namespace"));
        for namespace in Device::all_of(&prefix)? {
            if namespace.get("size")? != "0" {
                return Ok(namespace);
            }
        }
        anyhow::bail!("{region} has no namespace")
    }

    /// Makes the namespace of the first region one with a disk, from scratch.
    pub fn prepare(&self, mode: Mode) -> Result<Prepared> {
        self.prepare_in(0, mode)
    }

    /// As [`Lab::prepare`], in a region of choice.
    pub fn prepare_in(&self, region: u32, mode: Mode) -> Result<Prepared> {
        let namespace = self.namespace(region)?;
        let made = ndctl::reconfigure(&namespace, mode)?;
        let disk = made
            .blockdev
            .with_context(|| format!("{namespace} has no disk"))?;
        let bound = holder(&namespace)?;
        bound.expect_driver(Some(self.driver))?;
        let disk = Disk::named(disk);
        ensure!(disk.exists(), "{disk} is not there");
        Ok(Prepared {
            namespace,
            bound,
            disk,
        })
    }

    /// The fsdax namespace of a region with struct pages in RAM: as it is if it is one already, else
    /// from scratch.
    pub fn ready(&self, region: u32) -> Result<Prepared> {
        let namespace = self.namespace(region)?;
        let bound = holder(&namespace)?;
        let fits = bound.name().starts_with("pfn") && bound.get("mode")? == "ram";
        if !fits || bound.driver().as_deref() != Some(self.driver.name()) {
            return self.prepare_in(region, Mode::FsdaxMem);
        }
        let disk = Disk::named(bound.disk_name()?);
        Ok(Prepared {
            namespace,
            bound,
            disk,
        })
    }

    /// What stands for the namespace of a region on the bus.
    pub fn holder_in(&self, region: u32) -> Result<Device> {
        holder(&self.namespace(region)?)
    }
}

/// What stands for a namespace on the bus: the device that claims it, or itself.
pub fn holder(namespace: &Device) -> Result<Device> {
    let holder = namespace.get("holder")?;
    Ok(if holder.is_empty() {
        namespace.clone()
    } else {
        Device::named(holder)
    })
}

/// The reason why a test cannot be done on this machine, returned as its error.
#[derive(Debug)]
pub struct Skip(pub &'static str);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skip {}
