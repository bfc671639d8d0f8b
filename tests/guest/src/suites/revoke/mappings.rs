// SPDX-License-Identifier: GPL-2.0

//! Mappings that outlive the device, and mappings of other devices.

use std::fs;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;

use super::fixture::{Fixture, LEN, contents};
use super::special::back_to_normal;
use super::users::{SIGNAL_LIMIT, read_all};
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, User, Way};
use crate::disk::Access;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;
use crate::sectors::{Buffer, expect_same, stamped};

/// Processes that read another process's memory get an error when the page is gone.
pub fn read_by_other_processes(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let mapping = fixture.map(Sharing::Shared)?;
    let mut target = Child::start_ready("the process whose memory is read", |link| {
        // A forked child has the mapping at the same address.
        read_all(&mapping);
        link.say("ready")?;
        link.wait()?;
        mapping.load(0);
        Ok(())
    })?;
    let (pid, address) = (target.pid(), mapping.address());
    let mut looker = Child::start_ready("the process that calls process_vm_readv", |link| {
        let mut page = vec![0; PAGE];
        for (round, base) in (address..address + LEN).step_by(PAGE).cycle().enumerate() {
            let remote = [RemoteIoVec { base, len: PAGE }];
            match process_vm_readv(pid, &mut [IoSliceMut::new(&mut page)], &remote) {
                Ok(_) if round == 10 => link.say("ready")?,
                Ok(_) => {}
                Err(Errno::EFAULT) => return Ok(()),
                Err(error) => bail!("process_vm_readv failed with {error}"),
            }
        }
        Ok(())
    })?;
    drop(mapping);
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    looker.expect_done(SIGNAL_LIMIT)?;

    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    let peeked = ptrace::read(pid, address as *mut _);
    ensure!(
        matches!(peeked, Err(Errno::EIO | Errno::EFAULT)),
        "PTRACE_PEEKDATA gave {peeked:?}"
    );
    ptrace::detach(pid, None)?;
    target.go()?;
    target.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// The range is reused while the old mapping still exists.
pub fn reused_range_is_not_visible(lab: &mut Lab) -> Result<()> {
    for fs in [Fs::Ext4, Fs::XfsRmap] {
        let mut fixture = Fixture::build(lab, fs, Under::Whole)?;
        let mut old = Child::start_ready("the process with the old mapping", |link| {
            let mapping = fixture.map(Sharing::Shared)?;
            read_all(&mapping);
            link.say("ready")?;
            link.wait()?;
            // Only some of the pages, since each takes a process.
            for page in (0..LEN).step_by(16 * PAGE) {
                let status = mapping.load_in_child(page)?;
                ensure!(
                    matches!(
                        status,
                        nix::sys::wait::WaitStatus::Signaled(_, Signal::SIGBUS, _)
                    ),
                    "page {:#x} of the old mapping: {status:?}",
                    page
                );
            }
            mapping.load(0);
            Ok(())
        })?;
        Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
        Way::Unbind.come_back(&fixture)?;
        // The disk has other contents now.
        let disk = lab.ready(0)?.disk;
        let bytes = disk.bytes()?;
        let file = disk.open(Access::Direct)?;
        let next = Buffer::stamped(1 << 20, 99);
        for at in (0..bytes).step_by(next.len()) {
            let len = next.len().min((bytes - at) as usize);
            file.write_all_at(&next[..len], at)?;
        }
        drop(file);
        old.go()?;
        old.expect_signal(Signal::SIGBUS, 4 * SIGNAL_LIMIT)?;
        fixture.remove_devices()?;
        retired::await_none(FREE_LIMIT)?;
        expect_no_thread_stuck()?;
    }
    Ok(())
}

/// Mappings of another device are not affected.
pub fn another_stays(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let node = lab.ready(1)?.disk.node_str();
    let other = Fs::XfsRmap.make_and_mount(&node)?;
    fs::write(other.path("file"), contents())?;
    let file = Access::Buffered.open(&other.path("file"))?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    mapping.write(0, &stamped(LEN, 5));
    let user = User::Reader.start(&fixture)?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_gone()?;
    expect_same(
        "the other device",
        &mapping.to_vec(0, LEN),
        &stamped(LEN, 5),
    )?;
    mapping.write(0, &stamped(LEN, 6));
    file.sync_all()?;
    drop((mapping, file));
    let found = fs::read(other.path("file"))?;
    expect_same("the file on the other device", &found, &stamped(LEN, 6))?;
    other.unmount()?;
    back_to_normal(fixture, Way::Unbind)
}
