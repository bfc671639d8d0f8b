// SPDX-License-Identifier: GPL-2.0

//! Devices come.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::{NOT_PROBED, Walk, small};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::injection::{ASYNC, Whose};
use crate::lab::{Lab, Prepared, holder};
use crate::nd::{Device, settle};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};

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

/// The file that binds devices, or unbinds them; nothing has to be opened once allocations fail.
pub fn order(lab: &Lab, what: &str) -> Result<File> {
    let path = Path::new("/sys/bus/nd/drivers")
        .join(lab.driver.name())
        .join(what);
    File::options()
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Gives a device to a driver or takes it away, by a file of [`order`].
pub fn give(mut order: &File, device: &Device) -> io::Result<()> {
    order.write_all(device.name().as_bytes())
}

/// A device is bound that has been bound before.
pub fn probe(lab: &mut Lab, mode: Mode) -> Result<()> {
    let Prepared { bound, disk, .. } = small(lab, mode)?;
    leave_mark(&disk)?;
    bound.unbind()?;
    let bind = order(lab, "bind")?;
    let mut walk = Walk::new(lab, "probe")?;
    walk.along(Whose::Thread, |failing| {
        match failing.call(NOT_PROBED, || give(&bind, &bound))? {
            Some(()) => bound.expect_driver(Some(lab.driver))?,
            None => {
                bound.expect_driver(None)?;
                ensure!(!disk.exists(), "{disk} is there");
                bound.bind(lab.driver)?;
                find_mark(&disk)?;
            }
        }
        bound.unbind()
    })?;
    walk.end()?;
    bound.bind(lab.driver)
}

/// What binding a namespace ends with that belongs to a device that has just been made for it.
const CLAIMED: Errno = Errno::ENXIO;

/// A namespace is offered to the driver that has an info block, for which there is no device yet. Whatever
/// fails, it is not taken for one that has none.
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
    walk.along(Whose::Thread, |failing| {
        let result = failing.during(|| give(&bind, &namespace))?;
        let right = [&[CLAIMED], NOT_PROBED].concat();
        let end = errno::expect("binding the namespace", result, &right)?;
        failing.ended(&format!("{end:?}"));
        namespace.expect_driver(None)?;
        settle()?;
        if namespace.get("holder")?.is_empty() {
            ensure!(failing.has_failed(), "nobody has claimed {namespace}");
            let result = namespace.try_bind(lab.driver);
            errno::expect("binding it again", result, &[CLAIMED])?;
            settle()?;
        }
        let bound = holder(&namespace)?;
        ensure!(bound != namespace, "nobody has claimed {namespace}");
        if bound.driver().is_none() {
            bound.bind(lab.driver)?;
        }
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()
    })?;
    // Devices that have claimed something once are kept by the region.
    region.unbind()?;
    region.enable_region()?;
    let bound = holder(&lab.namespace(0)?)?;
    bound.unbind()?;
    walk.end()?;
    bound.bind(lab.driver)
}
