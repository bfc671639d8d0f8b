// SPDX-License-Identifier: GPL-2.0

//! The driver of platform devices that describe persistent memory: `pmem-region` in a device tree,
//! and `e820_pmem` for the legacy ranges of the firmware of a PC or of `memmap=`.
//!
//! It registers an nd bus for each device, with a region for each range. Namespaces on it are
//! offered to the drivers of the nd bus, such as that of this module.

use super::plain::{
    geometry::aligned_inside,
    signature, //
};
use crate::abstractions::compat::{
    device_id::IdArray,
    of_device_table, //
};
use crate::abstractions::kernel::{
    memremap::{
        compat_align,
        read_resource,
        start_align, //
    },
    numa::Node, //
};
use crate::abstractions::kernel_ext::{
    io::resource::{
        self,
        PmemResource, //
    },
    platform::{
        self,
        DeviceName,
        NameTable, //
    }, //
};
use crate::abstractions::nvdimm::{
    Bus,
    Persistence,
    RegionDesc, //
};
use core::ops::Range;
use kernel::{
    device::{
        self,
        Bound,
        Core, //
    },
    fmt,
    io::PhysAddr,
    of,
    platform::Device,
    prelude::*,
    str::CString, //
};

/// The name of the device of an x86 PC, which has all legacy ranges.
const LEGACY: &[u8; 9] = b"e820_pmem";

static NAMES: IdArray<DeviceName, (), 1> = IdArray::new_without_index([DeviceName::new(LEGACY)]);

of_device_table!(
    OF_TABLE,
    (),
    [
        (of::DeviceId::new(c"pmem-region"), ()),
        (of::DeviceId::new(c"pmem-region-v2"), ()),
    ]
);

/// The driver of platform devices that describe persistent memory.
pub struct PlatformDriver;

impl kernel::platform::Driver for PlatformDriver {
    type IdInfo = ();
    type Data<'bound> = Bus<'bound>;

    const OF_ID_TABLE: Option<of::IdTable<Self::IdInfo>> = Some(&OF_TABLE);

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        node: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let source = Source::of(dev, node)?;

        let bus = Bus::register(dev.as_ref(), source.provider()?)?;
        let mut has_region = false;
        let mut failure = ENXIO;

        // A range that cannot be used does not affect the others. The reason for each is logged.
        source.for_each_memory(|memory| {
            let Some(memory) = source.usable_part(memory) else {
                return Ok(());
            };
            let range = memory.range();

            match bus.create_region(&source.region(memory)) {
                Ok(()) => has_region = true,
                Err(err) => {
                    dev_err!(
                        dev,
                        "[mem {:#x}-{:#x}] is left out, its region could not be made: error {}; to \
                         try again, bind this device again, and unbind it first if it is bound\n",
                        range.start,
                        range.end.saturating_sub(1),
                        err.to_errno()
                    );
                    failure = err;
                }
            }
            Ok(())
        })?;
        if !has_region {
            return Err(failure);
        }
        Ok(bus)
    }
}

impl platform::NamedDriver for PlatformDriver {
    const NAMES: NameTable = NameTable::new(&NAMES);
}

/// The source of the ranges of a device.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// The node of the device in the device tree.
    DeviceTree(&'a Device<Bound>),
    /// The memory map of the machine.
    MemoryMap(&'a Device<Bound>),
}

impl<'a> Source<'a> {
    /// Returns the source for a device. `node` is set if the device matches the table of nodes.
    fn of(dev: &'a Device<Bound>, node: Option<&()>) -> Result<Self> {
        if node.is_some() {
            return Ok(Self::DeviceTree(dev));
        }
        // Not `to_bytes`: the compiler cannot prove that it does not panic.
        let name = platform::name(dev).to_bytes_with_nul();
        if name.strip_suffix(&[0]) == Some(LEGACY.as_slice()) {
            return Ok(Self::MemoryMap(dev));
        }

        // Only `driver_override` can have selected this driver.
        dev_err!(
            dev,
            "not a device with persistent memory; to give it back to its driver, write an empty \
             line to its driver_override\n"
        );
        Err(ENXIO)
    }

    fn device(self) -> &'a Device<Bound> {
        let (Self::DeviceTree(dev) | Self::MemoryMap(dev)) = self;

        dev
    }

    /// Returns the name of the provider in sysfs.
    fn provider(self) -> Result<CString> {
        match self {
            Self::DeviceTree(dev) => CString::try_from_fmt(fmt!("{}", platform::name(dev))),
            // The same as that of `nd_e820`.
            Self::MemoryMap(_) => CString::try_from_fmt(fmt!("e820")),
        }
    }

    /// Calls `f` with each range, until it returns an error.
    fn for_each_memory(self, mut f: impl FnMut(PmemResource<'a>) -> Result) -> Result {
        match self {
            Self::MemoryMap(dev) => resource::for_each_legacy_pmem(f).inspect_err(|err| {
                if *err == ENODEV {
                    dev_err!(
                        dev,
                        "the memory map has no persistent memory any more: correct memmap= on the \
                         kernel command line, or the firmware, and reboot\n"
                    );
                }
            }),
            Self::DeviceTree(dev) => {
                let mut index: u32 = 0;
                while let Some(memory) = platform::memory(dev, index) {
                    f(memory)?;
                    index = index.wrapping_add(1);
                }
                if index == 0 {
                    dev_err!(
                        dev,
                        "no memory: the node needs a `reg` with the ranges, in the form that \
                         #address-cells and #size-cells of its parent say\n"
                    );
                    return Err(ENXIO);
                }
                Ok(())
            }
        }
    }

    /// Returns the part of a range that can be a region. Logs what is left out, and why.
    fn usable_part(self, memory: PmemResource<'a>) -> Option<PmemResource<'a>> {
        let dev = self.device();
        let range = memory.range();
        let (start, last) = (range.start, range.end.saturating_sub(1));
        let origin = match self {
            Self::DeviceTree(_) => "`reg` of the node",
            Self::MemoryMap(_) => "memmap= on the kernel command line, or the firmware",
        };

        if resource::has_ram(&range) {
            dev_err!(
                dev,
                "[mem {:#x}-{:#x}] is left out, it is used as System RAM: take it out of the \
                 memory nodes (`no-map` does not), reserve it by memmap={:#x}${:#x} on a PC's \
                 kernel command line, or correct {}; if device-dax (kmem) has onlined it, reboot\n",
                start,
                last,
                range.end.saturating_sub(start),
                start,
                origin
            );
            return None;
        }
        let Some(inside) = aligned_inside(&range, start_align(), compat_align()) else {
            dev_err!(
                dev,
                "[mem {:#x}-{:#x}] is left out, nothing in it is aligned to {:#x} bytes: correct \
                 {}\n",
                start,
                last,
                start_align(),
                origin
            );
            return None;
        };
        if inside == range {
            return Some(memory);
        }

        let (aligned, size) = (inside.start, inside.end.saturating_sub(inside.start));
        let reason = if aligned == start {
            Ok(None)
        } else {
            signature_of(&memory)
        };
        match reason {
            Ok(None) => dev_warn!(
                dev,
                "[mem {:#x}-{:#x}] is not aligned to {:#x} bytes, the {:#x} bytes from {:#x} on \
                 are used: correct {}\n",
                start,
                last,
                start_align(),
                size,
                aligned,
                origin
            ),
            Ok(Some(contents)) => {
                dev_err!(
                    dev,
                    "[mem {:#x}-{:#x}] is left out, {} begins at its address, which is not \
                     aligned to {:#x} bytes: to use the memory without what is in it, change {} to \
                     {:#x} bytes from {:#x} on{}\n",
                    start,
                    last,
                    contents,
                    start_align(),
                    origin,
                    size,
                    aligned,
                    Example(matches!(self, Self::MemoryMap(_)).then_some(inside))
                );
                return None;
            }
            Err(err) => {
                dev_err!(
                    dev,
                    "[mem {:#x}-{:#x}] is left out, it is not aligned to {:#x} bytes, and what \
                     begins there cannot be read (error {}): correct {}\n",
                    start,
                    last,
                    start_align(),
                    err.to_errno(),
                    origin
                );
                return None;
            }
        }
        memory.part(inside)
    }

    /// Returns the description of the region for a range.
    fn region(self, memory: PmemResource<'a>) -> RegionDesc<'a> {
        match self {
            Self::DeviceTree(dev) => {
                let node = platform::node(dev);
                let dev: &device::Device = dev.as_ref();
                let is_volatile = dev
                    .fwnode()
                    .is_some_and(|node| node.property_read_bool(c"volatile"));

                RegionDesc {
                    memory,
                    node,
                    target: node,
                    persistence: if is_volatile {
                        Persistence::Volatile
                    } else {
                        Persistence::MemoryController
                    },
                }
            }
            Self::MemoryMap(_) => {
                let target = Node::of_memory(memory.range().start);

                RegionDesc {
                    memory,
                    node: target.nearest_online(),
                    target,
                    persistence: Persistence::Unspecified,
                }
            }
        }
    }
}

/// The kernel parameter that describes a range, in brackets.
struct Example(Option<Range<PhysAddr>>);

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Range { start, end }) = &self.0 else {
            return Ok(());
        };

        write!(f, " (memmap={:#x}!{start:#x})", end.saturating_sub(*start))
    }
}

/// Returns the name of what begins at the start of a range, if its signature is known.
fn signature_of(memory: &PmemResource<'_>) -> Result<Option<&'static str>> {
    let range = memory.range();
    let len = usize::try_from(range.end.saturating_sub(range.start))?.min(signature::LEN);
    let mut bytes = KVVec::from_elem(0, len, GFP_KERNEL)?;

    let name = CString::try_from_fmt(fmt!("pmem_rs"))?;
    read_resource(memory, name, &mut bytes)?;
    Ok(signature::find(&bytes))
}
