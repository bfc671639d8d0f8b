// SPDX-License-Identifier: GPL-2.0

//! The disk, the DAX device and the memory of a bound device.

use super::{
    device_state::{
        DeviceState,
        Parts, //
    },
    disk::{
        self,
        Capabilities, //
    },
    flush::Flusher,
    memory::{
        MapKind,
        Memory, //
    },
    messages::{
        report_read_only,
        unusable, //
    },
    pmem::Pmem,
    registry::Registry,
    removal_watcher::RemovalWatcher,
    shared::Shared,
    sleep::Sleep,
    state_file::StateFile, //
};
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    dax,
    percpu_ref::Ref,
    pm::SleepDevice,
    pmem_slice::HAS_FLUSHCACHE, //
};
use crate::abstractions::nvdimm::{
    Device,
    Namespace,
    ProbeError,
    ProviderWatch,
    StateAttribute, //
};
use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Core, //
    },
    io::PhysAddr,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// The disk, the DAX device and the memory of a bound device.
///
/// Dropping it tears the device down; see [`DeviceState`].
pub struct AttachedDisk<'bound> {
    device: Arc<DeviceState>,
    /// The physical range of the data.
    data: Range<PhysAddr>,
    _watch: ProviderWatch<'bound>,
    /// [`None`] while it is dropped, or if the provider has no device.
    sleep: Option<SleepDevice<'bound, Sleep>>,
    state: Arc<StateFile>,
}

impl<'bound> AttachedDisk<'bound> {
    /// Maps the memory of a namespace, and creates its DAX device and its disk.
    ///
    /// If a step fails, the results of the earlier ones are dropped, in reverse order.
    pub fn new(
        shared: Ref<Shared>,
        dev: &Device<Core<'_>>,
        namespace: Namespace<'bound>,
        kind: MapKind<'bound>,
    ) -> Result<Self, ProbeError> {
        let region = dev.region();
        let node = dev.node();
        let namespace_range = namespace.range()?;

        let range_name = CString::try_from_fmt(fmt!("{}", namespace.name()))?;
        let name = || CString::try_from_fmt(fmt!("{}", dev.name()));
        let flusher = Flusher::new(shared.clone(), &namespace)?;
        let files = shared.queues.files.try_get().ok_or(ENODEV)?;
        let memory = namespace
            .reserve(range_name)
            .and_then(|memory| Memory::new(name()?, memory, kind, node, files))
            .map_err(|err| unusable(&shared, dev, &namespace_range, err))?;
        let reference = memory.reference().ok_or(ENXIO)?;
        let pages = reference.pages().cloned();
        let data = reference.physical_range();

        let block_size = namespace.sector_size().unwrap_or_else(|asked| {
            dev.warn(fmt!(
                "the label asks for sectors of {} bytes, which do not exist; they have 512. \
                 `ndctl create-namespace -f -e {} --sector-size=512` recreates the namespace \
                 with 512\n",
                asked,
                namespace.name()
            ));
            512
        });
        let pmem = Arc::pin_init(
            Pmem::new(reference, flusher.clone(), block_size),
            GFP_KERNEL,
        )?;
        region.populate_badblocks(pmem.memory.badblocks(), &data);
        // The lock of the device is held, so a notice of a later change waits for the probe. There
        // is no notice while libnvdimm adds the device: it is no child of the region yet
        // (`device_add()`).
        let read_only = region.is_read_only();
        if pmem.set_read_only(read_only) {
            report_read_only(dev, read_only);
        }
        // Allocated before the disk is added. After that, a failure could only be undone by a
        // teardown, since the disk may be in use.
        let reserved = Registry::reserve()?;
        let device = DeviceState::new(
            shared.clone(),
            name()?,
            namespace_range,
            flusher.clone(),
            &memory,
            region.is_removable(),
        )?;
        let watch = ProviderWatch::new(
            namespace.device(),
            Arc::new(RemovalWatcher(device.clone()), GFP_KERNEL)?,
        )?;
        let sleep = namespace.device().add_sleep_device(
            &CString::try_from_fmt(fmt!("pmem_rs:{}", dev.name()))?,
            Arc::new(Sleep(device.clone()), GFP_KERNEL)?,
        )?;

        let state = Arc::new(StateFile(device.clone()), GFP_KERNEL)?;
        let properties = dax::Properties {
            synchronous: region.is_synchronous(),
            write_cache: region.has_cache(),
        };
        let has_pages = pages.is_some();
        let mut dax = match dax::Registration::new(pmem.clone(), pages, properties) {
            Ok(dax) => Some(dax),
            // The architecture does not support DAX devices. The disk works without.
            Err(err) if err == EOPNOTSUPP => None,
            Err(err) => return Err(err.into()),
        };
        if let Some(dax) = &dax {
            pmem.dax.populate(dax.handle());
            if let Some(pages) = memory.pages() {
                pages.ops().set_dax(dax.handle());
            }
        }

        let has_flush = region.has_flush().filter(|_| HAS_FLUSHCACHE);
        if has_flush.is_none() {
            dev.warn(fmt!("unable to guarantee persistence of writes\n"));
        }
        let capabilities = Capabilities {
            fua: has_flush.unwrap_or(false),
            dax: dax.is_some() && has_pages,
        };
        let disk = disk::new(&namespace.disk_name()?, capabilities, node, pmem)?;
        if let Some(dax) = &mut dax {
            dax.set_host(&disk)?;
        }

        let disk = dev.add_disk(disk)?;
        disk.set_read_only(read_only);
        match disk.attribute(c"badblocks") {
            Some(attribute) => disk.data().memory.badblocks().set_attribute(attribute),
            None => dev.warn(fmt!("'badblocks' notification disabled\n")),
        }

        // Added before `set_bound`: from then on the worker may remove it.
        shared.devices.add(reserved, device.clone());
        device.set_bound(Parts { disk, dax, memory });
        Ok(Self {
            device,
            data,
            _watch: watch,
            sleep,
            state,
        })
    }

    /// Returns the contents of the attribute `pmem_rs/state`.
    pub fn state(&self) -> Arc<dyn StateAttribute> {
        self.state.clone()
    }

    /// As [`DeviceState::sync`]. Resumes the disk first, so that the writes that are held are not
    /// lost.
    pub fn sync(&self) {
        self.device.end_suspensions();
        self.device.sync();
    }

    /// Adds the bad sectors of the region to the badblocks of the disk, and notifies pollers.
    pub fn revalidate_poison(&self, dev: &Device<Bound>) {
        let pmem = self.device.with_parts(|parts| Arc::from(parts.disk.data()));
        let Some(pmem) = pmem else {
            return;
        };
        let badblocks = pmem.memory.badblocks();

        dev.region().populate_badblocks(badblocks, &self.data);
        badblocks.notify();
    }

    /// Refuses or permits writes, as the region does. May sleep.
    ///
    /// When writes become refused, a worker unmaps the memory from all files once. A store to a
    /// mapping that is made after that cannot be refused.
    pub fn sync_read_only(&self, dev: &Device<Bound>) {
        let read_only = dev.region().is_read_only();
        let has_changed = self.device.with_parts(|Parts { disk, .. }| {
            disk.set_read_only(read_only);
            disk.data().set_read_only(read_only)
        });

        if has_changed == Some(true) {
            report_read_only(dev, read_only);
            if read_only {
                self.device.start_unmapping();
            }
        }
    }
}

impl Drop for AttachedDisk<'_> {
    fn drop(&mut self) {
        // The device stays in use meanwhile.
        self.device.give_notice();
        // The teardown flushes, also if the system is going to sleep.
        self.device.flusher.permit_for_good();
        self.sleep = None;
        self.device.tear_down();
    }
}
