// SPDX-License-Identifier: GPL-2.0

//! Images with a DAX file system, as Kata Containers and pmem-csi make them: an info block of
//! version 0.2 in front of a partitioned disk, offered as a read-only device without labels.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::probe::BlockTest;
use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::infoblock::{DEVDAX, FSDAX, Field, InfoBlock};
use crate::lab::{Lab, holder};
use crate::nd::{Device, settle};
use crate::ndctl;
use crate::pci::VirtioPmem;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall::{is_dax, is_read_only};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "container_images",
    tests: &[
        Test::new("nvdimm_without_labels_is_read_only", is_unarmed),
        Test::new("fsdax_image_on_an_nvdimm", |lab| {
            fsdax(lab, Provider::Nvdimm)
        }),
        Test::new("fsdax_image_on_virtio_pmem", |lab| {
            fsdax(lab, Provider::Virtio)
        }),
        Test::new("devdax_image_on_an_nvdimm", |lab| {
            devdax(lab, Provider::Nvdimm)
        }),
        Test::new("devdax_image_on_virtio_pmem", |lab| {
            devdax(lab, Provider::Virtio)
        }),
        Test::new("later_version_is_refused", later_version),
        Test::new("claim_class_without_a_label", claim_class_without_label),
    ],
};

const MIB: u64 = 1 << 20;
/// The size of the image without the 2 MiB before its data.
const DATA: u64 = 266_338_304;
const DATA_AT: u64 = 2 * MIB;
/// The partition with the file system.
const PARTITION_AT: u64 = 4096 * 512;
const TABLE: &str = "label: dos\nstart=4096, type=83\n";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Provider {
    Nvdimm,
    Virtio,
}

/// A region whose namespace is idle.
struct Target {
    region: Device,
    namespace: Device,
}

impl Target {
    fn of(lab: &Lab, provider: Provider) -> Result<Target> {
        let virtio = VirtioPmem::first()?.region;
        let index = u32::from((lab.region(0)? == virtio) == (provider == Provider::Nvdimm));
        let target = Target {
            region: lab.region(index)?,
            namespace: lab.namespace(index)?,
        };
        target.release()?;
        Ok(target)
    }

    /// Unbinds the namespace, and whatever has claimed it.
    fn release(&self) -> Result<()> {
        let bound = holder(&self.namespace)?;
        if bound.driver().is_some() {
            bound.unbind()?;
        }
        if bound != self.namespace {
            bound.give_up_namespace()?;
        }
        Ok(())
    }

    /// Writes an info block while the region is writable, and makes it read-only again.
    fn write(&self, lab: &Lab, block: &InfoBlock) -> Result<()> {
        self.region.set("read_only", "0")?;
        BlockTest::with_whole_range(lab, &self.namespace, |disk| {
            block.write(&disk.open(Access::Buffered)?)
        })?;
        self.region.set("read_only", "1")
    }

    /// Binds the namespace, and returns the device that claims it.
    fn bind(&self, lab: &Lab) -> Result<Device> {
        let result = self.namespace.try_bind(lab.driver);
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        settle()?;
        let bound = holder(&self.namespace)?;
        ensure!(bound != self.namespace, "{} is not claimed", self.namespace);
        Ok(bound)
    }

    /// Makes the namespace raw and writable again.
    fn clear(self, lab: &Lab) -> Result<()> {
        self.release()?;
        self.region.set("read_only", "0")?;
        BlockTest::with_whole_range(lab, &self.namespace, |disk| {
            let zeroes = Buffer::new(8192);
            Ok(disk.open(Access::Direct)?.write_all_at(&zeroes, 0)?)
        })?;
        self.namespace.bind(lab.driver)
    }
}

/// The block has neither uuids nor `npfns`; the struct pages are in RAM.
fn image(signature: &[u8; 16], major: u64) -> InfoBlock {
    let mut block = InfoBlock::blank(signature);
    for (field, value) in [
        (Field::MajorVersion, major),
        (Field::MinorVersion, 2),
        (Field::DataOffset, DATA_AT),
        (Field::Mode, 1),
        (Field::Align, 2 * MIB),
    ] {
        block.set(field, value);
    }
    block.seal();
    block
}

/// The tests below make the region writable to prepare the image.
fn is_unarmed(lab: &mut Lab) -> Result<()> {
    let target = Target::of(lab, Provider::Nvdimm)?;
    let found = target.region.get("read_only")?;
    ensure!(found == "1", "read_only of {} is {found}", target.region);
    ensure!(
        target.namespace.get("nstype")? == "4",
        "{} has a label",
        target.namespace
    );
    target.namespace.bind(lab.driver)?;
    let disk = Disk::named(target.namespace.disk_name()?);
    ensure!(is_read_only(&disk.open_read_only()?)?, "{disk} is writable");
    Ok(())
}

/// Makes a partition with a file system and a file, as the image's builder does.
fn fill(disk: &Disk, right: &[u8]) -> Result<()> {
    disk.cut(TABLE)?;
    let node = disk.partition(1).node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    std::fs::write(mount.path("file"), right)?;
    mount.unmount()
}

fn fsdax(lab: &mut Lab, provider: Provider) -> Result<()> {
    let target = Target::of(lab, provider)?;
    let right = stamped(MIB as usize, 1);
    target.write(lab, &image(FSDAX, 0))?;
    target.region.set("read_only", "0")?;
    let pfn = target.bind(lab)?;
    pfn.expect_driver(Some(lab.driver))?;
    fill(&Disk::named(pfn.disk_name()?), &right)?;
    target.release()?;
    // The data are where the builder of an image puts them.
    BlockTest::with_whole_range(lab, &target.namespace, |disk| {
        const EXT4: u64 = 1024 + 56;
        let file = disk.open(Access::Buffered)?;
        for (at, magic) in [
            (DATA_AT + 510, [0x55, 0xaa]),
            (DATA_AT + PARTITION_AT + EXT4, [0x53, 0xef]),
        ] {
            let mut found = [0; 2];
            file.read_exact_at(&mut found, at)?;
            ensure!(found == magic, "at {at:#x} there is {found:x?}");
        }
        Ok(())
    })?;

    target.region.set("read_only", "1")?;
    for _ in 0..2 {
        let pfn = target.bind(lab)?;
        ensure!(pfn.name().starts_with("pfn"), "{pfn} is not fsdax");
        pfn.expect_driver(Some(lab.driver))?;
        let disk = Disk::named(pfn.disk_name()?);
        ensure!(disk.bytes()? == DATA, "{} bytes", disk.bytes()?);
        ensure!(
            pfn.get("size")? == DATA.to_string(),
            "{pfn} has another size"
        );
        ensure!(is_read_only(&disk.open_read_only()?)?, "{disk} is writable");
        let listed = ndctl::show(&target.namespace)?;
        ensure!(
            (listed.mode.as_str(), listed.map.as_deref()) == ("fsdax", Some("mem")),
            "ndctl lists {listed:?}"
        );
        let mount = Ext4.mount(&disk.partition(1).node_str(), "ro,dax")?;
        let path = mount.path("file");
        ensure!(is_dax(&path)?, "no DAX");
        expect_same("the file", &std::fs::read(&path)?, &right)?;
        mount.unmount()?;
        target.release()?;
    }
    target.clear(lab)
}

fn devdax(lab: &mut Lab, provider: Provider) -> Result<()> {
    let target = Target::of(lab, provider)?;
    target.write(lab, &image(DEVDAX, 0))?;
    let dax = target.bind(lab)?;
    // udev does this.
    run("modprobe", &[&dax.get("modalias")?])?;
    settle()?;
    let driver = dax.driver().context("it has no driver")?;
    ensure!(driver == "dax_pmem", "{dax} is bound to {driver}");
    let listed = ndctl::show(&target.namespace)?;
    ensure!(
        listed.mode == "devdax" && listed.size == DATA && listed.align == Some(2 * MIB),
        "ndctl lists {listed:?}"
    );
    target.clear(lab)
}

fn later_version(lab: &mut Lab) -> Result<()> {
    for signature in [FSDAX, DEVDAX] {
        let target = Target::of(lab, Provider::Nvdimm)?;
        target.write(lab, &image(signature, 2))?;
        let result = target.namespace.try_bind(lab.driver);
        errno::expect("binding version 2.2", result, &[Errno::EOPNOTSUPP])?;
        target.namespace.expect_driver(None)?;
        target.clear(lab)?;
    }
    Ok(())
}

/// A claim class without a label is not kept, and does not say that there was a block: `ndctl
/// destroy-namespace` leaves it.
fn claim_class_without_label(lab: &mut Lab) -> Result<()> {
    let target = Target::of(lab, Provider::Virtio)?;
    let class = target.namespace.path("holder_class");
    // The kernel cannot write a label, but has set the class.
    let result = sysfs::try_write(&class, "pfn");
    errno::expect("setting the class", result, &[Errno::ENXIO])?;
    ensure!(sysfs::read(&class)? == "pfn", "there is no class");
    target.namespace.bind(lab.driver)?;
    Disk::named(target.namespace.disk_name()?).bytes()?;
    target.namespace.unbind()?;
    let result = sysfs::try_write(&class, "\n");
    errno::expect("deleting the class", result, &[Errno::ENXIO])?;
    target.clear(lab)
}
