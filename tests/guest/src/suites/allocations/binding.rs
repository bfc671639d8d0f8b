// SPDX-License-Identifier: GPL-2.0

//! Binding of devices and loading of the module.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use super::{NO_MEMORY, NOT_PROBED, Walk, small};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::injection::{ASYNC, Scope};
use crate::lab::{Lab, Prepared, holder};
use crate::nd::{Device, settle};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};
use crate::sysfs;

/// The debugfs file that lists bound devices, one a line.
const LIST: &str = "/sys/kernel/debug/pmem_rs/devices";
const MARK: usize = 4096;

fn leave_mark(disk: &Disk) -> Result<()> {
    let file = disk.open(Access::Direct)?;
    Ok(file.write_all_at(&Buffer::of_pages(MARK, 6), 1 << 20)?)
}

fn find_mark(disk: &Disk) -> Result<()> {
    let mut found = Buffer::of_pages(MARK, 0);
    disk.open(Access::Direct)?
        .read_exact_at(&mut found, 1 << 20)?;
    expect_same("the mark", &found, &Buffer::of_pages(MARK, 6))
}

/// Checks whether the driver lists a device among those that are bound.
fn expect_listed(device: &Device, is: bool) -> Result<()> {
    let list = sysfs::read(LIST)?;
    // The address follows.
    let start = format!("{device} [");
    ensure!(
        list.lines().any(|line| line.starts_with(&start)) == is,
        "{device} is bound: {is}; listed are: {list}"
    );
    Ok(())
}

/// Opens the bind or unbind file in advance: no file can be opened once allocations fail.
pub fn order(lab: &Lab, what: &str) -> Result<File> {
    let path = Path::new("/sys/bus/nd/drivers")
        .join(lab.driver.name())
        .join(what);
    File::options()
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Binds or unbinds a device, by a file of [`order`].
pub fn give(mut order: &File, device: &Device) -> io::Result<()> {
    order.write_all(device.name().as_bytes())
}

/// Binds a device that was bound before.
pub fn probe(lab: &mut Lab, mode: Mode) -> Result<()> {
    let Prepared { bound, disk, .. } = small(lab, mode)?;
    leave_mark(&disk)?;
    bound.unbind()?;
    let bind = order(lab, "bind")?;
    let mut walk = Walk::new(lab, "probe")?;
    for scope in [Scope::ThreadNearDriver, Scope::Thread] {
        walk.along(scope, |failing| {
            if failing.call(NOT_PROBED, || give(&bind, &bound))?.is_none() {
                bound.expect_driver(None)?;
                ensure!(!disk.exists(), "{disk} is there");
                expect_listed(&bound, false)?;
                bound.bind(lab.driver)?;
            }
            bound.expect_driver(Some(lab.driver))?;
            if mode != Mode::Sector {
                expect_listed(&bound, true)?;
            }
            find_mark(&disk)?;
            bound.unbind()
        })?;
    }
    walk.end()?;
    bound.bind(lab.driver)
}

/// Binds a new pfn device, which has no info block yet.
pub fn probe_of_new(lab: &mut Lab, map: &str) -> Result<()> {
    let Prepared { namespace, .. } = small(lab, Mode::Raw)?;
    namespace.unbind()?;
    let region = lab.region(0)?;
    let bind = order(lab, "bind")?;
    let mut number = 0;
    let mut walk = Walk::new(lab, "probe of a new device")?;
    // What libnvdimm does for the next device after that is the same as in `claim`.
    walk.along(Scope::ThreadInDriver, |failing| {
        // With another uuid, the existing info block does not match.
        number += 1;
        let seed = Device::named(region.get("pfn_seed")?);
        seed.set("mode", map)?;
        seed.set("uuid", &format!("5a3b1c9e-0d7f-4a63-9a57-{number:012x}"))?;
        seed.set("namespace", namespace.name())?;
        if failing.call(NOT_PROBED, || give(&bind, &seed))?.is_none() {
            seed.expect_driver(None)?;
            seed.bind(lab.driver)?;
        }
        leave_mark(&Disk::named(seed.disk_name()?))?;
        seed.unbind()?;
        seed.give_up_namespace()
    })?;
    walk.end()
}

/// The error of binding a namespace whose info block makes libnvdimm create a device that claims
/// it.
const CLAIMED: Errno = Errno::ENXIO;

/// Binds a namespace with an info block that no device has claimed yet. Whatever fails, the
/// namespace is never treated as one without an info block.
pub fn claim(lab: &mut Lab, mode: Mode) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = small(lab, mode)?;
    leave_mark(&disk)?;
    bound.unbind()?;
    bound.give_up_namespace()?;
    let region = lab.region(0)?;
    let bind = order(lab, "bind")?;
    let mut walk = Walk::new_excepting(lab, "claim", ASYNC)?;
    walk.along(Scope::Thread, |failing| {
        let result = failing.during(|| give(&bind, &namespace))?;
        // libnvdimm may report that it rejects an info block when it lacks memory for it.
        let right = [&[CLAIMED, Errno::EOPNOTSUPP], NOT_PROBED].concat();
        let end = errno::expect("binding the namespace", result, &right)?;
        failing.ended(&format!("{end:?}"));
        namespace.expect_driver(None)?;
        settle()?;
        if namespace.get("holder")?.is_empty() {
            ensure!(failing.has_failed(), "no device has claimed {namespace}");
            let result = namespace.try_bind(lab.driver);
            errno::expect("binding it again", result, &[CLAIMED])?;
            settle()?;
        }
        let bound = holder(&namespace)?;
        ensure!(bound != namespace, "no device has claimed {namespace}");
        if bound.driver().is_none() {
            bound.bind(lab.driver)?;
        }
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()
    })?;
    // The region keeps devices that have once claimed something.
    region.unbind()?;
    region.enable_region()?;
    let bound = holder(&lab.namespace(0)?)?;
    bound.unbind()?;
    walk.end()?;
    bound.bind(lab.driver)
}

/// Loads the module while there is no device for it, and unloads it.
pub fn module(lab: &mut Lab) -> Result<()> {
    const NO_PARAMETERS: &CStr = c"";
    let region = lab.region(0)?;
    region.unbind()?;
    lab.driver.unload()?;
    let name = std::ffi::CString::new(lab.driver.name())?;
    let path = run("modinfo", &["-n", lab.driver.name()])?;
    let file = File::open(path.trim()).with_context(|| format!("opening {path}"))?;
    let load = || {
        Ok(finit_module(
            &file,
            NO_PARAMETERS,
            ModuleInitFlags::empty(),
        )?)
    };
    let unload = || Ok(delete_module(&name, DeleteModuleFlags::empty())?);
    let mut walk = Walk::new(lab, "load")?;
    walk.along(Scope::Thread, |failing| {
        if failing.call(NO_MEMORY, load)?.is_none() {
            ensure!(!lab.driver.is_loaded(), "it is partly loaded");
            load().context("the next time")?;
        }
        unload().context("unloading")
    })?;
    walk.end()?;
    load()?;
    let mut walk = Walk::new(lab, "unload")?;
    walk.along(Scope::Thread, |failing| {
        if failing.call(NO_MEMORY, unload)?.is_none() {
            ensure!(lab.driver.is_loaded(), "it is partly unloaded");
            unload().context("the next time")?;
        }
        load().context("loading")
    })?;
    walk.end()?;
    region.enable_region()
}
