// SPDX-License-Identifier: GPL-2.0

//! Users inside of the kernel. dm-writecache keeps the address of its cache as long as its table
//! exists, and it cannot be revoked. Other tables keep no address, but the driver cannot tell which
//! table holds the disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::fixture::Fixture;
use super::special::{back_to_normal, only_for_pmem_rs};
use super::users::read_all;
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, Way};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::driver::Driver;
use crate::filesystem::FileSystem;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::{Buffer, expect_same, stamped};

/// The cache is on a partition, because dm-writecache formats its whole device.
const CACHE: &str = "label: gpt\nstart=4096, size=131072\n";
const CACHE_AND_ORIGIN: &str = "label: gpt\nstart=4096, size=131072\nstart=135168, size=131072\n";
const CACHED: &str = "cached";
const BELOW: &str = "below";
const LEN: usize = 8 << 20;

/// The module whose tables keep an address.
const HOLDER_MODULE: &str = "dm_writecache";

/// Loads or unloads that module.
pub fn set_writecache(is_there: bool) -> Result<()> {
    if is_there {
        return run("modprobe", &[HOLDER_MODULE]).map(drop);
    }
    let module = Path::new("/sys/module").join(HOLDER_MODULE);
    if module.join("initstate").exists() {
        run("rmmod", &[HOLDER_MODULE])?;
    } else if module.exists() {
        return Err(Skip("dm-writecache is built in").into());
    }
    Ok(())
}

/// A file under dm-linear was used through a mapping. The table still exists on unbind, and delays
/// it only if the kernel has tables that keep an address.
pub fn linear(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for keeps in [false, true] {
        set_writecache(keeps)?;
        let mut fixture = Fixture::build(lab, Fs::Ext4, Under::Linear)?;
        read_all(&fixture.map(Sharing::Shared)?);
        fixture.unmount()?;
        let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
        println!("gone after {} ms", took.as_millis());
        for line in retired::expect(usize::from(keeps))? {
            println!("retired: {line}");
            ensure!(line.contains("holder of the disk"), "it says `{line}`");
        }
        if keeps {
            std::thread::sleep(TIMEOUT);
            retired::expect(1)?;
        }
        back_to_normal(fixture, Way::Unbind)?;
    }
    set_writecache(false)
}

/// Blocks in the cache are written to their origin after the cache's device is gone. The range is
/// free only afterwards.
pub fn writecache(lab: &mut Lab) -> Result<()> {
    retired::set_timeout(lab.driver, TIMEOUT)?;
    set_writecache(true)?;
    let pmem = lab.ready(0)?;
    pmem.disk.cut(CACHE)?;
    let cache = pmem.disk.partition(1).node_str();
    // An existing cache would be continued.
    pmem.disk
        .partition(1)
        .open(Access::Direct)?
        .write_all_at(&Buffer::new(1 << 20), 0)?;
    let origin = lab.ready(1)?.disk;
    let sectors = (2 * LEN / 512) as u64;
    origin
        .open(Access::Direct)?
        .write_all_at(&Buffer::stamped(2 * LEN, 1), 0)?;
    // Nothing is written back automatically.
    let table = format!(
        "0 {sectors} writecache p {} {cache} 4096 4 high_watermark 100 low_watermark 100",
        origin.node_str()
    );
    let over = Mapped::new(CACHED, &table)?;
    let file = over.disk().open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(LEN, 2), 0)?;
    file.sync_all()?;
    expect_contents(&origin, LEN, 1).context("the cache is not used")?;
    write_to_read_only_region(lab, &file)?;

    let mut unbind = Child::start("the unbinding process", |_| pmem.bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT + TIMEOUT)?;
    if lab.driver == Driver::PmemRs {
        for line in retired::expect(1)? {
            println!("retired: {line}");
        }
    }
    // The contents are still there and writable.
    let mut found = Buffer::new(LEN);
    file.read_exact_at(&mut found, 0)?;
    expect_same("the cached disk", &found, &stamped(LEN, 2))?;
    file.write_all_at(&Buffer::stamped(LEN / 2, 3), 0)?;
    drop(file);

    run("dmsetup", &["message", CACHED, "0", "flush"])?;
    await_written_back()?;
    over.remove()?;
    expect_contents(&origin, LEN / 2, 3)?;
    retired::await_none(FREE_LIMIT)?;
    expect_no_thread_stuck()?;
    // While the module is loaded, a range below device-mapper is retired.
    set_writecache(false)?;
    pmem.bound.bind(lab.driver)
}

/// The cache is on a device-mapper device whose table is replaced by one on another disk. The claim
/// of the first disk ends, but dm-writecache still has its address.
pub fn writecache_above_a_replaced_table(lab: &mut Lab) -> Result<()> {
    const SECTORS: usize = 64 << 11;
    retired::set_timeout(lab.driver, TIMEOUT)?;
    set_writecache(true)?;
    let pmem = lab.ready(0)?;
    pmem.disk
        .open(Access::Direct)?
        .write_all_at(&Buffer::new(1 << 20), 0)?;
    let other = lab.ready(1)?.disk;
    let origin_sectors = 2 * LEN / 512;
    let below = Mapped::new(
        BELOW,
        &format!("0 {SECTORS} linear {} 0", pmem.disk.node_str()),
    )?;
    // The claim of the table does not end when a program closes the disk.
    run("blockdev", &["--getsize64", &pmem.disk.node_str()])?;
    let over = Mapped::new(
        CACHED,
        &format!(
            "0 {origin_sectors} writecache p {} {} 4096 4 high_watermark 100 low_watermark 100",
            other.node_str(),
            below.disk().node_str()
        ),
    )?;
    let file = over.disk().open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(LEN, 2), 0)?;
    below.replace(&format!(
        "0 {SECTORS} linear {} {origin_sectors}",
        other.node_str()
    ))?;

    let mut unbind = Child::start("the unbinding process", |_| pmem.bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT + TIMEOUT)?;
    if lab.driver == Driver::PmemRs {
        for line in retired::expect(1)? {
            println!("retired: {line}");
        }
    }
    let mut found = Buffer::new(LEN);
    file.read_exact_at(&mut found, 0)?;
    expect_same("the cached disk", &found, &stamped(LEN, 2))?;
    drop(file);

    run("dmsetup", &["message", CACHED, "0", "flush"])?;
    await_written_back()?;
    over.remove()?;
    below.remove()?;
    expect_contents(&other, LEN, 2)?;
    retired::await_none(FREE_LIMIT)?;
    expect_no_thread_stuck()?;
    set_writecache(false)?;
    pmem.bound.bind(lab.driver)
}

/// dm-writecache is in use on another disk. The disk was below a table once, whose claim has ended
/// before. Programs that open and close the disk do not delay its unbind.
pub fn closes_beside_writecache(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    set_writecache(false)?;
    let pmem = lab.ready(0)?;
    let node = pmem.disk.node_str();
    Mapped::new(BELOW, &format!("0 4096 linear {node} 0"))?.remove()?;

    set_writecache(true)?;
    let other = lab.ready(1)?.disk;
    other.cut(CACHE_AND_ORIGIN)?;
    other
        .partition(1)
        .open(Access::Direct)?
        .write_all_at(&Buffer::new(1 << 20), 0)?;
    let over = Mapped::new(
        CACHED,
        &format!(
            "0 131072 writecache p {} {} 4096 0",
            other.partition(2).node_str(),
            other.partition(1).node_str()
        ),
    )?;

    FileSystem::Ext4.make(&node)?;
    let mount = FileSystem::Ext4.mount(&node, "dax=always")?;
    fs::write(mount.path("file"), [1; PAGE])?;
    let file = Access::Buffered.open(&mount.path("file"))?;
    Mapping::of_pages(&file, PAGE, Sharing::Shared, true)?.load(0);
    drop(file);
    run("blockdev", &["--getsize64", &node])?;
    mount.unmount()?;
    run("blockdev", &["--getsize64", &node])?;
    pmem.bound.unbind()?;
    retired::expect(0)?;

    over.remove()?;
    set_writecache(false)?;
    pmem.bound.bind(lab.driver)
}

/// The driver does not see what is written to an address that it has given (docs/media.md).
fn write_to_read_only_region(lab: &Lab, cached: &File) -> Result<()> {
    const PART: usize = 64 << 10;
    let region = lab.region(0)?;
    region.set("read_only", "1")?;
    for tag in [4, 2] {
        cached.write_all_at(&Buffer::stamped(PART, tag), 0)?;
        cached.sync_all()?;
        let mut found = Buffer::new(PART);
        cached.read_exact_at(&mut found, 0)?;
        expect_same("the cached disk", &found, &stamped(PART, tag))?;
    }
    region.set("read_only", "0")
}

fn expect_contents(disk: &Disk, len: usize, tag: u64) -> Result<()> {
    let mut found = Buffer::new(len);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(len, tag))
}

/// Waits until all blocks of the cache are free, that is, written to the origin.
fn await_written_back() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = run("dmsetup", &["status", CACHED])?;
        let fields: Vec<&str> = status.split_whitespace().collect();
        let [_, _, _, error, total, free, ..] = fields.as_slice() else {
            anyhow::bail!("the status of the cache is `{status}`");
        };
        ensure!(*error == "0", "the cache has failed: {status}");
        if total == free {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the cache is not written back: {status}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
