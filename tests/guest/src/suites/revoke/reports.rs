// SPDX-License-Identifier: GPL-2.0

//! What the driver reports of a device: in the log, by uevents and in debugfs.

use anyhow::{Context, Result, ensure};

use super::fixture::{Fixture, LEN};
use super::special::{back_to_normal, only_for_pmem_rs};
use super::{Fs, UNBIND_LIMIT, Under, User, Way};
use crate::lab::Lab;
use crate::mapping::{PAGE, Sharing};
use crate::messages::Messages;
use crate::nd::Device;
use crate::sysfs;
use crate::uevents::Uevents;

pub fn retirement_is_reported(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let user = User::Reader.start(&fixture)?;
    let (bound, namespace) = (fixture.bound()?, lab.namespace(0)?);
    let mut messages = Messages::from_now()?;
    let mut uevents = Uevents::from_now()?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    let message = messages.expect(&["revoked:"])?;
    println!("kernel: {message}");
    let named = [&bound, &namespace]
        .iter()
        .any(|device| message.contains(device.name()));
    ensure!(named, "`{message}` names neither {bound} nor {namespace}");
    for piece in ["1 inodes", &format!("{} pages", LEN / PAGE), "us"] {
        ensure!(message.contains(piece), "`{message}` has no `{piece}`");
    }
    println!(
        "uevent: {}",
        uevents.expect(&["ACTION=change", bound.name(), "PMEM_RS_REVOKED=1"])?
    );
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)
}

/// The device's line in debugfs: the size that was exposed, in KiB; pages in use; pages in page
/// caches only.
fn usage(bound: &Device) -> Result<[u64; 3]> {
    let list = sysfs::read("/sys/kernel/debug/pmem_rs/devices")?;
    let line = list
        .lines()
        .find(|line| line.starts_with(&format!("{} [mem 0x", bound.name())))
        .with_context(|| format!("{bound} is not listed: {list}"))?;
    let numbers: Option<Vec<u64>> = ["exposed: ", "in use: ", "only: "]
        .iter()
        .map(|word| line.split(word).nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    let numbers = numbers.with_context(|| format!("numbers are missing: {line}"))?;
    println!("{line}");
    Ok([numbers[0], numbers[1], numbers[2]])
}

pub fn listed(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let bound = fixture.bound()?;
    let pages = (LEN / PAGE) as u64;
    let before = usage(&bound)?;
    let mapping = fixture.map(Sharing::Shared)?;
    for page in (0..LEN).step_by(PAGE) {
        mapping.load(page);
    }
    let mapped = usage(&bound)?;
    ensure!(
        mapped[0] >= LEN as u64 >> 10 && mapped[1] - before[1] == pages,
        "{pages} pages were mapped: {before:?}, then {mapped:?}"
    );
    drop(mapping);
    let unmapped = usage(&bound)?;
    ensure!(
        unmapped[0] == mapped[0] && unmapped[1] == before[1] && unmapped[2] - before[2] == pages,
        "{pages} pages were unmapped: {mapped:?}, then {unmapped:?}"
    );
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    ensure!(usage(&bound).is_err(), "{bound} is listed after unbind");
    back_to_normal(fixture, Way::Unbind)
}
