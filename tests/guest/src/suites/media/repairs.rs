// SPDX-License-Identifier: GPL-2.0

//! Pages that have really failed, and are repaired by writing all of them, even if the provider
//! cannot clear poison.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::{Bench, open};
use crate::command::run;
use crate::disk::Access;
use crate::errno;
use crate::filesystem::FileSystem::Xfs;
use crate::filesystem::Mount;
use crate::injector::Injector;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::nd;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, SECTOR, expect_same, stamped};
use crate::suites::platform::only_for_pmem_rs;
use crate::tracing::Events;

const LEN: usize = 1 << 20;
const BAD: usize = 3;

/// Makes xfs and a file, and returns both with the physical address of the page [`BAD`].
fn file_on_xfs(bench: &Bench, seed: u64) -> Result<(Mount, File, u64)> {
    let node = bench.disk.node_str();
    Xfs.make_with(&node, &["-m", "rmapbt=1,reflink=0"])?;
    let mount = Xfs.mount(&node, "dax=always")?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("file"))?;
    file.write_all_at(&stamped(LEN, seed), 0)?;
    file.sync_all()?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, false)?;
    mapping.load(BAD * PAGE);
    let address = mapping.physical(BAD * PAGE)?;
    Ok((mount, file, address))
}

/// A page of a file fails, and the provider cannot clear poison: the injector refuses, and the
/// NVDIMM has no such command. A new file system can be made there and written to.
pub fn without_provider(lab: &mut Lab) -> Result<()> {
    for region in [0, 1] {
        let injector = Injector::new()?;
        injector.set_limit(0)?;
        nd::enable_all()?;
        let bench = Bench::of(injector, lab.prepare_in(region, Mode::FsdaxMem)?)?;
        let (mount, file, address) = file_on_xfs(&bench, 1)?;
        let sector = (address - bench.start) / SECTOR as u64;
        bench.injector.fail(address)?;
        bench.expect_bad(&format!("{sector} 8"))?;
        drop(file);
        mount.unmount()?;

        let disk = bench.disk.open(Access::Direct)?;
        let at = sector * SECTOR as u64;
        let result = disk.read_at(&mut Buffer::new(PAGE), at);
        errno::expect("reading the page", result, &[Errno::ENODATA])?;
        let result = disk.write_at(&Buffer::stamped(SECTOR, 9), at);
        errno::expect("writing a part of it", result, &[Errno::ENODATA])?;
        let (mount, file, now) = file_on_xfs(&bench, 2)?;
        ensure!(now == address, "the file is at {now:#x}, not {address:#x}");
        bench.expect_bad("")?;
        let mut found = vec![0; LEN];
        file.read_exact_at(&mut found, 0)?;
        expect_same("the new file", &found, &stamped(LEN, 2))?;

        // It fails again, and is repaired again, through the file and through the disk.
        bench.injector.fail(address)?;
        bench.expect_bad(&format!("{sector} 8"))?;
        file.write_all_at(&stamped(PAGE, 3), (BAD * PAGE) as u64)?;
        bench.expect_bad("")?;
        bench.injector.fail(address)?;
        drop(file);
        mount.unmount()?;
        disk.write_all_at(&Buffer::stamped(PAGE, 4), at)?;
        bench.expect_bad("")?;
        let mut found = Buffer::new(PAGE);
        disk.read_exact_at(&mut found, at)?;
        expect_same("the page", &found, &Buffer::stamped(PAGE, 4))?;
        let said = run("blkid", &["-p", &bench.disk.node_str()])?;
        ensure!(said.contains("xfs"), "blkid says `{said}`");
    }
    Ok(())
}

/// A request to a failed page and to a sector that only the provider could clear: it fails, and the
/// failed page can still be repaired. Just so if the source of the data cannot be read.
pub fn incomplete(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let (mount, file, address) = file_on_xfs(&bench, 1)?;
    let sector = (address - bench.start) / SECTOR as u64;
    bench.injector.set_limit(0)?;
    bench.injector.fail(address)?;
    bench.inject(sector + 9, 1)?;
    let disk = bench.disk.open(Access::Direct)?;
    let at = sector * SECTOR as u64;
    let both = format!("{sector} 8\n{} 1", sector + 9);
    bench.expect_bad(&both)?;
    for _ in 0..2 {
        let result = disk.write_at(&Buffer::stamped(2 * PAGE, 2), at);
        errno::expect("writing both", result, &[Errno::ENODATA])?;
        bench.expect_bad(&both)?;
    }
    disk.write_all_at(&Buffer::stamped(PAGE, 3), at)?;
    let only = format!("{} 1", sector + 9);
    bench.expect_bad(&only)?;

    // The source ends after two sectors of the page.
    bench.injector.fail(address)?;
    let path = "/tmp/short";
    std::fs::write(path, [7; PAGE])?;
    let source = Mapping::of_pages(&open(path.as_ref())?, 2 * PAGE, Sharing::Shared, true)?;
    let from = PAGE - 2 * SECTOR;
    let result = source.write_to(from, PAGE, &file, (BAD * PAGE) as i64);
    println!("{:?}", result.err().context("it was written")?);
    let result = file.read_exact_at(&mut [0; PAGE], (BAD * PAGE) as u64);
    errno::expect("reading it", result, &[Errno::EIO])?;
    file.write_all_at(&stamped(PAGE, 5), (BAD * PAGE) as u64)?;
    bench.expect_bad(&only)?;
    let mut found = vec![0; PAGE];
    file.read_exact_at(&mut found, (BAD * PAGE) as u64)?;
    expect_same("the page", &found, &stamped(PAGE, 5))?;

    bench.injector.set_limit(u64::MAX)?;
    disk.write_all_at(&Buffer::new(SECTOR), (sector + 9) * SECTOR as u64)?;
    bench.expect_bad("")?;
    drop((file, disk));
    std::fs::remove_file(path)?;
    mount.unmount()
}

/// Each of two devices logs what it refuses, and a device that is asked often does not fill the
/// log.
pub fn each_device_says_so(lab: &mut Lab) -> Result<()> {
    let first = Bench::new(lab, Mode::FsdaxMem)?;
    nd::enable_all()?;
    let second = Bench::of(Injector::attach(), lab.prepare_in(1, Mode::FsdaxMem)?)?;
    let mut messages = Messages::from_now()?;
    for bench in [&first, &second] {
        let (mount, file, address) = file_on_xfs(bench, 1)?;
        let sector = (address - bench.start) / SECTOR as u64;
        bench.injector.fail(address)?;
        let disk = bench.disk.open(Access::Direct)?;
        for _ in 0..100 {
            let result = disk.write_at(&Buffer::new(SECTOR), sector * SECTOR as u64);
            errno::expect("writing a part of it", result, &[Errno::ENODATA])?;
        }
        let line = format!(
            "{}: write of {SECTOR} bytes at sector {sector} refused",
            bench.bound.name()
        );
        messages.expect(&[&line])?;
        let said = messages.so_far()?.iter();
        let count = said.filter(|said| said.contains(&line)).count();
        ensure!(count < 50, "{count} messages in a moment");
        file.write_all_at(&stamped(PAGE, 1), (BAD * PAGE) as u64)?;
        bench.expect_bad("")?;
        drop((file, disk));
        mount.unmount()?;
    }
    Ok(())
}

/// Failures, repairs and refused requests are recorded.
pub fn traced(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let dev = format!("dev={}", bench.bound.name());
    let disk = bench.disk.open(Access::Direct)?;
    let refused = format!("error={}", -(Errno::ENODATA as i32));
    bench.inject(8, 1)?;
    let events = Events::start()?;
    let page = [&dev, "offset=4096", "len=4096"];
    let recorded = |event, more: &[&str]| events.expect(event, &[&page, more].concat());
    let result = disk.read_at(&mut Buffer::new(PAGE), PAGE as u64);
    errno::expect("reading the page", result, &[Errno::ENODATA])?;
    recorded("pmem_refuse", &["op=read", &refused])?;
    disk.write_all_at(&Buffer::stamped(PAGE, 1), PAGE as u64)?;
    recorded("pmem_repair", &["error=0"])?;

    bench.injector.set_limit(0)?;
    bench.inject(8, 1)?;
    let result = disk.write_at(&Buffer::stamped(PAGE, 2), PAGE as u64);
    errno::expect("writing the page", result, &[Errno::ENODATA])?;
    recorded("pmem_repair", &[&refused])?;
    recorded("pmem_refuse", &["op=write", &refused])?;
    bench.injector.set_limit(u64::MAX)?;
    disk.write_all_at(&Buffer::stamped(PAGE, 3), PAGE as u64)?;

    let (mount, file, address) = file_on_xfs(&bench, 1)?;
    bench.injector.fail(address)?;
    let offset = format!("offset={}", address - bench.start);
    let failed = [&dev, &*offset, "len=4096", "error=0"];
    events.expect("pmem_memory_failure", &failed)?;
    file.write_all_at(&stamped(PAGE, 3), (BAD * PAGE) as u64)?;
    bench.expect_bad("")?;
    drop(file);
    mount.unmount()
}

/// A page is written as soon as its failure is recorded, before the kernel takes it out of the
/// linear mapping: a moment later, or so late that the write does not wait for that. In neither
/// case is a page accessed that is missing there.
pub fn before_it_is_unmapped(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let (mount, file, address) = file_on_xfs(&bench, 1)?;
    let sector = (address - bench.start) / SECTOR as u64;
    let listed = format!("{sector} 8");
    let at = sector * SECTOR as u64;
    let disk = bench.disk.open(Access::Direct)?;
    let fail = |delay| -> Result<JoinHandle<Result<()>>> {
        let failing = thread::spawn(move || Injector::attach().fail_slowly(address, delay));
        for _ in 0..100 {
            if bench.disk.get("badblocks")? == listed {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        bench.expect_bad(&listed)?;
        Ok(failing)
    };
    let expect = |seed| -> Result<()> {
        let mut found = Buffer::new(PAGE);
        disk.read_exact_at(&mut found, at)?;
        expect_same("the page", &found, &Buffer::stamped(PAGE, seed))
    };

    let failing = fail(Duration::from_millis(600))?;
    disk.write_all_at(&Buffer::stamped(PAGE, 2), at)?;
    let has_waited = failing.is_finished();
    failing.join().expect("joining the injector")?;
    bench.expect_bad("")?;
    disk.write_all_at(&Buffer::stamped(PAGE, 3), at)?;
    expect(3)?;
    ensure!(has_waited, "the write has not waited");

    let failing = fail(Duration::from_secs(4))?;
    disk.write_all_at(&Buffer::stamped(PAGE, 4), at)?;
    ensure!(!failing.is_finished(), "the write has waited for 4 s");
    expect(4)?;
    failing.join().expect("joining the injector")?;
    bench.expect_bad("")?;
    let result = disk.read_at(&mut Buffer::new(PAGE), at);
    errno::expect("reading the page", result, &[Errno::ENODATA])?;
    let result = disk.write_at(&Buffer::stamped(SECTOR, 5), at);
    errno::expect("writing a part of it", result, &[Errno::ENODATA])?;
    disk.write_all_at(&Buffer::stamped(PAGE, 5), at)?;
    expect(5)?;

    // It is missing when the device is unbound, and is not listed anywhere.
    let failing = fail(Duration::from_secs(4))?;
    disk.write_all_at(&Buffer::stamped(PAGE, 6), at)?;
    failing.join().expect("joining the injector")?;
    drop((file, disk));
    mount.unmount()?;
    bench.bound.unbind()?;
    bench.bound.bind(lab.driver)?;
    bench.expect_bad("")?;
    let disk = bench.disk.open(Access::Direct)?;
    let mut found = Buffer::new(PAGE);
    disk.read_exact_at(&mut found, at)?;
    expect_same("the page", &found, &Buffer::stamped(PAGE, 6))?;
    disk.write_all_at(&Buffer::stamped(SECTOR, 7), at)?;
    Ok(())
}
