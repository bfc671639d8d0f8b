// SPDX-License-Identifier: GPL-2.0

//! Additions to `sync`.

pub mod atomic;
pub mod completion;
