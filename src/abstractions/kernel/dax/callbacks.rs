// SPDX-License-Identifier: GPL-2.0

//! The callbacks of the DAX core, and the private data of a device, by which they find the driver.

use super::{
    extent::{
        Extent,
        ReadLocked, //
    },
    operations::{
        AccessMode,
        Operations, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EHWPOISON;
use crate::abstractions::kernel::memremap::{
    PagemapInner,
    PagemapOperations,
    PagemapRef, //
};
use crate::abstractions::kernel_ext::iov::IterSource;
use kernel::{
    page::{
        PAGE_MASK,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};

/// The private data of a DAX device.
///
/// The callbacks in [`Self::OPS`] find it in the device and read `pgmap` without a check. A device
/// without pages has [`Self::NO_PAGES_OPS`].
pub(super) struct Private<T, P: PagemapOperations> {
    pgmap: Option<PagemapRef<P>>,
    data: Arc<T>,
}

/// The private data of a device that was alive when it was looked up.
///
/// # Invariants
///
/// The device has pages.
struct WithPages<'g, T, P: PagemapOperations>(&'g Private<T, P>);

impl<'g, T, P: PagemapOperations> WithPages<'g, T, P> {
    #[inline(always)]
    fn pgmap(&self) -> &'g PagemapInner<P> {
        // SAFETY: By the type invariant there are pages.
        unsafe { self.0.pgmap.as_ref().unwrap_unchecked() }
    }
}

impl<T: Operations<P>, P: PagemapOperations> Private<T, P> {
    const OPS: bindings::dax_operations = bindings::dax_operations {
        direct_access: Some(Self::direct_access_callback),
        zero_page_range: Some(Self::zero_page_range_callback),
        recovery_write: Some(Self::recovery_write_callback),
    };

    const NO_PAGES_OPS: bindings::dax_operations = bindings::dax_operations {
        direct_access: Some(refuse_direct_access),
        zero_page_range: Some(refuse_zero_page_range),
        recovery_write: None,
    };

    pub(super) fn new(data: Arc<T>, pgmap: Option<PagemapRef<P>>) -> Self {
        Self { pgmap, data }
    }

    pub(super) fn pgmap(&self) -> Option<&PagemapRef<P>> {
        self.pgmap.as_ref()
    }

    /// Returns the operations of a device that has `self` as its private data.
    pub(super) fn ops(&self) -> &'static bindings::dax_operations {
        if self.pgmap.is_some() {
            &Self::OPS
        } else {
            &Self::NO_PAGES_OPS
        }
    }

    /// Returns the private data of a device, unless the device is being killed.
    ///
    /// # Safety
    ///
    /// `dev` must be a device of a `Registration<T, P>` with pages. `dax_read_lock` must have been
    /// taken before the DAX core checked that the device is alive, and must be held for `'g`.
    #[inline]
    unsafe fn of<'g>(
        dev: *mut bindings::dax_device,
        _locked: ReadLocked<'g>,
    ) -> Option<WithPages<'g, T, P>> {
        // SAFETY: By the safety requirements the device is valid.
        let private = unsafe { bindings::dax_get_private(dev) };

        // SAFETY: If it is not null, the private data is a box in its raw form. The registration
        // drops it after `kill_dax`, which waits for the lock that is held for `'g`.
        let private = unsafe { private.cast::<Self>().as_ref() }?;
        // INVARIANT: By the safety requirements there are pages.
        Some(WithPages(private))
    }

    /// # Safety
    ///
    /// As [`Self::of`], for the DAX core only. `kaddr` and `pfn` must be null or valid for writing.
    unsafe extern "C" fn direct_access_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: c_long,
        mode: bindings::dax_access_mode,
        kaddr: *mut *mut c_void,
        pfn: *mut c_ulong,
    ) -> c_long {
        // SAFETY: By the safety requirements. `dax_direct_access` asserts it, in `dax_alive`.
        let locked = unsafe { ReadLocked::new() };
        // SAFETY: By the safety requirements.
        let Some(private) = (unsafe { Self::of(dev, locked) }) else {
            return ENXIO.to_errno() as c_long;
        };
        let pgmap = private.pgmap();
        let Some(extent) = Extent::new(locked, &pgmap.page_states, pgoff) else {
            return ENXIO.to_errno() as c_long;
        };
        // Failed pages are looked for first: the driver knows that a page is bad before it is
        // repaired. `dax_direct_access` refuses a negative number.
        if pgmap.none_failed() && T::are_known_good(pgmap, pgoff, nr_pages as usize) {
            // SAFETY: By the safety requirements.
            return unsafe { Self::translate(pgmap, &extent, nr_pages, kaddr, pfn) };
        }
        // Not inlined, so that the usual case saves fewer registers.
        // SAFETY: By the safety requirements.
        unsafe { Self::direct_access_checked(private, pgoff, nr_pages, mode, kaddr, pfn) }
    }

    /// Translates after the driver has checked the pages.
    ///
    /// # Safety
    ///
    /// `dax_read_lock` must be held for as long as `private` is borrowed. `kaddr` and `pfn` must be
    /// null or valid for writing.
    #[cold]
    #[inline(never)]
    unsafe fn direct_access_checked(
        private: WithPages<'_, T, P>,
        pgoff: usize,
        nr_pages: c_long,
        mode: bindings::dax_access_mode,
        kaddr: *mut *mut c_void,
        pfn: *mut c_ulong,
    ) -> c_long {
        let data = &private.0.data;
        let mode = match mode {
            bindings::dax_access_mode_DAX_RECOVERY_WRITE => AccessMode::RecoveryWrite,
            _ => AccessMode::Normal,
        };

        // SAFETY: By the safety requirements.
        let locked = unsafe { ReadLocked::new() };
        let pgmap = private.pgmap();
        let result = Extent::new(locked, &pgmap.page_states, pgoff)
            .ok_or(ENXIO)
            .and_then(|extent| data.direct_access(pgmap, extent, nr_pages as usize, mode))
            .and_then(|extent| {
                // A failed page may be missing in the linear mapping, to which the address belongs.
                // All requested pages are looked at: some callers ignore how many are translated.
                let len = (nr_pages as usize).max(1).saturating_mul(PAGE_SIZE);
                let offset = pgoff.saturating_mul(PAGE_SIZE);
                if mode == AccessMode::Normal && pgmap.has_failed(offset, len) {
                    return Err(EHWPOISON);
                }
                Ok(extent)
            });
        match result {
            // SAFETY: By the safety requirements.
            Ok(extent) => unsafe { Self::translate(pgmap, &extent, nr_pages, kaddr, pfn) },
            Err(err) => err.to_errno() as c_long,
        }
    }

    /// Stores the address and the page frame number of an extent, and returns its length. Tells the
    /// operations of `pgmap` if more is exposed now.
    ///
    /// # Safety
    ///
    /// `kaddr` and `pfn` must be null or valid for writing.
    #[inline(always)]
    unsafe fn translate(
        pgmap: &PagemapInner<P>,
        extent: &Extent<'_>,
        nr_pages: c_long,
        kaddr: *mut *mut c_void,
        pfn: *mut c_ulong,
    ) -> c_long {
        // SAFETY: By the safety requirements the pointers are null or valid. Uses of the results
        // after the lock was released are found by the revocation (`docs/lifetimes.md`).
        unsafe {
            // A caller that asks for a page frame number is going to map it, or to keep it.
            if pfn.is_null() {
                if !extent.permits_access() {
                    return ENXIO.to_errno() as c_long;
                }
            } else {
                let report = move |offset, len| pgmap.ops().exposed(offset, len);
                let Some(first) = extent.expose(nr_pages, report) else {
                    return ENXIO.to_errno() as c_long;
                };
                *pfn = first;
            }
            if !kaddr.is_null() {
                *kaddr = extent.addr().cast();
            }
        }

        // No overflow: an extent has fewer pages than there are addresses.
        extent.nr_pages() as c_long
    }

    /// # Safety
    ///
    /// As [`Self::of`], for the DAX core only.
    pub(super) unsafe extern "C" fn zero_page_range_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        nr_pages: usize,
    ) -> c_int {
        // SAFETY: By the safety requirements. The caller is `dax_zero_page_range`.
        let locked = unsafe { ReadLocked::new() };
        // SAFETY: By the safety requirements.
        let Some(private) = (unsafe { Self::of(dev, locked) }) else {
            return ENXIO.to_errno();
        };
        if !private.pgmap().page_states.access.permits_access() {
            return ENXIO.to_errno();
        }

        match private.0.data.zero_page_range(locked, pgoff, nr_pages) {
            Ok(()) => 0,
            Err(err) => err.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As [`Self::of`], for the DAX core only. `iter` must be a valid source, for the use of this
    /// call alone.
    pub(super) unsafe extern "C" fn recovery_write_callback(
        dev: *mut bindings::dax_device,
        pgoff: c_ulong,
        addr: *mut c_void,
        len: usize,
        iter: *mut bindings::iov_iter,
    ) -> usize {
        // SAFETY: By the safety requirements. The caller is `dax_iomap_iter`, by way of
        // `dax_recovery_write`; it holds the lock since it translated `addr`.
        let locked = unsafe { ReadLocked::new() };
        // SAFETY: By the safety requirements.
        let Some(private) = (unsafe { Self::of(dev, locked) }) else {
            return 0;
        };
        // SAFETY: By the safety requirements.
        let mut source = unsafe { IterSource::from_raw(iter) };

        // `pgoff` is the page. Only the offset in the page is taken from the address.
        let offset = addr.addr() & !PAGE_MASK;
        let written = private
            .0
            .data
            .recovery_write(locked, pgoff, offset, len, &mut source);
        // With a larger number, the caller would count bytes that were not written.
        written.min(len)
    }
}

/// # Safety
///
/// For the DAX core only, which may call it for any device.
unsafe extern "C" fn refuse_direct_access(
    _dev: *mut bindings::dax_device,
    _pgoff: c_ulong,
    _nr_pages: c_long,
    _mode: bindings::dax_access_mode,
    _kaddr: *mut *mut c_void,
    _pfn: *mut c_ulong,
) -> c_long {
    ENXIO.to_errno() as c_long
}

/// # Safety
///
/// For the DAX core only, which may call it for any device.
unsafe extern "C" fn refuse_zero_page_range(
    _dev: *mut bindings::dax_device,
    _pgoff: c_ulong,
    _nr_pages: usize,
) -> c_int {
    ENXIO.to_errno()
}
