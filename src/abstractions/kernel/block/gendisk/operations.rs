// SPDX-License-Identifier: GPL-2.0

//! The operations that a driver implements for a disk.

use crate::abstractions::kernel::{
    badblocks::Badblocks,
    block::bio::Bio, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow,
    ModuleMetadata, //
};

/// A sysfs attribute that shows `0` or `1`, and accepts what `kstrtobool()` accepts.
pub struct BoolAttribute<T> {
    /// The directory in the directory of the disk.
    pub directory: &'static CStr,
    /// The name of the file. Its mode is 0644.
    pub name: &'static CStr,
    /// Returns the value.
    pub show: fn(&T) -> bool,
    /// Sets the value.
    pub store: fn(&T, bool) -> Result,
}

/// The operations of a disk (`struct block_device_operations`).
///
/// # Examples
///
/// A disk that discards what is written:
///
/// ```no_run
/// use kernel::device::{
///     Bound,
///     Device, //
/// };
/// use kernel::prelude::*;
/// use kernel::sync::{
///     Arc,
///     ArcBorrow, //
/// };
/// use pmem_rs::abstractions::kernel::block::bio::{
///     Bio,
///     Operation,
///     Status, //
/// };
/// use pmem_rs::abstractions::kernel::block::gendisk::{
///     self,
///     DiskName,
///     Features,
///     GenDisk,
///     Limits,
///     PAGE_BLOCK, //
/// };
/// use pmem_rs::abstractions::kernel::numa::Node;
///
/// struct Sink;
///
/// impl gendisk::Operations for Sink {
///     type OwnerModule = pmem_rs::Module;
///
///     fn submit_bio(_: ArcBorrow<'_, Self>, bio: Bio) {
///         let status = match bio.operation() {
///             Operation::Write => Status::OK,
///             _ => Status::NOTSUPP,
///         };
///
///         bio.end(status);
///     }
/// }
///
/// fn add(
///     name: &DiskName,
///     node: Node,
///     parent: &Device<Bound>,
/// ) -> Result<gendisk::Registration<Sink>> {
///     let limits = Limits {
///         logical_block_size: 512,
///         physical_block_size: PAGE_BLOCK,
///         max_write_zeroes: 0,
///         features: Features::WRITE_CACHE | Features::SYNCHRONOUS,
///     };
///     let data = Arc::new(Sink, GFP_KERNEL)?;
///     let disk = GenDisk::new(name, limits, 2048, node, data)?;
///
///     // The disk can be opened until the returned registration is dropped.
///     disk.register(parent)
/// }
/// ```
pub trait Operations: Send + Sync + Sized + 'static {
    /// The module that implements the operations. It cannot be unloaded while the disk is open.
    type OwnerModule: ModuleMetadata;

    /// Executes a request.
    ///
    /// Called in process context; may sleep. Several threads may call it concurrently. The request
    /// may end after this returns. The first calls come while the disk is being added, since the
    /// block layer reads the partition table. The last calls come while the disk is being removed,
    /// since file systems sync then, and have returned when it is.
    fn submit_bio(this: ArcBorrow<'_, Self>, bio: Bio);

    /// An additional sysfs attribute of the disk.
    const ATTRIBUTE: Option<BoolAttribute<Self>> = None;

    /// Returns the list that the sysfs attribute `badblocks` of the disk shows and changes.
    fn badblocks(&self) -> Option<&Badblocks> {
        None
    }
}
