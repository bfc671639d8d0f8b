// SPDX-License-Identifier: GPL-2.0

//! The `nd` bus of libnvdimm: its devices and its drivers.
//!
//! A provider (NFIT, a device tree, virtio) describes *regions* of persistent memory. A region is
//! divided into *namespaces*. A namespace without an info block is raw. An info block gives it a
//! mode: fsdax (with `struct page`s), sector (writes of a sector are atomic) or devdax. libnvdimm
//! makes a pfn, btt or dax device for it, which claims the namespace. Namespaces, pfn devices and
//! btt devices are offered to the same drivers; [`Device::kind`] distinguishes them.
//!
//! C headers: [`include/linux/nd.h`](srctree/include/linux/nd.h),
//! [`include/linux/libnvdimm.h`](srctree/include/linux/libnvdimm.h),
//! [`drivers/nvdimm/nd.h`](srctree/drivers/nvdimm/nd.h),
//! [`drivers/nvdimm/pfn.h`](srctree/drivers/nvdimm/pfn.h),
//! [`drivers/nvdimm/btt.h`](srctree/drivers/nvdimm/btt.h),
//! [`include/linux/device/bus.h`](srctree/include/linux/device/bus.h)

mod arenas;
mod btt;
mod bus;
mod device;
mod driver;
mod driver_attribute;
mod enabled_namespace;
mod identity;
mod infoblock;
mod memmap;
mod memmap_room;
mod namespace;
mod pfn;
mod placement;
mod probe_error;
mod probe_results;
mod provider;
mod region;
mod region_access;
mod status;

pub use self::{
    btt::Btt,
    bus::{
        Bus,
        Persistence,
        RegionDesc, //
    },
    device::{
        Device,
        Kind, //
    },
    driver::{
        Adapter,
        DeviceTypes,
        Driver,
        Event, //
    },
    driver_attribute::TextAttribute,
    enabled_namespace::{
        info_block_reserve,
        Claim,
        EnabledNamespace,
        SetupError, //
        INFO_BLOCK_SIZE,
    },
    identity::DeviceIdentity,
    infoblock::{
        InfoBlock,
        InfoBlockError,
        NamespaceMode, //
    },
    namespace::{
        ClaimClass,
        Namespace, //
    },
    probe_error::ProbeError,
    provider::{
        ProviderWatch,
        ProviderWatcher, //
    },
    region::Region,
    region_access::{
        FlushBarrier,
        RegionAccess, //
    },
    status::{
        StateAttribute,
        STATE_FILE, //
    }, //
};
