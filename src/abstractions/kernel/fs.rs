// SPDX-License-Identifier: GPL-2.0

//! File systems, as far as a driver of DAX memory has to do with them.

pub mod dax;
mod super_block;
