// SPDX-License-Identifier: GPL-2.0

//! What the two drivers cost, measured side by side.

pub mod counting;
mod pair;
