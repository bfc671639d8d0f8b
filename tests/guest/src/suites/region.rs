// SPDX-License-Identifier: GPL-2.0

//! A namespace that has outlived the binding of its region, because of a race in libnvdimm.

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{Suite, Test};
use crate::lab::{Lab, Skip};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::{errno, sysfs};

pub const SUITE: Suite = Suite {
    name: "region",
    // What is left cannot be tidied up without a warning of the kernel.
    tests: &[Test::step("namespace_without_a_bound_region", refused).within(240)],
};

/// How often the race is tried.
const ROUNDS: u32 = 1000;

/// Binds and unbinds a region repeatedly, until one of its namespaces is there after that.
pub fn outlive(region: &Device) -> Result<Option<Device>> {
    let prefix = region.name().replace("region", "namespace");
    for round in 0..ROUNDS {
        region.try_unbind_region()?;
        settle()?;
        let left = sysfs::names(region.path(""))?
            .into_iter()
            .find(|name| name.starts_with(&prefix));
        if let Some(name) = left {
            println!("{name} is left in round {round}");
            return Ok(Some(Device::named(name)));
        }
        sysfs::write("/sys/bus/nd/drivers/nd_region/bind", region.name())?;
    }
    Ok(None)
}

fn refused(lab: &mut Lab) -> Result<()> {
    let region = lab.region(0)?;
    let Some(namespace) = outlive(&region)? else {
        return Err(Skip("no namespace has outlived the binding of its region").into());
    };
    if namespace.driver().is_some() {
        namespace.unbind()?;
    }

    for _ in 0..3 {
        let mut messages = Messages::from_now()?;
        let result = namespace.try_bind(lab.driver);
        errno::expect("binding below such a region", result, &[Errno::ENXIO])?;
        let said = messages.expect(&["was unbound while this device was added"])?;
        println!("the kernel says: {said}");
        ensure!(said.contains(region.name()), "{region} is not named");
        namespace.expect_driver(None)?;
    }
    Ok(())
}
