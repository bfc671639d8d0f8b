// SPDX-License-Identifier: GPL-2.0

//! Checks that a namespace is where the labels of its NVDIMMs allocate space to it.
//!
//! libnvdimm computes the range of a namespace from several labels, and checks each of them alone.
//! The medium is untrusted: nothing here overflows or panics. This file uses only `core`:
//! `tests/host/tests/placement.rs` compiles it for the host.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

use core::ops::Range;

/// Returns whether a namespace is within its region. An empty one is not.
pub(super) fn is_within(namespace: &Range<u64>, region: &Range<u64>) -> bool {
    region.start <= namespace.start
        && namespace.start < namespace.end
        && namespace.end <= region.end
}

/// The part of a namespace on each NVDIMM of its region. It is the same on all, since the region is
/// interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it begins, counted from where the region begins on the NVDIMM.
    offset: u64,
    /// Its size in bytes.
    len: u64,
}

impl Part {
    /// Returns the part of a namespace in a region of so many NVDIMMs: the inverse of what
    /// `nd_namespace_pmem_set_resource()` computes. [`None`] if there is none.
    pub(super) fn of(namespace: &Range<u64>, region_start: u64, nvdimms: u64) -> Option<Self> {
        let share = |bytes: u64| {
            (bytes.checked_rem(nvdimms)? == 0)
                .then(|| bytes.checked_div(nvdimms))
                .flatten()
        };

        Some(Self {
            offset: share(namespace.start.checked_sub(region_start)?)?,
            len: share(namespace.end.checked_sub(namespace.start)?)?,
        })
    }

    /// Returns whether this part is all that an NVDIMM has allocated to the namespace. The region
    /// begins at `start` there. The address of the last byte is included in each allocation.
    ///
    /// True if there is no allocation: then its labels are not known.
    pub(super) fn is_all_of(
        &self,
        start: u64,
        mut allocations: impl Iterator<Item = (u64, u64)>,
    ) -> bool {
        let expected = || {
            let first = start.checked_add(self.offset)?;
            let last = first.checked_add(self.len.checked_sub(1)?)?;
            Some((first, last))
        };

        match allocations.next() {
            None => true,
            Some(found) => Some(found) == expected() && allocations.next().is_none(),
        }
    }
}
