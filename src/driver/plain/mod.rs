// SPDX-License-Identifier: GPL-2.0

//! The parts of the driver that use nothing but `core`.
//!
//! The module compiles this tree, and so does the cargo package `plain`, whose root this file is.
//! proptest and loom test it there. Paths are relative, so that both see the same files.

pub mod geometry;
pub mod infoblock;
pub mod teardown;
