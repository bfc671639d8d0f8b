// SPDX-License-Identifier: GPL-2.0

//! Messages about devices that cannot be bound, with the remedy.

use super::shared::Shared;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::nvdimm::{
    Device,
    InfoBlockError,
    Kind,
    NamespaceMode,
    ProbeError, //
};
use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Core, //
    },
    io::PhysAddr,
    prelude::*, //
};

/// Logs why an info block cannot be used.
pub fn info_block_error(
    dev: &Device<Core<'_>>,
    name: &CStr,
    mode: NamespaceMode,
    error: InfoBlockError,
) -> ProbeError {
    let (option, recreated, more) = match error {
        // Label and block name two modes, of which the user has to choose one.
        InfoBlockError::OtherMode => ("", "", ""),
        // ndctl keeps the size of the sectors otherwise.
        InfoBlockError::SectorMetadata => (" -m ", mode.name(), " -l 4096"),
        // ndctl puts them on the medium otherwise, and libnvdimm would leave as little room again.
        InfoBlockError::PageStructSize => (" -m ", mode.name(), " -M mem"),
        // Modes with `struct page`s fail again.
        InfoBlockError::StartAlignment => (" -m ", "raw", ""),
        _ => (" -m ", mode.name(), ""),
    };

    ProbeError::logged(
        dev,
        EOPNOTSUPP,
        fmt!(
            "the info block for mode {} cannot be used: {}. To read {} as raw, {}write 1 to its \
             force_raw and bind it; `ndctl create-namespace -f -e {}{}{}{}` recreates it",
            mode.name(),
            error.describe(),
            name,
            release(dev),
            name,
            option,
            recreated,
            more
        ),
    )
}

/// Logs that there is no info block for the mode in the label; [`None`] is an unknown mode.
pub fn missing(dev: &Device<Core<'_>>, name: &CStr, mode: Option<NamespaceMode>) -> ProbeError {
    // With another `-M` or `-a` the data begin elsewhere. A new btt has a new map.
    const BEFORE_DATA: &str = "what is before the data, if it gets the -M and -a that it had";
    let (mode, recreate, overwritten) = match mode {
        Some(NamespaceMode::Sector) => ("sector", " -m sector", "the map of all sectors"),
        Some(NamespaceMode::Fsdax) => ("fsdax", " -m fsdax", BEFORE_DATA),
        Some(NamespaceMode::Devdax) => ("devdax", " -m devdax", BEFORE_DATA),
        None => ("(unknown)", "", "the metadata of that mode"),
    };

    ProbeError::logged(
        dev,
        EOPNOTSUPP,
        fmt!(
            "the info block for mode {} is missing, but the label says that there is one. To use \
             {} as raw from now on, write an empty line to its holder_class and bind it; to read \
             it as raw, write 1 to its force_raw and bind it; `ndctl create-namespace -f -e {}{}` \
             recreates it and overwrites {}",
            mode,
            name,
            name,
            recreate,
            overwritten
        ),
    )
}

/// Logs that an info block cannot be read, so that the mode of the namespace is unknown.
pub fn unreadable(dev: &Device<Core<'_>>, name: &CStr) -> ProbeError {
    ProbeError::logged(
        dev,
        EOPNOTSUPP,
        fmt!(
            "the medium is bad where the info block of {} would be. To read it as raw, {}write 1 \
             to its force_raw and bind it. To recreate it, write zeroes to the first 8 KiB of that \
             disk, which clears the poison, then `ndctl create-namespace -f -e {}`",
            name,
            release(dev),
            name
        ),
    )
}

/// Logs that the medium is bad where the `struct page`s are, and could not be cleared.
pub fn bad_memmap(dev: &Device<Core<'_>>, name: &CStr) -> ProbeError {
    ProbeError::logged(
        dev,
        EOPNOTSUPP,
        fmt!(
            "the medium is bad where {} has its struct pages (map=dev), and the platform could not \
             clear it. To save the data, {}write 1 to its force_raw and bind it; \
             `ndctl create-namespace -f -e {} -m fsdax -M mem` recreates it",
            name,
            release(dev),
            name
        ),
    )
}

/// Logs that a bad sector elsewhere prevents libnvdimm from setting up `struct page`s on the
/// medium.
pub fn bad_outside(dev: &Device<Core<'_>>, name: &CStr, address: PhysAddr) -> ProbeError {
    ProbeError::logged(
        dev,
        EOPNOTSUPP,
        fmt!(
            "{} has its struct pages on the medium (map=dev), and libnvdimm would take the bad \
             sector at {:#x}, which is elsewhere, for one in its struct pages. Clear it in the \
             namespace that has it (`ndctl list -NM` shows it; `ndctl clear-errors`), then bind \
             this one. If it cannot be cleared, save the data by force_raw, and recreate {} with \
             `ndctl create-namespace -f -e {} -m fsdax -M mem`",
            name,
            address,
            name,
            name
        ),
    )
}

/// Logs that sector mode is not possible, because the btt driver would sleep with a spinlock held.
pub fn sleeping_flush(dev: &Device<Core<'_>>, name: &CStr) -> ProbeError {
    ProbeError::logged(
        dev,
        EOPNOTSUPP,
        fmt!(
            "sector mode is not possible in the region of {}: nd_btt would sleep with a spinlock \
             held while the host flushes. `ndctl create-namespace -f -e {} -m fsdax` (or `-m raw`) \
             recreates it without the data; to read it as raw, {}write 1 to its force_raw and bind \
             it",
            name,
            name,
            release(dev)
        ),
    )
}

/// Logs that a pfn or btt device cannot be set up, although its info block is valid or is to be
/// written.
pub fn not_set_up(dev: &Device<Core<'_>>, name: &CStr, err: Error) -> ProbeError {
    let (mode, overwrites) = match dev.kind() {
        Kind::Btt => (" -m sector", ", and all data of it are lost"),
        Kind::Pfn | Kind::Namespace => ("", ""),
    };

    ProbeError::logged(
        dev,
        err,
        fmt!(
            "cannot be set up (error {}); the lines before may say why. \
             `ndctl create-namespace -f -e {}{}` recreates the namespace{}",
            err.to_errno(),
            name,
            mode,
            overwrites
        ),
    )
}

/// Returns the step that releases the namespace of a device, as text to be put before the next
/// step. Empty for a namespace.
fn release(dev: &Device<Core<'_>>) -> &'static str {
    match dev.kind() {
        Kind::Pfn | Kind::Btt => {
            "write an empty line to the attribute `namespace` of this device, then "
        }
        Kind::Namespace => "",
    }
}

/// Logs that writes to a device are refused or permitted, because its region is read-only or has
/// become writable.
pub fn report_read_only(dev: &Device<Bound>, read_only: bool) {
    if read_only {
        dev.info(fmt!(
            "the region is read-only: writes are refused until 0 is written to \
             /sys/bus/nd/devices/{}/../read_only. If an NVDIMM is unarmed, what is written then is \
             lost when the power fails\n",
            dev.name()
        ));
    } else {
        dev.info(fmt!("the region is writable again\n"));
    }
}

/// Logs why the memory of a device cannot be used.
pub fn unusable(
    shared: &Shared,
    dev: &Device<Core<'_>>,
    range: &Range<PhysAddr>,
    err: Error,
) -> ProbeError {
    let (start, last) = (range.start, range.end.saturating_sub(1));

    if let Some(retired) = shared.devices.find_retired(range) {
        ProbeError::logged(
            dev,
            err,
            fmt!(
                "could not reserve [mem {:#x}-{:#x}]: it was retired, and is still in use. End \
                 these users, then bind it again: {}",
                start,
                last,
                retired.describe()
            ),
        )
    } else if err == EBUSY {
        ProbeError::logged(
            dev,
            err,
            fmt!(
                "could not reserve [mem {:#x}-{:#x}]: it is in use. /proc/iomem names its user: \
                 unbind that device first",
                start,
                last
            ),
        )
    } else {
        ProbeError::logged(
            dev,
            err,
            fmt!(
                "could not map [mem {:#x}-{:#x}]: error {}. If it is -12, free memory, then bind \
                 the device again; else the lines before may say why",
                start,
                last,
                err.to_errno()
            ),
        )
    }
}
