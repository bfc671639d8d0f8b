// SPDX-License-Identifier: GPL-2.0

//! The driver, on top of the abstractions. `docs/architecture.md` has a list of the words that it
//! uses, and follows a probe, a request, a fault and an unbind through these files.
//!
//! - [`platform_driver`]: the driver of platform devices with persistent memory.
//! - [`nd_driver`]: the driver of devices on the nd bus.
//! - [`binding`]: a bound device: a btt, or the following.
//!   - [`attached_disk`]: a disk, a DAX device and their memory.
//! - [`claim`]: checks the info block, and decides whether the namespace itself is bound, or a btt,
//!   pfn or dax device that libnvdimm makes for it.
//! - [`except_list`]: the namespaces that are left to other drivers.
//! - [`messages`]: why a device cannot be bound, and the remedy.
//! - [`memory`]: the memory: reservation, mapping, `struct page`s.
//! - [`pagemap_data`]: badblocks and memory failures of memory with `struct page`s.
//! - [`io_state`]: what each request reads.
//! - [`pmem`]: reads and writes, badblocks and poison; shared by
//!   - [`disk`]: the block device, and
//!   - [`dax_device`]: the DAX device.
//! - [`flush`]: flushes of the region.
//! - [`device_state`]: the state of a device until its range is free, with
//!   - [`teardown_ops`]: the functions that the teardown calls,
//!   - [`uevents`]: the uevents of the teardown,
//!   - [`suspension_ops`]: the functions that the suspension of a disk calls, and
//!   - [`suspension_state`]: the data of the suspension.
//! - [`state_file`]: the file in sysfs that shows the state and suspends the disk.
//! - [`removal_watcher`]: what a device does when its provider is removed.
//! - [`description`]: the state of a device as text.
//! - [`shared`]: the state that all devices share: work queues, and
//!   - [`registry`]: the devices, from bind until their range is free.
//! - [`debugfs_files`]: the files in debugfs.
//! - [`sleep`]: the sleep of the system, and [`going_down`]: its reboot or power-off.
//! - [`plain`]: code that does not use the kernel: the states of teardown and suspension, how long
//!   an unbind waits, shared flushes, signatures, the syntax of `except=`, arithmetic.

#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

pub mod attached_disk;
pub mod binding;
pub mod claim;
pub mod dax_device;
pub mod debugfs_files;
pub mod description;
pub mod device_state;
pub mod disk;
pub mod except_list;
pub mod flush;
pub mod going_down;
pub mod io_state;
pub mod memory;
pub mod messages;
pub mod nd_driver;
pub mod pagemap_data;
pub mod plain;
pub mod platform_driver;
pub mod pmem;
pub mod registry;
pub mod removal_watcher;
pub mod shared;
pub mod sleep;
pub mod state_file;
pub mod suspension_ops;
pub mod suspension_state;
pub mod teardown_ops;
pub mod uevents;
