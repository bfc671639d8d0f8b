// SPDX-License-Identifier: GPL-2.0

//! Persistent memory without NVDIMMs, as a device on the platform bus: which driver binds, its
//! regions, and its removal while it is in use. The device is that of a PC, with two ranges that
//! `memmap=` on the command line makes persistent, and behind them one that is not whole pages.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared, Skip};
use crate::leaks::{Holdings, reservation};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::Mode;
use crate::platform::{LEGACY, LEGACY_DRIVER, LEGACY_MODULE, PlatformDevice};
use crate::process::{Child, Link, expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::{Buffer, expect_same, stamped};

pub const SUITE: Suite = Suite {
    name: "platform",
    tests: &[
        Test::new("module_declares_the_devices", declares),
        Test::new("each_range_is_a_region", each_range_is_a_region),
        Test::new("wrong_range_is_left_out", wrong_range),
        Test::new("unbind_and_bind", unbind_and_bind),
        Test::new(
            "driver_override_gives_it_to_nd_e820_and_back",
            override_driver,
        ),
        Test::new("first_loaded_driver_binds", first_loaded_driver_binds),
        Test::new("device_without_memory_is_refused", without_memory),
        Test::new("range_that_is_busy", busy_range),
        Test::new("module_is_removed_unless_in_use", module_goes),
        Test::new("unbind_while_raw_namespaces_are_in_use", |lab| {
            goes_in_use(lab, Mode::Raw)
        }),
        Test::new("unbind_while_fsdax_namespaces_are_in_use", |lab| {
            goes_in_use(lab, Mode::FsdaxDev)
        }),
        Test::new("concurrent_unbinds", concurrent_unbinds),
        Test::new("rebind_while_a_range_is_retired", while_retired),
    ],
};

/// A step that takes longer hangs.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The size of the file that is used during the removal.
const LEN: usize = PMD;

/// The device, if the driver under test supports it.
fn device(lab: &Lab) -> Result<PlatformDevice> {
    only_for_pmem_rs(lab)?;
    let device = PlatformDevice::named(LEGACY);
    device.expect_driver(Some(lab.driver.name()))?;
    Ok(device)
}

pub fn only_for_pmem_rs(lab: &Lab) -> Result<()> {
    if lab.driver != Driver::PmemRs {
        return Err(Skip("nd_pmem is not a platform driver").into());
    }
    Ok(())
}

/// The uevent of such a device has an alias of the module.
fn declares(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    for alias in [
        device.get("modalias")?,
        "of:NpmemT(null)Cpmem-region".to_owned(),
        "of:NpmemT(null)Cpmem-region-v2".to_owned(),
    ] {
        expect_alias(lab, &alias)?;
    }
    Ok(())
}

pub fn expect_alias(lab: &Lab, alias: &str) -> Result<()> {
    let found = run("modprobe", &["-R", alias])?;
    let is_ours = |name| name == lab.driver.name();
    ensure!(
        found.split_whitespace().any(is_ours),
        "{alias} is for {found:?}"
    );
    Ok(())
}

/// The persistent ranges of the firmware, from `/proc/iomem`.
fn ranges() -> Result<Vec<(u64, u64)>> {
    let iomem = fs::read_to_string("/proc/iomem")?;
    iomem
        .lines()
        .filter_map(|line| line.strip_suffix(" : Persistent Memory (legacy)"))
        .map(|range| {
            let (start, last) = range.split_once('-').context("a range without an end")?;
            let [start, last] = [start, last].map(|text| u64::from_str_radix(text.trim(), 16));
            let (start, last) = (start?, last?);
            Ok((start, last + 1 - start))
        })
        .collect()
}

fn each_range_is_a_region(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    let modules = fs::read_to_string("/proc/modules")?;
    ensure!(
        !modules.contains(LEGACY_MODULE),
        "{LEGACY_MODULE} is loaded"
    );
    ensure!(
        device.bus()?.get("provider")? == "e820",
        "the provider is {}",
        device.bus()?.get("provider")?
    );
    let regions = device.ranges()?;
    let ranges = ranges()?;
    ensure!(ranges.len() == 3, "the ranges are {ranges:x?}");
    ensure!(
        regions == ranges[..2],
        "the ranges are {ranges:x?}, the regions {regions:x?}"
    );
    for index in 0..2 {
        let namespace = lab.namespace(index)?;
        namespace.expect_driver(Some(lab.driver))?;
        Disk::named(namespace.disk_name()?).expect("queue/dax", "1")?;
    }
    Ok(())
}

/// The log has the reason, and the other ranges have regions.
fn wrong_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    device.unbind()?;
    let mut messages = Messages::from_now()?;
    device.bind(lab.driver.name())?;
    let said =
        messages.expect(&["[mem 0x6a400000-0x6a4017ff] is left out, it is not whole pages"])?;
    println!("the kernel says: {said}");
    for index in 0..2 {
        lab.namespace(index)?.expect_driver(Some(lab.driver))?;
    }
    Ok(())
}

/// Writes a mark to the first disk that any driver of the range can read.
fn leave_mark(lab: &Lab, tag: u64) -> Result<()> {
    let disk = lab.prepare(Mode::Raw)?.disk;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, tag), 0)?;
    Ok(())
}

fn expect_mark(lab: &Lab, tag: u64) -> Result<()> {
    let namespace = lab.namespace(0)?;
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was written", &found, &stamped(LEN, tag))
}

fn expect_nothing_left() -> Result<()> {
    let left = Device::all()?;
    ensure!(left.is_empty(), "on the nd bus are still {left:?}");
    let disks = Disk::all("pmem")?;
    ensure!(disks.is_empty(), "there are still {disks:?}");
    Ok(())
}

fn unbind_and_bind(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 1)?;
    let description = device.description()?;
    // The first round fills caches that stay filled.
    device.unbind()?;
    device.bind(lab.driver.name())?;
    let before = Holdings::now()?;
    for _ in 0..10 {
        device.unbind()?;
        expect_nothing_left()?;
        device.bind(lab.driver.name())?;
        expect_mark(lab, 1)?;
    }
    before.expect_unchanged()?;
    description.expect_same(&device.description()?)
}

/// The regions have the same attributes with both drivers, except that `nd_e820` makes one of the
/// invalid range, too.
fn override_driver(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 2)?;
    let ours = device.description()?;

    device.set_override(Some(LEGACY_DRIVER))?;
    device.expect_driver(Some(lab.driver.name()))?;
    device.unbind()?;
    let refused = device.try_bind(lab.driver.name());
    errno::expect(
        "binding in spite of the override",
        refused,
        &[Errno::ENODEV],
    )?;
    run("modprobe", &[LEGACY_MODULE])?;
    settle()?;
    device.expect_driver(Some(LEGACY_DRIVER))?;
    expect_mark(lab, 2)?;
    let theirs = device.regions()?;
    ensure!(theirs.len() == 3, "{LEGACY_DRIVER} has {theirs:?}");
    ours.expect_same(&device.description()?.without(&theirs[2]))?;

    device.set_override(Some(lab.driver.name()))?;
    device.unbind()?;
    device.probe()?;
    device.expect_driver(Some(lab.driver.name()))?;
    expect_mark(lab, 2)?;
    device.set_override(None)?;
    run("rmmod", &[LEGACY_MODULE]).map(drop)
}

fn first_loaded_driver_binds(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 3)?;
    run("modprobe", &[LEGACY_MODULE])?;
    device.expect_driver(Some(lab.driver.name()))?;
    lab.driver.unload()?;
    device.expect_driver(None)?;

    run("rmmod", &[LEGACY_MODULE])?;
    run("modprobe", &[LEGACY_MODULE])?;
    device.expect_driver(Some(LEGACY_DRIVER))?;
    lab.driver.load()?;
    device.expect_driver(Some(LEGACY_DRIVER))?;
    expect_mark(lab, 3)?;
    device.unbind()?;
    run("rmmod", &[LEGACY_MODULE])?;
    device.bind(lab.driver.name())?;
    expect_mark(lab, 3)
}

/// `driver_override` makes the driver probe any device.
fn without_memory(lab: &mut Lab) -> Result<()> {
    device(lab)?;
    let other = PlatformDevice::all()?
        .into_iter()
        .find(|other| other.driver().is_none() && other.path("driver_override").exists())
        .context("all devices on the platform bus have a driver")?;
    other.set_override(Some(lab.driver.name()))?;
    let mut messages = Messages::from_now()?;
    let refused = other.try_bind(lab.driver.name());
    other.set_override(None)?;
    errno::expect("binding a device without memory", refused, &[Errno::ENXIO])?;
    let said = messages.expect(&["not a device with persistent memory"])?;
    ensure!(
        said.contains(&other.to_string()),
        "`{said}` does not name {other}"
    );
    other.expect_driver(None)
}

/// Another driver has reserved a part of one range: the other range is not affected.
fn busy_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 4)?;
    let start = lab.namespace(0)?.resource()?;
    device.unbind()?;
    let address = format!("mem_address={start:#x}");
    let layout = ["mem_size=0x200000", "record_size=0x20000", "ecc=0"];
    // Loading it overwrites the contents.
    run("modprobe", &[&["ramoops", &address][..], &layout].concat())?;

    let mut messages = Messages::from_now()?;
    device.bind(lab.driver.name())?;
    messages.expect(&["is in use. /proc/iomem shows by whom"])?;
    let namespace = lab.namespace(0)?;
    namespace.expect_driver(None)?;
    lab.namespace(1)?.expect_driver(Some(lab.driver))?;
    run("rmmod", &["ramoops"])?;
    namespace.bind(lab.driver)?;
    leave_mark(lab, 5)?;
    expect_mark(lab, 5)
}

fn expect_module_in_use(lab: &Lab) -> Result<()> {
    let output = run_expecting_failure("rmmod", &[lab.driver.name()])?;
    ensure!(output.contains("in use"), "rmmod says `{output}`");
    Ok(())
}

/// Regions hold no reference to the module, but users of their namespaces do.
fn module_goes(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 6)?;
    lab.driver.unload()?;
    lab.driver.load()?;
    let before = Holdings::now()?;
    for _ in 0..5 {
        lab.driver.unload()?;
        device.expect_driver(None)?;
        expect_nothing_left()?;
        let by = ranges()?
            .into_iter()
            .filter_map(|(start, _)| reservation(start).transpose())
            .collect::<Result<Vec<_>>>()?;
        ensure!(by.is_empty(), "still reserved: {by:?}");
        lab.driver.load()?;
        expect_mark(lab, 6)?;
    }
    before.expect_unchanged()?;

    let disk = Disk::named(lab.namespace(1)?.disk_name()?);
    let open = disk.open_read_only()?;
    expect_module_in_use(lab)?;
    drop(open);
    Ext4.make(&disk.node_str())?;
    let mount = Ext4.mount(&disk.node_str(), "dax=always")?;
    expect_module_in_use(lab)?;
    device.expect_driver(Some(lab.driver.name()))?;
    mount.unmount()?;
    lab.driver.unload()?;
    lab.driver.load()?;
    expect_mark(lab, 6)
}

/// A file system with DAX and a file.
pub struct Fixture {
    region: u32,
    mount: Mount,
}

impl Fixture {
    /// Makes the file system on an existing disk.
    pub fn on(region: u32, disk: &Disk) -> Result<Fixture> {
        let node = disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        fs::write(mount.path("file"), stamped(LEN, region.into()))?;
        run("sync", &["-f", &mount.path("file").to_string_lossy()])?;
        Ok(Fixture { region, mount })
    }

    fn build(lab: &Lab, region: u32, mode: Mode) -> Result<Fixture> {
        let Prepared { disk, .. } = lab.prepare_in(region, mode)?;
        Fixture::on(region, &disk)
    }

    /// After the device was bound again: checks that the contents are intact.
    pub fn expect_intact(self, disk: &Disk) -> Result<()> {
        self.mount.unmount()?;
        let node = disk.node_str();
        let mount = Ext4.mount(&node, "dax=always")?;
        let found = fs::read(mount.path("file"))?;
        expect_same("the file", &found, &stamped(LEN, self.region.into()))?;
        mount.unmount()?;
        Ext4.check(&node)
    }

    /// Starts a process that reads the file through a mapping until it gets a signal.
    pub fn start_reader(&self) -> Result<Child> {
        let path = self.mount.path("file");
        Child::start_ready("the reader", |link| read_for_ever(&path, link))
    }

    /// Starts a process that reads and writes with system calls until one fails.
    fn start_caller(&self) -> Result<Child> {
        let path = self.mount.path("file");
        let bytes = stamped(LEN, self.region.into());
        Child::start_ready("the caller", |link| call_until_error(&path, &bytes, link))
    }
}

fn read_for_ever(path: &Path, link: &mut Link) -> Result<()> {
    let file = Access::Buffered.open(path)?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    let read_all = || {
        for page in (0..LEN).step_by(PAGE) {
            mapping.load(page);
        }
    };
    read_all();
    link.say("ready")?;
    loop {
        read_all();
    }
}

fn call_until_error(path: &Path, bytes: &[u8], link: &mut Link) -> Result<()> {
    let file = Access::Buffered.open(path)?;
    let round = |buffer: &mut [u8]| -> io::Result<()> {
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        file.read_exact_at(buffer, 0)
    };
    let mut buffer = vec![0; bytes.len()];
    round(&mut buffer)?;
    link.say("ready")?;
    loop {
        let result = round(&mut buffer);
        if result.is_err() {
            // A file system that could not write its journal is read-only.
            let right = [Errno::EIO, Errno::ENXIO, Errno::ENODEV, Errno::EROFS];
            errno::expect("calls when the device has gone", result, &right)?;
            return errno::expect(
                "reading after that",
                file.read_exact_at(&mut buffer, 0),
                &right,
            )
            .map(drop);
        }
    }
}

/// Unbinds a device from the driver under test, in a child process, because that may never return.
pub fn unbind_in_child(lab: &Lab, device: &PlatformDevice) -> Result<()> {
    let began = Instant::now();
    Child::start("the process that unbinds the device", |_| {
        Ok(device.try_unbind(lab.driver.name())?)
    })?
    .expect_done(LIMIT)?;
    println!("it went after {:?}", began.elapsed());
    device.expect_driver(None)
}

/// The disk of a region, after its namespace was bound automatically.
pub fn disk_in(lab: &Lab, region: u32) -> Result<Disk> {
    let bound = lab.holder_in(region)?;
    bound.expect_driver(Some(lab.driver))?;
    Ok(Disk::named(bound.disk_name()?))
}

fn goes_in_use(lab: &mut Lab, mode: Mode) -> Result<()> {
    let device = device(lab)?;
    let fixtures = [Fixture::build(lab, 0, mode)?, Fixture::build(lab, 1, mode)?];
    let mut reader = fixtures[0].start_reader()?;
    let mut caller = fixtures[1].start_caller()?;
    unbind_in_child(lab, &device)?;
    expect_nothing_left()?;
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    caller.expect_done(LIMIT)?;
    expect_no_process_stuck()?;

    retired::expect(0)?;
    device.bind(lab.driver.name())?;
    for (region, fixture) in (0..).zip(fixtures) {
        fixture.expect_intact(&disk_in(lab, region)?)?;
    }
    expect_no_thread_stuck()
}

/// Accepts that a concurrent unbind has removed the device already.
fn or_gone(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        result => Ok(result?),
    }
}

fn concurrent_unbinds(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    let fixture = Fixture::build(lab, 0, Mode::FsdaxDev)?;
    let mut reader = fixture.start_reader()?;
    let region = lab.region(0)?;
    let bound = lab.holder_in(0)?;
    let unbind = || or_gone(device.try_unbind(lab.driver.name()));
    let mut all = [
        Child::start("the first unbinding process", |_| unbind())?,
        Child::start("the second unbinding process", |_| unbind())?,
        Child::start("the process that unbinds the region", |_| {
            or_gone(region.try_unbind_region())
        })?,
        Child::start("the process that unbinds the disk", |_| {
            or_gone(bound.try_unbind(lab.driver))
        })?,
    ];
    for process in &mut all {
        process.expect_done(LIMIT)?;
    }
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    device.expect_driver(None)?;
    expect_nothing_left()?;
    device.bind(lab.driver.name())?;
    fixture.expect_intact(&disk_in(lab, 0)?)?;
    expect_no_thread_stuck()
}

/// A page of the first range is pinned, so unbind retires that range. The device can be bound again
/// meanwhile, without that range.
fn while_retired(lab: &mut Lab) -> Result<()> {
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let device = device(lab)?;
    let fixtures = [
        Fixture::build(lab, 0, Mode::Raw)?,
        Fixture::build(lab, 1, Mode::Raw)?,
    ];
    let path = fixtures[0].mount.path("file");
    let mut pinner =
        Child::start_ready("the process with pages in a pipe", |link| pin(&path, link))?;
    unbind_in_child(lab, &device)?;
    expect_nothing_left()?;
    let list = retired::expect(1)?;
    println!("retired: {list:?}");

    for _ in 0..2 {
        let mut messages = Messages::from_now()?;
        device.bind(lab.driver.name())?;
        messages.expect(&["it was retired with"])?;
        let namespace = lab.namespace(0)?;
        namespace.expect_driver(None)?;
        let refused = namespace.try_bind(lab.driver);
        errno::expect("binding the retired range", refused, &[Errno::EBUSY])?;
        disk_in(lab, 1)?;
        device.unbind()?;
        retired::expect(1)?;
    }
    device.bind(lab.driver.name())?;
    expect_module_in_use(lab)?;

    pinner.go()?;
    pinner.expect_done(LIMIT)?;
    retired::await_none(LIMIT)?;
    lab.namespace(0)?.bind(lab.driver)?;
    for (region, fixture) in (0..).zip(fixtures) {
        fixture.expect_intact(&disk_in(lab, region)?)?;
    }
    device.unbind()?;
    device.bind(lab.driver.name())?;
    disk_in(lab, 0)?;
    lab.driver.unload()?;
    lab.driver.load()?;
    expect_no_thread_stuck()
}

fn pin(path: &Path, link: &mut Link) -> Result<()> {
    use std::io::Read;
    const PIPED: usize = 4 * PAGE;

    let file = Access::Buffered.open(path)?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    let before = mapping.to_vec(0, PIPED);
    let (reader, writer) = nix::unistd::pipe()?;
    let given = mapping.give_to_pipe(0, PIPED, &writer)?;
    ensure!(given == PIPED, "{given} bytes were put into the pipe");
    drop((mapping, file));
    link.say("ready")?;
    link.wait()?;
    let mut found = vec![0; PIPED];
    fs::File::from(reader).read_exact(&mut found)?;
    expect_same("what is in the pipe", &found, &before)?;
    if before != stamped(LEN, 0)[..PIPED] {
        bail!("the file does not hold what was written to it");
    }
    Ok(())
}
