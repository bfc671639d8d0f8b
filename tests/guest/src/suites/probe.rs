// SPDX-License-Identifier: GPL-2.0

//! Devices that a driver must refuse with an error and a message, and must bind once the cause is
//! removed.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::infoblock::{Field, InfoBlock, set_sector_size};
use crate::lab::{Lab, Prepared, holder};
use crate::leaks::{Holdings, reservation};
use crate::mapping::{Mapping, Sharing};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall;

pub const SUITE: Suite = Suite {
    name: "probe",
    tests: &[
        Test::new("busy_start_of_range", |lab| busy_range(lab, 0)),
        Test::new("busy_middle_of_range", |lab| busy_range(lab, 64 << 20)),
        Test::new("claimed_namespace", claimed_namespace),
        Test::new("unsatisfiable_alignment", unsatisfiable_alignment),
        Test::new("pfn_without_uuid", pfn_without_uuid),
        Test::new("info_block_of_sector_mode", bad_sector_block),
        Test::new("info_block_of_fsdax_mem", |lab| {
            bad_pfn_block(lab, Mode::FsdaxMem)
        })
        .within(120),
        Test::new("info_block_of_fsdax_dev", |lab| {
            bad_pfn_block(lab, Mode::FsdaxDev)
        })
        .within(120),
        Test::new(
            "refused_namespace_can_be_saved_or_made_anew",
            refused_is_not_lost,
        ),
        Test::new("pfn_device_with_bad_info_block", refused_pfn_can_be_saved),
        Test::new("info_block_that_outlived_its_label", outlived_its_label).within(120),
        Test::new("padding_fsdax_mem", |lab| padding(lab, Mode::FsdaxMem)),
        Test::new("padding_fsdax_dev", |lab| padding(lab, Mode::FsdaxDev)),
        Test::new("info_blocks_of_older_versions", older_versions),
        Test::new("label_with_odd_sector_size", odd_sector_size).within(120),
    ],
};

/// Writes a MiB that later steps check.
fn leave_mark(disk: &Disk) -> Result<()> {
    Ok(disk
        .open(Access::Direct)?
        .write_all_at(&Buffer::of_pages(1 << 20, 77), 4096)?)
}

fn find_mark(disk: &Disk) -> Result<()> {
    let right = Buffer::of_pages(1 << 20, 77);
    let mut found = Buffer::of_pages(1 << 20, 0);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 4096)?;
    expect_same("what was written at first", &found, &right)
}

/// Another driver has reserved a part of the range. It is ramoops, the kernel's driver for logs in
/// memory, which takes any physical address.
fn busy_range(lab: &mut Lab, offset: u64) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.prepare(Mode::FsdaxMem)?;
    let start = namespace.resource()? + offset;
    bound.unbind()?;
    let idle = Holdings::now()?;
    let address = format!("mem_address={start:#x}");
    run(
        "modprobe",
        &[
            "ramoops",
            &address,
            "mem_size=0x200000",
            "record_size=0x20000",
            "ecc=0",
        ],
    )?;
    let holder = reservation(start)?;
    ensure!(holder.is_some(), "ramoops has not reserved {start:#x}");

    for _ in 0..3 {
        let mut messages = Messages::from_now()?;
        let result = bound.try_bind(lab.driver);
        errno::expect("binding while a part is busy", result, &[Errno::EBUSY])?;
        let said = messages.expect(&["could not reserve", "is in use"])?;
        println!("the kernel says: {said}");
        bound.expect_driver(None)?;
        ensure!(!disk.exists(), "{disk} is there");
    }
    run("rmmod", &["ramoops"])?;
    idle.expect_unchanged()?;
    bound.bind(lab.driver)?;
    leave_mark(&disk)?;
    find_mark(&disk)
}

/// A namespace that a pfn device has claimed cannot be bound directly.
fn claimed_namespace(lab: &mut Lab) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.prepare(Mode::FsdaxMem)?;
    leave_mark(&disk)?;
    for _ in 0..3 {
        let result = namespace.try_bind(lab.driver);
        errno::expect("binding a claimed namespace", result, &[Errno::ENXIO])?;
    }
    find_mark(&disk)?;
    bound.unbind()?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding a claimed namespace", result, &[Errno::ENXIO])?;
    bound.bind(lab.driver)?;
    find_mark(&disk)?;

    // Conversely: while a raw namespace is bound, a pfn device that claims it cannot be bound.
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    let pfn = claim(&namespace, &[("mode", "ram"), ("uuid", UUID)])?;
    let result = pfn.try_bind(lab.driver);
    errno::expect(
        "binding a claim on a namespace in use",
        result,
        &[Errno::EBUSY],
    )?;
    namespace.expect_driver(Some(lab.driver))?;
    pfn.give_up_namespace()
}

/// The pfn device that the region keeps for the next fsdax namespace.
fn seed() -> Result<Device> {
    Ok(Device::named(Device::named("region0").get("pfn_seed")?))
}

/// Makes the seed claim the idle namespace, by the same steps as ndctl.
fn claim(namespace: &Device, settings: &[(&str, &str)]) -> Result<Device> {
    let seed = seed()?;
    for (attribute, value) in settings {
        seed.set(attribute, value)?;
    }
    seed.set("namespace", namespace.name())?;
    Ok(seed)
}

const UUID: &str = "5a3b1c9e-0d7f-4a63-9a57-0c2f6c1d8e42";

fn unsatisfiable_alignment(lab: &mut Lab) -> Result<()> {
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    namespace.unbind()?;
    let before = Holdings::now()?;
    let settings = [("mode", "ram"), ("align", "1073741824"), ("uuid", UUID)];
    let pfn = claim(&namespace, &settings)?;
    let mut messages = Messages::from_now()?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("aligning 512 MiB to 1 GiB", result, &[Errno::ENXIO])?;
    messages.expect(&["unable to satisfy requested alignment"])?;
    pfn.expect_driver(None)?;
    before.expect_unchanged()?;

    pfn.set("align", "2097152")?;
    pfn.bind(lab.driver)?;
    let disk = Disk::named(pfn.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)
}

fn pfn_without_uuid(lab: &mut Lab) -> Result<()> {
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    namespace.unbind()?;
    let pfn = claim(&namespace, &[("mode", "ram")])?;
    let result = pfn.try_bind(lab.driver);
    errno::expect(
        "binding a pfn device without uuid",
        result,
        &[Errno::ENODEV],
    )?;
    pfn.set("uuid", UUID)?;
    pfn.bind(lab.driver)
}

/// A namespace whose info block can be replaced.
pub struct BlockTest {
    pub namespace: Device,
    mode: Mode,
    pub good: InfoBlock,
}

impl BlockTest {
    /// Makes the namespace and leaves it unclaimed.
    pub fn new(lab: &Lab, mode: Mode) -> Result<BlockTest> {
        let Prepared {
            namespace,
            bound,
            disk,
        } = lab.prepare(mode)?;
        leave_mark(&disk)?;
        bound.unbind()?;
        bound.give_up_namespace()?;
        let good = Self::with_whole_range(lab, &namespace, |disk| {
            InfoBlock::read(&disk.open(Access::Buffered)?, mode)
        })?;
        ensure!(
            good.with(Field::Mode, good.get(Field::Mode)) == good,
            "our checksum is wrong"
        );
        Ok(BlockTest {
            namespace,
            mode,
            good,
        })
    }

    /// Runs `work` with a disk of the whole range of an idle namespace, including the info block.
    pub fn with_whole_range<T>(
        lab: &Lab,
        namespace: &Device,
        work: impl FnOnce(&Disk) -> Result<T>,
    ) -> Result<T> {
        namespace.set("force_raw", "1")?;
        namespace.bind(lab.driver)?;
        let result = work(&Disk::named(namespace.disk_name()?));
        namespace.unbind()?;
        namespace.set("force_raw", "0")?;
        result
    }

    /// Writes another info block and probes the namespace again.
    pub fn probe_with(&self, lab: &Lab, block: &InfoBlock) -> Result<io::Result<()>> {
        Self::with_whole_range(lab, &self.namespace, |disk| {
            block.write(&disk.open(Access::Buffered)?)
        })?;
        let result = self.namespace.try_bind(lab.driver);
        settle()?;
        Ok(result)
    }

    /// Writes a valid block, and returns the device that is bound.
    pub fn bind_with(&self, lab: &Lab, block: &InfoBlock) -> Result<Device> {
        let result = self.probe_with(lab, block)?;
        // The namespace itself is refused in favour of the device that was made for it.
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        let bound = holder(&self.namespace)?;
        let kind = if self.mode == Mode::Sector {
            "btt"
        } else {
            "pfn"
        };
        ensure!(
            bound.name().starts_with(kind),
            "{} is held by {bound}",
            self.namespace
        );
        bound.expect_driver(Some(lab.driver))?;
        Ok(bound)
    }

    /// Writes the original block: the namespace is intact, with its contents.
    fn recover(&self, lab: &Lab) -> Result<()> {
        let bound = self.bind_with(lab, &self.good)?;
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()
    }

    /// Checks that a block is refused with one line in the log, which has the reason and the
    /// remedy.
    fn expect_refused(&self, lab: &Lab, what: &str, block: &InfoBlock, why: &str) -> Result<()> {
        println!("{:?}: info block with {what}", self.mode);
        let mut messages = Messages::from_now()?;
        let result = self.probe_with(lab, block)?;
        errno::expect(what, result, &[Errno::EOPNOTSUPP])?;
        let line = messages.expect(&["the info block for mode"])?;
        for piece in [why, "force_raw", "ndctl create-namespace -f -e"] {
            ensure!(
                line.contains(piece),
                "the log says `{line}`, and not {piece}"
            );
        }
        self.namespace.expect_driver(None)?;
        ensure!(Disk::all("pmem")?.is_empty(), "there is a disk");
        self.recover(lab)
    }
}

const NOT_KNOWN: &str = "its version is not known";
const CHECKSUM: &str = "its checksum is wrong";
const FOREIGN: &str = "it belongs to another namespace";
const NO_ARENA: &str = "the parts of its arena cannot be where it says";
const NO_PLACE: &str = "the data cannot be where it says";

fn bad_sector_block(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::Sector)?;
    let good = &target.good;
    for (what, block, why) in [
        ("a wrong checksum", good.with_wrong_checksum(), CHECKSUM),
        (
            "another namespace",
            good.with(Field::ParentUuid, 12345),
            FOREIGN,
        ),
        (
            "a later version",
            good.with(Field::MajorVersion, 3),
            NOT_KNOWN,
        ),
        // libnvdimm would accept these, and compute addresses from them.
        (
            "a log behind the end",
            good.with(Field::ArenaLog, u64::MAX - 0xfff),
            NO_ARENA,
        ),
        (
            "a map behind the end",
            good.with(Field::ArenaMap, 1 << 40),
            NO_ARENA,
        ),
        (
            "more spare blocks than memory",
            good.with(Field::SpareBlocks, u32::MAX.into()),
            NO_ARENA,
        ),
        (
            "a next arena that is itself",
            good.with(Field::NextArena, u64::MAX - 0xfff),
            NO_ARENA,
        ),
        (
            "sectors of 100 bytes",
            good.with(Field::SectorSize, 100),
            "of a size that does not exist",
        ),
    ] {
        target.expect_refused(lab, what, &block, why)?;
    }

    // The btt driver would write large sectors into blocks for small ones, and lose data.
    let btt = target.bind_with(lab, good)?;
    btt.unbind()?;
    btt.set("sector_size", "512")?;
    let mut messages = Messages::from_now()?;
    let result = btt.try_bind(lab.driver);
    errno::expect("binding with other sectors", result, &[Errno::EOPNOTSUPP])?;
    messages.expect(&["the info block for mode", "not of the sector_size"])?;
    btt.set("sector_size", "4096")?;
    btt.give_up_namespace()?;
    target.recover(lab)
}

/// An info block of another namespace or with impossible values is refused, and nothing stays
/// mapped.
fn bad_pfn_block(lab: &mut Lab, mode: Mode) -> Result<()> {
    let target = BlockTest::new(lab, mode)?;
    let good = &target.good;
    let small_pages = good.with(Field::Align, 4096);
    let mut cases = vec![
        (
            "data behind the end",
            good.with(Field::DataOffset, 1 << 40),
            NO_PLACE,
        ),
        // libnvdimm computes the remaining size, and misses the underflow.
        (
            "more padding than there is",
            good.with(Field::StartPad, 1 << 30),
            NO_PLACE,
        ),
        // The driver accepts these; libnvdimm refuses them.
        (
            "a misaligned start",
            small_pages.with(Field::StartPad, 4096),
            "libnvdimm does not accept it",
        ),
        (
            "a misaligned end",
            good.with(Field::EndTruncated, 4096),
            "libnvdimm does not accept it",
        ),
    ];
    match mode {
        Mode::FsdaxDev => {
            let large = "its struct pages are for larger pages";
            let small = "too little room for the struct pages";
            cases.extend([
                ("larger pages", good.with(Field::PageSize, 65536), large),
                (
                    "small struct pages",
                    good.with(Field::PageStructSize, 32),
                    small,
                ),
                // libnvdimm would compute an alignment of zero.
                (
                    "no data offset, and no alignment",
                    good.with(Field::MinorVersion, 1).with(Field::DataOffset, 0),
                    NO_PLACE,
                ),
            ]);
        }
        _ => cases.extend([
            ("a wrong checksum", good.with_wrong_checksum(), CHECKSUM),
            (
                "another namespace",
                good.with(Field::ParentUuid, 12345),
                FOREIGN,
            ),
            (
                "a later version",
                good.with(Field::MajorVersion, 2),
                NOT_KNOWN,
            ),
            (
                "an unknown mode",
                good.with(Field::Mode, 7),
                "where the struct pages are",
            ),
            (
                "data within a page",
                good.with(Field::DataOffset, 0x20_1200),
                NO_PLACE,
            ),
            // The kernel would warn, and leave the range partly mapped.
            (
                "struct pages where there is no room",
                good.with(Field::Mode, 2),
                "too little room for the struct pages",
            ),
            (
                "an alignment that is none",
                good.with(Field::Align, 3),
                "the data are not aligned as it says",
            ),
        ]),
    }
    let before = Holdings::now()?;
    for (what, block, why) in cases {
        target.expect_refused(lab, what, &block, why)?;
    }
    before.expect_unchanged()
}

/// The remedies in the log work.
fn refused_is_not_lost(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::FsdaxMem)?;
    let block = target.good.with_wrong_checksum();
    let refused = target.probe_with(lab, &block)?;
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;
    let data = target.good.get(Field::DataOffset);
    let right = Buffer::of_pages(1 << 20, 77);
    let found = BlockTest::with_whole_range(lab, &target.namespace, |disk| {
        let mut found = Buffer::of_pages(right.len(), 0);
        disk.open(Access::Direct)?
            .read_exact_at(&mut found, data + 4096)?;
        Ok(found)
    })?;
    expect_same("what the namespace holds", &found, &right)?;

    let refused = target.probe_with(lab, &block)?;
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;
    let name = target.namespace.name();
    run(
        "ndctl",
        &["create-namespace", "-f", "-e", name, "-m", "fsdax"],
    )?;
    let bound = holder(&target.namespace)?;
    bound.expect_driver(Some(lab.driver))?;
    ensure!(bound.name().starts_with("pfn"), "{bound} is not fsdax");
    Ok(())
}

/// A pfn device that is refused still has the namespace, and the log says how to release it.
fn refused_pfn_can_be_saved(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::FsdaxMem)?;
    let namespace = &target.namespace;
    let block = target.good.with(Field::MajorVersion, 2);
    let refused = target.probe_with(lab, &block)?;
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;

    let pfn = claim(namespace, &[("mode", "ram"), ("uuid", UUID)])?;
    let mut messages = Messages::from_now()?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("binding its pfn device", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["the info block for mode"])?;
    ensure!(
        line.contains("write an empty line to the attribute `namespace` of this device"),
        "the log says only `{line}`"
    );
    namespace.set("force_raw", "1")?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding a claimed namespace", result, &[Errno::ENXIO])?;
    pfn.give_up_namespace()?;
    namespace.bind(lab.driver)?;
    namespace.unbind()?;
    namespace.set("force_raw", "0")?;
    target.recover(lab)
}

/// Labels can be wiped while the info blocks of their namespaces stay. A namespace whose new label
/// says that it is raw is raw.
fn outlived_its_label(lab: &mut Lab) -> Result<()> {
    lab.prepare(Mode::FsdaxMem)?;
    run("ndctl", &["disable-region", "all"])?;
    run("ndctl", &["disable-dimm", "nmem0"])?;
    run("ndctl", &["init-labels", "-f", "-V", "1.2", "nmem0"])?;
    run("ndctl", &["enable-dimm", "nmem0"])?;
    run("ndctl", &["enable-region", "all"])?;
    settle()?;
    let mut messages = Messages::from_now()?;
    ndctl::create(&lab.region(0)?, Mode::Raw, &[])?;
    messages.expect(&["there is an info block of another namespace"])?;
    let namespace = lab.namespace(0)?;
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)
}

/// Padding at the start and at the end is not part of the disk; data and mappings are at the right
/// addresses. ndctl no longer makes such namespaces.
fn padding(lab: &mut Lab, mode: Mode) -> Result<()> {
    const START: u64 = 4 << 20;
    const END: u64 = 6 << 20;
    const LEN: usize = 2 << 20;
    let target = BlockTest::new(lab, mode)?;
    let block = target
        .good
        .with(Field::StartPad, START)
        .with(Field::EndTruncated, END);
    let data = START + target.good.get(Field::DataOffset);
    let size: u64 = target.namespace.get("size")?.parse()?;
    let before = Holdings::now()?;

    let bound = target.bind_with(lab, &block)?;
    let disk = Disk::named(bound.disk_name()?);
    let bytes = disk.bytes()?;
    ensure!(
        bytes == size - data - END,
        "{disk} has {bytes} bytes of {size}"
    );
    ensure!(
        bound.get("size")? == bytes.to_string(),
        "{bound} has another size"
    );
    let start = target.namespace.resource()?;
    ensure!(
        bound.resource()? == start + data,
        "{bound} is at {:#x}",
        bound.resource()?
    );
    let node = disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, vec![0; LEN])?;
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    mapping.write(0, &stamped(LEN, 1));
    let place = syscall::block_of_file(&file, 0)? * 4096;
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)?;
    let last = bytes - LEN as u64;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 2), last)?;
    // The other driver reads the same by requests; its mappings of such namespaces are wrong.
    let other = lab.driver.other();
    if other.is_available() {
        other.load()?;
        bound.unbind()?;
        bound.bind(other)?;
        let mut found = Buffer::new(LEN);
        let file = disk.open(Access::Direct)?;
        for (at, tag) in [(place, 1), (last, 2)] {
            file.read_exact_at(&mut found, at)?;
            expect_same("through the other driver", &found, &stamped(LEN, tag))?;
        }
        drop(file);
        bound.unbind()?;
        other.unload()?;
        bound.bind(lab.driver)?;
    }
    bound.unbind()?;
    bound.give_up_namespace()?;
    BlockTest::with_whole_range(lab, &target.namespace, |disk| {
        let mut found = Buffer::new(LEN);
        let file = disk.open(Access::Direct)?;
        for (at, tag) in [(place, 1), (last, 2)] {
            file.read_exact_at(&mut found, data + at)?;
            expect_same("in the namespace", &found, &stamped(LEN, tag))?;
        }
        Ok(())
    })?;
    before.expect_unchanged()
}

/// Versions before 1.4 lack some fields, whose bytes are ignored.
fn older_versions(lab: &mut Lab) -> Result<()> {
    let sizes = [(Field::PageSize, 0), (Field::PageStructSize, 0)];
    let pads = [(Field::StartPad, 123), (Field::EndTruncated, 456)];
    for (mode, minor, wrong) in [(Mode::FsdaxDev, 3, sizes), (Mode::FsdaxMem, 0, pads)] {
        println!("version 1.{minor}");
        let target = BlockTest::new(lab, mode)?;
        let mut block = target.good.with(Field::MinorVersion, minor);
        for (field, value) in wrong {
            block = block.with(field, value);
        }
        let bound = target.bind_with(lab, &block)?;
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()?;
    }
    Ok(())
}

/// Sets the sector size in the label of a raw namespace to 520 bytes, and returns its uuid. The
/// namespace exists again when this returns.
pub fn ask_for_odd_sectors(lab: &Lab) -> Result<String> {
    const AREA: &str = "/tmp/labels";
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    let uuid = namespace.get("uuid")?;
    run("ndctl", &["read-labels", "-o", AREA, "nmem0"])?;
    let mut area = fs::read(AREA)?;
    set_sector_size(&mut area, &uuid, 520)?;
    fs::write(AREA, &area)?;
    run("ndctl", &["disable-region", "all"])?;
    run("ndctl", &["disable-dimm", "nmem0"])?;
    run("ndctl", &["write-labels", "-i", AREA, "nmem0"])?;
    run("ndctl", &["enable-dimm", "nmem0"])?;
    run("ndctl", &["enable-region", "all"])?;
    settle()?;
    Ok(uuid)
}

/// A label can have an unsupported sector size.
fn odd_sector_size(lab: &mut Lab) -> Result<()> {
    let mut messages = Messages::from_now()?;
    let uuid = ask_for_odd_sectors(lab)?;
    let line = messages.expect(&["the label asks for sectors of 520 bytes"])?;
    ensure!(
        line.contains("--sector-size=512"),
        "the log says only `{line}`"
    );
    let namespace = lab.namespace(0)?;
    ensure!(namespace.get("uuid")? == uuid, "{namespace} is another one");
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    disk.expect("queue/logical_block_size", "512")?;
    leave_mark(&disk)?;
    find_mark(&disk)?;

    // The remedy in the message works.
    run(
        "ndctl",
        &[
            "create-namespace",
            "-f",
            "-e",
            namespace.name(),
            "--sector-size=512",
        ],
    )?;
    let bound = lab.holder_in(0)?;
    bound.unbind()?;
    let mut messages = Messages::from_now()?;
    bound.bind(lab.driver)?;
    let warned = messages
        .so_far()?
        .iter()
        .any(|message| message.contains("asks for sectors"));
    ensure!(!warned, "the label still asks for them");
    Ok(())
}
