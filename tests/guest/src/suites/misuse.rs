// SPDX-License-Identifier: GPL-2.0

//! A kernel in which safe code of the module was wrong: it has run the KUnit suite
//! `pmem_rs_x_misuse`, which drops and forgets values in the wrong order. Leaked ranges stay until
//! reboot, so the module does too, and everything else works.
//!
//! In another boot it has run `pmem_rs_x_exit`, which forgets a registration without a range.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Suite, Test};
use crate::command::{command, run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::filesystem::FileSystem::Ext4;
use crate::kunit;
use crate::lab::{Lab, Prepared, holder};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;
use crate::sectors::{expect_same, stamped};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: kunit::MISUSE,
    tests: &[
        Test::new("ranges_stay", ranges_stay),
        Test::new("mismatches_are_logged", mismatches_are_logged),
        Test::new("module_stays", module_stays),
        Test::new("pages_fail", pages_fail),
        Test::new("devices_work", devices_work),
    ],
};

pub const EXIT: Suite = Suite {
    name: kunit::MISUSE_EXIT,
    // The module cannot be loaded again after it.
    tests: &[Test::step("exit_waits", exit_waits)],
};

/// The name and the size in `/proc/iomem` of the ranges of the module's own tests.
const NAME: &str = "pmem_rs test";
const LEN: u64 = 128 << 20;
/// The warning of the module about a leaked range, unless the range was forgotten.
const WARNING: &str = "may be in use and was not freed: it stays mapped and reserved until reboot";

/// The message about a range whose entries in page caches do not match its folios.
const MISMATCH: &str = "entries of page caches do not match their folios. The range stays mapped \
                        and reserved until reboot";
/// The message about an unloading that waits.
const WAITING: &str = "module exit waits: ";
/// How long an unloading may take until it waits.
const UNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// The start addresses of leaked ranges.
fn ranges() -> Result<Vec<u64>> {
    let iomem = fs::read_to_string("/proc/iomem").context("reading /proc/iomem")?;
    let mut starts = Vec::new();
    for line in iomem.lines() {
        let Some((range, NAME)) = line.trim_start().split_once(" : ") else {
            continue;
        };
        let (start, last) = range.split_once('-').context("a line without a range")?;
        let (start, last) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(last, 16)?,
        );
        ensure!(
            last - start + 1 == LEN,
            "a range was leaked in part: {line}"
        );
        starts.push(start);
    }
    Ok(starts)
}

/// Every case leaks a range, and the log reports it.
fn ranges_stay(_: &mut Lab) -> Result<()> {
    let cases = kunit::cases(kunit::MODULE)?;
    let leaked = ranges()?;
    println!("{} cases have leaked {leaked:#x?}", cases.len());
    ensure!(
        !leaked.is_empty() && leaked.len() == cases.len(),
        "{} cases have leaked {} ranges",
        cases.len(),
        leaked.len()
    );
    let (warned, forgotten) = (warnings()?, forgotten(&cases));
    ensure!(
        forgotten == 1 && warned == leaked.len() - forgotten,
        "{warned} warnings about {} ranges, of which {forgotten} was forgotten",
        leaked.len()
    );
    Ok(())
}

/// One case leaks its range because of mismatches, and the log says so, once.
fn mismatches_are_logged(_: &mut Lab) -> Result<()> {
    let log = run("busybox", &["dmesg"])?;
    let found: Vec<_> = log.lines().filter(|line| line.contains(MISMATCH)).collect();
    ensure!(
        matches!(found[..], [line] if line.contains(&format!("{NAME}: "))),
        "the mismatches of one range were logged as {found:#?}"
    );
    Ok(())
}

/// The number of warnings about leaked ranges.
fn warnings() -> Result<usize> {
    let log = run("busybox", &["dmesg"])?;
    Ok(log.lines().filter(|line| line.contains(WARNING)).count())
}

/// The number of cases that forget their range: these cause no warning, but count as leaked.
fn forgotten(cases: &[kunit::Case]) -> usize {
    let is_forgotten = |case: &&kunit::Case| case.name.ends_with(".forgotten_memory_leaks");
    cases.iter().filter(is_forgotten).count()
}

/// The leaked ranges have callbacks in the module, so it cannot be unloaded, even without devices.
fn module_stays(lab: &mut Lab) -> Result<()> {
    let regions = Device::all_of("region")?;
    for region in &regions {
        region.unbind()?;
    }
    ensure!(lab.driver.devices()?.is_empty(), "there are devices");
    let count = Path::new("/sys/module")
        .join(lab.driver.name())
        .join("refcnt");
    let count: usize = sysfs::read(count)?.parse()?;
    let warned = warnings()?;
    ensure!(
        warned > 0 && count >= warned,
        "{warned} leaked ranges have {count} references to the module"
    );
    let output = run_expecting_failure("rmmod", &[lab.driver.name()])?;
    ensure!(output.contains("in use"), "rmmod says `{output}`");
    for region in &regions {
        region.enable_region()?;
    }
    Ok(())
}

/// A module with a forgotten registration is unloaded, but for its text: its exit waits for ever,
/// and the log says so.
fn exit_waits(lab: &mut Lab) -> Result<()> {
    ensure!(!lab.driver.devices()?.is_empty(), "there are no devices");
    let mut messages = Messages::from_now()?;
    // It cannot be killed, and is not waited for.
    let mut rmmod = command("rmmod").arg(lab.driver.name()).spawn()?;
    let deadline = Instant::now() + UNLOAD_LIMIT;
    let said = loop {
        let mut lines = messages.so_far()?.iter();
        if let Some(said) = lines.find(|line| line.contains(WAITING)) {
            break said.clone();
        }
        ensure!(
            Instant::now() < deadline,
            "the exit of the module does not say that it waits"
        );
        sleep(Duration::from_millis(20));
    };
    ensure!(
        said.contains("(1 registrations)"),
        "one registration was forgotten, but the log says `{said}`"
    );
    ensure!(
        lab.driver.devices()?.is_empty(),
        "a module that is being unloaded has devices"
    );
    sleep(Duration::from_secs(2));
    ensure!(
        rmmod.try_wait()?.is_none(),
        "the module was unloaded in spite of its registration"
    );
    let module = Path::new("/sys/module").join(lab.driver.name());
    let state = sysfs::read(module.join("initstate"))?;
    ensure!(state == "going", "the module is `{state}`");
    Ok(())
}

/// The memory management calls the module for a failed page of any leaked range.
fn pages_fail(_: &mut Lab) -> Result<()> {
    run("modprobe", &["hwpoison_inject"])?;
    let all = ranges()?;
    ensure!(!all.is_empty(), "nothing was leaked");
    for start in all {
        // The first page was used by the tests.
        for address in [start, start + LEN / 2] {
            let frame = address / PAGE as u64;
            let mut messages = Messages::from_now()?;
            let path = "/sys/kernel/debug/hwpoison/corrupt-pfn";
            // The callback returns an error, since no user could be notified.
            let result = sysfs::try_write(path, &frame.to_string());
            let said = messages.expect(&[&format!("Memory failure: {frame:#x}: ")])?;
            println!("{result:?}: {said}");
            ensure!(
                said.contains("dax page"),
                "the failed page was not recognised as DAX"
            );
        }
    }
    run("rmmod", &["hwpoison_inject"])?;
    ensure!(
        ranges()?.len() == kunit::cases(kunit::MODULE)?.len(),
        "a range has gone"
    );
    Ok(())
}

/// Devices on both kinds of memory are bound, used, unbound in use, and bound again.
fn devices_work(lab: &mut Lab) -> Result<()> {
    let before = ranges()?;
    for region in 0..2 {
        let Prepared {
            namespace,
            bound,
            disk,
        } = lab.prepare_in(region, Mode::FsdaxMem)?;
        let node = disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        let path = mount.path("file");
        fs::write(&path, stamped(PMD, 3))?;
        let file = Access::Buffered.open(&path)?;
        file.sync_all()?;
        let mut user = Child::start_ready("the process with the mapping", |link| {
            let mapping = Mapping::new(&file, PMD, Sharing::Synchronous)?;
            expect_same("the mapping", &mapping.to_vec(0, PMD), &stamped(PMD, 3))?;
            link.say("ready")?;
            for page in (0..PMD).step_by(PAGE).cycle() {
                mapping.load(page);
            }
            Ok(())
        })?;
        drop(file);
        let limit = retired::TIMEOUT * 10;
        let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
        unbind.expect_done(limit)?;
        user.expect_signal(Signal::SIGBUS, limit)?;
        mount.unmount()?;
        retired::await_none(limit)?;

        bound.bind(lab.driver)?;
        let node = Disk::named(holder(&namespace)?.disk_name()?).node_str();
        let mount = Ext4.mount(&node, "dax=always")?;
        expect_same("the file", &fs::read(mount.path("file"))?, &stamped(PMD, 3))?;
        mount.unmount()?;
        Ext4.check(&node)?;
    }
    ensure!(ranges()? == before, "the ranges have changed");
    expect_no_thread_stuck()
}
