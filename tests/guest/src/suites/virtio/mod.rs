// SPDX-License-Identifier: GPL-2.0

//! virtio-pmem: the host is asked to flush, and a durable write waits for the answer, however long
//! it takes, and fails if the flush fails. The provider can be removed and added, under load too.

mod flush;
mod removal;
mod sector;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;

use super::revoke::set_writecache;
use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::disk::{self, Access, Disk};
use crate::dm::Mapped;
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, Sharing};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::pci::VirtioPmem;
use crate::sectors::{Buffer, expect_same, stamped};
use flush::{
    durable_write_waits, failed_flush, failed_on_ext4, flushes_are_shared, fsync_of_a_file_waits,
    fsync_waits, fua_writes, suspended, unbind_before_a_write, unbind_waits, write_after_a_flush,
};
use removal::{
    goes_while_flushing, plugged_in, provider_goes, unaligned_size, unbind_in_use,
    unbind_nvdimms_in_use,
};
use sector::sector_mode_is_refused;

pub const SUITE: Suite = Suite {
    name: "virtio",
    tests: &[
        Test::new("disk_attributes", disk_attributes),
        Test::new("dm_writecache_is_refused", writecache_is_refused),
        Test::new("sector_mode_is_refused", sector_mode_is_refused),
        Test::new("fsync_waits_for_the_host", fsync_waits),
        Test::new("durable_write_waits_for_the_host", durable_write_waits),
        Test::new("fsync_of_a_file_waits_for_the_host", fsync_of_a_file_waits),
        Test::new("fua_writes_are_asynchronous", fua_writes),
        Test::new("write_after_a_flush_is_asynchronous", write_after_a_flush),
        Test::new("unbind_before_a_write_after_a_flush", unbind_before_a_write),
        Test::new("flushes_are_shared", flushes_are_shared),
        Test::new("failed_flush_is_an_error", failed_flush),
        Test::new("failed_flush_is_an_error_of_fsync_on_ext4", failed_on_ext4),
        Test::new("unbind_waits_for_the_host", unbind_waits),
        Test::new("suspended_while_the_host_flushes", suspended),
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
        Test::new("unaligned_size_is_refused", unaligned_size),
    ],
};

/// After this time an operation counts as blocked.
const HELD: Duration = Duration::from_millis(1500);
/// How long an operation may take once it is no longer blocked.
const SOON: Duration = Duration::from_secs(20);
const LEN: usize = 8 << 20;

/// The index of the device's region in the order of addresses.
pub fn region_index(lab: &Lab, device: &VirtioPmem) -> Result<u32> {
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

/// dm-writecache makes what it caches durable with instructions of the CPU alone, so it refuses
/// such a cache, and accepts an NVDIMM.
fn writecache_is_refused(lab: &mut Lab) -> Result<()> {
    const ORIGIN: &str = "/dev/nullb0";
    set_writecache(true)?;
    run("modprobe", &disk::IN_MEMORY)?;
    let table = |cache: &Disk| format!("0 2048 writecache p {ORIGIN} {} 4096 0", cache.node_str());
    let virtio = region_index(lab, &VirtioPmem::first()?)?;
    let disk = lab.prepare_in(virtio, Mode::FsdaxMem)?.disk;
    let mut messages = Messages::from_now()?;
    run_expecting_failure("dmsetup", &["create", "cached", "--table", &table(&disk)])?;
    let said = messages.expect(&["Asynchronous persistent memory not supported as pmem cache"])?;
    println!("the kernel says: {said}");
    ensure!(Disk::all("dm-")?.is_empty(), "there is a device");

    let disk = lab.prepare_in(1 - virtio, Mode::FsdaxMem)?.disk;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::new(1 << 20), 0)?;
    Mapped::new("cached", &table(&disk))?.remove()?;
    set_writecache(false)
}

fn expect_contents(disk: &Disk, tag: u64) -> Result<()> {
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(LEN, tag))
}
