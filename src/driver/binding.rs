// SPDX-License-Identifier: GPL-2.0

//! What a bound device consists of, and how it is put together.

use super::{
    disk::{
        self,
        Abilities, //
    },
    flush::Flusher,
    plain::infoblock::{
        Fault,
        InfoBlock,
        Personality,
        Place, //
    },
    pmem::Pmem,
    range::{
        Layout,
        Memory, //
    },
    retired::{
        Shared, //
        SHARED,
    },
    unbind::{
        Parts,
        Provider,
        Unbind, //
    }, //
};
use crate::abstractions::{
    kernel::{
        badblocks::Badblocks,
        dax,
        memremap::{
            PagemapConfig, //
            PAGE_STRUCT_SIZE,
        },
        percpu_ref::Ref,
        pmem_slice::HAS_FLUSHCACHE, //
    },
    nvdimm::{
        self,
        Btt,
        Claim,
        Device,
        EnabledNamespace,
        Kind,
        Namespace,
        ProviderWatch, //
    }, //
};
use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Core, //
    },
    io::PhysAddr,
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// A device that is bound to the driver.
pub enum Binding<'bound> {
    /// A btt device: the btt driver has the namespace, and makes the disk. It flushes every write
    /// that it makes, so that nothing is left to be flushed when it goes.
    Btt(Btt<'bound>, Arc<Flusher>),
    /// A raw namespace or a pfn device: the disk is ours.
    Disk(Attached<'bound>),
}

impl<'bound> Binding<'bound> {
    /// Binds a device, if the namespace behind it is for this driver.
    ///
    /// A namespace with an info block is not: the device of its personality is bound instead.
    pub fn new(dev: &Device<Core<'_>>, namespace: Namespace<'bound>) -> Result<Self> {
        let shared = SHARED.get().ok_or(ENODEV)?;
        let range = namespace.range()?;

        if dev.kind() == Kind::Btt {
            let flusher = Flusher::new(shared.clone(), &namespace)?;
            let enabled = namespace
                .enable()
                .inspect_err(|err| report_unusable(&shared, dev, &range, *err))?;
            refuse_fault(dev, &enabled, &range)?;
            return Ok(Self::Btt(enabled.disable().attach_btt()?, flusher));
        }

        let enabled = namespace
            .enable()
            .inspect_err(|err| report_unusable(&shared, dev, &range, *err))?;
        // With the namespace disabled again, the disk has the range to itself.
        let (namespace, layout) = if dev.kind() == Kind::Pfn {
            let (enabled, pages) = set_up_pages(dev, enabled, &range)?;

            (enabled.disable(), Layout::Pages(pages))
        } else {
            if claim(dev, &enabled, &range)? == Claim::Claimed {
                return Err(ENXIO);
            }
            let namespace = enabled.disable();

            let layout = if namespace.wants_pages() {
                let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
                Layout::Pages(PagemapConfig::new(range.start, len)?)
            } else {
                Layout::Plain
            };
            (namespace, layout)
        };

        Ok(Self::Disk(Attached::new(shared, dev, namespace, layout)?))
    }

    /// Makes everything that was written so far durable. If that fails, the log has it.
    pub fn flush(&self) {
        let (Self::Btt(_, flusher) | Self::Disk(Attached { flusher, .. })) = self;

        let _ = flusher.flush();
    }

    /// Brings the list of bad blocks up to date with what the region knows.
    pub fn revalidate_poison(&self, dev: &Device<Bound>) {
        match self {
            Self::Btt(btt, _) => btt.revalidate_poison(),
            Self::Disk(attached) => {
                dev.region()
                    .populate_badblocks(&attached.badblocks, &attached.data);
                attached.badblocks.notify();
            }
        }
    }

    /// Makes the disk read-only or writable, as the region is.
    pub fn revalidate_region(&self, dev: &Device<Bound>) {
        match self {
            Self::Btt(btt, _) => btt.sync_read_only(),
            Self::Disk(attached) => attached.unbind.with_disk(|disk| dev.sync_read_only(disk)),
        }
    }
}

/// The disk, the DAX device and the memory of a bound device.
///
/// Dropping it takes the device away; see [`unbind`](super::unbind).
pub struct Attached<'bound> {
    unbind: Arc<Unbind>,
    flusher: Arc<Flusher>,
    badblocks: Arc<Badblocks>,
    /// The physical range of the data.
    data: Range<PhysAddr>,
    _watch: ProviderWatch<'bound>,
}

impl<'bound> Attached<'bound> {
    /// Makes the disk for a namespace.
    ///
    /// If any step fails, what was made before is dropped, in reverse order.
    fn new(
        shared: Ref<Shared>,
        dev: &Device<Core<'_>>,
        namespace: Namespace<'bound>,
        layout: Layout,
    ) -> Result<Self> {
        let region = dev.region();
        let node = dev.node();
        let reserve = namespace.range()?;

        let name = CString::try_from_fmt(fmt!("{}", namespace.name()))?;
        let badblocks = Arc::pin_init(Badblocks::new(), GFP_KERNEL)?;
        let flusher = Flusher::new(shared.clone(), &namespace)?;
        let files = shared.files.try_get().ok_or(ENODEV)?;
        let memory = namespace
            .reserve(name)
            .and_then(|memory| Memory::new(memory, layout, node, badblocks.clone(), files))
            .inspect_err(|err| report_unusable(&shared, dev, &reserve, *err))?;
        let range = memory.reference().ok_or(ENXIO)?;
        let pages = range.pages();
        let data = range.phys();

        let block_size = namespace.sector_size().unwrap_or_else(|asked| {
            dev_warn!(
                dev,
                "the label asks for sectors of {} bytes, which do not exist; they have 512. \
                 `ndctl create-namespace -f -e {} --sector-size=512` makes it right, and the namespace anew\n",
                asked,
                namespace.name()
            );
            512
        });
        let pmem = Arc::pin_init(
            Pmem::new(range, badblocks.clone(), flusher.clone(), block_size),
            GFP_KERNEL,
        )?;
        region.populate_badblocks(&badblocks, &data);
        // Before the disk can be opened: after that, to give up takes the same steps as to unbind.
        let place = Shared::place()?;
        let unbind = Unbind::new(
            shared.clone(),
            CString::try_from_fmt(fmt!("{}", dev.name()))?,
            reserve,
            flusher.clone(),
            &memory,
        )?;
        let watch = ProviderWatch::new(
            namespace.device(),
            Arc::new(Provider(unbind.clone()), GFP_KERNEL)?,
        )?;

        let properties = dax::Properties {
            synchronous: region.is_synchronous(),
            write_cache: region.has_cache(),
        };
        let has_pages = pages.is_some();
        let mut dax = match dax::Registration::new(pmem.clone(), pages, properties) {
            Ok(dax) => Some(dax),
            // The architecture cannot have DAX devices; the disk works without.
            Err(err) if err == EOPNOTSUPP => None,
            Err(err) => return Err(err),
        };
        if let Some(dax) = &dax {
            pmem.dax.populate(dax.handle());
            memory.set_dax(dax.handle());
        }

        let has_flush = region.has_flush().filter(|_| HAS_FLUSHCACHE);
        if has_flush.is_none() {
            dev_warn!(dev, "unable to guarantee persistence of writes\n");
        }
        let abilities = Abilities {
            fua: has_flush.unwrap_or(false),
            dax: dax.is_some() && has_pages,
        };
        let disk = disk::new(&namespace.disk_name()?, abilities, node, pmem)?;
        if let Some(dax) = &mut dax {
            dax.set_host(&disk)?;
        }

        let disk = disk.register(dev.as_ref())?;
        dev.sync_read_only(&disk);
        match disk.attribute(c"badblocks") {
            Some(attribute) => badblocks.set_attribute(attribute),
            None => dev_warn!(dev, "'badblocks' notification disabled\n"),
        }

        // First: if the provider goes in between, the worker takes the device off the list again.
        shared.add(place, unbind.clone());
        unbind.set_bound(Parts { disk, dax, memory });
        Ok(Self {
            unbind,
            flusher,
            badblocks,
            data,
            _watch: watch,
        })
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.unbind.run();
    }
}

/// What an info block of the namespace has to fit.
fn place(enabled: &EnabledNamespace<'_>, range: &Range<PhysAddr>) -> Place {
    Place {
        uuid: enabled.namespace().uuid(),
        start: range.start,
        size: range.end.saturating_sub(range.start),
        at: enabled.info_block_start(),
        reserve: nvdimm::info_block_reserve(),
        page_size: PAGE_SIZE as u64,
        page_struct_size: PAGE_STRUCT_SIZE as u64,
        sector_size: enabled.namespace().btt_sector_size(),
    }
}

/// Has libnvdimm make the device for the personality of a namespace, if its info block can be used.
///
/// # Errors
///
/// [`EOPNOTSUPP`] if there is an info block that cannot, or if it cannot be told whether there is
/// one. To libnvdimm such a namespace is complete, so it makes a new seed, as it does for those
/// that it refuses itself.
fn claim(
    dev: &Device<Core<'_>>,
    enabled: &EnabledNamespace<'_>,
    range: &Range<PhysAddr>,
) -> Result<Claim> {
    let namespace = enabled.namespace();
    if namespace.is_forced_raw() {
        return Ok(Claim::Raw);
    }
    let bytes = match enabled.read_info_block() {
        Ok(bytes) => bytes,
        Err(err) if err == EIO && namespace.is_raw_by_label() => {
            dev_warn!(
                dev,
                "the medium is bad where an info block would be; the label says that there is none\n"
            );
            return Ok(Claim::Raw);
        }
        // A raw disk would look empty, and the first write to it would put an end to what there
        // was.
        Err(err) if err == EIO => {
            report_unreadable(dev, namespace.name());
            return Err(EOPNOTSUPP);
        }
        Err(err) => return Err(err),
    };
    let Some(block) = InfoBlock::of(&bytes) else {
        return enabled.claim();
    };

    let fault = match block.check(&place(enabled, range)) {
        // It was left there by a namespace whose label is gone.
        Err(Fault::Foreign) if namespace.is_raw_by_label() => {
            dev_info!(
                dev,
                "there is an info block of another namespace; the label says that this one has none\n"
            );
            return Ok(Claim::Raw);
        }
        Err(fault) => fault,
        Ok(()) => match enabled.claim() {
            Ok(Claim::Claimed) => return Ok(Claim::Claimed),
            Err(err) if err != EOPNOTSUPP => return Err(err),
            // `force_raw` may have been written meanwhile, or the label says that the namespace has
            // another personality.
            _ if namespace.is_forced_raw() => return Ok(Claim::Raw),
            _ => Fault::Refused,
        },
    };
    report_fault(dev, namespace.name(), block.personality(), fault);
    Err(EOPNOTSUPP)
}

/// Finds out how the memory of a pfn device is to be mapped; a new device gets an info block.
fn set_up_pages<'bound>(
    dev: &Device<Core<'_>>,
    enabled: EnabledNamespace<'bound>,
    range: &Range<PhysAddr>,
) -> Result<(EnabledNamespace<'bound>, PagemapConfig)> {
    let name = enabled.namespace().name();
    refuse_fault(dev, &enabled, range)?;

    enabled.setup_pfn().inspect_err(|err| {
        // An empty seed is no error.
        if *err != ENODEV {
            dev_err!(
                dev,
                "cannot be set up (error {}); libnvdimm says above why. \
                 `ndctl create-namespace -f -e {}` makes the namespace anew\n",
                err.to_errno(),
                name
            );
        }
    })
}

/// Refuses a pfn or btt device whose info block libnvdimm would believe, and should not.
fn refuse_fault(
    dev: &Device<Core<'_>>,
    enabled: &EnabledNamespace<'_>,
    range: &Range<PhysAddr>,
) -> Result {
    let name = enabled.namespace().name();

    let bytes = match enabled.read_info_block() {
        Ok(bytes) => bytes,
        // libnvdimm would refuse it too, and not say what to do.
        Err(err) if err == EIO => {
            report_unreadable(dev, name);
            return Err(EOPNOTSUPP);
        }
        Err(err) => return Err(err),
    };
    // libnvdimm overwrites what is not this namespace's, or of another personality, and would
    // believe the rest.
    if let Some(block) = InfoBlock::of(&bytes) {
        let believed = match block.personality() {
            Personality::Sector => dev.kind() == Kind::Btt,
            Personality::Fsdax => dev.kind() == Kind::Pfn,
            Personality::Devdax => false,
        };
        if let (true, Err(fault)) = (believed, block.check(&place(enabled, range))) {
            if !fault.is_no_block_of_ours() {
                report_fault(dev, name, block.personality(), fault);
                return Err(EOPNOTSUPP);
            }
        }
    }
    Ok(())
}

/// Says in the log why an info block cannot be used, and what to do about it.
fn report_fault(dev: &Device<Core<'_>>, name: &CStr, personality: Personality, fault: Fault) {
    dev_err!(
        dev,
        "the info block for mode {} cannot be used: {}. To get at what {} holds, {}write 1 to its \
         force_raw and bind it; `ndctl create-namespace -f -e {} -m {}` makes it anew\n",
        personality.name(),
        fault.describe(),
        name,
        release(dev),
        name,
        personality.name()
    );
}

/// Says in the log that it cannot be told what a namespace is used as, and what to do about it.
fn report_unreadable(dev: &Device<Core<'_>>, name: &CStr) {
    dev_err!(
        dev,
        "the medium is bad where the info block of {} would be. To get at what it holds, {}write 1 to \
         its force_raw and bind it. To make it anew, write zeroes to the first 8 KiB of that disk, which \
         heals them, then `ndctl create-namespace -f -e {}`\n",
        name,
        release(dev),
        name
    );
}

/// Returns what has to be done before the namespace of a device can be bound itself, as the start
/// of a sentence.
fn release(dev: &Device<Core<'_>>) -> &'static str {
    match dev.kind() {
        Kind::Pfn | Kind::Btt => {
            "write an empty line to the attribute `namespace` of this device, then "
        }
        _ => "",
    }
}

/// Says in the log why the memory of a device cannot be used, and what to do about it.
fn report_unusable(shared: &Shared, dev: &Device<Core<'_>>, range: &Range<PhysAddr>, err: Error) {
    let (start, last) = (range.start, range.end.saturating_sub(1));

    if let Some(retired) = shared.find_retired(range) {
        dev_err!(
            dev,
            "could not reserve [mem {:#x}-{:#x}]: it was retired with {}\n",
            start,
            last,
            retired.describe()
        );
    } else if err == EBUSY {
        dev_err!(
            dev,
            "could not reserve [mem {:#x}-{:#x}]: it is in use. /proc/iomem shows by whom; \
             unbind that first\n",
            start,
            last
        );
    } else {
        dev_err!(
            dev,
            "could not map [mem {:#x}-{:#x}]: error {}\n",
            start,
            last,
            err.to_errno()
        );
    }
}
