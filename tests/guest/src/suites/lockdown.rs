// SPDX-License-Identifier: GPL-2.0

//! The driver under lockdown, which Debian's kernel has with Secure Boot.
//!
//! The modules of this guest have no signatures, so they are loaded before. A boot cannot leave a
//! level, so the levels come in their order.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::platform::only_for_pmem_rs;
use super::revoke::{Fixture, Fs, UNBIND_LIMIT, Under, User, Way, back_to_normal};
use super::{Suite, Test};
use crate::command::run;
use crate::errno;
use crate::lab::Lab;
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "lockdown",
    tests: &[
        Test::new("integrity", |lab| under(lab, "integrity")),
        Test::new("confidentiality", |lab| under(lab, "confidentiality")),
    ],
};

/// Raises the level.
fn lock_down(level: &str) -> Result<()> {
    let directory = Path::new("/sys/kernel/security");
    let file = directory.join("lockdown");
    if !file.exists() {
        let kind = Some("securityfs");
        mount(kind, directory, kind, MsFlags::empty(), None::<&str>)?;
    }
    run("modprobe", &["ext4"])?;
    sysfs::write(&file, level)?;
    let found = sysfs::read(&file)?;
    ensure!(found.contains(&format!("[{level}]")), "it is {found}");
    Ok(())
}

/// The files of a directory that have a bit for writing, less those of the driver core.
fn writable(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in sysfs::names(directory)? {
        let metadata = fs::symlink_metadata(directory.join(&name))?;
        let is_writable = metadata.is_file() && metadata.permissions().mode() & 0o222 != 0;
        if is_writable && !["bind", "unbind", "uevent"].contains(&name.as_str()) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Everything that can be written is written, and is read back. A device that is in use is unbound
/// and bound.
fn under(lab: &mut Lab, level: &str) -> Result<()> {
    only_for_pmem_rs(lab)?;
    lock_down(level)?;

    let debugfs = Path::new("/sys/kernel/debug").join(lab.driver.name());
    for name in sysfs::names(&debugfs)? {
        let path = debugfs.join(&name);
        sysfs::read(&path)?;
        // The level is in force: without it, root opens any file.
        let opened = OpenOptions::new().write(true).open(&path);
        errno::expect("opening it for writing", opened.map(drop), &[Errno::EPERM])?;
    }

    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let bound = fixture.bound()?;
    let disk = Path::new("/sys/block").join(bound.disk_name()?);
    let unknown = "00000000-1111-2222-3333-444444444444";
    let places: [(PathBuf, &[(&str, &str)]); 5] = [
        (
            Path::new("/sys/module/pmem_rs/parameters").to_owned(),
            &[
                ("revoke_notice_ms", "100"),
                ("revoke_timeout_ms", "2500"),
                ("suspend_limit_ms", "20000"),
            ],
        ),
        ("/sys/module/pmem_rs".into(), &[]),
        ("/sys/bus/nd/drivers/pmem_rs".into(), &[("except", unknown)]),
        (bound.path("pmem_rs"), &[("state", "suspended")]),
        (disk.join("dax"), &[("write_cache", "0")]),
    ];
    for (directory, values) in places {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        let found = writable(&directory)?;
        ensure!(
            found == names,
            "of {}, {found:?} can be written, expected {names:?}",
            directory.display()
        );
        for (name, value) in values {
            let path = directory.join(name);
            let before = sysfs::read(&path)?;
            ensure!(before != *value, "{name} is {value} already");
            sysfs::write(&path, value)?;
            let found = sysfs::read(&path)?;
            ensure!(found == *value, "{name} is {found}");
            let before = if before.is_empty() { "\n" } else { &before };
            sysfs::write(&path, before).with_context(|| format!("restoring {name}"))?;
        }
    }

    let user = User::Reader.start(&fixture)?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)
}
