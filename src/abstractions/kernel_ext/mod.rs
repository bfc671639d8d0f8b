// SPDX-License-Identifier: GPL-2.0

//! Additions to modules of the kernel crate.
//!
//! Each file lies at the path of the file in `rust/kernel/` that it adds to.

pub(in crate::abstractions) mod alloc;
pub mod debugfs;
pub(in crate::abstractions) mod device;
pub mod io;
pub mod iov;
pub mod module;
pub(in crate::abstractions) mod module_list;
pub mod module_param;
pub mod platform;
pub mod sync;
pub mod task;
pub mod time;
pub mod tracepoint;
pub mod workqueue;
