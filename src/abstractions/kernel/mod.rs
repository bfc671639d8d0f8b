// SPDX-License-Identifier: GPL-2.0

//! Abstractions of C subsystems that the kernel crate does not have.
//!
//! Each file lies at the path that it would have in `rust/kernel/`.

pub mod badblocks;
pub mod block;
pub mod crash_dump;
pub mod dax;
pub mod fs;
pub mod kernfs;
pub(in crate::abstractions) mod kobject;
pub mod lease;
pub mod memremap;
pub mod numa;
pub mod percpu_ref;
pub mod pm;
pub mod pmem_slice;
pub mod ratelimit;
pub mod reboot;
pub mod suspend;
pub mod wait;
