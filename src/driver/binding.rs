// SPDX-License-Identifier: GPL-2.0

//! What a bound device consists of, and how it is put together.

use super::{
    disk::{
        self,
        Abilities, //
    },
    flush::Flusher,
    pmem::Pmem,
    range::{
        Layout,
        PmemRange, //
    },
    retired::SHARED,
    unbind::{
        Parts,
        Unbind, //
    },
};
use crate::abstractions::{
    dax,
    memremap::PagemapConfig,
    nvdimm::{
        Btt,
        Claim,
        Device,
        Kind,
        Namespace, //
    },
    percpu_ref::Counted,
    pmem::HAS_FLUSHCACHE, //
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
    sync::Arc,
    time::Msecs, //
};

/// A device that is bound to the driver.
pub enum Binding<'bound> {
    /// A btt device: the btt driver has the namespace, and makes the disk. It flushes every write
    /// that it makes, so that nothing is left to be flushed when it goes.
    Btt(Btt<'bound>, Arc<Flusher>),
    /// A raw namespace or a pfn device: the disk is ours.
    Disk(Attached),
}

impl<'bound> Binding<'bound> {
    /// Binds a device, if there is a namespace behind it that is for this driver.
    ///
    /// A namespace with an info block is not: the device of its personality is bound instead.
    pub fn new(dev: &'bound Device<Core<'_>>) -> Result<Self> {
        let namespace = Namespace::probe(dev)?;
        let range = namespace.range()?;

        if dev.kind() == Kind::Btt {
            let flusher = Flusher::new(dev)?;
            return Ok(Self::Btt(namespace.attach_btt()?, flusher));
        }

        let enabled = namespace
            .enable()
            .inspect_err(|err| report_unusable(dev, &range, *err))?;
        // With the namespace disabled again, the disk has the range to itself.
        let (namespace, layout) = if dev.kind() == Kind::Pfn {
            let (enabled, pages) = enabled.setup_pfn()?;

            (enabled.disable(), Layout::Pages(pages))
        } else {
            if enabled.claim()? == Claim::Claimed {
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

        Ok(Self::Disk(Attached::new(dev, namespace, layout)?))
    }

    /// Makes everything that was written so far durable. If that fails, the log has it.
    pub fn flush(&self) {
        let flusher = match self {
            Self::Btt(_, flusher) => Some(flusher),
            Self::Disk(attached) => attached.parts.as_ref().map(|parts| &parts.pmem.flusher),
        };

        let _ = flusher.map(|flusher| flusher.flush());
    }

    /// Brings the list of bad blocks up to date with what the region knows.
    pub fn revalidate_poison(&self, dev: &Device<Bound>) {
        match self {
            Self::Btt(btt, _) => btt.revalidate_poison(),
            Self::Disk(attached) => {
                if let Some(Parts { pmem, .. }) = &attached.parts {
                    dev.region()
                        .populate_badblocks(&pmem.badblocks, &pmem.range.phys());
                    pmem.badblocks.notify();
                }
            }
        }
    }

    /// Makes the disk read-only or writable, as the region is.
    pub fn revalidate_region(&self, dev: &Device<Bound>) {
        match self {
            Self::Btt(btt, _) => btt.sync_read_only(),
            Self::Disk(attached) => {
                if let Some(parts) = &attached.parts {
                    dev.sync_read_only(&parts.disk);
                }
            }
        }
    }
}

/// The disk, the DAX device and the memory of a bound device.
///
/// Dropping it takes the device away; see [`unbind`](super::unbind) for the order.
pub struct Attached {
    /// Until it is dropped.
    parts: Option<Parts>,
    unbind: Arc<Unbind>,
    limit: Msecs,
}

impl Attached {
    /// Makes the disk for a namespace.
    ///
    /// If any step fails, what was made before is dropped, in reverse order.
    fn new(dev: &Device<Core<'_>>, namespace: Namespace<'_>, layout: Layout) -> Result<Self> {
        let region = dev.region();
        let node = dev.node();
        let reserve = namespace.range()?;

        let name = CString::try_from_fmt(fmt!("{}", namespace.name()))?;
        let range = PmemRange::new(reserve.clone(), name, layout, node)
            .inspect_err(|err| report_unusable(dev, &reserve, *err))?;
        let range = Arc::new(Counted::new(range)?, GFP_KERNEL)?;

        let pmem = Arc::pin_init(
            Pmem::new(
                range.hold().ok_or(ENXIO)?,
                Flusher::new(dev)?,
                namespace.sector_size(),
            ),
            GFP_KERNEL,
        )?;
        region.populate_badblocks(&pmem.badblocks, &range.phys());
        let unbind = Unbind::new(
            CString::try_from_fmt(fmt!("{}", dev.name()))?,
            reserve,
            pmem.flusher.clone(),
        )?;

        let properties = dax::Properties {
            synchronous: region.is_synchronous(),
            write_cache: region.has_cache(),
        };
        let mut dax = match dax::Registration::new(pmem.clone(), properties) {
            Ok(dax) => Some(dax),
            // The architecture cannot have DAX devices; the disk works without.
            Err(err) if err == EOPNOTSUPP => None,
            Err(err) => return Err(err),
        };
        if let Some(dax) = &dax {
            pmem.dax.populate(dax.handle());
            range.set_dax(dax.handle());
        }

        let has_flush = region.has_flush().filter(|_| HAS_FLUSHCACHE);
        if has_flush.is_none() {
            dev_warn!(dev, "unable to guarantee persistence of writes\n");
        }
        let abilities = Abilities {
            fua: has_flush.unwrap_or(false),
            dax: dax.is_some() && range.has_pages(),
        };
        let disk = disk::new(
            &namespace.disk_name()?,
            abilities,
            node,
            pmem.clone(),
            unbind.closed(),
        )?;
        if let Some(dax) = &mut dax {
            dax.set_host(&disk)?;
        }

        let disk = disk.register(dev.as_ref())?;
        dev.sync_read_only(&disk);
        match disk.attribute(c"badblocks") {
            Some(attribute) => pmem.badblocks.set_attribute(attribute),
            None => dev_warn!(dev, "'badblocks' notification disabled\n"),
        }

        Ok(Self {
            parts: Some(Parts {
                disk,
                dax,
                pmem,
                range,
            }),
            unbind,
            limit: crate::module_parameters::revoke_timeout_ms.value(),
        })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.unbind.clone().run(parts, self.limit);
        }
    }
}

/// Says in the log why the memory of a device cannot be used, and what to do about it.
fn report_unusable(dev: &Device<Core<'_>>, range: &Range<PhysAddr>, err: Error) {
    let (start, last) = (range.start, range.end.saturating_sub(1));

    let retired = SHARED.get().and_then(|shared| shared.find(range));
    if let Some(retired) = retired {
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
