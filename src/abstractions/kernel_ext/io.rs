// SPDX-License-Identifier: GPL-2.0

//! Additions to `kernel::io`.

pub mod resource;
