// SPDX-License-Identifier: GPL-2.0

//! Bind and unbind: module aliases, sysfs, loading and removing the module.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::platform::only_for_pmem_rs;
use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::coverage;
use crate::disk::Access;
use crate::errno;
use crate::filesystem::FileSystem;
use crate::lab::{Lab, Prepared, Skip};
use crate::leaks::{Holdings, reservation};
use crate::nd::settle;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "bind",
    tests: &[
        Test::new("alias_names_the_module", alias_names_the_module),
        Test::new("modprobe_by_alias_binds", modprobe_by_alias_binds),
        Test::new("unbind_and_bind_fsdax_mem", |lab| {
            bind_loop(lab, Mode::FsdaxMem, 50)
        })
        .within(120),
        Test::new("unbind_and_bind_fsdax_dev", |lab| {
            bind_loop(lab, Mode::FsdaxDev, 20)
        })
        .within(120),
        Test::new("unbind_and_bind_raw", |lab| bind_loop(lab, Mode::Raw, 50)).within(120),
        Test::new("remove_and_load_the_module", remove_and_load).within(120),
        Test::new("module_stays_while_disk_is_open", module_stays_while_open),
        Test::new(
            "module_stays_while_its_files_are_open",
            module_stays_while_its_files_are_open,
        ),
        Test::new("debugfs_is_read_only", debugfs_is_read_only),
        Test::new(
            "revoke_timeout_can_be_written",
            revoke_timeout_can_be_written,
        ),
        Test::new("module_stays_while_mounted", module_stays_while_mounted),
        Test::new("range_is_reserved_while_bound", range_is_reserved),
        Test::new("unbind_writes_dirty_pages_back", unbind_writes_back),
        Test::new("open_file_is_dead_after_unbind", open_file_is_dead),
        Test::new("unbind_of_a_mounted_idle_disk", unbind_mounted_idle),
        Test::new("switch_between_drivers", switch_drivers),
    ],
};

/// The alias of a namespace resolves to the module, and the module declares both kinds of
/// namespace.
fn alias_names_the_module(lab: &mut Lab) -> Result<()> {
    let alias = lab.namespace(0)?.get("modalias")?;
    let found = run("modprobe", &["-R", &alias])?;
    let found: Vec<&str> = found.split_whitespace().collect();
    ensure!(
        found.contains(&lab.driver.name()),
        "{alias} is for {found:?}"
    );
    let declared = run("modinfo", &["-F", "alias", lab.driver.name()])?;
    // The device types of namespace_io and namespace_pmem in `linux/ndctl.h`.
    for wanted in ["nd:t4*", "nd:t5*"] {
        ensure!(
            declared.lines().any(|line| line == wanted),
            "{wanted} is not in {declared:?}"
        );
    }
    Ok(())
}

/// Does what udev does when a namespace appears. Both drivers match; the blacklisted one is not
/// loaded.
fn modprobe_by_alias_binds(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let alias = bound.get("modalias")?;
    lab.driver.unload()?;
    bound.expect_driver(None)?;
    ensure!(!disk.exists(), "{disk} is still there without a driver");
    coverage::loading(|| run("modprobe", &["-b", &alias]))?;
    settle()?;
    let other = lab.driver.other();
    ensure!(!other.is_loaded(), "{} was loaded as well", other.name());
    bound.expect_driver(Some(lab.driver))?;
    ensure!(disk.exists(), "{disk} did not come back");
    Ok(())
}

fn bind_loop(lab: &mut Lab, mode: Mode, times: usize) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(mode)?;
    let right = stamped(1 << 20, 1);
    disk.open(Access::Buffered)?.write_all_at(&right, 0)?;
    // The first round fills caches that stay filled.
    bound.unbind()?;
    bound.bind(lab.driver)?;
    let before = Holdings::now()?;
    for _ in 0..times {
        bound.unbind()?;
        ensure!(!disk.exists(), "{disk} is there after unbind");
        bound.bind(lab.driver)?;
        ensure!(disk.exists(), "{disk} is not there after bind");
    }
    before.expect_unchanged()?;
    let mut found = Buffer::new(right.len());
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was written before the loop", &found, &right)
}

fn remove_and_load(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    lab.driver.unload()?;
    lab.driver.load()?;
    let before = Holdings::now()?;
    for _ in 0..10 {
        lab.driver.unload()?;
        ensure!(!disk.exists(), "{disk} is there without the module");
        lab.driver.load()?;
        bound.expect_driver(Some(lab.driver))?;
        ensure!(disk.exists(), "{disk} is not there with the module");
    }
    before.expect_unchanged()
}

fn expect_module_in_use(lab: &Lab) -> Result<()> {
    let output = run_expecting_failure("rmmod", &[lab.driver.name()])?;
    ensure!(output.contains("in use"), "rmmod says `{output}`");
    ensure!(lab.driver.is_loaded(), "the module is gone");
    Ok(())
}

/// Closing the file runs code of the module.
fn module_stays_while_its_files_are_open(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for name in ["devices", "retired"] {
        let path = Path::new("/sys/kernel/debug").join(lab.driver.name());
        let mut file = File::open(path.join(name))?;
        expect_module_in_use(lab)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        ensure!(
            text.ends_with('\n') || name == "retired",
            "{name} says `{text}`"
        );
        drop(file);
        lab.driver.unload()?;
        lab.driver.load()?;
    }
    Ok(())
}

/// Under lockdown the kernel opens a file of debugfs only if its mode has no write bit.
fn debugfs_is_read_only(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let directory = Path::new("/sys/kernel/debug").join(lab.driver.name());
    let names = sysfs::names(&directory)?;
    ensure!(!names.is_empty(), "{} is empty", directory.display());
    for name in names {
        let mode = fs::metadata(directory.join(&name))?.permissions().mode() & 0o7777;
        ensure!(mode == 0o400, "{name} has mode {mode:o}");
    }
    Ok(())
}

/// The parameter exists while the module is loaded, and accepts numbers only.
fn revoke_timeout_can_be_written(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let parameters = Path::new("/sys/module").join(lab.driver.name());
    let parameter = parameters.join("parameters/revoke_timeout_ms");
    let before = sysfs::read(&parameter)?;

    for value in ["0", "2500", "4294967295"] {
        sysfs::write(&parameter, value)?;
        ensure!(sysfs::read(&parameter)? == value, "{value} was not taken");
    }
    for (value, refusal) in [
        ("", Errno::EINVAL),
        ("soon", Errno::EINVAL),
        ("-1", Errno::EINVAL),
        ("4294967296", Errno::ERANGE),
    ] {
        let result = sysfs::try_write(&parameter, &format!("{value}\n"));
        errno::expect(&format!("writing `{value}`"), result, &[refusal])?;
    }
    ensure!(
        sysfs::read(&parameter)? == "4294967295",
        "a refused value was taken"
    );
    sysfs::write(&parameter, &before)
}

fn module_stays_while_open(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let Prepared { disk, .. } = lab.prepare(mode)?;
        let open = disk.open_read_only()?;
        expect_module_in_use(lab)?;
        drop(open);
        lab.driver.unload()?;
        lab.driver.load()?;
        ensure!(disk.exists(), "{disk} did not come back");
    }
    Ok(())
}

fn module_stays_while_mounted(lab: &mut Lab) -> Result<()> {
    let Prepared { disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    FileSystem::Ext4.make(&disk.node_str())?;
    let mount = FileSystem::Ext4.mount(&disk.node_str(), "dax=always")?;
    expect_module_in_use(lab)?;
    mount.unmount()?;
    lab.driver.unload()
}

fn range_is_reserved(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem, Mode::FsdaxDev] {
        let Prepared {
            namespace, bound, ..
        } = lab.prepare(mode)?;
        let start = namespace.resource()?;
        let by = reservation(start)?;
        ensure!(
            by.is_some(),
            "{mode:?}: {start:#x} is not reserved while bound"
        );
        bound.unbind()?;
        let by = reservation(start)?;
        ensure!(
            by.is_none(),
            "{mode:?}: {start:#x} is still reserved by {by:?} after unbind"
        );
        bound.bind(lab.driver)?;
    }
    Ok(())
}

/// Dirty pages of the page cache are written back on unbind.
fn unbind_writes_back(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let right = stamped(1 << 20, 2);
    let file = disk.open(Access::Buffered)?;
    file.write_all_at(&right, 4096)?;
    bound.unbind()?;
    drop(file);
    bound.bind(lab.driver)?;
    let mut found = Buffer::new(right.len());
    disk.open(Access::Direct)?.read_exact_at(&mut found, 4096)?;
    expect_same("what was in the page cache at unbind", &found, &right)
}

/// A file that was open during unbind can be closed, but neither read nor written.
fn open_file_is_dead(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let file = disk.open(Access::Direct)?;
    let mut buffer = Buffer::new(4096);
    file.read_exact_at(&mut buffer, 0)?;
    bound.unbind()?;
    let read = file.read_at(&mut buffer, 0);
    ensure!(
        matches!(read, Ok(0) | Err(_)),
        "read {read:?} bytes of a disk that is gone"
    );
    let written = file.write_at(&buffer, 0);
    ensure!(
        matches!(written, Ok(0) | Err(_)),
        "wrote {written:?} bytes to a disk that is gone"
    );
    // The old file does not reach the device after it was bound again.
    bound.bind(lab.driver)?;
    let read = file.read_at(&mut buffer, 0);
    ensure!(
        matches!(read, Ok(0) | Err(_)),
        "read {read:?} bytes through the old file"
    );
    drop(file);
    disk.open(Access::Direct)?.read_exact_at(&mut buffer, 0)?;
    Ok(())
}

/// No file is mapped or open, so this must work even with a driver that does not support unbinding
/// in use.
fn unbind_mounted_idle(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let node = disk.node_str();
    FileSystem::Ext4.make(&node)?;
    let mount = FileSystem::Ext4.mount(&node, "dax=never")?;
    std::fs::write(mount.path("file"), b"before unbind")?;
    bound.unbind()?;
    mount.unmount()?;
    bound.bind(lab.driver)?;
    let mount = FileSystem::Ext4.mount(&node, "dax=never")?;
    let found = std::fs::read(mount.path("file"))?;
    expect_same("the file written before unbind", &found, b"before unbind")?;
    mount.unmount()?;
    FileSystem::Ext4.check(&node)
}

/// One driver reads what the other has written, at both ends of the disk: they agree on where the
/// data are.
fn switch_drivers(lab: &mut Lab) -> Result<()> {
    const LEN: usize = 1 << 20;
    let other = lab.driver.other();
    if !other.is_available()? {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    for mode in [Mode::Raw, Mode::FsdaxMem, Mode::FsdaxDev] {
        let Prepared { bound, disk, .. } = lab.prepare(mode)?;
        other.load()?;
        let bytes = disk.bytes()?;
        for (tag, from, to) in [(1, lab.driver, other), (2, other, lab.driver)] {
            bound.expect_driver(Some(from))?;
            let file = disk.open(Access::Direct)?;
            for at in [0, bytes - LEN as u64] {
                file.write_all_at(&Buffer::stamped(LEN, tag), at)?;
            }
            drop(file);
            bound.unbind()?;
            bound.bind(to)?;
            ensure!(
                disk.bytes()? == bytes,
                "{mode:?}: {} bytes of {bytes}",
                disk.bytes()?
            );
            let file = disk.open(Access::Direct)?;
            for at in [0, bytes - LEN as u64] {
                let what = format!("{mode:?}: from {} to {}, {at:#x}", from.name(), to.name());
                let mut found = Buffer::new(LEN);
                file.read_exact_at(&mut found, at)?;
                expect_same(&what, &found, &stamped(LEN, tag))?;
            }
        }
        other.unload()?;
    }
    Ok(())
}
