// SPDX-License-Identifier: GPL-2.0

//! The memory of a range: its pieces, and one address for all.

use super::{
    claimed_device::DaxDevice,
    leases::{
        Found,
        LeasedMemory,
        Leases,
        Table, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::numa::Node;
use crate::abstractions::kernel_ext::{
    alloc::vec_on_node,
    task::cond_resched, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc, //
};

/// A contiguous piece of memory.
pub(super) struct Piece {
    pub(super) leases: Arc<Leases>,
    memory: Arc<dyn LeasedMemory>,
    /// Where it begins in the data of the memory.
    at: usize,
    /// Where it begins in the range.
    pub(super) start: usize,
    len: usize,
}

impl Piece {
    /// Returns the part of the piece that is in the `len` bytes at `offset` in the data of the
    /// memory, as offsets in the range.
    pub(super) fn overlap(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let at = self.at as u64;
        let first = offset.max(at);
        let end = offset
            .saturating_add(len)
            .min(at.saturating_add(self.len as u64));
        let in_range = |offset: u64| offset.saturating_sub(at).saturating_add(self.start as u64);

        (first < end).then(|| in_range(first)..in_range(end))
    }
}

/// Translates the `len` bytes from `start` on of a DAX device, whole pages. Calls `f` for each
/// contiguous part, with where it was found, its offset in the range, and its length.
fn walk(
    table: &Table,
    dax: &DaxDevice,
    start: u64,
    len: usize,
    mut f: impl FnMut(Found, usize, usize) -> Result,
) -> Result {
    let first = usize::try_from(start >> PAGE_SHIFT)?;
    let mut done: usize = 0;

    while done < len {
        let pgoff = first.checked_add(done >> PAGE_SHIFT).ok_or(ERANGE)?;
        let rest = len.saturating_sub(done);
        // The lock is held until there is a reference to the memory.
        let (found, nr) = dax.with_lock(|dax| {
            let (addr, nr) = dax.translate(pgoff, rest >> PAGE_SHIFT)?;
            Ok::<_, Error>((table.find(addr)?, nr))
        })?;
        let part = (nr << PAGE_SHIFT).min(rest);
        f(found, done, part)?;
        done = done.saturating_add(part);
        cond_resched();
    }
    Ok(())
}

/// How many bytes are read by one call. The copy that survives machine checks takes a length of 32
/// bits.
const MAX_COPY: usize = 1 << 30;
/// The largest allocation that the kernel makes without a warning (`kvmalloc()`).
const MAX_ALLOCATION: usize = c_int::MAX as usize;

/// Calls `f` for parts of `len` bytes that are at most `max` bytes long, with where each begins,
/// and its length.
fn for_each_copy(len: usize, max: usize, mut f: impl FnMut(usize, usize) -> Result) -> Result {
    let mut done = 0;

    while done < len {
        let part = len.saturating_sub(done).min(max);
        f(done, part)?;
        done = done.saturating_add(part);
    }
    Ok(())
}

/// Returns the number of pages of System RAM. `vmap()` does not map more.
fn total_ram_pages() -> usize {
    // SAFETY: The number may be read at any time.
    unsafe { bindings::totalram_pages() }
}

/// Checks whether a range of so many pages in so many pieces can be mapped, and listed. A range in
/// one piece always can.
fn check_size(pieces: usize, nr_pages: usize, ram_pages: usize) -> Result {
    let of_pages = nr_pages.saturating_mul(size_of::<*mut bindings::page>());
    let of_pieces = pieces.saturating_mul(size_of::<Piece>());

    if pieces > 1 && (nr_pages > ram_pages || of_pages.max(of_pieces) > MAX_ALLOCATION) {
        return Err(E2BIG);
    }
    Ok(())
}

/// The pieces of a range, in order, without gaps.
///
/// # Invariants
///
/// There is at least one piece. The bytes of each are in the data of its memory. If there is more
/// than one, all begin and end with a page that has a `struct page`.
pub(super) struct Pieces(KVVec<Piece>);

impl Pieces {
    /// Finds the memory of the `len` bytes from `start` on of a DAX device, whole pages. May sleep.
    ///
    /// # Errors
    ///
    /// Those of [`Table::find`] and of the translation, [`E2BIG`] if several pieces are too large
    /// for [`Address::new`], [`EAGAIN`] if the table of a device-mapper device has changed
    /// meanwhile, [`EIO`] if a piece is not all in the data, and [`ENOMEM`].
    pub(super) fn find(table: &Table, dax: &DaxDevice, start: u64, len: usize) -> Result<Self> {
        // The first walk counts.
        let mut count: usize = 0;
        walk(table, dax, start, len, |_, _, _| {
            count = count.saturating_add(1);
            check_size(count, len >> PAGE_SHIFT, total_ram_pages())
        })?;
        let mut pieces: KVVec<Piece> = vec_on_node(count, GFP_KERNEL, Node::NONE)?;

        walk(
            table,
            dax,
            start,
            len,
            |(leases, memory, at), begin, len| {
                at.checked_add(len)
                    .filter(|end| *end <= memory.size())
                    .ok_or(EIO)?;
                let is_next = |piece: &Piece| piece.at.checked_add(piece.len) == Some(at);
                match pieces.last_mut() {
                    Some(last) if Arc::ptr_eq(&last.leases, &leases) && is_next(last) => {
                        last.len = last.len.saturating_add(len);
                        Ok(())
                    }
                    // If there are more than before, the table of the device has changed.
                    _ => pieces
                        .push_within_capacity(Piece {
                            leases,
                            memory,
                            at,
                            start: begin,
                            len,
                        })
                        .map_err(|_| EAGAIN),
                }
            },
        )?;

        // INVARIANT: The pieces were checked. Translations are of whole pages with `struct page`s.
        if pieces.is_empty() {
            return Err(EINVAL);
        }
        Ok(Self(pieces))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.0.iter()
    }

    /// Returns the index of the last piece that does not begin behind `offset`.
    fn index_of(&self, offset: usize) -> usize {
        let (mut low, mut high) = (0_usize, self.0.len());

        // The piece at `low` does not begin behind it, and that at `high` does, if there is one.
        while high.saturating_sub(low) > 1 {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            match self.0.get(middle) {
                Some(piece) if piece.start <= offset => low = middle,
                _ => high = middle,
            }
        }
        low
    }

    /// Calls `f` for the parts of the pieces that have the `len` bytes from `offset` on, with the
    /// memory, the offset in it, the length, and the offset from the first of the bytes.
    fn for_each_part(
        &self,
        offset: usize,
        len: usize,
        mut f: impl FnMut(&dyn LeasedMemory, usize, usize, usize) -> Result,
    ) -> Result {
        let mut done: usize = 0;

        for piece in self.0.get(self.index_of(offset)..).unwrap_or_default() {
            if done >= len {
                break;
            }
            let skipped = offset.saturating_add(done).saturating_sub(piece.start);
            let part = piece
                .len
                .saturating_sub(skipped)
                .min(len.saturating_sub(done));
            f(&*piece.memory, piece.at.saturating_add(skipped), part, done)?;
            done = done.saturating_add(part);
        }
        if done < len {
            return Err(ERANGE);
        }
        Ok(())
    }

    /// Returns whether any of the memory refuses writes.
    pub(super) fn are_read_only(&self) -> bool {
        self.iter().any(|piece| piece.memory.is_read_only())
    }

    /// Copies the bytes from `offset` on to `buffer`. Does not sleep.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> Result {
        self.for_each_part(offset, buffer.len(), |memory, at, len, done| {
            if !memory.is_good(at, len) {
                return Err(EIO);
            }
            for_each_copy(len, MAX_COPY, |first, len| {
                let to = done.saturating_add(first);
                let to = buffer.get_mut(to..).and_then(|rest| rest.get_mut(..len));
                let from = memory.readable(at.saturating_add(first), len);
                from.ok_or(EIO)?.read(to.ok_or(ERANGE)?).map_err(|_| EIO)
            })
        })
    }

    /// Copies `buffer` to the bytes from `offset` on, past the CPU caches. Does not sleep.
    pub(super) fn write(&self, offset: usize, buffer: &[u8]) -> Result {
        self.for_each_part(offset, buffer.len(), |memory, at, len, done| {
            if memory.is_read_only() {
                return Err(EROFS);
            }
            if !memory.is_good(at, len) {
                return Err(EIO);
            }
            let from = buffer.get(done..).and_then(|rest| rest.get(..len));
            memory
                .writable(at, len)
                .ok_or(EIO)?
                .write(from.ok_or(ERANGE)?);
            Ok(())
        })
    }
}

/// One contiguous kernel address of all pieces of a range.
///
/// # Invariants
///
/// `Mapped` has the result of a call of `vmap`.
pub(super) enum Address {
    /// In the linear mapping.
    Linear(NonNull<u8>),
    /// The pieces were mapped again.
    Mapped(NonNull<u8>),
}

// SAFETY: Mappings may be used and removed by any thread.
unsafe impl Send for Address {}

// SAFETY: Through a shared reference the address is only read.
unsafe impl Sync for Address {}

impl Address {
    /// Returns an address for all pieces. May sleep.
    ///
    /// # Errors
    ///
    /// [`E2BIG`] if `vmap()` does not map as many pages, [`ENOMEM`] if it fails.
    ///
    /// # Safety
    ///
    /// The pieces must stay until the result is dropped.
    pub(super) unsafe fn new(pieces: &Pieces) -> Result<Self> {
        let mut all = pieces.iter();
        if let (Some(piece), None) = (all.next(), all.next()) {
            let addr = piece.memory.addr_of(piece.at);
            return Ok(Self::Linear(NonNull::new(addr).ok_or(ENXIO)?));
        }

        let nr_pages = pieces.iter().fold(0_usize, |sum, piece| {
            sum.saturating_add(piece.len >> PAGE_SHIFT)
        });
        check_size(pieces.iter().count(), nr_pages, total_ram_pages())?;

        let mut pages = vec_on_node(nr_pages, GFP_KERNEL, Node::NONE)?;
        for piece in pieces.iter() {
            for index in 0..piece.len >> PAGE_SHIFT {
                let offset = piece.at.saturating_add(index << PAGE_SHIFT);
                let page = piece.memory.page_of(offset);
                if page.is_null() {
                    return Err(EIO);
                }
                pages.push_within_capacity(page).map_err(|_| ENOMEM)?;
            }
            cond_resched();
        }
        // SAFETY: The pages are those of the pieces, which stay until the mapping is removed.
        let addr = unsafe { bindings::vmap_dax_pages(pages.as_mut_ptr(), nr_pages as c_uint) };
        // INVARIANT: The pages were just mapped.
        Ok(Self::Mapped(NonNull::new(addr.cast()).ok_or(ENOMEM)?))
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        match self {
            Self::Linear(addr) | Self::Mapped(addr) => addr.as_ptr(),
        }
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        if let Self::Mapped(addr) = self {
            // SAFETY: By the type invariant `vmap` has returned the address.
            unsafe { bindings::vunmap(addr.as_ptr().cast()) };
        }
    }
}

#[kunit_tests(pmem_rs_lease)]
mod tests {
    use super::{
        super::leases::TABLE,
        *, //
    };
    use crate::abstractions::{
        compat::error::code::EOPNOTSUPP,
        kernel::fs::dax::{
            testing::{
                pages,
                Silent,
                TestPagemap, //
            },
            User, //
        }, //
    };
    use kernel::page::PAGE_SIZE;

    /// Makes a piece of whole pages.
    fn piece(memory: &TestPagemap<Silent>, at: usize, start: usize, len: usize) -> Result<Piece> {
        let reference = memory.pages.reference().ok_or(ENXIO)?;

        Ok(Piece {
            leases: memory.leases().clone(),
            memory: Arc::new(reference, GFP_KERNEL)?,
            at: at << PAGE_SHIFT,
            start: start << PAGE_SHIFT,
            len: len << PAGE_SHIFT,
        })
    }

    fn pieces<const N: usize>(all: [Piece; N]) -> Result<Pieces> {
        let mut pieces = KVVec::new();

        for piece in all {
            pieces.push(piece, GFP_KERNEL)?;
        }
        Ok(Pieces(pieces))
    }

    #[test]
    fn one_piece_has_the_linear_address() -> Result {
        let memory = pages()?;
        let one = pieces([piece(&memory, 3, 0, 2)?])?;

        // SAFETY: The memory is dropped last.
        let addr = unsafe { Address::new(&one) }?;
        assert!(matches!(addr, Address::Linear(_)));
        assert!(one
            .iter()
            .all(|piece| addr.as_ptr() == piece.memory.addr_of(3 << PAGE_SHIFT)));
        Ok(())
    }

    #[test]
    fn several_pieces_are_mapped_one_after_the_other() -> Result {
        let memory = pages()?;
        let two = pieces([piece(&memory, 7, 0, 2)?, piece(&memory, 3, 2, 1)?])?;
        // SAFETY: The memory is dropped last.
        let addr = unsafe { Address::new(&two) }?;
        let pages: [usize; 3] = [7, 8, 3];

        assert!(matches!(addr, Address::Mapped(_)));
        for (index, page) in pages.iter().enumerate() {
            let mapped = addr.as_ptr().wrapping_add(index << PAGE_SHIFT);
            // SAFETY: The page is mapped there, and is not accessed.
            let found = unsafe { bindings::vmalloc_to_page(mapped.cast()) };
            assert!(two
                .iter()
                .all(|piece| found == piece.memory.page_of(page << PAGE_SHIFT)));
        }
        Ok(())
    }

    #[test]
    fn a_copy_is_divided_at_the_borders_of_pieces() -> Result {
        let memory = pages()?;
        let two = pieces([piece(&memory, 7, 0, 2)?, piece(&memory, 3, 2, 1)?])?;
        let mut parts = KVec::new();

        two.for_each_part(2 * PAGE_SIZE - 10, 30, |_, at, len, done| {
            Ok(parts.push((at, len, done), GFP_KERNEL)?)
        })?;
        assert!(*parts == [(9 * PAGE_SIZE - 10, 10, 0), (3 * PAGE_SIZE, 20, 10)]);
        let beyond = two.for_each_part(2 * PAGE_SIZE, PAGE_SIZE + 1, |_, _, _, _| Ok(()));
        assert!(beyond == Err(ERANGE));
        Ok(())
    }

    #[test]
    fn a_copy_of_four_gibibytes_is_made_in_parts() -> Result {
        let mut parts = KVec::new();

        for_each_copy((4 << 30) + 1, MAX_COPY, |first, len| {
            c_uint::try_from(len)?;
            Ok(parts.push((first, len), GFP_KERNEL)?)
        })?;
        assert!(parts.len() == 5);
        assert!(parts.last() == Some(&(4 << 30, 1)));
        Ok(())
    }

    #[test]
    fn what_cannot_be_mapped_or_listed_is_too_large() {
        let most = MAX_ALLOCATION / size_of::<usize>();

        assert!(check_size(1, usize::MAX, 1).is_ok());
        assert!(check_size(2, 100, 100).is_ok());
        assert!(check_size(2, 101, 100) == Err(E2BIG));
        assert!(check_size(2, most, usize::MAX).is_ok());
        assert!(check_size(2, most + 1, usize::MAX) == Err(E2BIG));
        assert!(check_size(most, most, usize::MAX) == Err(E2BIG));
    }

    #[test]
    fn a_failure_is_found_by_its_place_in_the_range() -> Result {
        let memory = pages()?;
        let piece = piece(&memory, 7, 2, 2)?;
        let page = PAGE_SIZE as u64;

        assert!(piece.overlap(8 * page, page) == Some(3 * page..4 * page));
        assert!(piece.overlap(6 * page, 2 * page) == Some(2 * page..3 * page));
        assert!(piece.overlap(0, 100 * page) == Some(2 * page..4 * page));
        assert!(piece.overlap(6 * page, page).is_none());
        assert!(piece.overlap(9 * page, page).is_none());
        Ok(())
    }

    #[test]
    fn memory_can_be_leased_until_it_is_closed() -> Result {
        let TestPagemap { mut pages, queue } = pages()?;
        let table = TABLE.get().ok_or(ENXIO)?;
        let addr = piece_addr(&pages);

        let found = table.find(addr)?;
        assert!(Arc::ptr_eq(&found.0, pages.leases()));
        assert!(found.2 == PAGE_SIZE);
        drop(found);
        assert!(!pages.leases().are_held() && pages.leases().wait_returned(1));
        assert!(!pages.leases().fail(0, PAGE_SIZE as u64));

        pages.close_to_mappings();
        assert!(table.find(addr).is_err_and(|err| err == ENXIO));
        // No lease has a reference. The killed count becomes zero after a grace period.
        let (mut revoked, _) = pages.close().revoke();
        revoked.wait_for(User::Reference, 1000);
        assert!(revoked.free().is_ok());
        assert!(table.find(addr).is_err_and(|err| err == EOPNOTSUPP));
        drop(queue);
        Ok(())
    }

    /// Returns the address of the second page.
    fn piece_addr(pages: &crate::abstractions::kernel::fs::dax::Pagemap<Silent>) -> usize {
        pages.reference().map_or(0, |memory| {
            LeasedMemory::addr_of(&memory, PAGE_SIZE) as usize
        })
    }
}
