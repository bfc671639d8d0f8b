// SPDX-License-Identifier: GPL-2.0

//! Bad sectors in the memory map of a pfn device whose `struct page`s are on the medium.
//!
//! The kernel writes the memory map when a range gets its `struct page`s, and a store to poison is
//! a machine check. libnvdimm clears bad sectors before (`nd_pfn_clear_memmap_errors()` in
//! `drivers/nvdimm/pfn_devs.c`), but it looks up sector numbers of the namespace in the list of the
//! region, whose numbers count from the start of the region:
//!
//! - It misses those of a namespace that is not the first of its region.
//! - It takes bad sectors of other namespaces for those of the memory map. Then it fails with a
//!   warning, or overwrites the page before the namespace and never ends.
//! - It fails with a warning if a run of bad sectors continues into the data.
//! - It never ends if the platform cannot clear a sector.
//!
//! So the memory map is cleared here, and libnvdimm is only called if it will find no bad sector.

use super::{
    enabled_namespace::{
        EnabledNamespace,
        SetupError,
        INFO_BLOCK_SIZE, //
    },
    infoblock::{
        InfoBlockError,
        NamespaceMode,
        TOO_FAR_FOR_MEMMAP, //
    },
};
use crate::abstractions::kernel::{
    badblocks::Badblocks,
    memremap::compat_align, //
};
use core::ops::Range;
use kernel::{
    block::SECTOR_SIZE,
    io::PhysAddr,
    prelude::*, //
};

/// Where libnvdimm begins to look for bad sectors, and the end of the last info block, in bytes
/// from the start of a namespace.
const START: u64 = 2 * INFO_BLOCK_SIZE as u64;

fn sector_of(offset: u64) -> u64 {
    offset / u64::from(SECTOR_SIZE)
}

impl EnabledNamespace<'_> {
    /// Returns whether libnvdimm writes an info block for a new pfn device. Otherwise it refuses
    /// the device, and logs why.
    pub(super) fn can_be_new(&self) -> Result<bool> {
        let start = self.namespace().range()?.start;
        let is_aligned = start & compat_align().saturating_sub(1) == 0;

        Ok(is_aligned && !self.namespace().device().region().is_read_only())
    }

    /// Clears the bad sectors between the info block and the data. The data is at `data`. For a new
    /// device that is [`None`]: then the data begins where libnvdimm will put it for `align`. May
    /// sleep.
    ///
    /// libnvdimm may refuse a new device nevertheless, if a `struct page` has more than 64 bytes.
    ///
    /// # Errors
    ///
    /// - [`SetupError::BadMemmap`] if a sector could not be cleared.
    /// - [`SetupError::BadOutside`] if libnvdimm would find other bad sectors.
    /// - As for [`Namespace::enable`](super::Namespace::enable).
    pub(super) fn clear_memmap(
        self,
        data: Option<Range<PhysAddr>>,
        align: u64,
    ) -> Result<Self, SetupError> {
        let range = self.namespace().range()?;
        let region = self.namespace().device().region();
        let end = match data {
            Some(data) => data.start.checked_sub(range.start),
            None if self.can_be_new()? => self.expected()?.new_data_offset(align),
            None => None,
        };
        // There is no room for data, or the device cannot be new. libnvdimm refuses both next.
        let Some(end) = end else { return Ok(self) };
        if end >= TOO_FAR_FOR_MEMMAP {
            let error = InfoBlockError::DataOffset;
            return Err(SetupError::InfoBlock(NamespaceMode::Fsdax, error));
        }

        let memmap = range.start..range.start.saturating_add(end);
        let this = match self.bad_sectors(&memmap)? {
            None => self,
            Some(bad) => {
                let this = self.disable().enable_bytes(end)?;
                this.zero_bad_blocks(&bad, START..end)
                    .map_err(|err| match err {
                        ENOMEM => SetupError::Other(err),
                        _ => SetupError::BadMemmap,
                    })?;
                this
            }
        };

        let cleared = memmap.start.saturating_add(START)..memmap.end;
        let first_sector = sector_of(START);
        match region.first_bad(first_sector, sector_of(end).saturating_sub(first_sector)) {
            Some(address) if cleared.contains(&address) => Err(SetupError::BadMemmap),
            Some(address) => Err(SetupError::BadOutside(address)),
            None => Ok(this),
        }
    }

    /// Returns the bad sectors in a physical range, counted from its start, if there are any.
    fn bad_sectors(&self, range: &Range<PhysAddr>) -> Result<Option<Pin<KBox<Badblocks>>>> {
        let bad = KBox::pin_init(Badblocks::new(), GFP_KERNEL)?;

        self.namespace()
            .device()
            .region()
            .populate_badblocks(&bad, range);
        Ok(Some(bad).filter(|bad| !bad.is_empty()))
    }

    /// Writes zeroes to the blocks of 4 KiB within `offsets` that have bad sectors. Whole blocks
    /// are written, because a platform may clear larger units than a sector.
    ///
    /// # Errors
    ///
    /// [`EIO`] if a block could not be cleared.
    fn zero_bad_blocks(&self, bad: &Badblocks, offsets: Range<u64>) -> Result {
        const BLOCK: u64 = INFO_BLOCK_SIZE as u64;
        let mut zeroes = KBox::new([0; INFO_BLOCK_SIZE], GFP_KERNEL)?;
        let end_sector = sector_of(offsets.end);
        let mut next_sector = sector_of(offsets.start);

        while let Some(run) = bad.check(next_sector, end_sector.saturating_sub(next_sector)) {
            let first_sector = run.first.max(next_sector);
            let block = first_sector.saturating_mul(u64::from(SECTOR_SIZE)) / BLOCK;
            let start = block.saturating_mul(BLOCK);
            let len = offsets.end.saturating_sub(start).min(BLOCK);

            let zeroes = zeroes.get_mut(..len as usize).ok_or(EINVAL)?;
            // A write clears only what is on the list of the namespace, which may be full.
            if !self.is_bad(start, len) {
                return Err(EIO);
            }
            self.write(start, zeroes)?;
            // `nsio_rw_bytes()` takes an error of `nvdimm_clear_poison()` for a success.
            if self.is_bad(start, len) {
                return Err(EIO);
            }
            next_sector = sector_of(start.saturating_add(BLOCK));
        }
        Ok(())
    }
}
