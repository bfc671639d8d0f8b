// SPDX-License-Identifier: GPL-2.0

//! Persistent memory behind CXL, and its removal while it is in use.
//!
//! Each access to it is emulated, so files are small.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::pipe;

use super::{Suite, Test};
use crate::command::run;
use crate::cxl;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared, holder};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode, Namespace};
use crate::process::{Child, Link, expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired;
use crate::sectors::{Buffer, expect_same, stamped};

pub const SUITE: Suite = Suite {
    name: "cxl",
    tests: &[
        Test::new("synchronous_mapping", synchronous_mapping).within(120),
        Test::new("modes_and_labels", modes_and_labels).within(120),
    ],
};

/// The cells of a device behind CXL.
pub const REVOKE: Suite = Suite {
    name: "revoke_cxl",
    tests: &[
        Test::new("cxl_writer_unbind", |lab| writer(lab, Way::Unbind)).within(120),
        Test::new("cxl_writer_region", |lab| writer(lab, Way::Region)).within(120),
        Test::new("cxl_writer_memdev", |lab| writer(lab, Way::Device)).within(120),
        Test::new("cxl_writer_provider", |lab| writer(lab, Way::Provider)).within(120),
        Test::new("cxl_pipe_memdev", pipe_and_device).within(120),
    ],
};

const LEN: usize = 32 * PAGE;
const TAG: u64 = 1;
/// How long a removal, or the end of a user, may take.
const SOON: Duration = Duration::from_secs(20);

/// The region with one fsdax namespace.
fn ready(lab: &Lab) -> Result<Prepared> {
    cxl::enable()?;
    ndctl::make_whole()?;
    lab.ready(0)
}

/// Makes a small ext4, and mounts it with DAX.
fn make_and_mount(node: &str) -> Result<Mount> {
    // The smallest journal. It is zeroed: ext4 may take transactions of a file system that was here
    // a second ago for its own.
    let small = ["-N", "64", "-J", "size=4"];
    Ext4.make_with(node, &small)?;
    Ext4.mount(node, "dax=always")
}

/// Checks the file and the file system.
fn expect_file(node: &str) -> Result<()> {
    let mount = Ext4.mount(node, "dax=always")?;
    let found = fs::read(mount.path("file"))?;
    expect_same("the file", &found, &stamped(LEN, TAG))?;
    mount.unmount()?;
    Ext4.check(node)
}

/// What was written through a mapping with `MAP_SYNC` is there after the device was unbound and
/// bound.
fn synchronous_mapping(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = ready(lab)?;
    disk.expect("queue/dax", "1")?;
    let mount = make_and_mount(&disk.node_str())?;
    let path = mount.path("file");
    fs::write(&path, vec![0; LEN])?;
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    mapping.write(0, &stamped(LEN, TAG));
    mapping.flush_cpu_cache();
    drop((mapping, file));
    mount.unmount()?;
    bound.unbind()?;
    ensure!(!disk.exists(), "{disk} is still there");
    bound.bind(lab.driver)?;
    expect_file(&disk.node_str())
}

const MODES: [Mode; 4] = [Mode::Raw, Mode::FsdaxMem, Mode::FsdaxDev, Mode::Sector];

/// A namespace of each mode keeps label and contents when it is unbound, and when the region goes.
fn modes_and_labels(lab: &mut Lab) -> Result<()> {
    cxl::enable()?;
    let region = lab.region(0)?;
    let all = ["destroy-namespace", "-f", "-r", region.name(), "all"];
    run("ndctl", &all)?;
    let mut before = Vec::new();
    for (tag, mode) in (1..).zip(MODES) {
        let made = ndctl::create(&region, mode, &["-s", "32M"])?;
        let bound = holder(&Device::named(&made.dev))?;
        bound.expect_driver(Some(lab.driver))?;
        let disk = Disk::named(bound.disk_name()?);
        disk.open(Access::Direct)?
            .write_all_at(&Buffer::of_pages(LEN, tag), 0)?;
        bound.unbind()?;
        bound.bind(lab.driver)?;
        expect_contents(&disk, tag)?;
        before.push(made.show()?);
    }
    cxl::disable_region()?;
    let left = ndctl::list_all()?;
    ensure!(left.is_empty(), "without the region there are {left:?}");
    cxl::enable_region()?;
    let mut after = ndctl::list_all()?;
    // The seed is listed too.
    after.retain(|one| one.size > 0);
    // The names of devices may differ.
    let facts = |all: &[Namespace]| {
        let mut facts: Vec<String> = all
            .iter()
            .map(|one| format!("{} {:?} {}", one.mode, one.map, one.size))
            .collect();
        facts.sort();
        facts
    };
    let (was, is) = (facts(&before), facts(&after));
    ensure!(was == is, "there were {was:?}, and there are {is:?}");
    for (tag, was) in (1..).zip(&before) {
        let now = after
            .iter()
            .find(|now| now.mode == was.mode && now.map == was.map);
        let disk = now.and_then(|now| now.blockdev.as_deref());
        let disk = disk.with_context(|| format!("there is no disk of {was:?}"))?;
        expect_contents(&Disk::named(disk), tag)?;
    }
    Ok(())
}

fn expect_contents(disk: &Disk, tag: u64) -> Result<()> {
    let mut found = Buffer::of_pages(LEN, 0);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(LEN, tag))
}

/// The way in which the device goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The pfn device is unbound.
    Unbind,
    /// `cxl disable-region`.
    Region,
    /// `cxl disable-memdev -f`.
    Device,
    /// The driver of the window is unbound.
    Provider,
}

impl Way {
    /// Removes the device, in a child process because that may never return.
    fn go(self, bound: &Device) -> Result<()> {
        let mut removal = Child::start(format!("going away ({self:?})"), |_| match self {
            Way::Unbind => bound.unbind(),
            Way::Region => cxl::disable_region(),
            Way::Device => cxl::disable_device(),
            Way::Provider => cxl::disable_provider(),
        })?;
        removal.expect_done(SOON)?;
        ensure!(bound.driver().is_none(), "{bound} is still bound");
        Ok(())
    }

    /// Adds the device again, and returns its disk.
    fn come_back(self, lab: &Lab) -> Result<Disk> {
        match self {
            Way::Unbind => lab.holder_in(0)?.bind(lab.driver)?,
            Way::Region => cxl::enable_region()?,
            Way::Device | Way::Provider => cxl::enable()?,
        }
        let bound = lab.holder_in(0)?;
        bound.expect_driver(Some(lab.driver))?;
        Ok(Disk::named(bound.disk_name()?))
    }
}

/// A mounted file system with a durable file.
fn mounted(disk: &Disk) -> Result<Mount> {
    let mount = make_and_mount(&disk.node_str())?;
    let path = mount.path("file");
    fs::write(&path, stamped(LEN, TAG))?;
    File::open(&path)?.sync_all()?;
    Ok(mount)
}

/// What a writer has made durable, in a file that is not on the device: for each page of its file
/// the number of the last contents, and then the number of pages of its log.
struct Acknowledged(File);

impl Acknowledged {
    fn new() -> Result<Acknowledged> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open("/tmp/acknowledged")?;
        file.write_all_at(&[0; 8 * (PAGES + 1)], 0)?;
        Ok(Acknowledged(file))
    }

    fn set(&self, index: usize, number: u64) -> Result<()> {
        Ok(self
            .0
            .write_all_at(&number.to_le_bytes(), 8 * index as u64)?)
    }

    fn all(&self) -> Result<[u64; PAGES + 1]> {
        let mut numbers = [0; PAGES + 1];
        for (index, number) in numbers.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            self.0.read_exact_at(&mut bytes, 8 * index as u64)?;
            *number = u64::from_le_bytes(bytes);
        }
        Ok(numbers)
    }

    /// Waits until the log has grown.
    fn expect_more_than(&self, before: &[u64; PAGES + 1]) -> Result<()> {
        let began = Instant::now();
        while self.all()?[LOG] == before[LOG] {
            ensure!(began.elapsed() < SOON, "the writer is stuck");
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

const PAGES: usize = LEN / PAGE;
/// The index of the length of the log in [`Acknowledged`].
const LOG: usize = PAGES;
/// How many pages a log may have.
const LOG_LIMIT: u64 = 4096;

/// Each byte of a page. So a page that is written when the device goes has two values.
fn contents(number: u64) -> u8 {
    (number % 251) as u8
}

/// Writes new contents to one page after the other, by stores and msync or by write and fsync, and
/// appends a page to a log, until the device goes. Ends by SIGBUS.
fn write_until_it_goes(mount: &Mount, acknowledged: &Acknowledged, link: &mut Link) -> Result<()> {
    let file = Access::Buffered.open(&mount.path("file"))?;
    let log = File::create(mount.path("log"))?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Synchronous, true)?;
    for step in 0.. {
        let (page, number) = (step % PAGES, (step / PAGES + 1) as u64);
        let bytes = [contents(number); PAGE];
        let at = page * PAGE;
        let written = if step % 2 == 0 {
            mapping.write(at, &bytes);
            mapping.sync_part(at, PAGE)
        } else {
            let written = file.write_all_at(&bytes, at as u64);
            written.and_then(|()| file.sync_data())
        };
        if written.is_err() {
            break;
        }
        acknowledged.set(page, number)?;

        let appended = step as u64;
        if appended < LOG_LIMIT {
            let bytes = [contents(appended); PAGE];
            let written = log.write_all_at(&bytes, appended * PAGE as u64);
            if written.and_then(|()| log.sync_all()).is_err() {
                break;
            }
            acknowledged.set(LOG, appended + 1)?;
        }
        if step == PAGES {
            link.say("ready")?;
        }
    }
    // An error of a call comes before the mapping is gone.
    loop {
        mapping.load(0);
    }
}

/// Checks that everything is there that was durable, and nothing but it and what was written after
/// it: `latest` was acknowledged last.
fn expect_durable(node: &str, durable: &[u64; PAGES + 1], latest: &[u64; PAGES + 1]) -> Result<()> {
    let mount = Ext4.mount(node, "dax=always")?;
    let found = fs::read(mount.path("file"))?;
    ensure!(found.len() == LEN, "the file has {} bytes", found.len());
    for (page, found) in found.chunks(PAGE).enumerate() {
        let right: Vec<u8> = (durable[page]..=latest[page] + 1).map(contents).collect();
        let wrong = found.iter().find(|byte| !right.contains(byte));
        ensure!(
            wrong.is_none(),
            "page {page} has {wrong:?}, expected one of {right:?}"
        );
    }
    let log = fs::read(mount.path("log"))?;
    let pages = durable[LOG];
    println!("{pages} pages of the log were durable");
    ensure!(
        log.len() as u64 >= pages * PAGE as u64,
        "the log has {} bytes, and {pages} pages were durable",
        log.len()
    );
    for (number, found) in (0..pages).zip(log.chunks(PAGE)) {
        let right = contents(number);
        ensure!(
            found.iter().all(|&byte| byte == right),
            "page {number} of the log is wrong"
        );
    }
    mount.unmount()?;
    Ext4.check(node)
}

/// A process writes to a file until the device goes. It gets SIGBUS, and what it has made durable
/// is there.
fn writer(lab: &mut Lab, way: Way) -> Result<()> {
    let Prepared { bound, disk, .. } = ready(lab)?;
    let mount = make_and_mount(&disk.node_str())?;
    let path = mount.path("file");
    fs::write(&path, vec![0; LEN])?;
    File::open(&path)?.sync_all()?;
    let acknowledged = Acknowledged::new()?;
    let mut messages = Messages::from_now()?;
    let mut writer = Child::start_ready("the writer", |link| {
        write_until_it_goes(&mount, &acknowledged, link)
    })?;
    let before = acknowledged.all()?;
    acknowledged.expect_more_than(&before)?;
    way.go(&bound)?;
    writer.expect_signal(Signal::SIGBUS, SOON)?;
    let latest = acknowledged.all()?;
    expect_no_process_stuck()?;
    if lab.driver == Driver::PmemRs {
        println!("kernel: {}", messages.expect(&["revoked:"])?);
        retired::expect(0)?;
    }
    mount.unmount()?;
    let disk = way.come_back(lab)?;
    // The kernel resets the decoders of a device that goes, and unbinds the region after that. What
    // is written in between goes nowhere.
    let durable = if way == Way::Device { &before } else { &latest };
    expect_durable(&disk.node_str(), durable, &latest)?;
    expect_no_thread_stuck()
}

/// Pages of a file are in a pipe when the device goes. The range is retired until they are
/// released. Meanwhile the device has another region.
fn pipe_and_device(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = ready(lab)?;
    retired::set_timeout(lab.driver, retired::TIMEOUT)?;
    let mount = mounted(&disk)?;
    let (reader, writer) = pipe()?;
    give(&mount, &writer)?;
    drop(writer);
    // If the removal hangs, so does unmount.
    mount.leave();
    Way::Device.go(&bound)?;
    if lab.driver == Driver::PmemRs {
        println!("retired: {:?}", retired::expect(1)?);
    }
    Mount::of(&disk.node_str()).unmount()?;
    let disk = Way::Device.come_back(lab)?;
    if lab.driver == Driver::PmemRs {
        retired::expect(1)?;
    }
    // What is in the pages went with the device.
    let piped = File::from(reader).read_to_end(&mut Vec::new())?;
    ensure!(piped == PAGE, "{piped} bytes came out of the pipe");
    retired::await_none(SOON)?;
    // The old file system, whose disk had the same name, is only now unmounted.
    let deadline = Instant::now() + SOON;
    while Path::new("/sys/fs/ext4").join(disk.name()).exists() {
        ensure!(Instant::now() < deadline, "the old {disk} is still mounted");
        sleep(Duration::from_millis(20));
    }
    expect_file(&disk.node_str())?;
    expect_no_thread_stuck()
}

/// Puts a page of the file into a pipe.
fn give(mount: &Mount, writer: &OwnedFd) -> Result<()> {
    let file = Access::Buffered.open(&mount.path("file"))?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    let given = mapping.give_to_pipe(0, PAGE, writer)?;
    ensure!(given == PAGE, "{given} bytes were put into the pipe");
    Ok(())
}
