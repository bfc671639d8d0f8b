// SPDX-License-Identifier: GPL-2.0

//! Devices that a driver must refuse with an error and a message, and must bind once the cause is
//! removed.

mod arenas;
mod block_test;
mod claims;
mod info_blocks;
mod kept_off;
pub mod labels;
mod lost_blocks;
mod recovery;

use std::os::unix::fs::FileExt;

use anyhow::Result;

use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};
pub use block_test::BlockTest;
use claims::{busy_range, claimed_namespace, pfn_without_uuid, unsatisfiable_alignment};
use info_blocks::{
    bad_log, bad_pfn_block, bad_sector_block, odd_padding, older_versions, other_pages, padding,
    part_of_a_section, too_few_spare_blocks,
};
pub use kept_off::expect_no_driver;
pub use labels::ask_for_odd_sectors;
use labels::{odd_sector_size, other_mode, outlived_its_label, over_another};
use lost_blocks::{interrupted_creation, lost_block, recreate_lost, unknown_class};
use recovery::{refused_is_not_lost, refused_pfn_can_be_saved};

pub const SUITE: Suite = Suite {
    name: "probe",
    tests: &[
        Test::new("busy_start_of_range", |lab| busy_range(lab, 0)),
        Test::new("busy_middle_of_range", |lab| busy_range(lab, 64 << 20)),
        Test::new("claimed_namespace", claimed_namespace),
        Test::new("unsatisfiable_alignment", unsatisfiable_alignment),
        Test::new("pfn_without_uuid", pfn_without_uuid),
        Test::new("info_block_of_sector_mode", bad_sector_block),
        Test::new("log_of_sector_mode", bad_log).within(120),
        Test::new("too_few_spare_blocks", too_few_spare_blocks),
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
        Test::new("padding_of_two_mib", odd_padding),
        Test::new("info_blocks_of_older_versions", older_versions),
        Test::new("info_blocks_for_other_pages_fsdax_mem", |lab| {
            other_pages(lab, Mode::FsdaxMem)
        }),
        Test::new("info_blocks_for_other_pages_fsdax_dev", |lab| {
            other_pages(lab, Mode::FsdaxDev)
        }),
        Test::new("memory_map_of_a_part_of_a_section", part_of_a_section).within(120),
        Test::new("label_with_odd_sector_size", odd_sector_size).within(120),
        Test::new("label_puts_a_namespace_over_another", over_another).within(180),
        Test::new("lost_info_block_of_fsdax", |lab| {
            lost_block(lab, Mode::FsdaxMem)
        }),
        Test::new("lost_info_block_of_sector_mode", |lab| {
            lost_block(lab, Mode::Sector)
        }),
        Test::new("lost_info_block_of_devdax", |lab| {
            lost_block(lab, Mode::Devdax)
        }),
        Test::new("lost_info_block_is_made_anew_fsdax_mem", |lab| {
            recreate_lost(lab, Mode::FsdaxMem, "mem")
        }),
        Test::new("lost_info_block_is_made_anew_fsdax_dev", |lab| {
            recreate_lost(lab, Mode::FsdaxDev, "dev")
        }),
        Test::new("creation_that_was_interrupted", interrupted_creation).within(120),
        Test::new("label_with_unknown_claim_class", unknown_class),
        Test::new("label_and_info_block_differ", other_mode),
        Test::new("other_driver_is_kept_off_a_namespace", kept_off::namespace).within(180),
        Test::new(
            "other_driver_is_kept_off_from_the_beginning",
            kept_off::from_the_beginning,
        ),
        Test::new(
            "other_driver_is_kept_off_a_lost_info_block",
            kept_off::lost_block,
        ),
        Test::new("other_driver_is_kept_off_a_pfn_device", kept_off::pfn).within(180),
        Test::new("other_driver_is_kept_off_a_btt_device", kept_off::btt).within(180),
        Test::new(
            "other_driver_gets_refused_without_the_module",
            kept_off::without_the_module,
        ),
        Test::new("module_goes_while_another_driver_probes", kept_off::races).within(120),
    ],
};

/// Needs an NVDIMM of more than 512 GiB.
pub const ARENAS: Suite = Suite {
    name: "arenas",
    tests: &[Test::new("second_arena", arenas::second_arena).within(300)],
};

/// Writes a MiB that later steps check.
fn leave_mark(disk: &Disk) -> Result<()> {
    Ok(disk
        .open(Access::Direct)?
        .write_all_at(&Buffer::of_pages(1 << 20, 77), 4096)?)
}

fn find_mark(disk: &Disk) -> Result<()> {
    find_mark_at(disk, 0)
}

/// Finds the mark of a disk that begins at this offset of another one.
fn find_mark_at(disk: &Disk, offset: u64) -> Result<()> {
    let right = Buffer::of_pages(1 << 20, 77);
    let mut found = Buffer::of_pages(1 << 20, 0);
    disk.open(Access::Direct)?
        .read_exact_at(&mut found, offset + 4096)?;
    expect_same("what was written at first", &found, &right)
}
