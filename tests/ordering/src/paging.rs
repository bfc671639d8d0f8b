// SPDX-License-Identifier: GPL-2.0

//! Translation of virtual to physical addresses, by the page tables of the guest. They have four
//! levels.

const PRESENT: u64 = 1;
/// The entry maps a page, however large, and not a further table.
const LARGE: u64 = 1 << 7;
/// The address of a table or a page.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Translates an address, with the value of CR3, and a function that reads an entry at a physical
/// address.
pub fn physical(cr3: u64, address: u64, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let mut table = cr3 & FRAME;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let entry = read(table + ((address >> shift) & 0x1ff) * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || level < 3 && entry & LARGE != 0 {
            let within = (1 << shift) - 1;
            return Some((entry & FRAME & !within) | (address & within));
        }
        table = entry & FRAME;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: u64 = 0xffff_8880_4030_5678;

    /// Tables at 0x1000 to 0x4000, in which the last entry is at `level`.
    fn lookup(level: u64, last: u64) -> Option<u64> {
        physical(0x1000 | 0x18, ADDRESS, |at| {
            let found = 3 - (at / 0x1000 - 1);
            let index = (ADDRESS >> (12 + 9 * found)) & 0x1ff;
            assert_eq!(at & 0xfff, index * 8);
            Some(if found == level {
                last
            } else {
                ((at & FRAME) + 0x1000) | 0x63
            })
        })
    }

    #[test]
    fn pages_have_three_sizes() {
        assert_eq!(lookup(0, 0x8000_0001_2345_6063), Some(0x1_2345_6678));
        assert_eq!(lookup(1, 0x8000_0001_2340_00e3), Some(0x1_2350_5678));
        assert_eq!(lookup(2, 0x1_4000_00e3), Some(0x1_4030_5678));
    }

    /// In the entry of a small page the bit has another meaning.
    #[test]
    fn a_small_page_is_never_large() {
        assert_eq!(lookup(0, 0x1_2345_60e3), Some(0x1_2345_6678));
    }

    #[test]
    fn an_absent_page_has_no_address() {
        assert_eq!(lookup(0, 0x1_2345_6062), None);
        assert_eq!(lookup(3, 0), None);
        assert_eq!(physical(0x1000, ADDRESS, |_| None), None);
    }
}
