// SPDX-License-Identifier: GPL-2.0

//! What the driver does, one noun a file.
//!
//! - [`platform_driver`]: how memory that no NVDIMM describes gets onto the nd bus.
//! - [`nd_driver`]: how devices on the nd bus come and go.
//! - [`binding`]: what a bound device consists of, and how it is put together.
//! - [`teardown`]: how it is taken away: the states and the steps; plain Rust, which loom runs too.
//! - [`unbind`]: the same with the kernel: limits, messages, events.
//! - [`retired`]: what all devices share: work queues, the list of what is bound or retired.
//! - [`range`](mod@range): the memory: reservation, mapping, `struct page`s.
//! - [`pmem`]: reading, writing and healing that memory; what all users of it share.
//! - [`disk`]: the block device.
//! - [`dax`]: the DAX device.
//! - [`flush`]: making durable what was written.
//! - [`parameters`]: what the administrator can choose, at any time.
//! - [`infoblock`]: what a namespace says that it is; plain Rust, tested on the host too.
//! - [`geometry`]: arithmetic of sectors, pages and ranges; plain Rust, tested on the host too.

#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

pub mod binding;
pub mod dax_device;
pub mod disk;
pub mod flush;
pub mod nd_driver;
pub mod parameters;
pub mod plain;
pub mod platform_driver;
pub mod pmem;
pub mod range;
pub mod retired;
pub mod unbind;
