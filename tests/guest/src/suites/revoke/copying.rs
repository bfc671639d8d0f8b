// SPDX-License-Identifier: GPL-2.0

//! Unbinding a device from which a write fault copies a shared block to another device.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, sleep};

use anyhow::{Context, Result, bail, ensure};

use super::UNBIND_LIMIT;
use super::special::only_for_pmem_rs;
use super::window::{FAULT_LIMIT, HELD, HELD_NAME, Module, POLL_INTERVAL, Position, expect};
use crate::bus_error;
use crate::dm::Mapped;
use crate::filesystem::FileSystem::Xfs;
use crate::filesystem::Mount;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::process::{Child, Link, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::stamped;
use crate::syscall::{clone_file, is_dax, start_of_file};

/// The size of each half of the file system in sectors. One is on each device.
const HALF: u64 = 4096 * 200;
/// Where they start: at a PMD.
const START: u64 = 4096;
const LEN: usize = 1 << 20;
const TAG: u64 = 1;
/// xfs puts directories into its groups of blocks in turn, more or less.
const DIRECTORIES: usize = 16;

/// An xfs on both devices has a file on the first one that shares the blocks of one on the second.
/// A store makes the fault copy. It has no page of the second device: only its address.
pub fn copy_from_another_device(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    retired::set_timeout(lab.driver, TIMEOUT.max(2 * HELD))?;
    let stays = lab.ready(0)?;
    // No page of it is exposed any more.
    let goes = lab.ready(1)?;
    goes.bound.unbind()?;
    goes.bound.bind(lab.driver)?;
    let goes = lab.ready(1)?;
    let [first, second] = [&stays, &goes].map(|device| device.disk.node_str());
    let len = 2 * HALF;
    let table = format!("0 {len} striped 2 {HALF} {first} {START} {second} {START}");
    let over = Mapped::new("over", &table)?;
    let node = over.disk().node_str();
    // It has two groups of blocks, one on each device.
    Xfs.make_with(&node, &["-m", "rmapbt=1,reflink=1", "-l", "agnum=0"])?;
    let mount = Xfs.mount(&node, "dax=always")?;
    let shared = share(&mount)?;
    ensure!(is_dax(&shared)?, "{} is not a DAX file", shared.display());

    let module = Module::load(Position::Copying)?;
    let mut user = Child::start_ready("the faulting process", |link| store(&shared, link))?;
    module.expect_blocked(1)?;
    // The new block is exposed, so it is on the other device.
    ensure!(
        goes.bound.exposed()? == 0,
        "pages of the device that goes are exposed"
    );
    let mut unbinder = Child::start("the unbinding process", |_| goes.bound.unbind())?;
    unbinder.expect_done(HELD + UNBIND_LIMIT)?;
    let state = module.state()?;
    expect(&state, "at_death", 1)?;
    expect(&state, "gave_up", 0)?;
    // The fault has ended before the memory was freed.
    expect(&state, "asleep", 0)?;
    retired::expect(0)?;

    println!("the fault: {}", user.hear_value("ended by ", FAULT_LIMIT)?);
    user.expect_done(FAULT_LIMIT)?;
    drop(module);
    mount.unmount()?;
    over.remove()?;
    goes.bound.bind(lab.driver)?;
    expect_no_thread_stuck()
}

/// Makes a file on the first device that shares the blocks of one on the second.
fn share(mount: &Mount) -> Result<PathBuf> {
    let mut on = [None, None];
    for number in 0..DIRECTORIES {
        let dir = mount.path(&format!("directory{number}"));
        fs::create_dir(&dir)?;
        let path = dir.join("file");
        fs::write(&path, stamped(LEN, TAG))?;
        let file = File::open(&path)?;
        file.sync_all()?;
        let is_on_second = start_of_file(&file)? >= HALF << 9;
        on[usize::from(is_on_second)].get_or_insert(dir);
    }
    let [Some(first), Some(second)] = on else {
        bail!("all files are on one device");
    };
    let shared = first.join("shared");
    clone_file(&File::open(second.join("file"))?, &File::create(&shared)?)
        .context("sharing the blocks of a file")?;
    nix::unistd::sync();
    Ok(shared)
}

/// The process with the faulting thread. The file system may lose the device before the fault ends,
/// so it may end with a SIGBUS.
fn store(path: &PathBuf, link: &mut Link) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mapping = Arc::new(Mapping::of_pages(&file, PAGE, Sharing::Shared, true)?);
    bus_error::ends_thread()?;
    let (stored, contents) = (mapping.clone(), stamped(PAGE, TAG));
    let thread = Builder::new()
        .name(HELD_NAME.to_owned())
        .spawn(move || stored.store(0, contents[0]))?;
    link.say("ready")?;
    while !thread.is_finished() && bus_error::ended_threads() == 0 {
        sleep(POLL_INTERVAL);
    }
    if bus_error::ended_threads() != 0 {
        return link.say("ended by a SIGBUS");
    }
    ensure!(
        mapping.to_vec(0, PAGE) == stamped(PAGE, TAG),
        "the copy is wrong"
    );
    link.say("ended by itself")
}
