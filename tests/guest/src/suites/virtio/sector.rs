// SPDX-License-Identifier: GPL-2.0

//! Sector mode, in which the btt driver would sleep with a spinlock held.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{LEN, expect_contents, region_index};
use crate::command::{run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::lab::{Lab, Skip, holder};
use crate::messages::Messages;
use crate::nd::settle;
use crate::pci::VirtioPmem;
use crate::sectors::Buffer;

const REFUSED: &str = "sector mode is not possible in the region";

/// It is refused for a new btt and for one that is on the medium. The remedies in the log work.
pub fn sector_mode_is_refused(lab: &mut Lab) -> Result<()> {
    if lab.driver != Driver::PmemRs {
        return Err(Skip("nd_pmem does not refuse it").into());
    }
    let index = region_index(lab, &VirtioPmem::first()?)?;
    let namespace = lab.namespace(index)?;
    let name = namespace.name();
    let remedy = format!("create-namespace -f -e {name} -m fsdax");

    let mut messages = Messages::from_now()?;
    let args = ["create-namespace", "-f", "-e", name, "-m", "sector"];
    run_expecting_failure("ndctl", &args)?;
    let said = messages.expect(&[REFUSED])?;
    println!("the kernel says: {said}");
    ensure!(said.contains(&remedy), "it does not say `{remedy}`");
    ensure!(Disk::all("pmem1")?.is_empty(), "there is a disk");
    let btt = holder(&namespace)?;
    ensure!(btt.name().starts_with("btt"), "it is held by {btt}");
    btt.expect_driver(None)?;

    // The other driver writes the info block, and writes no sector.
    let other = lab.driver.other();
    if other.is_available()? {
        lab.driver.unload()?;
        other.load()?;
        settle()?;
        if btt.driver().is_none() {
            btt.bind(other)?;
        }
        btt.expect_driver(Some(other))?;
        btt.unbind()?;
        other.unload()?;
        lab.driver.load()?;
        settle()?;
        let mut messages = Messages::from_now()?;
        let result = btt.try_bind(lab.driver);
        errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
        messages.expect(&[REFUSED])?;
        btt.give_up_namespace()?;
        let result = namespace.try_bind(lab.driver);
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        settle()?;
        holder(&namespace)?.expect_driver(None)?;
    }

    run("ndctl", &remedy.split(' ').collect::<Vec<_>>())?;
    let pfn = holder(&namespace)?;
    pfn.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(pfn.disk_name()?);
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(LEN, 7), 0)?;
    file.sync_all()?;
    expect_contents(&disk, 7)
}
