// SPDX-License-Identifier: GPL-2.0

//! File systems that use the device, but are not on its disk: their files are found all the same.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::fixture::need_erofs;
use super::users::{SIGNAL_LIMIT, read_all};
use super::{FREE_LIMIT, UNBIND_LIMIT};
use crate::command::run;
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, Sharing};
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;
use crate::sectors::{expect_same, stamped};

const LEN: usize = 8 << 20;

/// Unbinds a device while a process has a file mapped that is in its memory. `before` is called
/// once the file is mapped.
fn unbind_below(
    lab: &Lab,
    device: &Prepared,
    mount: &Mount,
    before: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let path = mount.path("file");
    let mut user = Child::start_ready("the process with the mapping", |link| {
        let file = File::open(&path)?;
        let mapping = Mapping::read_only(&file, LEN, Sharing::Shared)?;
        expect_same("the file", &mapping.to_vec(0, LEN), &stamped(LEN, 1))?;
        link.say("ready")?;
        link.wait()?;
        read_all(&mapping);
        Ok(())
    })?;
    before()?;

    let start = Instant::now();
    device.bound.unbind()?;
    ensure!(start.elapsed() < UNBIND_LIMIT, "unbind has waited");
    retired::await_none(FREE_LIMIT)?;
    user.go()?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    expect_no_thread_stuck()?;
    device.bound.expect_driver(None)?;
    retired::expect(0).map(drop).context(lab.driver.name())
}

/// The device is the realtime volume of an xfs on another one.
pub fn realtime(lab: &mut Lab) -> Result<()> {
    let goes = lab.prepare_in(0, Mode::FsdaxMem)?;
    let data = lab.prepare_in(1, Mode::FsdaxMem)?.disk.node_str();
    let realtime = goes.disk.node_str();
    let volume = format!("rtdev={realtime},extsize=64k");
    Xfs.make_with(
        &data,
        &["-m", "reflink=0", "-d", "rtinherit=1", "-r", &volume],
    )?;
    let mount = Xfs.mount(&data, &format!("dax=always,rtdev={realtime}"))?;
    fs::write(mount.path("file"), stamped(LEN, 1))?;
    unbind_below(lab, &goes, &mount, || Ok(()))?;
    mount.unmount()?;
    goes.bound.bind(lab.driver)
}

/// The device has the blocks of an erofs whose other data are on another one.
pub fn further_device(lab: &mut Lab) -> Result<()> {
    need_erofs()?;
    let goes = lab.prepare_in(0, Mode::FsdaxMem)?;
    let mount = erofs_on(&lab.prepare_in(1, Mode::FsdaxMem)?, &goes)?;
    unbind_below(lab, &goes, &mount, || Ok(()))?;
    mount.unmount()?;
    goes.bound.bind(lab.driver)
}

/// Mounts an erofs on two devices. The data of its file are on the further one.
pub fn erofs_on(main: &Prepared, further: &Prepared) -> Result<Mount> {
    let (main, blob) = (main.disk.node_str(), further.disk.node_str());
    let tree = Path::new("/tmp/tree");
    fs::create_dir_all(tree)?;
    fs::write(tree.join("file"), stamped(LEN, 1))?;
    let device = format!("--blobdev={blob}");
    let layout = ["--quiet", "--chunksize=2097152", &device];
    run("mkfs.erofs", &[&layout[..], &[&main, "/tmp/tree"]].concat())?;
    fs::remove_dir_all(tree)?;
    Mount::new("erofs", &main, &format!("dax=always,device={blob}"))
}

/// A table of device-mapper above the device is replaced while a file is mapped, so nothing has a
/// claim of the device any more.
pub fn replaced_table(lab: &mut Lab) -> Result<()> {
    const NAME: &str = "replaced";
    let goes = lab.prepare_in(0, Mode::FsdaxMem)?;
    let sectors = goes.disk.bytes()? / 512;
    let node = goes.disk.node_str();
    let above = Mapped::new(NAME, &format!("0 {sectors} linear {node} 0"))?;
    let node = above.disk().node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    fs::write(mount.path("file"), stamped(LEN, 1))?;
    nix::unistd::sync();
    unbind_below(lab, &goes, &mount, || {
        let table = format!("0 {sectors} error");
        run("dmsetup", &["load", NAME, "--table", &table])?;
        above.suspend()?;
        above.resume()?;
        let holders = fs::read_dir(goes.disk.path("holders"))?.count();
        ensure!(holders == 0, "the device still has {holders} holders");
        Ok(())
    })?;
    mount.unmount()?;
    above.remove()?;
    goes.bound.bind(lab.driver)
}
