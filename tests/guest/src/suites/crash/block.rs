// SPDX-License-Identifier: GPL-2.0

//! The layout of the blocks of the writers.
//!
//! Every word of a block identifies the write that it is from, and its position. So a torn block is
//! told from one that was not written, and from one that no writer has written.

use crate::sectors::Buffer;

/// The size of a block in bytes: a sector of the btt, and a page.
pub const BLOCK: usize = 4096;
const WORD: usize = 8;

/// A block of a writer, in a campaign.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub seed: u64,
    pub writer: u32,
    pub block: u32,
}

/// The contents of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Words of several writes, the oldest and the newest of which are given. They are equal if the
    /// block is whole. Write 0 stands for zeros: the block was never written.
    Written { oldest: u32, newest: u32 },
    /// The word at this index was written by no writer.
    Damaged { at: usize },
}

impl Slot {
    /// Fills the block as a write does.
    pub fn fill(self, write: u32, bytes: &mut [u8]) {
        for (index, word) in bytes.chunks_exact_mut(WORD).enumerate() {
            word.copy_from_slice(&self.word(write, index).to_le_bytes());
        }
    }

    /// Classifies the contents of a block.
    pub fn classify(self, bytes: &[u8]) -> Content {
        let (mut oldest, mut newest) = (u32::MAX, 0);
        for (index, bytes) in bytes.chunks_exact(WORD).enumerate() {
            let mut word = [0; WORD];
            word.copy_from_slice(bytes);
            let word = u64::from_le_bytes(word);
            let write = (word >> 32) as u32;
            if word != self.word(write, index) {
                return Content::Damaged { at: index * WORD };
            }
            oldest = oldest.min(write);
            newest = newest.max(write);
        }
        Content::Written { oldest, newest }
    }

    /// The upper half is the write; the lower half is a hash of everything that identifies the
    /// word.
    fn word(self, write: u32, index: usize) -> u64 {
        if write == 0 {
            return 0;
        }
        let place = (u64::from(self.writer) << 48) | (u64::from(self.block) << 16) | index as u64;
        let mut mixed = self.seed;
        for value in [place, u64::from(write)] {
            mixed = (mixed ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^= mixed >> 32;
        }
        (u64::from(write) << 32) | (mixed & 0xffff_ffff)
    }
}

/// Consecutive blocks of one write, in a buffer that is suited for `O_DIRECT`.
pub fn filled(slots: impl ExactSizeIterator<Item = Slot>, write: u32) -> Buffer {
    let mut bytes = Buffer::of_pages(slots.len() * BLOCK, 0);
    for (slot, block) in slots.zip(bytes.chunks_exact_mut(BLOCK)) {
        slot.fill(write, block);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot {
        seed: 7,
        writer: 3,
        block: 9,
    };

    fn block(write: u32) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        SLOT.fill(write, &mut bytes);
        bytes
    }

    fn written(oldest: u32, newest: u32) -> Content {
        Content::Written { oldest, newest }
    }

    #[test]
    fn a_whole_block_has_its_write() {
        assert_eq!(SLOT.classify(&block(5)), written(5, 5));
        assert_eq!(SLOT.classify(&[0; BLOCK]), written(0, 0));
    }

    #[test]
    fn a_torn_block_has_both_writes() {
        for at in (WORD..BLOCK).step_by(WORD) {
            let mut torn = block(5);
            torn[at..].copy_from_slice(&block(6)[at..]);
            assert_eq!(SLOT.classify(&torn), written(5, 6));
            torn[..at].fill(0);
            assert_eq!(SLOT.classify(&torn), written(0, 6));
        }
    }

    #[test]
    fn a_wrong_word_is_damage() {
        for bit in 0..8 * WORD {
            let mut bytes = block(5);
            bytes[64 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SLOT.classify(&bytes), Content::Damaged { at: 64 });
        }
        // Words of another block, writer, campaign or position do not match either.
        for other in [
            Slot { block: 8, ..SLOT },
            Slot { writer: 2, ..SLOT },
            Slot { seed: 8, ..SLOT },
        ] {
            assert_eq!(other.classify(&block(5)), Content::Damaged { at: 0 });
        }
        let mut moved = block(5);
        moved.rotate_left(WORD);
        assert_eq!(SLOT.classify(&moved), Content::Damaged { at: 0 });
    }
}
