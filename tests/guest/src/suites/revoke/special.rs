// SPDX-License-Identifier: GPL-2.0

//! Unbinding in special situations, for which the matrix has no axis.

use anyhow::Result;

use super::address_space::{calls, futex};
use super::asynchronous::{pages_to_be_sent, write_in_flight};
use super::blocked::{frozen, stuck_elsewhere, stuck_in_a_copy, write_stuck_in_a_copy};
use super::core_dump::{after_the_unbind, during_the_dump};
use super::direct_io::{io_all_the_time, read_into_pages};
use super::fixture::Fixture;
use super::holders::{
    closes_beside_writecache, linear, writecache, writecache_above_a_replaced_table,
};
use super::indirect::{further_device, realtime, replaced_table};
use super::limits::{
    eight_namespaces, killed_writer, many_files, readers_of_debugfs, timeout_is_writable,
};
use super::mappings::{another_stays, read_by_other_processes, reused_range_is_not_visible};
use super::modes::{pages_on_the_media, raw_disk, sector_disk};
use super::names::name_is_taken;
use super::other_device::{
    erofs, journal, pin_on_another_partition, realtime_and_data, unused_beside_umount,
    used_beside_umount,
};
use super::own_files::{by_its_own_program, deleted_file};
use super::pass_through::{export, overlay};
use super::races::{
    fsync_loop, map_sync_faults, mkfs_running, region_and_device, two_at_once, writers_go_on,
};
use super::raw_mappings::{disk_is_mapped, mounted_disk_is_mapped, partition_is_mapped};
use super::refused::{long_term_pins, swap_file, uprobe};
use super::reports::{listed, retirement_is_reported};
use super::retirement::{
    destroyed, module_goes, module_is_forced, module_stays, retired_range_is_exclusive,
    umount_waits, without_timeout,
};
use super::{FREE_LIMIT, Fs, Way};
use crate::driver::Driver;
use crate::lab::{Lab, Skip};
use crate::process::{expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired::{self};
use crate::suites::{Suite, Test};

pub const SUITE: Suite = Suite {
    name: "revoke_special",
    tests: &[
        Test::new("retirement_is_reported", retirement_is_reported),
        Test::new("debugfs_lists_usage", listed),
        Test::new("ext4_is_frozen", |lab| frozen(lab, Fs::Ext4)),
        Test::new("xfs_is_frozen", |lab| frozen(lab, Fs::XfsRmap)),
        Test::new("read_is_stuck_in_a_copy", stuck_in_a_copy),
        Test::new("read_of_another_device_is_stuck_in_a_copy", stuck_elsewhere),
        Test::new("write_to_ext4_is_stuck_in_a_copy", |lab| {
            write_stuck_in_a_copy(lab, Fs::Ext4)
        }),
        Test::new("write_to_xfs_is_stuck_in_a_copy", |lab| {
            write_stuck_in_a_copy(lab, Fs::XfsRmap)
        }),
        Test::new("ext4_has_the_program_that_unbinds", |lab| {
            by_its_own_program(lab, Fs::Ext4)
        }),
        Test::new("xfs_has_the_program_that_unbinds", |lab| {
            by_its_own_program(lab, Fs::XfsRmap)
        }),
        Test::new("ext4_has_a_deleted_file_with_a_pin", |lab| {
            deleted_file(lab, Fs::Ext4)
        }),
        Test::new("xfs_has_a_deleted_file_with_a_pin", |lab| {
            deleted_file(lab, Fs::XfsRmap)
        }),
        Test::new("two_unbind_at_once", two_at_once),
        Test::new("region_and_device_go_at_once", region_and_device),
        Test::new("fsync_loop_on_ext4", |lab| fsync_loop(lab, Fs::Ext4)),
        Test::new("fsync_loop_on_xfs", |lab| fsync_loop(lab, Fs::XfsRmap)),
        Test::new("writers_go_on", writers_go_on),
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
        Test::new("module_is_unloaded_by_force", module_is_forced).within(120),
        Test::new("retired_range_is_exclusive", retired_range_is_exclusive),
        Test::new("namespace_of_a_retired_range_is_destroyed", destroyed),
        Test::new("without_a_timeout_it_waits", without_timeout),
        Test::new("timeout_is_writable", timeout_is_writable),
        Test::new("killed_writer", killed_writer),
        Test::new("many_files", many_files),
        Test::new("debugfs_readers", readers_of_debugfs).within(120),
        Test::new("struct_pages_on_the_media", pages_on_the_media),
        Test::new("raw_disk_in_use", raw_disk),
        Test::new("raw_disk_is_mapped", disk_is_mapped),
        Test::new("partition_is_mapped", partition_is_mapped),
        Test::new("mounted_disk_is_mapped", mounted_disk_is_mapped),
        Test::new("sector_disk_in_use", sector_disk).within(120),
        Test::new("dm_linear_does_not_hold_the_range", linear),
        Test::new("cache_of_dm_writecache", writecache),
        Test::new(
            "cache_of_dm_writecache_above_a_replaced_table",
            writecache_above_a_replaced_table,
        ),
        Test::new("closes_beside_dm_writecache", closes_beside_writecache),
        Test::new("realtime_volume_of_another_xfs", realtime),
        Test::new("further_device_of_another_erofs", further_device),
        Test::new("pin_on_the_other_device_of_xfs", realtime_and_data).within(120),
        Test::new("pin_above_an_external_journal", journal).within(120),
        Test::new("pin_on_the_further_device_of_erofs", erofs),
        Test::new("unused_device_beside_a_umount", unused_beside_umount),
        Test::new("used_device_beside_a_umount", used_beside_umount).within(120),
        Test::new("pin_on_another_partition", pin_on_another_partition),
        Test::new("table_above_was_replaced", replaced_table),
        Test::new("another_disk_reads_into_pages", read_into_pages),
        Test::new("direct_io_all_the_time", io_all_the_time),
        Test::new("asynchronous_write_is_in_flight", write_in_flight).within(120),
        Test::new("pages_of_a_connection_are_to_be_sent", pages_to_be_sent),
        Test::new("core_dump_after_the_unbind", after_the_unbind),
        Test::new("core_dump_during_the_unbind", during_the_dump),
        Test::new("address_space_of_ext4_changes", |lab| calls(lab, Fs::Ext4)),
        Test::new("address_space_of_xfs_changes", |lab| {
            calls(lab, Fs::XfsRmap)
        }),
        Test::new("futex_has_a_waiter", futex),
        Test::new("long_term_pins_are_refused", long_term_pins),
        Test::new("swap_file_on_ext4_is_refused", |lab| {
            swap_file(lab, Fs::Ext4)
        }),
        Test::new("swap_file_on_xfs_is_refused", |lab| {
            swap_file(lab, Fs::XfsRmap)
        }),
        Test::new("uprobe_on_ext4_is_refused", |lab| uprobe(lab, Fs::Ext4)),
        Test::new("uprobe_on_xfs_is_refused", |lab| uprobe(lab, Fs::XfsRmap)),
        Test::new("name_of_a_disk_that_is_gone_on_ext4", |lab| {
            name_is_taken(lab, Fs::Ext4)
        }),
        Test::new("name_of_a_disk_that_is_gone_on_xfs", |lab| {
            name_is_taken(lab, Fs::XfsRmap)
        })
        .within(120),
        Test::new("overlayfs", overlay),
        Test::new("nfs_export", export).within(120),
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
