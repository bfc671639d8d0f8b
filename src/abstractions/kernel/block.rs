// SPDX-License-Identifier: GPL-2.0

//! The block layer, for drivers that are given bios.
//!
//! The kernel crate's `block` has `mq`, for drivers that are given requests.

pub mod bio;
pub mod gendisk;
