// SPDX-License-Identifier: GPL-2.0

//! Bio-based block devices.
//!
//! The kernel crate has `block::mq`, for request-based block devices.

pub mod bio;
mod bvec;
pub mod gendisk;
mod status;
