// SPDX-License-Identifier: GPL-2.0

//! Removal of the device, and hotplug.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::json;

use super::flush::{FAILED, write_durably};
use super::{HELD, LEN, SOON, expect_contents, mounted, prepare, region_index};
use crate::command::run_expecting_failure;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::host::{Disturbed, Monitor};
use crate::kallsyms::{Symbol, symbols};
use crate::lab::{Lab, Prepared, Skip};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::nd::{Device, disable_provider, enable_provider, settle};
use crate::ndctl::Mode;
use crate::pci::VirtioPmem;
use crate::process::{Child, Link, expect_no_thread_stuck};
use crate::sectors::{Buffer, expect_same, stamped};

/// Waits until the device and its disk are back.
fn back(lab: &Lab) -> Result<Disk> {
    VirtioPmem::rescan()?;
    let region_index = region_index(lab, &VirtioPmem::first()?)?;
    let bound = lab.holder_in(region_index)?;
    bound.expect_driver(Some(lab.driver))?;
    Ok(Disk::named(bound.disk_name()?))
}

/// Whether a flush fails as soon as the device is removed. The provider of Linux 7.2 unbinds the
/// driver first, which waits for the host.
fn removal_fails_flushes() -> Result<bool> {
    let broken = |symbol: &Symbol| symbol.name == "virtio_pmem_mark_broken";
    Ok(symbols()?.iter().any(broken))
}

/// The PCI device is removed while one process reads a file through a mapping, another one syncs it
/// continuously, and fio writes another file. All durable data are intact afterwards.
pub fn provider_goes(lab: &mut Lab, mode: Mode) -> Result<()> {
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
    if lab.driver == Driver::PmemRs && removal_fails_flushes()? {
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
pub fn goes_while_flushing(lab: &mut Lab) -> Result<()> {
    if !removal_fails_flushes()? {
        return Err(Skip("the provider waits for the host when it is removed").into());
    }
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

pub fn unbind_nvdimms_in_use(lab: &mut Lab) -> Result<()> {
    let load = start_load(&prepare(lab, Mode::FsdaxMem)?.disk)?;
    for _ in 0..3 {
        disable_provider()?;
        enable_provider()?;
    }
    end_load(load)
}

pub fn unbind_in_use(lab: &mut Lab) -> Result<()> {
    let nvdimm = lab.prepare_in(0, Mode::FsdaxMem)?.disk;
    let load = start_load(&nvdimm)?;
    for _ in 0..3 {
        VirtioPmem::first()?.remove()?;
        back(lab)?;
    }
    end_load(load)
}

/// Hotplug under load adds a device. Its contents are intact after it was removed and added again.
pub fn plugged_in(lab: &mut Lab) -> Result<()> {
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

/// The size of the second spare.
const UNALIGNED: u64 = 3 << 20;

/// A range that cannot have struct pages is refused, and the log says how to use it without.
pub fn unaligned_size(lab: &mut Lab) -> Result<()> {
    let mut messages = Messages::from_now()?;
    let what = json!({
        "driver": "virtio-pmem-pci", "id": "unaligned", "memdev": "spare1", "bus": "slot1",
    });
    Monitor::open()?.execute("device_add", what)?;
    let deadline = Instant::now() + SOON;
    let region = loop {
        let regions = Device::all_of("region")?;
        let size = UNALIGNED.to_string();
        let found = regions
            .into_iter()
            .find(|region| region.get("size").is_ok_and(|found| found == size));
        if let Some(region) = found {
            break region;
        }
        ensure!(Instant::now() < deadline, "there is no region of it");
        sleep(Duration::from_millis(50));
    };
    settle()?;
    let namespace = Device::named(format!(
        "{}.0",
        region.name().replace("region", "namespace")
    ));
    namespace.expect_driver(None)?;
    if lab.driver != Driver::PmemRs {
        return Ok(());
    }
    let said = messages.expect(&["is not aligned to 0x200000 bytes"])?;
    let remedy = format!("write 1 to the force_raw of {namespace}");
    ensure!(said.contains(&remedy), "the log says only `{said}`");

    namespace.set("force_raw", "1")?;
    namespace.bind(lab.driver)?;
    let disk = Disk::named(namespace.disk_name()?);
    disk.expect("size", &(UNALIGNED / 512).to_string())?;
    disk.expect("queue/dax", "0")?;
    namespace.unbind()
}
