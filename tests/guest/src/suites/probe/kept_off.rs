// SPDX-License-Identifier: GPL-2.0

//! What this driver refuses, another driver does not get.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::block_test::BlockTest;
use super::claims::{UUID, claim};
use super::lost_blocks::lose_block;
use crate::command::run;
use crate::disk::Disk;
use crate::driver::Driver;
use crate::errno;
use crate::infoblock::Field;
use crate::lab::{Lab, Skip, holder};
use crate::leaks::reservation;
use crate::messages::Messages;
use crate::nd::{Device, disable_provider, enable_provider, settle};
use crate::ndctl::{self, Mode};
use crate::sysfs;

const PROBE: &str = "/sys/bus/nd/drivers_probe";
const KEPT_OFF: &str = "this driver is kept off";

/// Loads the other driver.
fn load_other(lab: &Lab) -> Result<Driver> {
    let other = lab.driver.other();
    if !other.is_available()? {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    other.load()?;
    Ok(other)
}

fn expect_unbound(lab: &Lab, device: &Device) -> Result<()> {
    settle()?;
    device.expect_driver(None)?;
    let disks = Disk::all("pmem")?;
    ensure!(disks.is_empty(), "there are {disks:?}");
    // Nothing stays reserved.
    let start = lab.namespace(0)?.resource()?;
    let by = reservation(start)?;
    ensure!(by.is_none(), "{start:#x} is reserved by {by:?}");
    Ok(())
}

/// Loads the other driver, and offers a refused device to it. Does nothing if it is not available.
pub fn expect_no_driver(lab: &Lab, device: &Device) -> Result<()> {
    let other = lab.driver.other();
    if !other.is_available()? {
        return Ok(());
    }
    other.load()?;
    let result = device.try_bind(other);
    errno::expect("binding the other driver", result, &[Errno::EBUSY])?;
    other.unload()
}

/// Offers a refused device to the other driver in all ways.
fn expect_kept_off(lab: &Lab, device: &Device) -> Result<()> {
    let other = lab.driver.other();
    for _ in 0..2 {
        let mut messages = Messages::from_now()?;
        let result = device.try_bind(other);
        errno::expect("binding the other driver", result, &[Errno::EBUSY])?;
        let line = messages.expect(&[KEPT_OFF])?;
        let expected = format!("{} {device}", other.name());
        ensure!(line.starts_with(&expected), "the log says `{line}`");
        expect_unbound(lab, device)?;
        sysfs::write(PROBE, device.name())?;
        expect_unbound(lab, device)?;
    }
    Ok(())
}

/// Checks what ndctl does with a device that is refused: list, disable, recreate, destroy. `again`
/// makes such a device, with the other driver loaded.
fn expect_ndctl_works(lab: &Lab, again: impl Fn() -> Result<()>) -> Result<()> {
    let show = || -> Result<Device> {
        let namespace = lab.namespace(0)?;
        // ndctl shows no size of a btt device without a driver.
        let listed = run("ndctl", &["list", "-N", "-i", "-n", namespace.name()])?;
        ensure!(
            listed.contains(r#""state":"disabled""#),
            "ndctl lists {listed}"
        );
        run("ndctl", &["list", "-RDNXi"])?;
        Ok(namespace)
    };
    let namespace = show()?;
    run("ndctl", &["disable-namespace", namespace.name()])?;
    for mode in [Mode::FsdaxMem, Mode::Sector, Mode::Raw] {
        ndctl::reconfigure(&show()?, mode)?;
        lab.holder_in(0)?.expect_driver(Some(lab.driver))?;
        again()?;
    }
    run("ndctl", &["destroy-namespace", "-f", show()?.name()])?;
    ndctl::create(&lab.region(0)?, Mode::Raw, &[])?;
    lab.holder_in(0)?.expect_driver(Some(lab.driver))
}

/// `force_raw` lets both drivers bind the namespace, and only while it is set.
fn expect_forced(lab: &Lab, namespace: &Device) -> Result<()> {
    for driver in [lab.driver.other(), lab.driver] {
        namespace.set("force_raw", "1")?;
        namespace.bind(driver)?;
        Disk::named(namespace.disk_name()?).bytes()?;
        namespace.unbind()?;
        namespace.set("force_raw", "0")?;
        expect_kept_off(lab, namespace)?;
    }
    Ok(())
}

/// Spoils the checksum of an fsdax namespace, and offers it to the driver.
fn spoil(lab: &Lab) -> Result<Device> {
    let target = BlockTest::of(lab, lab.ready(0)?, Mode::FsdaxMem)?;
    let result = target.probe_with(lab, &target.good.with_wrong_checksum())?;
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    Ok(target.namespace)
}

pub fn namespace(lab: &mut Lab) -> Result<()> {
    let namespace = spoil(lab)?;
    load_other(lab)?;
    expect_unbound(lab, &namespace)?;
    expect_kept_off(lab, &namespace)?;
    expect_forced(lab, &namespace)?;
    expect_ndctl_works(lab, || spoil(lab).map(drop))
}

/// A driver that is offered the device right after the refusal is kept off, too.
pub fn from_the_beginning(lab: &mut Lab) -> Result<()> {
    spoil(lab)?;
    load_other(lab)?;
    let mut messages = Messages::from_now()?;
    disable_provider()?;
    enable_provider()?;
    messages.expect(&[KEPT_OFF])?;
    let namespace = lab.namespace(0)?;
    expect_unbound(lab, &namespace)?;
    expect_kept_off(lab, &namespace)
}

pub fn lost_block(lab: &mut Lab) -> Result<()> {
    let namespace = lose_block(lab, Mode::FsdaxMem)?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    let other = load_other(lab)?;
    expect_kept_off(lab, &namespace)?;
    // The user says that it is raw: nothing is wrong with it any more.
    namespace.set("holder_class", "\n")?;
    namespace.bind(other)?;
    namespace.unbind()?;
    namespace.bind(lab.driver)
}

/// Makes a pfn device that is refused, and still has the namespace.
fn refused_pfn(lab: &Lab) -> Result<Device> {
    let target = BlockTest::of(lab, lab.ready(0)?, Mode::FsdaxMem)?;
    let result = target.probe_with(lab, &target.good.with(Field::MajorVersion, 2))?;
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    claim_refused(lab, &target.namespace)
}

/// Makes a pfn device of a namespace that is refused.
fn claim_refused(lab: &Lab, namespace: &Device) -> Result<Device> {
    let pfn = claim(namespace, &[("mode", "ram"), ("uuid", UUID)])?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("binding its pfn device", result, &[Errno::EOPNOTSUPP])?;
    Ok(pfn)
}

pub fn pfn(lab: &mut Lab) -> Result<()> {
    let pfn = refused_pfn(lab)?;
    load_other(lab)?;
    expect_unbound(lab, &pfn)?;
    expect_kept_off(lab, &pfn)?;
    pfn.give_up_namespace()?;
    let namespace = lab.namespace(0)?;
    expect_forced(lab, &namespace)?;
    claim_refused(lab, &namespace)?;
    expect_ndctl_works(lab, || refused_pfn(lab).map(drop))
}

/// Makes a btt device of a namespace that is refused, and still has the namespace.
fn refused_btt(lab: &Lab, target: &BlockTest) -> Result<Device> {
    let btt = target.bind_with(lab, &target.good)?;
    btt.unbind()?;
    let size = btt.get("sector_size")?;
    let other = if size.contains("[512]") {
        "4096"
    } else {
        "512"
    };
    btt.set("sector_size", other)?;
    let result = btt.try_bind(lab.driver);
    errno::expect("binding its btt device", result, &[Errno::EOPNOTSUPP])?;
    Ok(btt)
}

pub fn btt(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::Sector)?;
    let btt = refused_btt(lab, &target)?;
    load_other(lab)?;
    expect_unbound(lab, &btt)?;
    expect_kept_off(lab, &btt)?;
    // The namespace itself was not refused.
    btt.give_up_namespace()?;
    let namespace = lab.namespace(0)?;
    for driver in [lab.driver.other(), lab.driver] {
        namespace.set("force_raw", "1")?;
        namespace.bind(driver)?;
        namespace.unbind()?;
        namespace.set("force_raw", "0")?;
    }
    refused_btt(lab, &target)?;
    expect_ndctl_works(lab, || {
        refused_btt(lab, &BlockTest::new(lab, Mode::Sector)?).map(drop)
    })
}

/// Without this driver the other one gets the device. It is kept off again when this driver has
/// refused the device again.
pub fn without_the_module(lab: &mut Lab) -> Result<()> {
    let namespace = spoil(lab)?;
    let other = load_other(lab)?;
    expect_kept_off(lab, &namespace)?;
    lab.driver.unload()?;
    namespace.bind(other)?;
    namespace.unbind()?;
    lab.driver.load()?;
    expect_unbound(lab, &namespace)?;
    expect_kept_off(lab, &namespace)
}

/// The module is unloaded while the other driver probes, and the provider removed between two of
/// its probes.
///
/// The removal waits for a probe in any case, for the device lock. But a write to `bind` or
/// `unbind` that ends after the region was freed makes libnvdimm use freed memory: see
/// docs/kernel-bugs.md.
pub fn races(lab: &mut Lab) -> Result<()> {
    let namespace = spoil(lab)?;
    let other = load_other(lab)?;
    let (done, offering) = (AtomicBool::new(false), Mutex::new(()));
    thread::scope(|scope| -> Result<()> {
        let offers = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                {
                    let _offering = offering.lock();
                    let _ = namespace.try_bind(other);
                    let _ = namespace.try_unbind(other);
                }
                count += 1;
                // The mutex is not fair.
                thread::sleep(Duration::from_micros(100));
            }
            count
        });
        let result = (0..8).try_for_each(|round| {
            lab.driver.unload()?;
            lab.driver.load()?;
            if round % 2 == 0 {
                let _offering = offering.lock();
                disable_provider()?;
                enable_provider()?;
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        if let Ok(count) = offers.join() {
            println!("offered {count} times");
        }
        result
    })?;
    let bound = holder(&lab.namespace(0)?)?;
    if bound.driver().is_some() {
        bound.unbind()?;
    }
    let namespace = lab.namespace(0)?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    expect_kept_off(lab, &namespace)
}
