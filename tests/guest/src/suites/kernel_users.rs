// SPDX-License-Identifier: GPL-2.0

//! Users of the disk in the kernel: loop devices, md arrays, stripes, swap. With each of them the
//! disk works, can be unbound, which they see as I/O errors, and can be bound again. The users can
//! be removed afterwards.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::command::{has_module, run};
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Prepared, Skip};
use crate::mapping::{Advice, Mapping, PAGE, PMD, Sharing};
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::stacked::{Array, Level, Loop};
use crate::syscall::is_dax;

/// How long unbind may take without pinned pages.
const UNBIND_LIMIT: Duration = Duration::from_secs(15);
const LEN: usize = 8 << 20;

fn write(disk: &Disk, tag: u64) -> Result<()> {
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::of_pages(LEN, tag), 0)?;
    Ok(file.sync_all()?)
}

fn expect_contents(disk: &Disk, tag: u64) -> Result<()> {
    let mut found = Buffer::of_pages(LEN, 0);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(LEN, tag))
}

fn expect_dead(disk: &Disk) -> Result<()> {
    let file = disk.open(Access::Direct)?;
    let mut page = Buffer::of_pages(PAGE, 0);
    errno::expect("reading", file.read_at(&mut page, 0), &[Errno::EIO])?;
    // For a loop device, the removed disk below has no space left.
    let right = [Errno::EIO, Errno::ENOSPC];
    errno::expect("writing", file.write_at(&page, 0), &right).map(drop)
}

/// Unbinds a device within the limit, and checks that its range is free.
fn unbind(bound: &Device) -> Result<()> {
    let mut process = Child::start("the unbinding process", |_| bound.unbind())?;
    process.expect_done(UNBIND_LIMIT)?;
    retired::expect(0).map(drop)
}

/// Binds a device, and checks that its disk works.
fn bind(lab: &Lab, bound: &Device) -> Result<()> {
    bound.bind(lab.driver)?;
    let disk = Disk::named(bound.disk_name()?);
    write(&disk, 9)?;
    expect_contents(&disk, 9)?;
    expect_no_thread_stuck()
}

/// A loop device on the disk.
pub fn loop_on_disk(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let over = Loop::new(&disk.node())?;
    write(over.disk(), 1)?;
    expect_contents(over.disk(), 1)?;
    expect_contents(&disk, 1)?;
    unbind(&bound)?;
    expect_dead(over.disk())?;
    over.detach()?;
    bind(lab, &bound)
}

/// A loop device of a file that is accessed with DAX.
pub fn loop_on_dax_file(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let node = disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("image");
    fs::write(&path, vec![0; 2 * LEN])?;
    ensure!(is_dax(&path)?, "no DAX on {disk}");
    let over = Loop::new(&path)?;
    write(over.disk(), 1)?;
    expect_contents(over.disk(), 1)?;
    expect_same("the file", &fs::read(&path)?[..LEN], &stamped(LEN, 1))?;
    unbind(&bound)?;
    expect_dead(over.disk())?;
    over.detach()?;
    mount.unmount()?;
    bind(lab, &bound)
}

fn both(lab: &Lab) -> Result<[Prepared; 2]> {
    Ok([
        lab.prepare_in(0, Mode::FsdaxMem)?,
        lab.prepare_in(1, Mode::FsdaxMem)?,
    ])
}

/// One of the two disks of a raid0 array is unbound.
pub fn raid0(lab: &mut Lab) -> Result<()> {
    if !has_module(Level::Raid0.name()) {
        return Err(Skip("the kernel has no raid0").into());
    }
    let [first, second] = both(lab)?;
    let array = Array::new(Level::Raid0, &[&first.disk, &second.disk])?;
    write(array.disk(), 1)?;
    expect_contents(array.disk(), 1)?;
    unbind(&first.bound)?;
    expect_dead(array.disk())?;
    array.stop()?;
    bind(lab, &first.bound)
}

/// The array goes on with the remaining disk.
pub fn raid1(lab: &mut Lab) -> Result<()> {
    if !has_module(Level::Raid1.name()) {
        return Err(Skip("the kernel has no raid1").into());
    }
    let [first, second] = both(lab)?;
    let array = Array::new(Level::Raid1, &[&first.disk, &second.disk])?;
    write(array.disk(), 1)?;
    expect_contents(array.disk(), 1)?;
    expect_contents(&first.disk, 1)?;
    expect_contents(&second.disk, 1)?;
    unbind(&first.bound)?;
    expect_contents(array.disk(), 1)?;
    write(array.disk(), 2)?;
    expect_contents(array.disk(), 2)?;
    let state = array.state_of(first.disk.name())?;
    ensure!(state.contains("faulty"), "md says of the disk: {state}");
    array.stop()?;
    expect_contents(&second.disk, 2)?;
    bind(lab, &first.bound)
}

/// A file whose pages are on two devices alternately. device-mapper is not notified of the removal
/// of one device, but the process that has the file mapped is.
pub fn stripe_with_dax(lab: &mut Lab) -> Result<()> {
    const UNIT: u64 = (PMD / 512) as u64;
    let [first, second] = both(lab)?;
    let sectors = first.disk.bytes()? / 512 / UNIT * UNIT * 2;
    let (low, high) = (first.disk.node_str(), second.disk.node_str());
    let table = format!("0 {sectors} striped 2 {UNIT} {low} 0 {high} 0");
    let over = Mapped::new("striped", &table)?;
    over.disk().expect("queue/dax", "1")?;
    let node = over.disk().node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, stamped(LEN, 1))?;
    let file = Access::Buffered.open(&path)?;
    ensure!(is_dax(&path)?, "no DAX on {}", over.disk());
    let mut reader = Child::start_ready("the reader", |link| {
        let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
        expect_same("the mapping", &mapping.to_vec(0, LEN), &stamped(LEN, 1))?;
        link.say("ready")?;
        for page in (0..LEN).step_by(PAGE).cycle() {
            mapping.load(page);
        }
        Ok(())
    })?;
    drop(file);
    unbind(&second.bound)?;
    reader.expect_signal(Signal::SIGBUS, UNBIND_LIMIT)?;
    mount.unmount()?;
    over.remove()?;
    bind(lab, &second.bound)
}

const SWAPPED: usize = 8 << 20;

fn swap_on(disk: &Disk) -> Result<()> {
    let node = disk.node_str();
    run("busybox", &["mkswap", &node])?;
    run("busybox", &["swapon", &node]).map(drop)
}

/// The number of bytes that are swapped out to a disk.
fn swapped(disk: &Disk) -> Result<usize> {
    let swaps = fs::read_to_string("/proc/swaps")?;
    let line = swaps.lines().find(|line| line.contains(disk.name()));
    let line = line.with_context(|| format!("{disk} is not in /proc/swaps"))?;
    let kib: usize = line
        .split_whitespace()
        .nth(3)
        .context("a line without numbers")?
        .parse()?;
    Ok(kib << 10)
}

/// Memory with a pattern, swapped out to the disk.
fn swap_out(disk: &Disk) -> Result<Mapping> {
    let memory = Mapping::anonymous(SWAPPED)?;
    memory.write(0, &stamped(SWAPPED, 1));
    memory.advise(Advice::PageOut)?;
    ensure!(
        swapped(disk)? >= SWAPPED / 2,
        "only {} bytes were swapped out",
        swapped(disk)?
    );
    Ok(memory)
}

/// Memory is swapped out and in.
pub fn swap(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let Prepared { bound, disk, .. } = lab.prepare(mode)?;
        swap_on(&disk)?;
        let memory = swap_out(&disk)?;
        expect_same(
            "what was swapped",
            &memory.to_vec(0, SWAPPED),
            &stamped(SWAPPED, 1),
        )?;
        memory.advise(Advice::PageOut)?;
        run("busybox", &["swapoff", &disk.node_str()])?;
        expect_same(
            "after swapoff",
            &memory.to_vec(0, SWAPPED),
            &stamped(SWAPPED, 1),
        )?;
        drop(memory);
        unbind(&bound)?;
        bind(lab, &bound)?;
    }
    Ok(())
}

/// A process whose memory was swapped out is killed when it accesses it, and no other process is.
/// `swapoff` has to open the disk, which fails after unbind, so the kernel keeps the swap area
/// until reboot, and the test comes last.
pub fn swap_goes(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    swap_on(&disk)?;
    let mut owner = Child::start_ready("the owner of the memory", |link| {
        let memory = swap_out(&disk)?;
        link.say("ready")?;
        link.wait()?;
        for page in (0..SWAPPED).step_by(PAGE) {
            memory.load(page);
        }
        Ok(())
    })?;
    unbind(&bound)?;
    sleep(Duration::from_millis(500));
    ensure!(
        owner.try_end()?.is_none(),
        "it was killed before its access"
    );
    owner.go()?;
    owner.expect_signal(Signal::SIGBUS, UNBIND_LIMIT)?;
    ensure!(
        !Path::new(&disk.node_str()).exists(),
        "{disk} is still there"
    );
    bind(lab, &bound)
}
