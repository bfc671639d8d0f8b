// SPDX-License-Identifier: GPL-2.0

//! Unbinding in special situations, for which the matrix has no axis.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount2};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;

use super::fixture::{Fixture, LEN, contents};
use super::holders::{linear, writecache};
use super::limits::{
    eight_namespaces, killed_writer, many_files, readers_of_debugfs, timeout_is_writable,
};
use super::users::{Running, SIGNAL_LIMIT, read_all};
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, User, Way};
use crate::command::{run, run_expecting_failure};
use crate::disk::Access;
use crate::driver::Driver;
use crate::errno;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::process::{Child, Link, expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::{Suite, Test};
use crate::syscall::{freeze, thaw};
use crate::sysfs;
use crate::uevents::Uevents;
use crate::userfault::Absent;

pub const SUITE: Suite = Suite {
    name: "revoke_special",
    tests: &[
        Test::new("retirement_is_reported", retirement_is_reported),
        Test::new("debugfs_lists_usage", listed),
        Test::new("ext4_is_frozen", |lab| frozen(lab, Fs::Ext4)),
        Test::new("xfs_is_frozen", |lab| frozen(lab, Fs::XfsRmap)),
        Test::new("read_is_stuck_in_a_copy", stuck_in_a_copy),
        Test::new("read_of_another_device_is_stuck_in_a_copy", stuck_elsewhere),
        Test::new("two_unbind_at_once", two_at_once),
        Test::new("region_and_device_go_at_once", region_and_device),
        Test::new("fsync_loop_on_ext4", |lab| fsync_loop(lab, Fs::Ext4)),
        Test::new("fsync_loop_on_xfs", |lab| fsync_loop(lab, Fs::XfsRmap)),
        Test::new("mkfs_is_running", mkfs_running),
        Test::new("map_sync_faults_on_ext4", |lab| {
            map_sync_faults(lab, Fs::Ext4)
        }),
        Test::new("map_sync_faults_on_xfs", |lab| {
            map_sync_faults(lab, Fs::XfsRmap)
        }),
        Test::new(
            "mapping_is_read_by_other_processes",
            read_by_other_processes,
        ),
        Test::new("reused_range_is_not_visible", reused_range_is_not_visible),
        Test::new("another_device_stays", another_stays),
        Test::new("umount_waits_for_a_pin", umount_waits),
        Test::new("module_stays_while_a_range_is_retired", module_stays),
        Test::new("module_goes_when_time_is_short", module_goes),
        Test::new("retired_range_is_exclusive", retired_range_is_exclusive),
        Test::new("namespace_of_a_retired_range_is_destroyed", destroyed),
        Test::new("without_a_timeout_it_waits", without_timeout),
        Test::new("timeout_is_writable", timeout_is_writable),
        Test::new("killed_writer", killed_writer),
        Test::new("many_files", many_files),
        Test::new("debugfs_readers", readers_of_debugfs).within(120),
        Test::new("struct_pages_on_the_media", pages_on_the_media),
        Test::new("raw_disk_in_use", raw_disk),
        Test::new("dm_linear_does_not_hold_the_range", linear),
        Test::new("cache_of_dm_writecache", writecache),
        // It divides the region, so it comes last.
        Test::new("eight_namespaces", eight_namespaces).within(180),
    ],
};

/// The common end of these tests: the users are gone, the device is added again, and everything is
/// intact.
pub fn back_to_normal(mut fixture: Fixture<'_>, way: Way) -> Result<()> {
    expect_no_process_stuck()?;
    fixture.remove_devices()?;
    retired::await_none(FREE_LIMIT)?;
    way.come_back(&fixture)?;
    fixture.expect_intact()?;
    expect_no_thread_stuck()
}

pub fn only_for_pmem_rs(lab: &Lab) -> Result<()> {
    if lab.driver != Driver::PmemRs {
        return Err(Skip("nd_pmem has no retired ranges").into());
    }
    Ok(())
}

fn retirement_is_reported(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let user = User::Reader.start(&fixture)?;
    let (bound, namespace) = (fixture.bound()?, lab.namespace(0)?);
    let mut messages = Messages::from_now()?;
    let mut uevents = Uevents::from_now()?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    let message = messages.expect(&["revoked:"])?;
    println!("kernel: {message}");
    let named = [&bound, &namespace]
        .iter()
        .any(|device| message.contains(device.name()));
    ensure!(named, "`{message}` names neither {bound} nor {namespace}");
    for piece in ["1 inodes", &format!("{} pages", LEN / PAGE), "us"] {
        ensure!(message.contains(piece), "`{message}` has no `{piece}`");
    }
    println!(
        "uevent: {}",
        uevents.expect(&["ACTION=change", bound.name(), "PMEM_RS_REVOKED=1"])?
    );
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)
}

/// The device's line in debugfs: the size that was exposed, in KiB; pages in use; pages in page
/// caches only.
fn usage(bound: &Device) -> Result<[u64; 3]> {
    let list = sysfs::read("/sys/kernel/debug/pmem_rs/devices")?;
    let line = list
        .lines()
        .find(|line| line.starts_with(&format!("{} [mem 0x", bound.name())))
        .with_context(|| format!("{bound} is not listed: {list}"))?;
    let numbers: Option<Vec<u64>> = ["exposed: ", "in use: ", "only: "]
        .iter()
        .map(|word| line.split(word).nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    let numbers = numbers.with_context(|| format!("numbers are missing: {line}"))?;
    println!("{line}");
    Ok([numbers[0], numbers[1], numbers[2]])
}

fn listed(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let bound = fixture.bound()?;
    let pages = (LEN / PAGE) as u64;
    let before = usage(&bound)?;
    let mapping = fixture.map(Sharing::Shared)?;
    for page in (0..LEN).step_by(PAGE) {
        mapping.load(page);
    }
    let mapped = usage(&bound)?;
    ensure!(
        mapped[0] >= LEN as u64 >> 10 && mapped[1] - before[1] == pages,
        "{pages} pages were mapped: {before:?}, then {mapped:?}"
    );
    drop(mapping);
    let unmapped = usage(&bound)?;
    ensure!(
        unmapped[0] == mapped[0] && unmapped[1] == before[1] && unmapped[2] - before[2] == pages,
        "{pages} pages were unmapped: {mapped:?}, then {unmapped:?}"
    );
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    ensure!(usage(&bound).is_err(), "{bound} is listed after unbind");
    back_to_normal(fixture, Way::Unbind)
}

/// A writer waits in its fault until the file system is thawed, and holds all the locks of a fault.
/// This must not delay unbind.
fn frozen(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let reader = User::Reader.start(&fixture)?;
    let mut writer = Child::start_ready("the writer", |link| {
        let mapping = fixture.map(Sharing::Shared)?;
        let contents = contents();
        link.say("ready")?;
        for page in (0..LEN).step_by(PAGE).cycle() {
            mapping.store(page, contents[page]);
        }
        Ok(())
    })?;
    let root = File::open(fixture.root()?)?;
    freeze(&root)?;
    writer.await_uninterruptible()?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    reader.expect_gone()?;
    match thaw(&root) {
        // xfs thaws when its DAX device fails.
        Err(error) if fs == Fs::XfsRmap && error.raw_os_error() == Some(libc::EINVAL) => {}
        result => result.context("thawing the file system")?,
    }
    drop(root);
    writer.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// Reads a DAX file into memory that is not present. The kernel stops where it copies: inside of
/// `dax_read_lock`, which the driver must wait for before it frees anything.
fn read_into_absent(file: &File, link: &mut Link) -> Result<()> {
    let page = Absent::new()?;
    let read = std::thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| page.fill_from(file));
        page.await_touch()?;
        link.say("ready")?;
        link.wait()?;
        page.serve()?;
        reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))
    })?;
    // The read may succeed or fail; but it must not return other data.
    match read {
        Ok(read) => {
            ensure!(read == PAGE, "it read {read} bytes");
            expect_same("what was read", &page.to_vec(), &contents()[..PAGE])?;
        }
        Err(error) => println!("the read failed: {error}"),
    }
    link.say("released")
}

fn stuck_in_a_copy(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let mut messages = Messages::from_now()?;
    let mut user = Child::start_ready("the process with a blocked read", |link| {
        read_into_absent(&fixture.open()?, link)
    })?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    if lab.driver == Driver::PmemRs {
        for line in retired::expect(1)? {
            println!("retired: {line}");
        }
        println!("kernel: {}", messages.expect(&["retired"])?);
    }
    user.go()?;
    user.hear("released", SIGNAL_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// All DAX devices share one `dax_read_lock`.
fn stuck_elsewhere(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let node = lab.ready(1)?.disk.node_str();
    let other = Fs::Ext4.make_and_mount(&node)?;
    fs::write(other.path("file"), contents())?;
    let mut user = Child::start_ready("the process with a blocked read", |link| {
        read_into_absent(&File::open(other.path("file"))?, link)
    })?;
    let reader = User::Reader.start(&fixture)?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    reader.expect_gone()?;
    user.go()?;
    user.hear("released", SIGNAL_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    other.unmount()?;
    back_to_normal(fixture, Way::Unbind)
}

fn two_at_once(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let user = User::Reader.start(&fixture)?;
    let bound = fixture.bound()?;
    let mut both = [
        "the first unbinding process",
        "the second unbinding process",
    ]
    .into_iter()
    .map(|name| {
        Child::start(name, |_| match bound.try_unbind(lab.driver) {
            // A later unbind finds it done, or the device gone.
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(error) => Err(error.into()),
        })
    })
    .collect::<Result<Vec<_>>>()?;
    for process in &mut both {
        process.expect_done(UNBIND_LIMIT)?;
    }
    bound.expect_driver(None)?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)
}

fn region_and_device(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let user = User::Reader.start(&fixture)?;
    let bound = fixture.bound()?;
    let mut device = Child::start("the process that unbinds the device", |_| {
        match bound.try_unbind(lab.driver) {
            Ok(()) => Ok(()),
            // The region was removed first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    })?;
    Way::Region.go(&fixture, UNBIND_LIMIT)?;
    device.expect_done(UNBIND_LIMIT)?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Region)
}

fn fsync_loop(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let mut user = Child::start_ready("the process that calls fsync", |link| {
        let file = fixture.open()?;
        let contents = contents();
        for (round, from) in (0..LEN).step_by(PAGE).cycle().enumerate() {
            let result = file
                .write_all_at(&contents[from..][..PAGE], from as u64)
                .and_then(|()| file.sync_all());
            if let Err(error) = result {
                let errno = error.raw_os_error().map(Errno::from_raw);
                let right = [Errno::EIO, Errno::ENXIO, Errno::EROFS];
                ensure!(
                    errno.is_some_and(|errno| right.contains(&errno)),
                    "it failed with `{error}`"
                );
                return Ok(());
            }
            if round == 10 {
                link.say("ready")?;
            }
        }
        Ok(())
    })?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// `mkfs` has the disk open exclusively, without being a file system.
fn mkfs_running(lab: &mut Lab) -> Result<()> {
    let prepared = lab.ready(0)?;
    let node = prepared.disk.node_str();
    for delay in [0, 20, 60, 120] {
        let mut mkfs = Child::start_ready("mkfs", |link| {
            link.say("ready")?;
            // It may finish before the disk is removed.
            let output = crate::command::command("mkfs.ext4")
                .args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", &node])
                .output()?;
            println!("mkfs: {}", output.status);
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(delay));
        let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
        unbind.expect_done(UNBIND_LIMIT)?;
        mkfs.expect_done(SIGNAL_LIMIT)?;
        retired::await_none(FREE_LIMIT)?;
        prepared.bound.bind(lab.driver)?;
    }
    expect_no_thread_stuck()?;
    Fs::Ext4.make_and_mount(&node)?.unmount()
}

/// Every fault makes the file system allocate a block and write its journal.
fn map_sync_faults(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let path = fixture.root()?.join("sparse");
    let mut user = Child::start_ready("the process that faults with MAP_SYNC", |link| {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(LEN as u64)?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Synchronous, true)?;
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for (round, page) in (0..LEN).step_by(PAGE).cycle().enumerate() {
            mapping.store(page, 1);
            if let Err(error) = fallocate(&file, punch, page as i64, PAGE as i64) {
                ensure!(
                    matches!(error, Errno::EIO | Errno::ENXIO | Errno::EROFS),
                    "it failed with {error}"
                );
                break;
            }
            if round == 10 {
                link.say("ready")?;
            }
        }
        // The file system has shut down; the pages are unmapped a moment later.
        for page in (0..LEN).step_by(PAGE).cycle() {
            mapping.store(page, 1);
        }
        Ok(())
    })?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// Processes that read another process's memory get an error when the page is gone.
fn read_by_other_processes(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let mapping = fixture.map(Sharing::Shared)?;
    let mut target = Child::start_ready("the process whose memory is read", |link| {
        // A forked child has the mapping at the same address.
        read_all(&mapping);
        link.say("ready")?;
        link.wait()?;
        mapping.load(0);
        Ok(())
    })?;
    let (pid, address) = (target.pid(), mapping.address());
    let mut looker = Child::start_ready("the process that calls process_vm_readv", |link| {
        let mut page = vec![0; PAGE];
        for (round, base) in (address..address + LEN).step_by(PAGE).cycle().enumerate() {
            let remote = [RemoteIoVec { base, len: PAGE }];
            match process_vm_readv(pid, &mut [IoSliceMut::new(&mut page)], &remote) {
                Ok(_) if round == 10 => link.say("ready")?,
                Ok(_) => {}
                Err(Errno::EFAULT) => return Ok(()),
                Err(error) => bail!("process_vm_readv failed with {error}"),
            }
        }
        Ok(())
    })?;
    drop(mapping);
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    looker.expect_done(SIGNAL_LIMIT)?;

    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    let peeked = ptrace::read(pid, address as *mut _);
    ensure!(
        matches!(peeked, Err(Errno::EIO | Errno::EFAULT)),
        "PTRACE_PEEKDATA gave {peeked:?}"
    );
    ptrace::detach(pid, None)?;
    target.go()?;
    target.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// The range is reused while the old mapping still exists.
fn reused_range_is_not_visible(lab: &mut Lab) -> Result<()> {
    for fs in [Fs::Ext4, Fs::XfsRmap] {
        let mut fixture = Fixture::build(lab, fs, Under::Whole)?;
        let mut old = Child::start_ready("the process with the old mapping", |link| {
            let mapping = fixture.map(Sharing::Shared)?;
            read_all(&mapping);
            link.say("ready")?;
            link.wait()?;
            // Only some of the pages, since each takes a process.
            for page in (0..LEN).step_by(16 * PAGE) {
                let status = mapping.load_in_child(page)?;
                ensure!(
                    matches!(
                        status,
                        nix::sys::wait::WaitStatus::Signaled(_, Signal::SIGBUS, _)
                    ),
                    "page {:#x} of the old mapping: {status:?}",
                    page
                );
            }
            mapping.load(0);
            Ok(())
        })?;
        Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
        Way::Unbind.come_back(&fixture)?;
        // The disk has other contents now.
        let disk = lab.ready(0)?.disk;
        let bytes = disk.bytes()?;
        let file = disk.open(Access::Direct)?;
        let next = Buffer::stamped(1 << 20, 99);
        for at in (0..bytes).step_by(next.len()) {
            let len = next.len().min((bytes - at) as usize);
            file.write_all_at(&next[..len], at)?;
        }
        drop(file);
        old.go()?;
        old.expect_signal(Signal::SIGBUS, 4 * SIGNAL_LIMIT)?;
        fixture.remove_devices()?;
        retired::await_none(FREE_LIMIT)?;
        expect_no_thread_stuck()?;
    }
    Ok(())
}

/// Mappings of another device are not affected.
fn another_stays(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let node = lab.ready(1)?.disk.node_str();
    let other = Fs::XfsRmap.make_and_mount(&node)?;
    fs::write(other.path("file"), contents())?;
    let file = Access::Buffered.open(&other.path("file"))?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    mapping.write(0, &stamped(LEN, 5));
    let user = User::Reader.start(&fixture)?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_gone()?;
    expect_same(
        "the other device",
        &mapping.to_vec(0, LEN),
        &stamped(LEN, 5),
    )?;
    mapping.write(0, &stamped(LEN, 6));
    file.sync_all()?;
    drop((mapping, file));
    let found = fs::read(other.path("file"))?;
    expect_same("the file on the other device", &found, &stamped(LEN, 6))?;
    other.unmount()?;
    back_to_normal(fixture, Way::Unbind)
}

/// Unbinds a device with pages in a pipe.
fn retire(lab: &Lab, fs: Fs) -> Result<(Fixture<'_>, Running)> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let user = User::ClosedPipe.start(&fixture)?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    for line in retired::expect(1)? {
        println!("retired: {line}");
    }
    Ok((fixture, user))
}

/// Unmount starts while the page is pinned, and may wait until it is unpinned.
fn umount_waits(lab: &mut Lab) -> Result<()> {
    for fs in [Fs::Ext4, Fs::XfsRmap] {
        let (mut fixture, mut user) = retire(lab, fs)?;
        let root = fixture.root()?;
        fixture.leave_mount();
        let mut umount = Child::start("the unmounting process", |_| {
            Ok(umount2(&root, MntFlags::empty())?)
        })?;
        std::thread::sleep(Duration::from_millis(500));
        user.unpin()?;
        user.expect_gone()?;
        umount.expect_done(FREE_LIMIT)?;
        back_to_normal(fixture, Way::Unbind)?;
    }
    Ok(())
}

/// The code that frees the range at last is in the module.
fn module_stays(lab: &mut Lab) -> Result<()> {
    let (fixture, mut user) = retire(lab, Fs::Ext4)?;
    let output = run_expecting_failure("rmmod", &[lab.driver.name()])?;
    ensure!(output.contains("in use"), "rmmod says `{output}`");
    user.unpin()?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)?;
    lab.driver.unload()?;
    lab.driver.load()
}

/// While the module is being unloaded, it cannot retire a range, and must not underflow its
/// reference count, of which the kernel would warn.
fn module_goes(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    // For some of these, time is over after the revocation and before the range is free.
    for limit in (10..=60).step_by(10) {
        let limit = Duration::from_millis(limit);
        // Threads that have translated an address are to be waited for.
        Fixture::build_with_timeout(lab, Fs::Ext4, Under::Whole, limit)?.remove_devices()?;
        lab.driver.unload()?;
        lab.driver.load()?;
    }
    retired::set_timeout(lab.driver, TIMEOUT)
}

fn retired_range_is_exclusive(lab: &mut Lab) -> Result<()> {
    let (fixture, mut user) = retire(lab, Fs::Ext4)?;
    let other = lab.driver.other();
    if !other.is_available() {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    other.load()?;
    let bound = fixture.bound()?;
    for driver in [other, lab.driver] {
        let result = bound.try_bind(driver);
        errno::expect("binding a retired range", result, &[Errno::EBUSY])?;
    }
    user.unpin()?;
    user.expect_gone()?;
    retired::await_none(FREE_LIMIT)?;
    bound.bind(other)?;
    bound.unbind()?;
    other.unload()?;
    back_to_normal(fixture, Way::Unbind)
}

/// Neither a new namespace at the same address nor the removal of the old one affects the pages.
fn destroyed(lab: &mut Lab) -> Result<()> {
    let (mut fixture, mut user) = retire(lab, Fs::Ext4)?;
    let (region, namespace) = (lab.region(0)?, lab.namespace(0)?);
    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    run_expecting_failure(
        "ndctl",
        &[
            "create-namespace",
            "-r",
            "region0",
            "-m",
            "fsdax",
            "-M",
            "mem",
        ],
    )?;
    user.unpin()?;
    user.expect_gone()?;
    fixture.remove_devices()?;
    retired::await_none(FREE_LIMIT)?;
    // Cleans up what the failed attempt may have left.
    if let Ok(namespace) = lab.namespace(0) {
        run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    }
    let made = ndctl::create(&region, Mode::FsdaxMem, &[])?;
    ensure!(made.blockdev.is_some(), "{made:?} has no disk");
    expect_no_thread_stuck()
}

/// With a timeout of zero the driver waits without limit, and retires nothing.
fn without_timeout(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build_with_timeout(lab, Fs::Ext4, Under::Whole, Duration::ZERO)?;
    let user = User::ClosedPipe.start(&fixture)?;
    unbind_waits(&fixture.bound()?, user)?;
    back_to_normal(fixture, Way::Unbind)
}

/// Unbinds a device, and checks that it waits until the user unpins its pages.
fn unbind_waits(bound: &Device, mut user: Running) -> Result<()> {
    let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    std::thread::sleep(2 * TIMEOUT);
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    retired::expect(0)?;
    user.unpin()?;
    user.expect_gone()?;
    unbind.expect_done(UNBIND_LIMIT)
}

/// The struct pages are on the device itself, so they disappear with it.
fn pages_on_the_media(lab: &mut Lab) -> Result<()> {
    const PIPED: usize = 16 * PAGE;
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let prepared = lab.prepare(Mode::FsdaxDev)?;
    let node = prepared.disk.node_str();
    let mount = Fs::Ext4.make_and_mount(&node)?;
    fs::write(mount.path("used"), contents())?;
    let mut user = Child::start_ready("the process with pages in a pipe", |link| {
        let file = Access::Buffered.open(&mount.path("used"))?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
        let (reader, writer) = nix::unistd::pipe()?;
        let given = mapping.give_to_pipe(0, PIPED, &writer)?;
        ensure!(given == PIPED, "{given} bytes were put into the pipe");
        drop((mapping, file));
        link.say("ready")?;
        link.wait()?;
        let mut found = vec![0; PIPED];
        File::from(reader).read_exact(&mut found)?;
        expect_same("what is in the pipe", &found, &contents()[..PIPED])
    })?;
    let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
    std::thread::sleep(2 * TIMEOUT);
    if unbind.try_end()?.is_some() {
        for line in retired::list()? {
            println!("retired: {line}");
        }
    }
    user.go()?;
    user.expect_done(SIGNAL_LIMIT)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    mount.unmount()?;
    retired::await_none(FREE_LIMIT)?;
    prepared.bound.bind(lab.driver)?;
    let mount = Fs::Ext4.mount(&node)?;
    expect_same("the file", &fs::read(mount.path("used"))?, &contents())?;
    mount.unmount()?;
    expect_no_thread_stuck()
}

/// A raw namespace has no DAX, but it has readers and writers.
fn raw_disk(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare(Mode::Raw)?;
    let mut users = [Access::Direct, Access::Buffered]
        .into_iter()
        .map(|access| {
            Child::start_ready(format!("the user of the disk ({access:?})"), |link| {
                let file = prepared.disk.open(access)?;
                let mut found = Buffer::new(1 << 20);
                let right = Buffer::stamped(1 << 20, access as u64);
                let place = access as u64 * (4 << 20);
                let mut round = || {
                    file.write_all_at(&right, place)?;
                    file.sync_data()?;
                    file.read_exact_at(&mut found, place)
                };
                round()?;
                link.say("ready")?;
                while round().is_ok() {}
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT)?;
    for user in &mut users {
        user.expect_done(SIGNAL_LIMIT)?;
    }
    expect_no_thread_stuck()?;
    prepared.bound.bind(lab.driver)?;
    let mut found = Buffer::new(1 << 20);
    let disk = prepared.disk.open(Access::Direct)?;
    for access in [Access::Direct, Access::Buffered] {
        disk.read_exact_at(&mut found, access as u64 * (4 << 20))?;
        expect_same("the disk", &found, &stamped(1 << 20, access as u64))?;
    }
    Ok(())
}
