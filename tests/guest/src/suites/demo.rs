// SPDX-License-Identifier: GPL-2.0

//! The demonstration: each step is a test, and prints what it does.
//!
//! ext4 and xfs have an NVDIMM each. The steps of a file system are called `ext4_…` and `xfs_…`, so
//! that the runner can print them side by side.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::{Mount, mount_point};
use crate::lab::{Lab, holder};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::nd::Device;
use crate::ndctl;
use crate::process::Child;
use crate::sectors::{expect_same, stamped};
use crate::sqlite::{Inserts, expect_rows};
use crate::syscall::is_dax;

pub const FIRST_BOOT: Suite = Suite {
    name: "demo_first_boot",
    tests: &[
        Test::step("driver_by_modprobe_rule", driver_by_modprobe_rule),
        Test::step("driver_by_sysfs", driver_by_sysfs),
        Test::step("ext4_create_namespace", |lab| create_namespace(lab, Ext4)),
        Test::step("ext4_make_and_mount", |lab| make_and_mount(lab, Ext4)),
        Test::step("ext4_write_through_mapping", |lab| {
            write_through_mapping(lab, Ext4)
        }),
        Test::step("ext4_read_back", |lab| read_back(lab, Ext4)),
        Test::step("ext4_unbind_and_bind", |lab| unbind_and_bind(lab, Ext4)),
        Test::step("ext4_compare_after_bind", |lab| compare(lab, Ext4)),
        Test::step("ext4_unbind_under_mapping", |lab| {
            unbind_under_mapping(lab, Ext4)
        }),
        Test::step("ext4_umount", |lab| umount(lab, Ext4)),
        Test::step("ext4_bind_again", |lab| bind_again(lab, Ext4)),
        Test::step("ext4_compare_after_that", |lab| compare(lab, Ext4)),
        Test::step("ext4_unbind_under_database", |lab| {
            unbind_under_database(lab, Ext4)
        }),
        Test::step("xfs_create_namespace", |lab| create_namespace(lab, Xfs)),
        Test::step("xfs_make_and_mount", |lab| make_and_mount(lab, Xfs)),
        Test::step("xfs_write_through_mapping", |lab| {
            write_through_mapping(lab, Xfs)
        }),
        Test::step("xfs_read_back", |lab| read_back(lab, Xfs)),
        Test::step("xfs_unbind_and_bind", |lab| unbind_and_bind(lab, Xfs)),
        Test::step("xfs_compare_after_bind", |lab| compare(lab, Xfs)),
        Test::step("xfs_unbind_under_mapping", |lab| {
            unbind_under_mapping(lab, Xfs)
        }),
        Test::step("xfs_umount", |lab| umount(lab, Xfs)),
        Test::step("xfs_bind_again", |lab| bind_again(lab, Xfs)),
        Test::step("xfs_compare_after_that", |lab| compare(lab, Xfs)),
        Test::step("xfs_unbind_under_database", |lab| {
            unbind_under_database(lab, Xfs)
        }),
    ],
};

pub const SECOND_BOOT: Suite = Suite {
    name: "demo_second_boot",
    tests: &[
        Test::step("ext4_compare_after_reboot", |lab| compare(lab, Ext4)),
        Test::step("xfs_compare_after_reboot", |lab| compare(lab, Xfs)),
    ],
};

const LEN: usize = 16 << 20;
const MIB: usize = LEN >> 20;

/// Far more than the unbind of a device without pinned pages takes, on a busy machine under
/// emulation.
const UNBIND_LIMIT: Duration = Duration::from_secs(10);
/// How long the users of a device may take to get the signal.
const SIGNAL_LIMIT: Duration = Duration::from_secs(10);

fn namespace(lab: &Lab, fs: FileSystem) -> Result<Device> {
    lab.namespace(match fs {
        Ext4 => 0,
        Xfs => 1,
    })
}

fn disk(lab: &Lab, fs: FileSystem) -> Result<Disk> {
    Ok(Disk::named(holder(&namespace(lab, fs)?)?.disk_name()?))
}

/// The contents of the file: they depend on the file system and the seed.
fn contents(lab: &Lab, fs: FileSystem) -> Vec<u8> {
    let tag = lab.random.get_seed()[0];
    stamped(LEN, (u64::from(tag) << 8) | fs as u64)
}

fn list(devices: &[Device]) -> String {
    devices
        .iter()
        .map(Device::name)
        .collect::<Vec<_>>()
        .join(" and ")
}

fn driver_by_modprobe_rule(lab: &mut Lab) -> Result<()> {
    let name = lab.driver.name();
    let alias = namespace(lab, Ext4)?.get("modalias")?;
    let candidates = run("modprobe", &["-R", &alias])?;
    println!("Modules that drive a device with the alias {alias}:");
    println!(
        "  {}",
        candidates.split_whitespace().collect::<Vec<_>>().join(", ")
    );
    println!("A rule in /etc/modprobe.d decides between them:");
    println!("  blacklist {}", lab.driver.other().name());
    lab.driver.unload()?;
    println!("So `modprobe {alias}`, which is what udev does, loads {name}:");
    run("modprobe", &["-b", &alias])?;
    crate::nd::settle()?;
    let devices = lab.driver.devices()?;
    ensure!(!devices.is_empty(), "{name} has taken no device");
    ensure!(
        !lab.driver.other().is_loaded(),
        "{} is loaded",
        lab.driver.other().name()
    );
    println!("  {name} has taken {}", list(&devices));
    Ok(())
}

/// The same through sysfs, with both modules loaded.
fn driver_by_sysfs(lab: &mut Lab) -> Result<()> {
    let (ours, theirs) = (lab.driver, lab.driver.other());
    ensure!(
        theirs.is_available()?,
        "{} is not in the image",
        theirs.name()
    );
    theirs.load()?;
    let device = holder(&namespace(lab, Ext4)?)?;
    let change = |from: Driver, to: Driver| -> Result<()> {
        println!(
            "  echo {device} > /sys/bus/nd/drivers/{}/unbind",
            from.name()
        );
        println!("  echo {device} > /sys/bus/nd/drivers/{}/bind", to.name());
        device.unbind()?;
        device.bind(to)?;
        println!("    {device} now belongs to {}", to.name());
        Ok(())
    };
    println!(
        "With {} loaded as well, sysfs moves a device from one to the other:",
        theirs.name()
    );
    change(ours, theirs)?;
    change(theirs, ours)?;
    theirs.unload()
}

/// Runs a command and prints it.
fn shown(program: &str, args: &[&str]) -> Result<String> {
    println!("{program} {}", args.join(" "));
    run(program, args)
}

fn create_namespace(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let namespace = namespace(lab, fs)?;
    let args = [
        "create-namespace",
        "-f",
        "-e",
        namespace.name(),
        "-m",
        "fsdax",
        "-M",
        "mem",
    ];
    shown("ndctl", &args)?;
    let made = ndctl::show(&namespace)?;
    ensure!(
        made.mode == "fsdax" && made.map.as_deref() == Some("mem"),
        "ndctl made {made:?}"
    );
    holder(&namespace)?.expect_driver(Some(lab.driver))?;
    println!(
        "  {} MiB, driven by {}, as /dev/{}",
        made.size >> 20,
        lab.driver.name(),
        disk(lab, fs)?
    );
    Ok(())
}

fn make_and_mount(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let node = disk(lab, fs)?.node_str();
    // On a small device mkfs.ext4 makes blocks of 1 KiB, and DAX needs blocks of a page. Those of
    // mkfs.xfs have 4 KiB.
    let (page, size) = (PAGE.to_string(), format!("size={PAGE}"));
    let options: &[&str] = match fs {
        Ext4 => &["-q", "-F", "-b", &page],
        Xfs if PAGE == 4096 => &["-q", "-f"],
        Xfs => &["-q", "-f", "-b", &size],
    };
    let arguments = [options, &[&node]].concat();
    shown(&format!("mkfs.{}", fs.name()), &arguments)?;
    let mount = mount(fs, &node)?;
    println!("  mounted with {}", mount.options()?.join(","));
    mount.leave();
    Ok(())
}

fn mount(fs: FileSystem, node: &str) -> Result<Mount> {
    println!(
        "mount -t {} -o dax=always {node} {}",
        fs.name(),
        mount_point(node).display()
    );
    let mount = fs.mount(node, "dax=always")?;
    mount.expect_option("dax=always")?;
    Ok(mount)
}

fn write_through_mapping(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let mount = Mount::of(&disk(lab, fs)?.node_str());
    let path = mount.path("file");
    println!(
        "A program maps {} with MAP_SYNC and writes {MIB} MiB through the mapping",
        path.display()
    );
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    ensure!(is_dax(&path)?, "statx does not call it a DAX file");
    nix::fcntl::fallocate(
        &file,
        nix::fcntl::FallocateFlags::empty(),
        0,
        i64::try_from(LEN)?,
    )?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    mapping.write(0, &contents(lab, fs));
    mapping.flush_cpu_cache();
    println!("  durable by flushing the CPU cache, without a system call");
    mount.leave();
    Ok(())
}

fn read_back(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let mount = Mount::of(&disk(lab, fs)?.node_str());
    println!("Another program reads the file with read(2)");
    let found = fs::read(mount.path("file"))?;
    expect_same("the file", &found, &contents(lab, fs))?;
    println!("  all {MIB} MiB are what was written");
    mount.unmount()
}

fn unbind_and_bind(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let disk = disk(lab, fs)?;
    let bound = holder(&namespace(lab, fs)?)?;
    println!(
        "Unmounted; the device is taken away from {} and given back",
        lab.driver.name()
    );
    bound.unbind()?;
    ensure!(!disk.exists(), "/dev/{disk} is still there");
    println!("  unbound: /dev/{disk} is gone");
    bound.bind(lab.driver)?;
    ensure!(disk.exists(), "/dev/{disk} did not come back");
    println!("  bound: /dev/{disk} is back");
    Ok(())
}

/// Unbinds the device while a process uses it.
fn unbind_under_mapping(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let mount = mount(fs, &disk(lab, fs)?.node_str())?;
    let path = mount.path("file");
    let right = contents(lab, fs);
    println!(
        "A program maps {} and writes to all of it, over and over",
        path.display()
    );
    let file = Access::Buffered.open(&path)?;
    let mut program = Child::start_ready("the program", |link| {
        let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
        mapping.write(0, &right);
        link.say("ready")?;
        loop {
            mapping.write(0, &right);
        }
    })?;
    drop(file);

    let bound = holder(&namespace(lab, fs)?)?;
    println!(
        "  echo {bound} > /sys/bus/nd/drivers/{}/unbind",
        lab.driver.name()
    );
    let start = Instant::now();
    let mut unbind = Child::start("unbind", |_| bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT)?;
    println!(
        "  unbound after {} ms, while it writes",
        start.elapsed().as_millis()
    );
    program.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    println!("  the program got SIGBUS: its pages are not there any more");
    mount.leave();
    Ok(())
}

/// Unbinds the device while SQLite uses it, and binds it again.
fn unbind_under_database(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let node = disk(lab, fs)?.node_str();
    let bound = holder(&namespace(lab, fs)?)?;
    let mount = mount(fs, &node)?;
    let database = mount.path("database");
    println!(
        "sqlite3 inserts rows into {}, each in a transaction of its own",
        database.display()
    );
    let mut inserts = Inserts::start(&database)?;
    let driver = lab.driver.name();
    println!("  echo {bound} > /sys/bus/nd/drivers/{driver}/unbind");
    Child::start("unbind", |_| bound.unbind())?.expect_done(UNBIND_LIMIT)?;
    let (ended, committed) = inserts.expect_ended(SIGNAL_LIMIT)?;
    println!("  sqlite3 ended with {ended}; until then it had committed {committed} rows");
    mount.unmount()?;
    println!("  echo {bound} > /sys/bus/nd/drivers/{driver}/bind");
    bound.bind(lab.driver)?;
    let mount = fs.mount(&node, "dax=always")?;
    let rows = expect_rows(&database, committed)?;
    println!("  the database is sound and has {rows} rows");
    mount.unmount()
}

fn umount(_: &mut Lab, fs: FileSystem) -> Result<()> {
    let mount = Mount::of_kind(fs.name())?;
    println!(
        "umount {}: nothing of the device is left in use",
        mount.point().display()
    );
    mount.unmount()
}

fn bind_again(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let bound = holder(&namespace(lab, fs)?)?;
    println!("The device is given back to {}", lab.driver.name());
    bound.bind(lab.driver)?;
    println!("  bound: /dev/{} is back", disk(lab, fs)?);
    Ok(())
}

fn compare(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    holder(&namespace(lab, fs)?)?.expect_driver(Some(lab.driver))?;
    let node = disk(lab, fs)?.node_str();
    let mount = mount(fs, &node)?;
    let found = fs::read(mount.path("file"))?;
    expect_same("the file", &found, &contents(lab, fs))?;
    mount.unmount()?;
    fs.check(&node)?;
    println!(
        "  all {MIB} MiB are the same, and the {} is clean",
        fs.name()
    );
    Ok(())
}
