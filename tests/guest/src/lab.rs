// SPDX-License-Identifier: GPL-2.0

//! The fixture of a test.

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

/// What every test is given: a driver, the regions of the machine and a source of random numbers.
pub struct Lab {
    /// The driver under test.
    pub driver: Driver,
    /// How long a stress test runs.
    pub stress: Duration,
    /// Whether the driver under test is bound to the second NVDIMM, when both drivers are compared.
    pub swapped: bool,
    /// The two namespaces for both drivers, on a machine that is not a guest.
    pub namespaces: Option<[Device; 2]>,
    /// The seed of the random numbers.
    pub seed: u64,
    /// How many boots of the same campaign there were before.
    pub round: u64,
    /// Random numbers, the same in every run with the same seed.
    pub random: ChaCha8Rng,
}

/// A namespace that was prepared for a test, and its disk.
pub struct Prepared {
    /// The namespace device.
    pub namespace: Device,
    /// What the driver is bound to: the namespace itself if it is raw, else what claims it.
    pub bound: Device,
    /// The disk.
    pub disk: Disk,
}

impl Lab {
    /// Makes a lab. Every test has a `stream` of random numbers of its own, so that it does the
    /// same whichever tests run before it. Every boot has its own, too.
    pub fn new(args: &TestArgs, stream: u64) -> Lab {
        let mut random = ChaCha8Rng::seed_from_u64(args.seed);
        random.set_stream((args.round << 32) | stream);
        Lab {
            driver: args.driver,
            stress: args.stress(),
            swapped: args.swapped,
            namespaces: args.namespaces(),
            seed: args.seed,
            round: args.round,
            random,
        }
    }

    /// The region with this index in the order of addresses. The index matches the name only until
    /// the provider is reloaded.
    pub fn region(&self, index: u32) -> Result<Device> {
        let mut regions = Device::all_of("region")?
            .into_iter()
            .map(|region| Ok((region.resource()?, region)))
            .collect::<Result<Vec<_>>>()?;
        regions.sort();
        let (_, region) = regions
            .into_iter()
            .nth(index as usize)
            .with_context(|| format!("there are not more than {index} regions"))?;
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

    /// Reconfigures the namespace of the first region to this mode.
    pub fn prepare(&self, mode: Mode) -> Result<Prepared> {
        self.prepare_in(0, mode)
    }

    /// As [`Lab::prepare`], in the given region.
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

    /// The fsdax namespace of a region with struct pages in RAM. Reconfigures the namespace unless
    /// it has that mode already.
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

    /// The device of a region's namespace to which a driver binds.
    pub fn holder_in(&self, region: u32) -> Result<Device> {
        holder(&self.namespace(region)?)
    }
}

/// The device to which a driver binds: the one that claims the namespace, or the namespace itself.
pub fn holder(namespace: &Device) -> Result<Device> {
    let holder = namespace.get("holder")?;
    Ok(if holder.is_empty() {
        namespace.clone()
    } else {
        Device::named(holder)
    })
}

/// The reason why a test is skipped on this machine, returned as the test's error.
#[derive(Debug)]
pub struct Skip(pub &'static str);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skip {}
