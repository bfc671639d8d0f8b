// SPDX-License-Identifier: GPL-2.0

//! Devices that are bound to the driver.

use super::{
    attached_disk::AttachedDisk,
    claim::{
        claim,
        data_of_pfn,
        setup_btt,
        setup_pfn, //
    },
    flush::Flusher,
    memory::MapKind,
    messages::unusable,
    shared::SHARED, //
};
use crate::abstractions::kernel::{
    crash_dump::is_kdump_kernel,
    memremap::PagemapConfig, //
};
use crate::abstractions::nvdimm::{
    Btt,
    Claim,
    Device,
    Kind,
    Namespace,
    ProbeError,
    StateAttribute, //
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    prelude::*,
    sync::Arc, //
};

/// A device that is bound to the driver.
pub enum Binding<'bound> {
    /// A btt device, whose namespace is attached to the btt driver. That driver creates the disk,
    /// and flushes each of its writes, so nothing has to be flushed at unbind.
    Btt(Btt<'bound>, Arc<Flusher>),
    /// The disk that this driver creates for a raw namespace or a pfn device, and the mode.
    Disk(AttachedDisk<'bound>, &'static CStr),
}

impl<'bound> Binding<'bound> {
    /// Binds a device. Refuses a namespace with an info block, unless [`claim`] ignores the block:
    /// libnvdimm makes another device for it, which is bound instead.
    pub fn new(dev: &Device<Core<'_>>, namespace: Namespace<'bound>) -> Result<Self, ProbeError> {
        let shared = SHARED.get().ok_or(ENODEV)?;
        let range = namespace.range()?;
        let enable = |namespace: Namespace<'bound>| {
            let enabled = namespace
                .enable()
                .map_err(|err| unusable(&shared, dev, &range, err))?;
            shared
                .except_list
                .check_info_block(dev, &enabled)
                .map(|()| enabled)
        };

        // The disk can reserve the range only when the namespace is disabled again.
        let (namespace, map_kind, mode) = match dev.kind() {
            Kind::Btt => {
                let flusher = Flusher::new(shared.clone(), &namespace)?;
                let btt = setup_btt(dev, enable(namespace)?)?;
                return Ok(Self::Btt(btt, flusher));
            }
            // A kdump kernel has little memory, and saves what the crashed kernel has left on the
            // medium: there are no `struct page`s, and nothing is written.
            Kind::Pfn if is_kdump_kernel() => {
                let enabled = enable(namespace)?;
                let data = data_of_pfn(dev, &enabled)?;
                dev.info(fmt!("a disk without DAX, since this is a kdump kernel\n"));

                (
                    enabled.disable(),
                    MapKind::WithoutPages(data),
                    c"fsdax without DAX",
                )
            }
            Kind::Pfn => {
                let (enabled, pages) = setup_pfn(dev, enable(namespace)?)?;

                let mode = if pages.memmap_is_on_medium() {
                    c"fsdax map=dev"
                } else {
                    c"fsdax map=mem"
                };
                (enabled.disable(), MapKind::Pages(pages), mode)
            }
            Kind::Namespace => {
                let enabled = enable(namespace)?;
                if claim(dev, &enabled)? == Claim::Claimed {
                    return Err(ProbeError::silent(
                        ENXIO,
                        fmt!("libnvdimm has made a device for the mode in its info block"),
                    ));
                }
                let namespace = enabled.disable();

                if namespace.wants_pages() && !is_kdump_kernel() {
                    let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
                    let pages = PagemapConfig::new(range.start, len)?;
                    (namespace, MapKind::Pages(pages), c"raw map=mem")
                } else {
                    (namespace, MapKind::WithoutPages(range.clone()), c"raw")
                }
            }
        };

        let disk = AttachedDisk::new(shared, dev, namespace, map_kind)?;
        Ok(Self::Disk(disk, mode))
    }

    /// Returns what the device is bound as.
    pub fn mode(&self) -> &'static CStr {
        match self {
            Self::Btt(..) => c"sector",
            Self::Disk(_, mode) => mode,
        }
    }

    /// Returns the contents of the attribute `pmem_rs/state`. [`None`] if the device has no disk of
    /// this driver.
    pub fn state(&self) -> Option<Arc<dyn StateAttribute>> {
        match self {
            Self::Btt(..) => None,
            Self::Disk(disk, _) => Some(disk.state()),
        }
    }

    /// Makes durable what was written to the disk, and what mappings of files have stored. The
    /// flusher logs a failure.
    pub fn sync(&self) {
        match self {
            Self::Btt(_, flusher) => {
                let _ = flusher.flush();
            }
            Self::Disk(disk, _) => disk.sync(),
        }
    }

    /// Adds what the region knows to be bad to the badblocks.
    pub fn revalidate_poison(&self, dev: &Device<Bound>) {
        match self {
            Self::Btt(btt, _) => btt.revalidate_poison(),
            Self::Disk(disk, _) => disk.revalidate_poison(dev),
        }
    }

    /// Sets the disk read-only or writable, as the region is.
    pub fn revalidate_region(&self, dev: &Device<Bound>) {
        match self {
            Self::Btt(btt, _) => btt.sync_read_only(),
            Self::Disk(disk, _) => disk.sync_read_only(dev),
        }
    }
}
