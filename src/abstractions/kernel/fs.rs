// SPDX-License-Identifier: GPL-2.0

//! File systems, as far as a driver of DAX memory needs them.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/fs/super_types.h`](srctree/include/linux/fs/super_types.h)

pub mod dax;
mod dax_types;
mod disk_users;
pub mod freeze;
mod frozen_super;
mod inode;
mod inode_pool;
mod super_block;
