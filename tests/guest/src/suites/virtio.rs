// SPDX-License-Identifier: GPL-2.0

//! virtio-pmem: the host is asked to flush, and a durable write waits for the answer, however long
//! it takes, and fails if the flush fails. The provider can be removed and added, under load too.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::host::{Disturbed, Monitor};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::nd::{disable_provider, enable_provider};
use crate::ndctl::Mode;
use crate::pci::VirtioPmem;
use crate::process::{Child, Link, expect_no_thread_stuck};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall::pwritev2;
use crate::sysfs;
use crate::tracing::CallCount;

pub const SUITE: Suite = Suite {
    name: "virtio",
    tests: &[
        Test::new("disk_attributes", disk_attributes),
        Test::new("fsync_waits_for_the_host", fsync_waits),
        Test::new("durable_write_waits_for_the_host", durable_write_waits),
        Test::new("fsync_of_a_file_waits_for_the_host", fsync_of_a_file_waits),
        Test::new("fua_writes_are_asynchronous", fua_writes),
        Test::new("failed_flush_is_an_error", failed_flush),
        Test::new("failed_flush_is_an_error_of_fsync_on_ext4", failed_on_ext4),
        Test::new("unbind_waits_for_the_host", unbind_waits),
        Test::new("provider_goes_under_load", |lab| {
            provider_goes(lab, Mode::FsdaxMem)
        }),
        Test::new("provider_goes_with_the_struct_pages", |lab| {
            provider_goes(lab, Mode::FsdaxDev)
        }),
        Test::new("provider_goes_while_the_host_flushes", goes_while_flushing),
        Test::new("unbind_of_nvdimms_in_use", unbind_nvdimms_in_use),
        Test::new("unbind_while_an_nvdimm_is_in_use", unbind_in_use),
        // From here on there is another device.
        Test::new("plugged_in_under_load", plugged_in),
    ],
};

/// After this time an operation counts as blocked.
const HELD: Duration = Duration::from_millis(1500);
/// How long an operation may take once it is no longer blocked.
const SOON: Duration = Duration::from_secs(20);
const LEN: usize = 8 << 20;

/// The index of the device's region in the order of addresses.
fn region_index(lab: &Lab, device: &VirtioPmem) -> Result<u32> {
    for region_index in 0.. {
        if lab.region(region_index)? == device.region {
            return Ok(region_index);
        }
    }
    bail!("{} has no region_index", device.region)
}

fn prepare(lab: &Lab, mode: Mode) -> Result<Prepared> {
    lab.prepare_in(region_index(lab, &VirtioPmem::first()?)?, mode)
}

/// Checks that `work` ends only after the host has flushed.
fn expect_blocked_by_host(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let held = Disturbed::held()?;
    let mut child = Child::start_ready(what, |link| {
        link.say("ready")?;
        work()
    })?;
    sleep(HELD);
    ensure!(
        child.try_end()?.is_none(),
        "{what} did not wait for the host"
    );
    held.end()?;
    child.expect_done(SOON)
}

/// A new ext4 on the device, made with `more` arguments and mounted with DAX, and a durable file on
/// it.
fn mounted(lab: &Lab, mode: Mode, more: &[&str]) -> Result<(String, Mount, File)> {
    let node = prepare(lab, mode)?.disk.node_str();
    Ext4.make_with(&node, more)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, stamped(LEN, 1))?;
    let file = Access::Buffered.open(&path)?;
    file.sync_all()?;
    Ok((node, mount, file))
}

/// The pages support DAX, but the CPU alone cannot make them durable.
fn disk_attributes(lab: &mut Lab) -> Result<()> {
    let mut messages = Messages::from_now()?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = prepare(lab, mode)?.disk;
        disk.expect("queue/dax", "1")?;
        disk.expect("queue/write_cache", "write back")?;
        if lab.driver == Driver::PmemRs {
            disk.expect("queue/fua", "1")?;
            let warned = messages.so_far()?.iter();
            let warned = warned.filter(|message| message.contains("unable to guarantee"));
            ensure!(warned.count() == 0, "{mode:?}: it denies that it can flush");
        }
    }
    let (_, mount, file) = mounted(lab, Mode::FsdaxMem, &[])?;
    let refused = Mapping::new(&file, LEN, Sharing::Synchronous).map(drop);
    errno::expect("MAP_SYNC", refused, &[Errno::EOPNOTSUPP])?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    expect_same("the mapping", &mapping.to_vec(0, LEN), &stamped(LEN, 1))?;
    drop((mapping, file));
    mount.unmount()
}

fn fsync_waits(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let file = prepare(lab, mode)?.disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(PAGE, 1), 0)?;
        expect_blocked_by_host("fsync", || Ok(file.sync_all()?))?;
    }
    Ok(())
}

fn write_durably(disk: &Disk, tag: u64) -> io::Result<usize> {
    let file = disk
        .open(Access::Direct)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let bytes = Buffer::stamped(PAGE, tag);
    pwritev2(&file, &[IoSlice::new(&bytes)], 0, libc::RWF_DSYNC)
}

fn durable_write_waits(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    expect_blocked_by_host("the write", || {
        write_durably(&disk, 2)?;
        Ok(())
    })
}

fn fsync_of_a_file_waits(lab: &mut Lab) -> Result<()> {
    let (node, mount, file) = mounted(lab, Mode::FsdaxMem, &[])?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 2));
    expect_blocked_by_host("fsync after a write through a mapping", || {
        Ok(file.sync_all()?)
    })?;
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)
}

const FUA_WRITES: u32 = 8;

/// The arguments of fio for durable writes of a page each: the flush is part of the request, as
/// asynchronous submission has no separate one.
fn fua(disk: &Disk) -> Vec<String> {
    [
        "--name=fua",
        "--ioengine=libaio",
        "--direct=1",
        "--sync=dsync",
        "--rw=write",
        "--bs=4k",
        &format!("--iodepth={FUA_WRITES}"),
        &format!("--number_ios={FUA_WRITES}"),
        &format!("--filename={}", disk.node_str()),
        "--size=1m",
        // As a thread, so that it can be killed.
        "--thread",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// One thread submits all writes before the first has ended, and they share flushes.
fn fua_writes(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    sysfs::write(disk.path("queue/iostats"), "1")?;
    let before = disk.statistics()?;
    let count = CallCount::of(&["nvdimm_flush"])?;
    let held = Disturbed::held()?;
    let mut fio = Child::start("fio", |_| {
        let args = fua(&disk);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("fio", &args).map(drop)
    })?;
    let deadline = Instant::now() + SOON;
    let written = || -> Result<u64> { Ok(disk.statistics()?.since(before).writes) };
    while written()? < u64::from(FUA_WRITES) {
        ensure!(
            Instant::now() < deadline && fio.try_end()?.is_none(),
            "{} of {FUA_WRITES} writes were submitted while the host flushes",
            written()?
        );
        sleep(Duration::from_millis(50));
    }
    sleep(HELD);
    ensure!(
        fio.try_end()?.is_none(),
        "the writes did not wait for the host"
    );
    held.end()?;
    fio.expect_done(SOON)?;
    let flushes = count.so_far()?;
    println!("{FUA_WRITES} writes shared {flushes} flushes");
    if lab.driver == Driver::PmemRs {
        ensure!(
            (1..=2).contains(&flushes),
            "{FUA_WRITES} writes made {flushes} flushes; what came during the first should share the next"
        );
    }
    Ok(())
}

/// The message about a failed flush.
const FAILED: &str = "flush failed";

/// All requests for durability fail, the log has the failure once, and later requests succeed.
fn failed_flush(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(PAGE, 1), 0)?;
    let mut messages = Messages::from_now()?;
    let failing = Disturbed::failing()?;
    for _ in 0..3 {
        errno::expect("fsync", file.sync_all(), &[Errno::EIO])?;
        errno::expect("a durable write", write_durably(&disk, 2), &[Errno::EIO])?;
    }
    let args = fua(&disk);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = run_expecting_failure("fio", &args)?;
    ensure!(said.contains("Input/output error"), "fio says: {said}");
    // Writes without a flush are not affected.
    file.write_all_at(&Buffer::stamped(PAGE, 3), 0)?;

    failing.end()?;
    file.sync_all()?;
    write_durably(&disk, 4)?;
    let mut found = Buffer::new(PAGE);
    file.read_exact_at(&mut found, 0)?;
    expect_same("what was written last", &found, &stamped(PAGE, 4))?;
    if lab.driver == Driver::PmemRs {
        messages.expect(&["flushes succeed again"])?;
        let said: Vec<&String> = messages
            .so_far()?
            .iter()
            .filter(|message| message.contains(FAILED))
            .collect();
        ensure!(
            said.len() == 1 && said[0].contains("storage behind it"),
            "the log should have it once, with what to do; it has {said:#?}"
        );
    }
    Ok(())
}

/// Without a journal, whose failure would shut down the whole file system.
fn failed_on_ext4(lab: &mut Lab) -> Result<()> {
    let (node, mount, file) = mounted(lab, Mode::FsdaxMem, &["-O", "^has_journal"])?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 2));

    let failing = Disturbed::failing()?;
    errno::expect("fsync", file.sync_all(), &[Errno::EIO])?;
    failing.end()?;
    mapping.write(0, &stamped(LEN, 3));
    file.sync_all()?;
    drop((mapping, file));
    expect_same("the file", &fs::read(mount.path("file"))?, &stamped(LEN, 3))?;
    mount.unmount()?;
    Ext4.check(&node)
}

/// The last flush is also waited for.
fn unbind_waits(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = prepare(lab, Mode::FsdaxMem)?;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 1), 0)?;
    expect_blocked_by_host("unbind", || bound.unbind())?;
    bound.bind(lab.driver)?;
    expect_contents(&disk, 1)
}

fn expect_contents(disk: &Disk, tag: u64) -> Result<()> {
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(LEN, tag))
}

/// Waits until the device and its disk are back.
fn back(lab: &Lab) -> Result<Disk> {
    VirtioPmem::rescan()?;
    let region_index = region_index(lab, &VirtioPmem::first()?)?;
    let bound = lab.holder_in(region_index)?;
    bound.expect_driver(Some(lab.driver))?;
    Ok(Disk::named(bound.disk_name()?))
}

/// The PCI device is removed while one process reads a file through a mapping, another one syncs it
/// continuously, and fio writes another file. All durable data are intact afterwards.
fn provider_goes(lab: &mut Lab, mode: Mode) -> Result<()> {
    let (_, mount, file) = mounted(lab, mode, &[])?;

    let mut reader = Child::start_ready("the reader", |link| {
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, false)?;
        read_for_ever(&mapping, link)
    })?;
    let other = mount.path("other");
    let mut caller = Child::start_ready("the process that calls fsync", |link| {
        let file = fs::File::create(&other)?;
        let mut said = false;
        loop {
            let done = file
                .write_all_at(&stamped(PAGE, 2), 0)
                .and_then(|()| file.sync_all());
            if let Err(error) = done {
                let errno = error.raw_os_error().map(Errno::from_raw);
                ensure!(
                    matches!(errno, Some(Errno::EIO | Errno::EROFS | Errno::ENXIO)),
                    "it ended with {error}"
                );
                return Ok(());
            }
            if !said {
                link.say("ready")?;
                said = true;
            }
        }
    })?;
    let load = mount.path("load");
    let mut fio = Child::start("fio", |_| {
        let filename = format!("--filename={}", load.display());
        let args = [
            "--name=load",
            "--rw=randwrite",
            "--size=16m",
            "--time_based",
            "--runtime=120",
            "--thread",
            &filename,
        ];
        run_expecting_failure("fio", &args).map(drop)
    })?;
    drop(file);
    sleep(Duration::from_secs(1));

    let mut messages = Messages::from_now()?;
    let device = VirtioPmem::first()?;
    let mut removal = Child::start("the process that removes the device", |_| device.remove())?;
    removal.expect_done(SOON)?;
    reader.expect_signal(Signal::SIGBUS, SOON)?;
    caller.expect_done(SOON)?;
    fio.expect_done(SOON)?;
    if lab.driver == Driver::PmemRs {
        // The virtqueue is broken before the driver is notified.
        let said = messages.expect(&[FAILED])?;
        ensure!(said.contains("unplugged"), "the log says `{said}`");
    }
    mount.unmount()?;
    expect_no_thread_stuck()?;

    let node = back(lab)?.node_str();
    let mount = Ext4.mount(&node, "dax=always")?;
    expect_same("the file", &fs::read(mount.path("file"))?, &stamped(LEN, 1))?;
    mount.unmount()?;
    Ext4.check(&node)
}

fn read_for_ever(mapping: &Mapping, link: &mut Link) -> Result<()> {
    for page in (0..LEN).step_by(PAGE) {
        mapping.load(page);
    }
    link.say("ready")?;
    for page in (0..LEN).step_by(PAGE).cycle() {
        mapping.load(page);
    }
    Ok(())
}

/// The host does not answer a flush: when the device is removed, the thread that waits for the
/// flush gets an error at once.
fn goes_while_flushing(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(LEN, 5), 0)?;
    file.sync_all()?;
    let held = Disturbed::held()?;
    let mut fsync = Child::start_ready("fsync", |link| {
        link.say("ready")?;
        errno::expect("fsync", file.sync_all(), &[Errno::EIO]).map(drop)
    })?;
    let mut write = Child::start_ready("the write", |link| {
        link.say("ready")?;
        errno::expect("the write", write_durably(&disk, 5), &[Errno::EIO]).map(drop)
    })?;
    sleep(HELD);
    ensure!(
        fsync.try_end()?.is_none() && write.try_end()?.is_none(),
        "they did not wait for the host"
    );
    let device = VirtioPmem::first()?;
    let mut removal = Child::start("the process that removes the device", |_| device.remove())?;
    fsync.expect_done(SOON)?;
    write.expect_done(SOON)?;
    removal.expect_done(SOON)?;
    held.end()?;
    // Otherwise QEMU would give the old answer to the next driver.
    sleep(HELD);
    drop(file);
    let disk = back(lab)?;
    disk.open(Access::Direct)?.sync_all()?;
    expect_contents(&disk, 5)
}

/// Writes and reads a disk until it is told to stop, and checks what it reads.
fn start_load(disk: &Disk) -> Result<Child> {
    let file = disk.open(Access::Direct)?;
    Child::start_ready(format!("the load on {disk}"), move |link| {
        for round in 0_u64.. {
            let right = Buffer::stamped(1 << 20, round);
            let mut found = Buffer::new(1 << 20);
            file.write_all_at(&right, 0)?;
            file.sync_all()?;
            file.read_exact_at(&mut found, 0)?;
            expect_same("what was written", &found, &right)?;
            if round == 0 {
                link.say("ready")?;
            }
            // The word of the parent means stop.
            if link.is_told_to_go()? {
                break;
            }
        }
        Ok(())
    })
}

fn end_load(mut load: Child) -> Result<()> {
    ensure!(load.try_end()?.is_none(), "the load has ended by itself");
    load.go()?;
    load.expect_done(SOON)
}

fn unbind_nvdimms_in_use(lab: &mut Lab) -> Result<()> {
    let load = start_load(&prepare(lab, Mode::FsdaxMem)?.disk)?;
    for _ in 0..3 {
        disable_provider()?;
        enable_provider()?;
    }
    end_load(load)
}

fn unbind_in_use(lab: &mut Lab) -> Result<()> {
    let nvdimm = lab.prepare_in(0, Mode::FsdaxMem)?.disk;
    let load = start_load(&nvdimm)?;
    for _ in 0..3 {
        VirtioPmem::first()?.remove()?;
        back(lab)?;
    }
    end_load(load)
}

/// Hotplug under load adds a device. Its contents are intact after it was removed and added again.
fn plugged_in(lab: &mut Lab) -> Result<()> {
    let load = start_load(&prepare(lab, Mode::FsdaxMem)?.disk)?;
    let what = json!({
        "driver": "virtio-pmem-pci", "id": "plugged", "memdev": "spare0", "bus": "slot0",
    });
    Monitor::open()?.execute("device_add", what)?;
    let device = VirtioPmem::await_plugged()?;
    let Prepared { disk, .. } = lab.prepare_in(region_index(lab, &device)?, Mode::FsdaxMem)?;
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(LEN, 6), 0)?;
    file.sync_all()?;
    drop(file);
    device.remove()?;
    ensure!(!disk.exists(), "{disk} is still there");
    VirtioPmem::rescan()?;
    let device = VirtioPmem::plugged()?.context("it has not come back")?;
    let bound = lab.holder_in(region_index(lab, &device)?)?;
    bound.expect_driver(Some(lab.driver))?;
    expect_contents(&Disk::named(bound.disk_name()?), 6)?;
    end_load(load)
}
