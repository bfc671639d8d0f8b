// SPDX-License-Identifier: GPL-2.0

//! File systems that pass on the files of the one on the device: overlayfs, and NFS.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::fixture::{Fixture, LEN, contents};
use super::special::back_to_normal;
use super::users::{SIGNAL_LIMIT, read_for_ever, write_for_ever};
use super::{Fs, UNBIND_LIMIT, Under, Way};
use crate::command::has_module;
use crate::disk::Access;
use crate::errno;
use crate::filesystem::Mount;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, Sharing};
use crate::nfs::Server;
use crate::process::Child;
use crate::retired;
use crate::sectors::{Buffer, expect_same};

/// Both layers of an overlay are on the device. Its files are mapped and read.
pub fn overlay(lab: &mut Lab) -> Result<()> {
    if !has_module("overlay") {
        return Err(Skip("the kernel has no overlayfs").into());
    }
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let root = fixture.root()?;
    for name in ["lower", "upper", "work"] {
        fs::create_dir(root.join(name))?;
    }
    fs::hard_link(root.join("used"), root.join("lower/file"))?;
    let dir = |name| root.join(name).display().to_string();
    let (lower, upper, work) = (dir("lower"), dir("upper"), dir("work"));
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mount = Mount::new("overlay", "overlay", &layers)?;

    let below = File::open(mount.path("file"))?;
    let above = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("new"))?;
    above.write_all_at(&contents(), 0)?;
    above.sync_all()?;
    let mut reader = Child::start_ready("the reader", |link| {
        let mapping = Mapping::read_only(&below, LEN, Sharing::Shared)?;
        expect_same("the file", &mapping.to_vec(0, LEN), &contents())?;
        read_for_ever(&mapping, link)
    })?;
    let mut writer = Child::start_ready("the writer", |link| {
        write_for_ever(&Mapping::new(&above, LEN, Sharing::Shared)?, link)
    })?;

    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    retired::expect(0)?;
    for user in [&mut reader, &mut writer] {
        user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    }
    for file in [&below, &above] {
        let result = file.read_at(&mut [0; 512], 0);
        errno::expect("reading", result, &[Errno::EIO])?;
    }
    let result = above.write_at(&[0; 512], 0);
    errno::expect("writing", result, &[Errno::EIO, Errno::EROFS])?;
    drop((below, above));
    mount.unmount()?;
    back_to_normal(fixture, Way::Unbind)
}

/// How long a client uses a file if it gets no error. The removal begins and ends long before.
const READ_FOR: Duration = Duration::from_secs(60);

/// A server exports the file system, and a client has a file open that is also mapped on the
/// server.
pub fn export(lab: &mut Lab) -> Result<()> {
    if !has_module("nfsd") {
        return Err(Skip("the kernel has no NFS server").into());
    }
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let server = Server::start(&fixture.root()?)?;
    let mount = server.mount()?;
    let path = mount.path("used");
    expect_same("the file", &fs::read(&path)?, &contents())?;
    let mut client = Child::start_ready("the client", |link| {
        // Not from the client's cache.
        let file = Access::Direct.open(&path)?;
        let mut bytes = Buffer::of_pages(LEN, 0);
        let mut round = || {
            file.read_exact_at(&mut bytes, 0)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()
        };
        round()?;
        link.say("ready")?;
        let deadline = Instant::now() + READ_FOR;
        while Instant::now() < deadline {
            if let Err(error) = round() {
                let right = [Errno::EIO, Errno::EROFS, Errno::ESTALE];
                errno::expect("a call of the client", Err::<(), _>(error), &right)?;
                return Ok(());
            }
        }
        bail!("the file can still be read")
    })?;
    let mut reader = Child::start_ready("the reader on the server", |link| {
        read_for_ever(&fixture.map(Sharing::Shared)?, link)
    })?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    retired::expect(0)?;
    reader.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    client.expect_done(SIGNAL_LIMIT)?;
    ensure!(fs::read(mount.path("kept")).is_err(), "it can be read");
    mount.unmount()?;
    server.stop()?;
    back_to_normal(fixture, Way::Unbind)
}
