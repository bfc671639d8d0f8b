// SPDX-License-Identifier: GPL-2.0

//! Media errors: where they are recorded, which accesses fail, and how writes clear them. The
//! provider is the module `injector`, which records every request to clear an error.

mod blocks;
mod failures;
mod files;
mod memmap;
mod repairs;

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::{Suite, Test};
use crate::disk::Disk;
use crate::errno;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::injector::{Clear, Injector};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE};
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::sectors::{SECTOR, expect_same};

pub const SUITE: Suite = Suite {
    name: "media",
    tests: &[
        Test::new("known_before_probe", blocks::known_before_probe),
        Test::new("bad_where_the_info_block_is", blocks::bad_info_block),
        Test::new("padded_namespace", blocks::padded_namespace),
        Test::new("pollers_are_woken", blocks::pollers_are_woken),
        Test::new("only_bad_sectors_fail", blocks::only_bad_sectors_fail),
        Test::new("added_by_user", blocks::added_by_user),
        Test::new("nowait", blocks::nowait),
        Test::new("zeroes_repair", blocks::zeroes_repair),
        Test::new("writing_clears_just_that", blocks::writing_clears_just_that),
        Test::new("clear_is_refused", blocks::clear_is_refused),
        Test::new("clear_is_incomplete", blocks::clear_is_incomplete),
        Test::new("cleared_by_command", blocks::cleared_by_command),
        Test::new("sector_mode", blocks::sector_mode),
        Test::new("ext4_file", |lab| files::bad_page(lab, Ext4)).within(120),
        Test::new("xfs_file", |lab| files::bad_page(lab, Xfs)).within(120),
        Test::new("zeroing_in_place", files::zeroing_in_place).within(120),
        Test::new("value_of_an_xattr", files::remote_xattr).within(120),
        Test::new("ext4_page_fails", |lab| failures::page_fails(lab, Ext4)).within(120),
        Test::new("xfs_page_fails", |lab| failures::page_fails(lab, Xfs)).within(120),
        Test::new("ext4_page_of_pmd_fails", |lab| {
            failures::page_of_pmd_fails(lab, Ext4)
        })
        .within(120),
        Test::new("xfs_page_of_pmd_fails", |lab| {
            failures::page_of_pmd_fails(lab, Xfs)
        })
        .within(120),
        Test::new("ext4_next_process", |lab| failures::next_process(lab, Ext4)).within(120),
        Test::new("xfs_next_process", |lab| failures::next_process(lab, Xfs)).within(120),
        Test::new("failed_page_after_rebind", failures::rebind).within(120),
        Test::new("list_is_full", failures::list_is_full).within(120),
        Test::new("repaired_without_provider", repairs::without_provider).within(120),
        Test::new("repair_is_incomplete", repairs::incomplete).within(120),
        Test::new("repaired_before_unmapped", repairs::before_it_is_unmapped).within(120),
        Test::new("each_device_says_so", repairs::each_device_says_so).within(120),
        Test::new("traced", repairs::traced).within(120),
        Test::new("simulated_failure", failures::simulated).within(120),
        Test::new("simulated_and_real_failure", failures::simulated_and_real).within(120),
        Test::new("memory_map_is_cleared", memmap::cleared),
        Test::new(
            "memory_map_of_a_new_device_is_cleared",
            memmap::cleared_for_a_new_device,
        ),
        Test::new(
            "memory_map_of_a_device_with_another_block_is_cleared",
            memmap::cleared_for_a_device_with_another_block,
        ),
        Test::new(
            "memory_map_without_a_uuid_is_left_alone",
            memmap::without_uuid,
        ),
        Test::new("memory_map_cannot_be_cleared", memmap::not_cleared),
        Test::new(
            "bad_sectors_before_the_namespace",
            memmap::of_the_namespace_before,
        ),
        Test::new(
            "bad_info_block_with_label",
            blocks::bad_info_block_with_label,
        ),
    ],
};

/// A namespace whose media errors are injected.
struct Bench {
    injector: Injector,
    namespace: Device,
    /// The device to which the driver is bound.
    bound: Device,
    disk: Disk,
    /// The physical address of its first sector.
    start: u64,
}

impl Bench {
    fn new(lab: &Lab, mode: Mode) -> Result<Bench> {
        Bench::of(Injector::new()?, lab.prepare(mode)?)
    }

    /// A namespace of any provider, of which the injector can make pages fail.
    fn of(injector: Injector, prepared: Prepared) -> Result<Bench> {
        let Prepared {
            namespace,
            bound,
            disk,
        } = prepared;
        let start = bound.resource()?;
        Ok(Bench {
            injector,
            namespace,
            bound,
            disk,
            start,
        })
    }

    /// The physical address of a sector.
    fn address(&self, sector: u64) -> u64 {
        self.start + sector * SECTOR as u64
    }

    /// Makes sectors bad.
    fn inject(&self, sector: u64, count: u64) -> Result<()> {
        self.injector
            .inject(self.address(sector), count * SECTOR as u64)
    }

    fn expect_bad(&self, list: &str) -> Result<()> {
        self.disk.expect("badblocks", list)
    }

    /// Checks which requests to clear errors have reached the provider, as pairs of sector and
    /// count.
    fn expect_clears(&self, right: &[(u64, u64)]) -> Result<()> {
        let right: Vec<Clear> = right
            .iter()
            .map(|&(sector, count)| Clear {
                address: self.address(sector),
                len: count * SECTOR as u64,
            })
            .collect();
        let found = self.injector.clears()?;
        ensure!(
            found == right,
            "the provider was asked to clear {found:x?}, expected {right:x?}"
        );
        Ok(())
    }
}

/// Opens a file for reading and writing.
fn open(path: &std::path::Path) -> Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

/// Checks that one page of a file cannot be read, by system calls and through a mapping, and that
/// its neighbours can.
pub fn expect_bad_page(file: &File, mapping: &Mapping, bad: usize, contents: &[u8]) -> Result<()> {
    for page in [bad - 1, bad, bad + 1] {
        let mut found = vec![0; PAGE];
        let read = file.read_exact_at(&mut found, (page * PAGE) as u64);
        let mapped = mapping.load_in_child(page * PAGE)?;
        if page == bad {
            errno::expect("reading the bad page", read, &[Errno::EIO])?;
            let sigbus = matches!(mapped, WaitStatus::Signaled(_, Signal::SIGBUS, _));
            ensure!(sigbus, "touching the bad page: {mapped:?}");
        } else {
            read?;
            expect_same("its neighbour", &found, &contents[page * PAGE..][..PAGE])?;
            let fine = matches!(mapped, WaitStatus::Exited(_, 0));
            ensure!(fine, "page {page}: {mapped:?}");
        }
    }
    Ok(())
}
