// SPDX-License-Identifier: GPL-2.0

//! PID 1: brings the machine up, runs a suite, and switches the machine off.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::arch::{CONSOLE, RESULTS};
use crate::cli::{Cli, Command, TestArgs};
use crate::command::{command, run};
use crate::driver::Driver;
use crate::ktap::Ktap;
use crate::lab::Lab;
use crate::mapping::{PAGE, check_page_size};
use crate::ndctl::Mode;
use crate::platform::PLATFORM_MODULE;
use crate::{
    checkers, coverage, kexec, kmemleak, kunit, ndctl, suites, supervisor, syscall, sysfs,
};

/// The file with the name of the driver under test, for processes that are not given it as an
/// argument.
const DRIVER_FILE: &str = "/run/driver";

/// Never returns: if PID 1 ended, the kernel would panic.
pub fn main() -> ! {
    // If the machine cannot be brought up, the console says why, and the runner sees that no
    // results arrive.
    if let Err(error) = up().and_then(|()| work()) {
        println!("pmem-rs guest: {error:?}");
    }
    nix::unistd::sync();
    power_off()
}

fn power_off() -> ! {
    let error = reboot(RebootMode::RB_POWER_OFF).unwrap_err();
    panic!("the machine does not switch off: {error}");
}

fn up() -> Result<()> {
    let flags = MsFlags::empty();
    for (kind, point) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/mnt"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        fs::create_dir_all(point).with_context(|| format!("making {point}"))?;
        mount(Some(kind), point, Some(kind), flags, None::<&str>)
            .with_context(|| format!("mounting {kind} on {point}"))?;
    }
    check_page_size()?;
    // A hung task is reported while its test still runs, not two minutes later.
    sysfs::write("/proc/sys/kernel/hung_task_timeout_secs", "30")
}

fn work() -> Result<()> {
    // The firmware of arm64 adds a word for the kernel at the end of the command line.
    let words = std::env::args().filter(|word| !word.starts_with("initrd="));
    match Cli::try_parse_from(words)?.command {
        Command::Run {
            suites,
            args,
            only,
            hold,
            in_use,
            unbinding,
            hibernate,
            reboot,
            kexec,
            resume,
        } => {
            let ends = [
                (hold, Ending::Hold),
                (in_use, Ending::InUse),
                (unbinding, Ending::Unbinding),
                (hibernate, Ending::Hibernate),
                (reboot, Ending::Reboot),
                (kexec, Ending::Kexec),
            ];
            let end = ends.into_iter().find(|(asked, _)| *asked);
            let end = end.map_or(Ending::Orderly, |(_, end)| end);
            if resume {
                let failed = suites::sleep::resume();
                println!("pmem-rs guest: nothing was resumed: {failed:?}");
            }
            run_suites(&suites, &args, &only, end)
        }
        Command::Shell { driver } => shell(driver),
        Command::Test { .. } | Command::List { .. } | Command::Metal(_) | Command::Tidy => {
            anyhow::bail!("PID 1 does not do this")
        }
    }
}

/// Loads the drivers that create namespaces, and then the driver that binds them.
fn load(driver: Driver) -> Result<()> {
    fs::write(DRIVER_FILE, driver.name())?;
    let mut modules = vec!["-a", "nfit", "virtio_pmem", "loop"];
    if Mode::Devdax.is_supported() {
        modules.push("device_dax");
    }
    if driver == Driver::NdPmem {
        // The driver of this project creates these buses itself.
        modules.push(PLATFORM_MODULE);
    }
    run("modprobe", &modules)?;
    driver.load()
}

/// The driver under test.
pub fn driver_under_test() -> Result<Driver> {
    let name = sysfs::read(DRIVER_FILE)?;
    Driver::from_str(&name, false).map_err(|error| anyhow::anyhow!("{DRIVER_FILE}: {error}"))
}

/// What happens after the last test.
enum Ending {
    /// All devices are idle, everything is written back, and the machine is switched off.
    Orderly,
    /// The runner cuts the power.
    Hold,
    /// The machine is switched off while the devices are in use.
    InUse,
    /// The machine goes down while a device is being unbound.
    Unbinding,
    /// The machine is rebooted, without a sync.
    Reboot,
    /// The kernel that a test has loaded is started, without a sync.
    Kexec,
    /// The system hibernates while the devices are in use, and goes on with another suite.
    Hibernate,
}

fn run_suites(names: &[String], args: &TestArgs, only: &[String], ending: Ending) -> Result<()> {
    let suites: Vec<_> = names
        .iter()
        .map(|name| suites::find(name))
        .collect::<Result<_>>()?;
    // From here on the console shows all messages, for debugging a failure.
    sysfs::write("/proc/sys/kernel/printk", "8")?;
    let mut ktap = Ktap::open(Path::new(RESULTS))?;
    let release = sysfs::read("/proc/sys/kernel/osrelease")?;
    let facts = format!(
        "kernel {release}, driver {}, seed {}",
        args.driver.name(),
        args.seed
    );
    ktap.start(suites.len(), &facts)?;
    let checkers = checkers::configured()?;
    if !checkers.is_empty() {
        ktap.remark(&format!("checkers: {}", checkers.join(" ")))?;
        kmemleak::forget()?;
    }
    if names.iter().any(|name| name == kunit::MISUSE) {
        kmemleak::stop_automatic_scans()?;
        sysfs::write("/dev/kmsg", klog::LEAKS_FROM_HERE)?;
    }
    load(args.driver)?;
    for suite in &suites {
        // What failed may have left the kernel in a state that is not good for others.
        if !supervisor::run(suite, args, only, &mut ktap)? {
            break;
        }
        if suites.len() > 1 {
            ndctl::make_whole()?;
        }
    }
    coverage::keep();
    match ending {
        Ending::Orderly => ktap.remark("done"),
        Ending::Hold => {
            ktap.remark("waiting for the power to be cut")?;
            loop {
                nix::unistd::pause();
            }
        }
        Ending::InUse => {
            let _users = suites::in_use::start(&Lab::new(args, 0))?;
            ktap.remark("done")?;
            power_off()
        }
        Ending::Unbinding => {
            let (_users, mode) = suites::going_down::start(&Lab::new(args, 0), &names[0])?;
            ktap.remark("done")?;
            let error = reboot(mode).unwrap_err();
            anyhow::bail!("the machine does not go down: {error}")
        }
        // The kernel that is started says that all is done.
        Ending::Kexec if kexec::is_loaded()? => {
            let error = reboot(RebootMode::RB_KEXEC).unwrap_err();
            anyhow::bail!("no other kernel starts: {error}")
        }
        Ending::Reboot | Ending::Kexec => {
            ktap.remark("done")?;
            let error = reboot(RebootMode::RB_AUTOBOOT).unwrap_err();
            anyhow::bail!("the machine does not reboot: {error}")
        }
        Ending::Hibernate => {
            ktap.remark("done")?;
            suites::sleep::hibernate(&Lab::new(args, 0))?;
            let after = [suites::sleep::AFTER.name.to_owned()];
            run_suites(&after, args, only, Ending::Reboot)
        }
    }
}

fn shell(driver: Driver) -> Result<()> {
    load(driver)?;
    println!(
        "\nThe namespaces belong to {}. Things to try:",
        driver.name()
    );
    println!("  ndctl list -RN");
    println!("  ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem");
    println!("  mkfs.ext4 -b {PAGE} /dev/pmem0 && mount -o dax=always /dev/pmem0 /mnt");
    println!(
        "  echo pfn0.0 > /sys/bus/nd/drivers/{}/unbind",
        driver.name()
    );
    println!("Ctrl-D switches the guest off, Ctrl-A X ends it at once.\n");
    let open = || OpenOptions::new().read(true).write(true).open(CONSOLE);
    let mut shell = command("sh");
    shell.env("PS1", "guest# ").env("TERM", "vt100").arg("-i");
    shell
        .stdin(open()?)
        .stdout(open()?)
        .stderr(Stdio::from(open()?));
    syscall::own_terminal(&mut shell, open()?);
    let shell = shell.spawn().context("starting the shell")?;
    let shell = Pid::from_raw(shell.id().try_into()?);
    while waitpid(None, None)?.pid() != Some(shell) {}
    Ok(())
}
