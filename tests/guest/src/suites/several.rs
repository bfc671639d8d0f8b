// SPDX-License-Identifier: GPL-2.0

//! Several namespaces at once, in two regions and in one, and several programs that make and
//! remove them.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use super::namespaces::emptied;
use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::lab::{Lab, Prepared, Skip, holder};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::process::{Child, expect_no_thread_stuck};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::tracing::CallCount;

pub const SUITE: Suite = Suite {
    name: "several",
    tests: &[
        Test::new("two_regions_are_independent", two_regions),
        Test::new("unbind_while_the_other_is_in_use", one_goes),
        Test::new("unbind_while_the_other_is_mapped", one_goes_while_mapped),
        Test::new("each_driver_has_one", each_driver_has_one),
        Test::new("xfs_zeroes_pages_in_place", zero_pages_in_place),
        // They divide the region, so they come last.
        Test::new("two_namespaces_in_one_region", two_in_one_region),
        Test::new("several_programs", several_programs).within(180),
    ],
};

const LEN: usize = 8 << 20;

fn expect_contents(disk: &Disk, tag: u64) -> Result<()> {
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(LEN, tag))
}

fn two_regions(lab: &mut Lab) -> Result<()> {
    let first = lab.prepare_in(0, Mode::FsdaxMem)?;
    let second = lab.prepare_in(1, Mode::Raw)?;
    ensure!(first.disk != second.disk, "both are {}", first.disk);
    first
        .disk
        .open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 1), 0)?;
    second
        .disk
        .open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 2), 0)?;
    expect_contents(&first.disk, 1)?;
    expect_contents(&second.disk, 2)?;
    first.bound.unbind()?;
    expect_contents(&second.disk, 2)?;
    second.bound.unbind()?;
    first.bound.bind(lab.driver)?;
    expect_contents(&first.disk, 1)?;
    second.bound.bind(lab.driver)?;
    expect_contents(&second.disk, 2)
}

/// Unbinds and binds one namespace repeatedly while a thread does I/O on the other.
fn one_goes(lab: &mut Lab) -> Result<()> {
    let stays = lab.prepare_in(0, Mode::FsdaxMem)?;
    let goes = lab.prepare_in(1, Mode::FsdaxMem)?;
    let file = stays.disk.open(Access::Direct)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let user = scope.spawn(|| -> Result<u64> {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                rounds += 1;
                let right = Buffer::stamped(1 << 20, rounds);
                let mut found = Buffer::new(1 << 20);
                file.write_all_at(&right, 0)?;
                file.read_exact_at(&mut found, 0)?;
                expect_same("the disk that stays", &found, &right)?;
            }
            Ok(rounds)
        });
        let result = (0..10).try_for_each(|_| {
            goes.bound.unbind()?;
            goes.bound.bind(lab.driver)
        });
        over.store(true, Ordering::Relaxed);
        let rounds = user
            .join()
            .map_err(|_| anyhow::anyhow!("the user panicked"))??;
        ensure!(rounds > 0, "the user has done nothing");
        result
    })
}

fn one_goes_while_mapped(lab: &mut Lab) -> Result<()> {
    let stays = lab.prepare_in(0, Mode::FsdaxMem)?;
    let goes = lab.prepare_in(1, Mode::FsdaxMem)?;
    let node = stays.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    std::fs::write(mount.path("file"), stamped(LEN, 1))?;
    let file = Access::Buffered.open(&mount.path("file"))?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    for round in 1..=5 {
        goes.bound.unbind()?;
        expect_same("the mapping", &mapping.to_vec(0, LEN), &stamped(LEN, round))?;
        mapping.write(0, &stamped(LEN, round + 1));
        goes.bound.bind(lab.driver)?;
    }
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)
}

/// Both drivers are loaded, and each has a namespace.
fn each_driver_has_one(lab: &mut Lab) -> Result<()> {
    let other = lab.driver.other();
    if !other.is_available()? {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    let ours = lab.prepare_in(0, Mode::FsdaxMem)?;
    let theirs = lab.prepare_in(1, Mode::FsdaxMem)?;
    theirs.bound.unbind()?;
    other.load()?;
    theirs.bound.expect_driver(Some(other))?;
    ours.bound.expect_driver(Some(lab.driver))?;
    for (tag, prepared) in [(1, &ours), (2, &theirs)] {
        let node = prepared.disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        std::fs::write(mount.path("file"), stamped(LEN, tag))?;
        mount.unmount()?;
    }
    // One driver reads what the other has written.
    for (prepared, to) in [(&ours, other), (&theirs, lab.driver)] {
        prepared.bound.unbind()?;
        prepared.bound.bind(to)?;
    }
    for (tag, prepared) in [(1, &ours), (2, &theirs)] {
        let node = prepared.disk.node_str();
        let mount = Ext4.mount(&node, "dax=always")?;
        expect_same(
            "the file",
            &std::fs::read(mount.path("file"))?,
            &stamped(LEN, tag),
        )?;
        mount.unmount()?;
        Ext4.check(&node)?;
    }
    ours.bound.unbind()?;
    other.unload()?;
    ours.bound.bind(lab.driver)
}

/// The realtime volume of an xfs is on a device of its own and allocated in large extents. A hole
/// within an extent cannot be freed, so the driver zeroes its pages in place.
fn zero_pages_in_place(lab: &mut Lab) -> Result<()> {
    let data = lab.prepare_in(0, Mode::FsdaxMem)?.disk.node_str();
    let realtime = lab.prepare_in(1, Mode::FsdaxMem)?.disk.node_str();
    let volume = format!("rtdev={realtime},extsize=64k");
    Xfs.make_with(
        &data,
        &["-m", "reflink=0", "-d", "rtinherit=1", "-r", &volume],
    )?;
    let mount = Xfs.mount(&data, &format!("dax=always,rtdev={realtime}"))?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(LEN, 1))?;
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    expect_same("before", &mapping.to_vec(0, LEN), &stamped(LEN, 1))?;

    let calls = CallCount::of(&["dax_zero_page_range"])?;
    let mut right = stamped(LEN, 1);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for (page, count) in [(1, 1), (21, 3), (1000, 8)] {
        let (at, len) = (page * PAGE, count * PAGE);
        fallocate(&file, punch, i64::try_from(at)?, i64::try_from(len)?)?;
        right[at..at + len].fill(0);
    }
    let calls = calls.so_far()?;
    ensure!(
        calls == 12,
        "the driver was asked to zero {calls} pages, expected 12"
    );
    expect_same("through the mapping", &mapping.to_vec(0, LEN), &right)?;
    drop((mapping, file));
    expect_same("through read", &std::fs::read(&path)?, &right)?;
    mount.unmount()
}

fn two_in_one_region(lab: &mut Lab) -> Result<()> {
    let region = Device::named("region1");
    let Prepared { namespace, .. } = lab.prepare_in(1, Mode::FsdaxMem)?;
    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    let mut disks = Vec::new();
    for (tag, mode) in [(1, Mode::FsdaxMem), (2, Mode::FsdaxDev)] {
        let made = ndctl::create(&region, mode, &["-s", "128M"])?;
        let disk = Disk::named(made.blockdev.context("no disk")?);
        let bound = holder(&Device::named(made.dev))?;
        bound.expect_driver(Some(lab.driver))?;
        disk.open(Access::Direct)?
            .write_all_at(&Buffer::stamped(LEN, tag), 0)?;
        disks.push((tag, disk, bound));
    }
    ensure!(disks[0].1 != disks[1].1, "both are {}", disks[0].1);
    for (_, _, bound) in &disks {
        bound.unbind()?;
        for (tag, disk, other) in disks.iter().filter(|(_, _, other)| other != bound) {
            other.expect_driver(Some(lab.driver))?;
            expect_contents(disk, *tag)?;
        }
        bound.bind(lab.driver)?;
    }
    disks
        .iter()
        .try_for_each(|(tag, disk, _)| expect_contents(disk, *tag))
}

/// Makes and removes a namespace. Returns whether that has succeeded in at most `tries` tries: two
/// programs may choose the same device for a new namespace, and then one of them fails, or both.
fn make_and_remove(region: &Device, mode: Mode, tries: usize) -> bool {
    let make = || {
        let made = ndctl::create(region, mode, &["-s", "64M"])?;
        run("ndctl", &["destroy-namespace", "-f", &made.dev])
    };
    (0..tries).any(|_| match make() {
        Ok(_) => true,
        Err(error) => {
            println!("{error:#}");
            false
        }
    })
}

/// Several `ndctl` at once make, remove and list namespaces, two of them in the same region.
fn several_programs(lab: &mut Lab) -> Result<()> {
    const TRIES: usize = 5;
    // On the debug kernel each try takes minutes. Elsewhere the limit of the test is shorter.
    const LIMIT: Duration = Duration::from_secs(600);
    let empty = || [0, 1].map(|index| emptied(lab, index));
    let regions = empty().into_iter().collect::<Result<Vec<_>>>()?;
    let free = || -> Result<Vec<String>> {
        let sizes = regions.iter().map(|region| region.get("available_size"));
        sizes.collect()
    };
    let before = free()?;
    let mut messages = Messages::from_now()?;
    let mut makers = Vec::new();
    for (index, mode, tries) in [
        // Nothing else uses this region.
        (0, Mode::FsdaxMem, 1),
        (1, Mode::FsdaxMem, TRIES),
        (1, Mode::FsdaxDev, TRIES),
    ] {
        let region = &regions[index];
        makers.push(Child::start(format!("{region} {mode:?}"), |_| {
            let good = make_and_remove(region, mode, tries);
            ensure!(good, "no try has succeeded");
            Ok(())
        })?);
    }
    let mut lister = Child::start("the lister", |link| {
        while !link.is_told_to_go()? {
            run("ndctl", &["list", "-RNi"])?;
            sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    for maker in &mut makers {
        maker.expect_done(LIMIT)?;
    }
    lister.go()?;
    lister.expect_done(LIMIT)?;
    expect_no_thread_stuck()?;
    // The driver is not why a program fails.
    let failed = |said: &&String| said.contains("probe with driver");
    let failed: Vec<_> = messages.so_far()?.iter().filter(failed).collect();
    ensure!(failed.is_empty(), "the kernel says {failed:#?}");

    // A program that failed may have left a namespace behind.
    empty().into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(free()? == before, "the space differs");
    let made = ndctl::create(&regions[1], Mode::FsdaxMem, &["-s", "64M"])?;
    let disk = Disk::named(made.blockdev.context("no disk")?);
    disk.open(Access::Direct)?.sync_all()?;
    Ok(())
}
