// SPDX-License-Identifier: GPL-2.0

//! The namespaces that are left to other drivers: the parameter `except`, and the attribute of this
//! name below `/sys/bus/nd/drivers/pmem_rs/`.
//!
//! Lock order: the mutex of the list is innermost.

use super::plain::{
    excepted::{
        entries,
        Excepted, //
    },
    geometry::aligned_inside, //
};
use crate::abstractions::kernel::memremap::{
    compat_align,
    start_align, //
};
use crate::abstractions::kernel_ext::{
    io::resource::for_each_legacy_pmem,
    module_param::EXCEPT, //
};
use crate::abstractions::nvdimm::{
    Device,
    DeviceIdentity,
    EnabledNamespace,
    InfoBlock,
    ProbeError, //
};
use kernel::{
    device::Core,
    io::PhysAddr,
    new_mutex,
    prelude::*,
    str::{
        BStr,
        CString, //
    },
    sync::Mutex, //
};

/// The namespaces that are left to other drivers.
#[pin_data]
pub struct ExceptList {
    #[pin]
    list: Mutex<List>,
}

struct List {
    text: CString,
    entries: KVec<Entry>,
}

#[derive(Clone)]
struct Entry {
    excepted: Excepted,
    /// Whether a device matches.
    matched: bool,
}

impl ExceptList {
    /// Creates the list of the parameter. Fails if an entry is neither a UUID nor an address.
    pub fn new() -> Result<impl PinInit<Self, Error>> {
        // The compiler cannot prove that `CStr::to_bytes` does not panic.
        let list = EXCEPT.get().map_or(&b""[..], |list| {
            let bytes = list.to_bytes_with_nul();
            bytes.strip_suffix(b"\0").unwrap_or(bytes)
        });
        let list = List::parse(list)?;

        Ok(try_pin_init!(Self {
            list <- new_mutex!(list, "pmem_rs::ExceptList::list"),
        }))
    }

    /// Returns the list as it was written, without white space at its ends. Other white space is
    /// shown as spaces.
    pub fn text(&self) -> Result<CString> {
        CString::try_from(&*self.list.lock().text).map_err(Error::from)
    }

    /// Replaces the list. Fails if an entry is neither a UUID nor an address.
    pub fn set(&self, list: &[u8]) -> Result {
        let list = List::parse(list)?;

        *self.list.lock() = list;
        Ok(())
    }

    /// Marks the entries that match. Returns whether one does.
    fn matches(&self, start: Option<PhysAddr>, uuids: &[[u8; 16]]) -> bool {
        let mut found = false;

        for entry in &mut self.list.lock().entries {
            let matches = match &entry.excepted {
                // All zeroes mean that there is none.
                Excepted::Uuid(uuid) => *uuid != [0; 16] && uuids.contains(uuid),
                Excepted::Start(address) => start == Some(*address),
            };
            entry.matched |= matches;
            found |= matches;
        }
        found
    }

    /// Fails if a device is left to other drivers for the address of its namespace or for the UUID
    /// in the label.
    pub fn check(
        &self,
        dev: &Device<Core<'_>>,
        namespace: DeviceIdentity,
    ) -> Result<(), ProbeError> {
        if self.mark(namespace) {
            return Err(left_to_others(dev));
        }
        Ok(())
    }

    /// Fails if a device is left to other drivers for the UUID in its info block. A block that
    /// cannot be read has none.
    pub fn check_info_block(
        &self,
        dev: &Device<Core<'_>>,
        enabled: &EnabledNamespace<'_>,
    ) -> Result<(), ProbeError> {
        if self.list.lock().entries.is_empty() {
            return Ok(());
        }
        let uuid = enabled
            .read_info_block()
            .ok()
            .and_then(|bytes| InfoBlock::of(&bytes).map(|block| block.uuid()));

        if uuid.is_some_and(|uuid| self.matches(None, &[uuid])) {
            return Err(left_to_others(dev));
        }
        Ok(())
    }

    /// Marks the entries that match a device which is on the bus. Returns whether one does.
    pub fn mark(&self, identity: DeviceIdentity) -> bool {
        self.matches(identity.start, identity.uuid.as_slice())
    }

    /// Logs each entry that no device has matched so far.
    pub fn report_unmatched(&self) {
        // The devices of this module's provider may appear later.
        let _ = for_each_legacy_pmem(|memory| {
            let inside = aligned_inside(&memory.range(), start_align(), compat_align());

            self.matches(inside.map(|inside| inside.start), &[]);
            Ok(())
        });

        for entry in &self.list.lock().entries {
            if entry.matched {
                continue;
            }
            match entry.excepted {
                Excepted::Uuid(uuid) => pr_warn!(
                    "except: no device has the UUID {} so far; `ndctl list -Ni` has those that exist\n",
                    Uuid(uuid)
                ),
                Excepted::Start(start) => pr_warn!(
                    "except: no namespace starts at {:#x} so far; \
                     /sys/bus/nd/devices/namespace*/resource have those that exist\n",
                    start
                ),
            }
        }
    }
}

/// Logs that a device is left to other drivers.
fn left_to_others(dev: &Device<Core<'_>>) -> ProbeError {
    dev.info(fmt!(
        "left to other drivers, as `except` says (/sys/bus/nd/drivers/pmem_rs/except)\n"
    ));
    ProbeError::silent(ENODEV, fmt!("left to other drivers, as `except` says"))
}

impl List {
    fn parse(text: &[u8]) -> Result<Self> {
        // The compiler cannot prove that `Iterator::count` and `KVec::push` do not panic.
        let nr_entries = entries(text).fold(0_usize, |number, _| number.saturating_add(1));
        let unset = Entry {
            excepted: Excepted::Start(0),
            matched: false,
        };
        let mut list = KVec::from_elem(unset, nr_entries, GFP_KERNEL)?;

        for (place, entry) in list.iter_mut().zip(entries(text)) {
            place.excepted = entry.map_err(|entry| {
                pr_err!(
                    "except: `{}` is neither a UUID nor an address such as 0x100000000\n",
                    BStr::from_bytes(entry)
                );
                EINVAL
            })?;
        }
        // Written again, it is the same list: white space other than a space would be escaped.
        let text = text.trim_ascii();
        let mut shown = KVec::from_elem(b' ', text.len(), GFP_KERNEL)?;
        for (to, from) in shown.iter_mut().zip(text) {
            if !from.is_ascii_whitespace() {
                *to = *from;
            }
        }
        Ok(Self {
            text: CString::try_from_fmt(fmt!("{}", BStr::from_bytes(&shown)))?,
            entries: list,
        })
    }
}

/// Formats a UUID as `ndctl` does.
struct Uuid([u8; 16]);

impl kernel::fmt::Display for Uuid {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
