// SPDX-License-Identifier: GPL-2.0

//! File systems, as far as a driver of DAX memory needs them.

pub mod dax;
mod inode;
mod inode_pool;
mod super_block;
