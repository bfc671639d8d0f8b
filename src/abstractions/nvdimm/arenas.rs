// SPDX-License-Identifier: GPL-2.0

//! Checks of all arenas of a btt, and of their logs.
//!
//! The btt driver follows the entries of a log when the device is bound. It does not check whether
//! the arena has the sectors and blocks that they name.
//!
//! As for info blocks, the medium is untrusted, and this file uses only `core`:
//! `tests/host/tests/infoblock.rs` compiles it for the host.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

use super::infoblock::{
    check_sector_size,
    number,
    Expected,
    InfoBlock,
    InfoBlockError,
    NamespaceMode,
    LEN,
    LOG_GROUP, //
};

/// Checks the info blocks and the logs of all arenas of a btt, which `read` reads from an offset in
/// the namespace into `block`.
///
/// A namespace without a block, or with one that is damaged or of another namespace, passes: the
/// btt driver makes new arenas. It does so only for the first block.
///
/// The loop ends, because each arena but the last has the largest size, and all are within the
/// namespace.
pub(super) fn check_arenas<E: From<InfoBlockError>>(
    expected: &Expected,
    block: &mut [u8; LEN],
    mut read: impl FnMut(u64, &mut [u8; LEN]) -> Result<(), E>,
) -> Result<(), E> {
    // New arenas have sectors of the configured size. libnvdimm may have read it from a block.
    if let Some(size) = expected.sector_size {
        check_sector_size(size as u64)?;
    }

    read(expected.offset, block)?;
    let Some(first) = InfoBlock::of(block).filter(|block| block.mode() == NamespaceMode::Sector)
    else {
        return Ok(());
    };
    match first.check(expected) {
        Ok(()) => {}
        Err(error) if error.is_damaged_or_foreign() => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let mut distance = first.next_arena();
    let mut arena = *expected;
    Log::of(&first).check(&arena, block, &mut read)?;

    while distance != 0 {
        arena.offset = arena
            .offset
            .checked_add(distance)
            .ok_or(InfoBlockError::Arena)?;
        read(arena.offset, block).map_err(|_| InfoBlockError::FurtherArena)?;
        let next = InfoBlock::of(block)
            .filter(|block| block.mode() == NamespaceMode::Sector)
            .ok_or(InfoBlockError::FurtherArena)?;
        next.check(&arena).map_err(|error| {
            if error.is_damaged_or_foreign() {
                InfoBlockError::FurtherArena
            } else {
                error
            }
        })?;
        distance = next.next_arena();
        Log::of(&next).check(&arena, block, &mut read)?;
    }
    Ok(())
}

/// The log of an arena of a btt: for each lane a group of entries, which name the block that the
/// last write has made free.
struct Log {
    /// Its offset in the arena.
    offset: u64,
    /// The number of groups.
    groups: u64,
    /// The number of sectors of the arena.
    sectors: u64,
    /// The number of blocks of the arena.
    blocks: u64,
}

impl Log {
    /// Returns the log of an arena.
    fn of(block: &InfoBlock<'_>) -> Self {
        Self {
            offset: block.number(104, 8),
            groups: block.number(72, 4),
            sectors: block.number(60, 4),
            blocks: block.number(68, 4),
        }
    }

    /// Checks that all entries name blocks and sectors that the arena has. The info block of the
    /// arena was checked.
    ///
    /// A group has four entries. The btt driver uses the first and the second, or in old layouts
    /// the first and the third, and follows the newer one. It refuses a log whose other entries are
    /// not zero (`log_set_indices()`). An entry that was never written is zero as well, and the
    /// halves of one that was written incompletely are those of good entries.
    fn check<E: From<InfoBlockError>>(
        &self,
        arena: &Expected,
        block: &mut [u8; LEN],
        read: &mut impl FnMut(u64, &mut [u8; LEN]) -> Result<(), E>,
    ) -> Result<(), E> {
        const ENTRY: usize = 16;
        let mut offset = arena.offset.saturating_add(self.offset);
        let mut rest = self.groups.saturating_mul(LOG_GROUP);

        while rest != 0 {
            // A copy of the info block follows the log, so there is a whole block to read.
            read(offset, block).map_err(|_| InfoBlockError::UnreadableLog)?;
            let len = rest.min(LEN as u64);

            if !block
                .chunks_exact(ENTRY)
                .take(len as usize / ENTRY)
                .all(|entry| self.is_valid(entry))
            {
                return Err(InfoBlockError::Log.into());
            }
            offset = offset.saturating_add(len);
            rest = rest.saturating_sub(len);
        }
        Ok(())
    }

    /// Returns whether the btt driver can follow an entry (`struct log_entry`). It writes to the
    /// old block, and if the two blocks differ, it reads the map at the sector, and may write the
    /// new block there.
    fn is_valid(&self, entry: &[u8]) -> bool {
        // The other bits are flags.
        const BLOCK: u64 = (1 << 30) - 1;
        let sector = number(entry, 0, 4);
        let [old, new] = [4, 8].map(|offset| number(entry, offset, 4) & BLOCK);

        old < self.blocks && new < self.blocks && (old == new || sector < self.sectors)
    }
}
