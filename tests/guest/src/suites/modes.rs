// SPDX-License-Identifier: GPL-2.0

//! The disk of each mode of a namespace, and its attributes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Prepared, holder};
use crate::mapping::{Mapping, NO_HUGE_PAGES, PAGE, PMD, Sharing, huge_page};
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::process::Child;
use crate::sectors::{Buffer, SECTOR, expect_same, stamped};
use crate::tracing::FaultTrace;
use crate::{syscall, sysfs};

pub const SUITE: Suite = Suite {
    name: "modes",
    tests: &[
        Test::new("raw", |lab| check_disk(lab, Mode::Raw, "0")),
        Test::new("fsdax_mem", |lab| check_disk(lab, Mode::FsdaxMem, "1")),
        Test::new("fsdax_dev", |lab| check_disk(lab, Mode::FsdaxDev, "1")),
        Test::new("raw_with_4k_sectors", raw_with_4k_sectors),
        Test::new("force_raw_shows_the_whole_range", force_raw),
        Test::new("sector_is_handed_to_btt", sector),
        Test::new("devdax_is_left_to_its_driver", devdax),
        Test::new("fsdax_alignment_of_a_page", |lab| alignment(lab, PAGE)),
        Test::new("fsdax_alignment_of_a_pmd", |lab| {
            alignment(lab, huge_page().ok_or(NO_HUGE_PAGES)?)
        }),
        Test::new("pmd_is_revoked", pmd_is_revoked),
        Test::new("size_changes_between_binds", size_changes),
        Test::new("from_mode_to_mode", from_mode_to_mode).within(120),
        Test::new("empty_seeds_are_refused", seeds_are_refused),
        Test::new("write_cache_attribute", write_cache),
        Test::new("badblocks_attribute", badblocks),
    ],
};

/// How long a process may take to get its signal.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// Checks the attributes of the disk, and its size by access to both ends.
fn check_disk(lab: &mut Lab, mode: Mode, dax: &str) -> Result<()> {
    let Prepared {
        namespace, disk, ..
    } = lab.prepare(mode)?;
    let listed = ndctl::show(&namespace)?;
    let expected = match mode {
        Mode::FsdaxMem => ("fsdax", Some("mem")),
        Mode::FsdaxDev => ("fsdax", Some("dev")),
        _ => ("raw", None),
    };
    ensure!(
        (listed.mode.as_str(), listed.map.as_deref()) == expected,
        "ndctl lists {listed:?}"
    );
    ensure!(
        listed.state.is_none(),
        "ndctl says it is {:?}",
        listed.state
    );
    ensure!(
        listed.sector_size == Some(512),
        "ndctl lists sectors of {:?}",
        listed.sector_size
    );
    let default = huge_page().unwrap_or(PAGE);
    let align = listed.map.is_some().then_some(default as u64);
    ensure!(
        listed.align == align,
        "ndctl lists an alignment of {:?}",
        listed.align
    );

    let file = disk.open(Access::Direct)?;
    let bytes = disk.bytes()?;
    ensure!(
        bytes == listed.size,
        "the disk has {bytes} bytes, the namespace {}",
        listed.size
    );
    ensure!(syscall::logical_block_size(&file)? == 512);
    ensure!(syscall::physical_block_size(&file)? as usize == PAGE);
    disk.expect("queue/logical_block_size", "512")?;
    disk.expect("queue/physical_block_size", &PAGE.to_string())?;
    disk.expect("queue/dax", dax)?;
    // The emulated NVDIMM has no flush hints, so a write is durable once it has left the CPU cache,
    // and FUA needs no separate step.
    disk.expect("queue/fua", "0")?;
    disk.expect("queue/write_cache", "write back")?;
    disk.expect("queue/rotational", "0")?;
    disk.expect("ro", "0")?;

    use_both_ends(&file, bytes, 7)
}

/// Writes and reads the first and the last sector of a disk, and checks that there is no sector
/// behind.
fn use_both_ends(file: &File, bytes: u64, tag: u64) -> Result<()> {
    let right = Buffer::stamped(SECTOR, tag);
    let mut found = Buffer::new(SECTOR);
    for at in [0, bytes - SECTOR as u64] {
        file.write_all_at(&right, at)?;
        file.read_exact_at(&mut found, at)?;
        expect_same(&format!("the sector at {at:#x}"), &found, &right)?;
    }
    ensure!(
        file.read_at(&mut found, bytes)? == 0,
        "there is more than {bytes} bytes"
    );
    Ok(())
}

fn raw_with_4k_sectors(lab: &mut Lab) -> Result<()> {
    let made = ndctl::reconfigure_with(&lab.namespace(0)?, Mode::Raw, &["-l", "4096"])?;
    let disk = Disk::named(made.blockdev.context("no disk")?);
    disk.expect("queue/logical_block_size", "4096")?;
    let file = disk.open(Access::Direct)?;
    let mut sector = Buffer::new(SECTOR);
    let result = file.read_at(&mut sector, SECTOR as u64);
    errno::expect("reading half a kilobyte of it", result, &[Errno::EINVAL])?;
    let right = Buffer::of_pages(8192, 8);
    file.write_all_at(&right, 4096)?;
    let mut found = Buffer::of_pages(8192, 0);
    file.read_exact_at(&mut found, 4096)?;
    expect_same("what was written", &found, &right)
}

/// With `force_raw` the driver ignores the info block.
fn force_raw(lab: &mut Lab) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.prepare(Mode::FsdaxMem)?;
    let usable = disk.bytes()?;
    bound.unbind()?;
    bound.give_up_namespace()?;
    namespace.set("force_raw", "1")?;
    namespace.bind(lab.driver)?;
    let raw = Disk::named(namespace.disk_name()?);
    let size: u64 = namespace.get("size")?.parse()?;
    ensure!(
        raw.bytes()? == size && size > usable,
        "{} bytes, namespace {size}",
        raw.bytes()?
    );
    raw.expect("queue/dax", "0")?;
    let mut signature = [0; 16];
    raw.open_read_only()?.read_exact_at(&mut signature, 4096)?;
    ensure!(
        signature.starts_with(b"NVDIMM_PFN_INFO"),
        "the info block starts {signature:02x?}"
    );
    namespace.unbind()
}

fn sector(lab: &mut Lab) -> Result<()> {
    let namespace = lab.namespace(0)?;
    let made = ndctl::reconfigure(&namespace, Mode::Sector)?.show()?;
    ensure!(made.mode == "sector", "ndctl made {made:?}");
    let btt = holder(&namespace)?;
    ensure!(
        btt.name().starts_with("btt"),
        "{namespace} is held by {btt}"
    );
    btt.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(made.blockdev.context("no disk")?);
    ensure!(disk.name().ends_with('s'), "the disk is called {disk}");

    // btt works in whole sectors, which have the size of a page.
    let right = Buffer::of_pages(256 << 10, 11);
    disk.open(Access::Direct)?.write_all_at(&right, 1 << 20)?;
    btt.unbind()?;
    ensure!(!disk.exists(), "{disk} is there after unbind");
    btt.bind(lab.driver)?;
    let mut found = Buffer::of_pages(right.len(), 0);
    disk.open(Access::Direct)?
        .read_exact_at(&mut found, 1 << 20)?;
    expect_same("what was written before unbind", &found, &right)?;

    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    ensure!(!disk.exists(), "{disk} outlives its namespace");
    run("ndctl", &["create-namespace", "-m", "raw", "-l", "512"])?;
    Ok(())
}

fn devdax(lab: &mut Lab) -> Result<()> {
    let namespace = lab.namespace(0)?;
    // A mapping has to be aligned like the device.
    let made = ndctl::reconfigure_with(&namespace, Mode::Devdax, &["-a", &PAGE.to_string()])?;
    let made = made.show()?;
    ensure!(
        made.mode == "devdax" && made.blockdev.is_none(),
        "ndctl made {made:?}"
    );
    let dax = holder(&namespace)?;
    ensure!(
        dax.driver().as_deref() == Some("dax_pmem"),
        "{dax} has the driver {:?}",
        dax.driver()
    );
    namespace.expect_driver(None)?;
    let disks = Disk::all("pmem")?;
    ensure!(disks.is_empty(), "there are disks: {disks:?}");

    // The dax device has the whole range.
    let devices = sysfs::names("/sys/bus/dax/devices")?;
    ensure!(devices.len() == 1, "there are the devices {devices:?}");
    let node = Path::new("/dev").join(&devices[0]);
    let file = Access::Buffered.open(&node)?;
    let mapping = Mapping::new(&file, PMD, Sharing::Shared)?;
    mapping.write(0, &stamped(PMD, 12));
    drop((mapping, file));
    let mapping = Mapping::new(&Access::Buffered.open(&node)?, PMD, Sharing::Shared)?;
    expect_same(
        "through another mapping",
        &mapping.to_vec(0, PMD),
        &stamped(PMD, 12),
    )?;
    drop(mapping);

    // Binding the namespace again does not disturb it.
    let result = namespace.try_bind(lab.driver);
    errno::expect(
        "binding a namespace that devdax holds",
        result,
        &[Errno::ENXIO],
    )?;
    dax.unbind()?;
    let result = dax.try_bind(lab.driver);
    errno::expect("binding a dax device", result, &[Errno::ENODEV])?;

    // The namespace can be used as fsdax again.
    check_disk(lab, Mode::FsdaxMem, "1")
}

/// The alignment of the data, and whether files can be mapped.
fn alignment(lab: &mut Lab, align: usize) -> Result<()> {
    let align = align as u64;
    let namespace = lab.namespace(0)?;
    for mode in [Mode::FsdaxMem, Mode::FsdaxDev] {
        let more = ["-a", &align.to_string()];
        let made = ndctl::reconfigure_with(&namespace, mode, &more)?.show()?;
        ensure!(made.align == Some(align), "ndctl made {made:?}");
        let bound = holder(&namespace)?;
        bound.expect_driver(Some(lab.driver))?;
        ensure!(
            bound.resource()? % align == 0,
            "the data are at {:#x}",
            bound.resource()?
        );
        let node = Disk::named(made.blockdev.context("no disk")?).node_str();
        Ext4.make(&node)?;
        for tag in [1, 2] {
            let mount = Ext4.mount(&node, "dax=always")?;
            let path = mount.path("file");
            if tag == 1 {
                std::fs::write(&path, vec![0; PMD])?;
            } else {
                expect_same("before", &std::fs::read(&path)?, &stamped(PMD, 1))?;
            }
            let file = Access::Buffered.open(&path)?;
            let mapping = Mapping::new(&file, PMD, Sharing::Synchronous)?;
            mapping.write(0, &stamped(PMD, tag));
            drop((mapping, file));
            mount.unmount()?;
            bound.unbind()?;
            bound.bind(lab.driver)?;
        }
        Ext4.check(&node)?;
    }
    Ok(())
}

/// A file that one PMD maps, of whatever size it is on this kernel, is revoked and intact.
fn pmd_is_revoked(lab: &mut Lab) -> Result<()> {
    let size = huge_page().ok_or(NO_HUGE_PAGES)?;
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let node = disk.node_str();
    let stride = size / PAGE;
    let layout = format!("stride={stride},stripe_width={stride},lazy_itable_init=0");
    Ext4.make_with(&node, &["-E", &layout])?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    let file = File::create_new(&path)?;
    fallocate(&file, FallocateFlags::empty(), 0, i64::try_from(size)?)?;
    drop(file);

    let trace = FaultTrace::start()?;
    let mut user = Child::start_ready("the process with a PMD", |link| {
        let file = Access::Buffered.open(&path)?;
        let mapping = Mapping::new(&file, size, Sharing::Shared)?;
        mapping.write(0, &stamped(size, 1));
        link.say("ready")?;
        loop {
            mapping.store(size - 1, 1);
        }
    })?;
    let (pmds, pages) = (trace.pmds_installed()?, trace.pages_installed()?);
    drop(trace);
    ensure!(
        (pmds, pages) == (1, 0),
        "{pmds} PMDs and {pages} pages were mapped"
    );
    bound.unbind()?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    mount.unmount()?;

    bound.bind(lab.driver)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let mut right = stamped(size, 1);
    right[size - 1] = 1;
    expect_same("the file", &std::fs::read(mount.path("file"))?, &right)?;
    mount.unmount()?;
    Ext4.check(&node)
}

/// The same namespace with another size: all attributes match the new size, and no state of the old
/// disk is left.
fn size_changes(lab: &mut Lab) -> Result<()> {
    let region = lab.region(0)?;
    let mut namespace = lab.namespace(0)?;
    // What is before the data, up to the next multiple of the alignment.
    let loss = huge_page().unwrap_or(PAGE).max(16 << 20) as u64;
    for (mib, mode) in [
        (128, Mode::FsdaxMem),
        (64, Mode::Raw),
        (256, Mode::FsdaxDev),
        (192, Mode::FsdaxMem),
    ] {
        run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
        let more = ["-s", &format!("{mib}M"), "-l", "512"];
        let made = ndctl::create(&region, mode, &more)?.show()?;
        namespace = Device::named(made.dev);
        let disk = Disk::named(made.blockdev.context("no disk")?);
        let bytes = disk.bytes()?;
        ensure!(
            bytes == made.size,
            "{disk} has {bytes} bytes of {}",
            made.size
        );
        ensure!(
            bytes <= mib << 20 && bytes >= (mib << 20) - loss,
            "{mib} MiB are {bytes} bytes"
        );
        disk.expect("size", &(bytes / SECTOR as u64).to_string())?;
        disk.expect("badblocks", "")?;
        disk.expect("ro", "0")?;
        disk.expect("queue/dax", if mode == Mode::Raw { "0" } else { "1" })?;
        let file = disk.open(Access::Direct)?;
        use_both_ends(&file, bytes, mib)?;
        // State that the next disk must not inherit.
        sysfs::write(disk.path("badblocks"), "64 2\n")?;
        syscall::set_read_only(&file, true)?;
    }
    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    ndctl::create(&region, Mode::Raw, &["-l", "512"]).map(drop)
}

fn from_mode_to_mode(lab: &mut Lab) -> Result<()> {
    let namespace = lab.namespace(0)?;
    let modes = [
        Mode::Raw,
        Mode::FsdaxMem,
        Mode::Sector,
        Mode::Devdax,
        Mode::FsdaxDev,
        Mode::Raw,
        Mode::Sector,
    ];
    for mode in modes.into_iter().filter(|mode| mode.is_supported()) {
        let made = ndctl::reconfigure(&namespace, mode)?;
        let disks = Disk::all("pmem")?;
        let wanted = usize::from(mode != Mode::Devdax);
        ensure!(disks.len() == wanted, "{mode:?} has the disks {disks:?}");
        if let Some(disk) = made.blockdev {
            let mut block = Buffer::of_pages(4096, 0);
            Disk::named(disk)
                .open(Access::Direct)?
                .read_exact_at(&mut block, 0)?;
        }
        let listed = ndctl::list_all()?;
        let used: Vec<_> = listed
            .iter()
            .filter(|namespace| namespace.size > 0)
            .collect();
        ensure!(used.len() == 1, "{mode:?}: ndctl lists {used:?}");
    }
    Ok(())
}

/// libnvdimm keeps an empty device of each kind for the next namespace (the seed) and creates
/// another when it is bound. A driver that binds a seed causes an endless series of them.
fn seeds_are_refused(lab: &mut Lab) -> Result<()> {
    lab.prepare(Mode::FsdaxMem)?;
    let before = Device::all()?;
    let idle = |device: &&Device| {
        let kind = device
            .name()
            .trim_end_matches(|letter: char| !letter.is_alphabetic());
        matches!(kind, "namespace" | "pfn" | "btt") && device.driver().is_none()
    };
    let seeds: Vec<_> = before.iter().filter(idle).collect();
    ensure!(
        !seeds.is_empty(),
        "there are no empty devices among {before:?}"
    );
    for _ in 0..20 {
        for seed in &seeds {
            let result = seed.try_bind(lab.driver);
            let right = [Errno::ENODEV, Errno::ENXIO];
            errno::expect(&format!("binding the empty {seed}"), result, &right)?;
        }
    }
    let after = Device::all()?;
    ensure!(
        after == before,
        "the devices were {before:?} and are {after:?}"
    );
    Ok(())
}

/// The default for whether data need a flush of the CPU cache can be overridden.
fn write_cache(lab: &mut Lab) -> Result<()> {
    let Prepared { disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let attribute = disk.path("dax/write_cache");
    disk.expect("dax/write_cache", "1")?;
    for value in ["0", "1"] {
        sysfs::write(&attribute, value)?;
        disk.expect("dax/write_cache", value)?;
    }
    let result = sysfs::try_write(&attribute, "perhaps");
    errno::expect("writing nonsense", result, &[Errno::EINVAL])?;
    disk.expect("dax/write_cache", "1")
}

/// Reads of bad sectors fail; others succeed.
fn badblocks(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    disk.expect("badblocks", "")?;
    sysfs::write(disk.path("badblocks"), "64 2\n")?;
    disk.expect("badblocks", "64 2")?;
    let file = disk.open(Access::Direct)?;
    let mut sector = Buffer::new(SECTOR);
    for (number, bad) in [(63, false), (64, true), (65, true), (66, false)] {
        let result = file.read_at(&mut sector, number * SECTOR as u64);
        match bad {
            true => drop(errno::expect(
                "reading a bad sector",
                result,
                &[Errno::ENODATA],
            )?),
            false => ensure!(result? == SECTOR, "a good sector is read short"),
        }
    }
    drop(file);
    // badblocks has what the hardware reports, so manual entries are gone after a rebind.
    bound.unbind()?;
    bound.bind(lab.driver)?;
    disk.expect("badblocks", "")
}
