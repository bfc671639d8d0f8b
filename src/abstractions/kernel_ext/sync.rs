// SPDX-License-Identifier: GPL-2.0

//! Additions to `kernel::sync`.

pub mod atomic;
pub mod completion;
