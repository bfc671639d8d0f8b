// SPDX-License-Identifier: GPL-2.0

//! Bio-based disks (`submit_bio`), which have no request queue of blk-mq.
//!
//! A registered disk is removed when its parent device is unbound. The data of the driver is
//! dropped only after the disk was deleted and no call of the driver is in progress.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`Documentation/block/biovecs.rst`](srctree/Documentation/block/biovecs.rst)

mod attribute;
mod block_device;
mod frozen_device;
mod gen_disk;
mod holder;
mod keepers;
mod limits;
mod operations;
mod removed;
mod state;
mod superblocks;

pub(in crate::abstractions) use block_device::{
    BlockDevice,
    FsClaim, //
};
pub(in crate::abstractions) use frozen_device::FrozenDevice;
pub use gen_disk::{
    DiskName,
    GenDisk,
    Registration,
    RemovedDisk, //
};
pub use limits::{
    Features,
    Limits,
    PAGE_BLOCK, //
};
pub use operations::{
    BoolAttribute,
    Operations, //
};
pub use removed::RemovedDisks;
pub(in crate::abstractions) use state::{
    DevicePosition,
    DiskState, //
};
