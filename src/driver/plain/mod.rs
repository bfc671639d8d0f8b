// SPDX-License-Identifier: GPL-2.0

//! The parts of the driver that use only `core`.
//!
//! This file is also the root of the cargo package `host` (`tests/host`), in which proptest and
//! loom test them. Paths in this tree are relative, so that both crates compile the same files.

pub mod excepted;
pub mod geometry;
pub mod shared_flush;
pub mod signature;
pub mod suspension;
pub mod teardown;
pub mod waiting;
