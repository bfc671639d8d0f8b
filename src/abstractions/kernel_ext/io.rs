// SPDX-License-Identifier: GPL-2.0

//! Additions to `io`.

pub mod resource;
