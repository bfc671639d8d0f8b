// SPDX-License-Identifier: GPL-2.0

//! The files of the driver that use nothing but `core`, compiled for the host.
//!
//! They are the same files that are compiled into the module; the tests are in `tests/`.

#[path = "../../../src/driver/geometry.rs"]
pub mod geometry;
#[path = "../../../src/driver/infoblock.rs"]
pub mod infoblock;
#[path = "../../../src/driver/teardown.rs"]
pub mod teardown;
