// SPDX-License-Identifier: GPL-2.0

//! Additions to modules that the kernel crate has.
//!
//! Each file lies at the path of the file in `rust/kernel/` that it adds to.

pub mod debugfs;
pub(in crate::abstractions) mod device;
pub mod io;
pub mod iov;
pub mod list;
pub mod module;
pub(in crate::abstractions) mod module_list;
pub mod module_param;
pub mod platform;
pub mod sync;
pub mod time;
pub mod workqueue;
