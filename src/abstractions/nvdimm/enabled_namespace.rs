// SPDX-License-Identifier: GPL-2.0

//! Namespaces whose info block libnvdimm can read and write.

use super::{
    arenas,
    device::Kind,
    infoblock::{
        self,
        Expected,
        InfoBlock,
        InfoBlockError,
        NamespaceMode, //
    },
    namespace::Namespace,
    probe_error::ProbeError, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    badblocks,
    memremap::{
        compat_align,
        memmap_section,
        start_align,
        PagemapConfig,
        PAGE_STRUCT_SIZE, //
    }, //
};
use core::{
    mem::ManuallyDrop,
    ops::Range, //
};
use kernel::{
    alloc::AllocError,
    block::SECTOR_SIZE,
    error::to_result,
    io::{
        PhysAddr,
        ResourceSize, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// The direction of an access (`include/linux/types.h`).
const READ: c_int = 0;
const WRITE: c_int = 1;

/// The size of an info block in bytes, and the offset of one that is not at the start.
pub const INFO_BLOCK_SIZE: usize = infoblock::LEN;

/// Returns how many bytes at the start of a namespace are reserved for info blocks
/// (`nd_info_block_reserve()`).
pub fn info_block_reserve() -> ResourceSize {
    const SIZE: usize = 8 * 1024;

    SIZE.max(PAGE_SIZE) as ResourceSize
}

/// The result of [`EnabledNamespace::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// libnvdimm has made no device. The namespace is raw, unless it has an info block that
    /// libnvdimm refuses.
    Raw,
    /// There is an info block. libnvdimm has made a device for its mode, which has claimed the
    /// namespace.
    Claimed,
}

/// The reason why the mode of a namespace cannot be used.
#[derive(Debug)]
pub enum SetupError {
    /// The medium is bad where the info block would be.
    Unreadable,
    /// The info block, which is for this mode, cannot be used.
    InfoBlock(NamespaceMode, InfoBlockError),
    /// The medium is bad where the `struct page`s would be, and could not be cleared.
    BadMemmap,
    /// There is a bad sector at this address, outside of the `struct page`s. libnvdimm would take
    /// it for one among them, and would overwrite memory or fail.
    BadOutside(PhysAddr),
    /// The btt driver would flush the region with a spinlock held, and such a flush may sleep.
    SleepingFlush,
    /// Another error.
    Other(Error),
}

impl From<Error> for SetupError {
    fn from(err: Error) -> Self {
        Self::Other(err)
    }
}

impl From<SetupError> for Error {
    fn from(err: SetupError) -> Self {
        match err {
            SetupError::Unreadable => EIO,
            // Other drivers are kept off.
            SetupError::InfoBlock(..)
            | SetupError::BadMemmap
            | SetupError::BadOutside(_)
            | SetupError::SleepingFlush => EOPNOTSUPP,
            SetupError::Other(err) => err,
        }
    }
}

impl From<SetupError> for ProbeError {
    fn from(err: SetupError) -> Self {
        Error::from(err).into()
    }
}

impl From<AllocError> for SetupError {
    fn from(err: AllocError) -> Self {
        Self::Other(err.into())
    }
}

impl From<InfoBlockError> for SetupError {
    /// The error is that of a btt.
    fn from(err: InfoBlockError) -> Self {
        Self::InfoBlock(NamespaceMode::Sector, err)
    }
}

/// A namespace whose info block libnvdimm can read and write. Dropping it disables the access.
///
/// # Invariants
///
/// `devm_namespace_enable` was called for the namespace. If the device is a pfn device, `pfn_sb` is
/// a buffer of [`INFO_BLOCK_SIZE`] bytes that lives for as long as the device is bound.
pub struct EnabledNamespace<'bound> {
    namespace: Namespace<'bound>,
}

impl<'bound> Namespace<'bound> {
    /// Maps the start of the namespace, so that libnvdimm can read and write the info block. May
    /// sleep. Fails with [`EBUSY`] if a part of that start is in use, and with [`EINVAL`] if the
    /// namespace is smaller than [`info_block_reserve`].
    pub fn enable(self) -> Result<EnabledNamespace<'bound>> {
        self.enable_bytes(info_block_reserve())
    }

    /// As [`Self::enable`], but maps the first `len` bytes.
    pub(super) fn enable_bytes(self, len: ResourceSize) -> Result<EnabledNamespace<'bound>> {
        let size = self.size()?;
        if size < len {
            self.device().err(fmt!(
                "{} has {} bytes, and needs {} at least: make it larger where it is configured\n",
                self.name(),
                size,
                len
            ));
            return Err(EINVAL);
        }

        // SAFETY: The device is being bound. What a call that fails half-way leaves to devres is
        // released when the probe fails or the device is unbound.
        to_result(unsafe {
            bindings::devm_namespace_enable(self.device().as_raw(), self.ndns().as_ptr(), len)
        })?;

        // INVARIANT: It has just been enabled. A driver gets a namespace only from
        // `Namespace::probe`, which has made the buffer.
        Ok(EnabledNamespace { namespace: self })
    }
}

impl<'bound> EnabledNamespace<'bound> {
    /// Returns the namespace.
    pub fn namespace(&self) -> &Namespace<'bound> {
        &self.namespace
    }

    /// Disables the access to the info block.
    pub fn disable(self) -> Namespace<'bound> {
        let dev = self.namespace.device();
        let ndns = self.namespace.ndns();

        drop(self);
        // SAFETY: They are those of a namespace, which has just been disabled.
        unsafe { Namespace::from_raw(dev, ndns) }
    }

    /// Returns the offset of the first info block in the namespace, in bytes.
    pub fn info_block_start(&self) -> ResourceSize {
        // SAFETY: By the type invariant the namespace is valid.
        match unsafe { (*self.namespace.ndns().as_ptr()).claim_class } {
            // Only a btt of version 2 starts at the first page.
            bindings::nvdimm_claim_class_NVDIMM_CCLASS_BTT2 => 0,
            _ => INFO_BLOCK_SIZE as ResourceSize,
        }
    }

    /// Returns the properties that the info block must match.
    pub(super) fn expected(&self) -> Result<Expected> {
        let range = self.namespace.range()?;

        Ok(Expected {
            uuid: self.namespace.uuid(),
            start: range.start,
            size: self.namespace.size()?,
            offset: self.info_block_start(),
            reserve: info_block_reserve(),
            page_size: PAGE_SIZE as u64,
            page_struct_size: PAGE_STRUCT_SIZE as u64,
            start_align: start_align(),
            compat_align: compat_align(),
            section: memmap_section(),
            sector_size: self.namespace.btt_sector_size(),
        })
    }

    /// Reads or writes bytes at an offset in the namespace. May sleep. A read fails with [`EIO`] if
    /// the medium is bad there, a write if less than all of it was cleared. If the provider returns
    /// an error, the write succeeds, and the sectors stay bad (`nsio_rw_bytes()`).
    fn access(&self, offset: ResourceSize, bytes: &mut [u8], direction: c_int) -> Result {
        let ndns = self.namespace.ndns().as_ptr();

        // The C function checks the end, but not whether the sum wraps.
        offset.checked_add(bytes.len() as u64).ok_or(EINVAL)?;
        // SAFETY: By the type invariant the namespace is valid, and enabled, so it can be accessed.
        // The buffer is as long as the access.
        to_result(unsafe {
            let access = (*ndns).rw_bytes.ok_or(ENXIO)?;
            access(
                ndns,
                offset,
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                direction,
                0,
            )
        })
    }

    /// Reads the bytes at an offset in the namespace. May sleep. Fails with [`EIO`] if the medium
    /// is bad there.
    fn read(&self, offset: ResourceSize, block: &mut [u8; INFO_BLOCK_SIZE]) -> Result {
        self.access(offset, block, READ)
    }

    /// Returns whether libnvdimm's list of the namespace has a bad sector among the `len` bytes
    /// from an offset on.
    pub(super) fn is_bad(&self, offset: ResourceSize, len: ResourceSize) -> bool {
        let sector = ResourceSize::from(SECTOR_SIZE);
        let first = offset / sector;
        let end = offset.saturating_add(len).div_ceil(sector);

        // SAFETY: By the type invariant the namespace is enabled, which has initialised its list.
        unsafe {
            let list = &raw mut (*self.namespace.io()).bb;
            badblocks::check(list, first, end.saturating_sub(first)).is_some()
        }
    }

    /// Writes bytes at an offset in the namespace. May sleep. Bad sectors there may stay bad
    /// without an error (see [`Self::access`]), so the caller has to look at [`Self::is_bad`]
    /// afterwards.
    pub(super) fn write(&self, offset: ResourceSize, bytes: &mut [u8]) -> Result {
        self.access(offset, bytes, WRITE)
    }

    /// Reads the bytes at [`Self::info_block_start`]. May sleep. Fails with [`EIO`] if the medium
    /// is bad there.
    pub fn read_info_block(&self) -> Result<KBox<[u8; INFO_BLOCK_SIZE]>> {
        let mut block = KBox::new([0; INFO_BLOCK_SIZE], GFP_KERNEL)?;

        self.read(self.info_block_start(), &mut block)?;
        Ok(block)
    }

    /// As [`Self::read_info_block`], with the error that means a bad medium.
    fn read_readable(&self) -> Result<KBox<[u8; INFO_BLOCK_SIZE]>, SetupError> {
        self.read_info_block().map_err(unreadable)
    }

    /// Checks the info blocks and the logs of a btt device, which the btt driver trusts. May sleep.
    /// All of the namespace must be mapped.
    pub(super) fn check_arenas(&self) -> Result<(), SetupError> {
        let mut block = KBox::new([0; INFO_BLOCK_SIZE], GFP_KERNEL)?;

        arenas::check_arenas(&self.expected()?, &mut block, |offset, block| {
            self.read(offset, block).map_err(unreadable)
        })
    }

    /// Returns the physical range of the data of a pfn device. [`None`] if there is no info block,
    /// or a damaged or foreign one, or one of another pfn device, which [`Self::setup_pfn`] would
    /// overwrite. May sleep.
    ///
    /// # Errors
    ///
    /// - As in [`SetupError`].
    /// - [`ENODEV`] if the device is not a pfn, or has no uuid.
    pub fn data_of_pfn(&self) -> Result<Option<Range<PhysAddr>>, SetupError> {
        let dev = self.namespace.device();
        if dev.kind() != Kind::Pfn {
            return Err(ENODEV.into());
        }
        // SAFETY: The device is a pfn device with a driver, so its attributes cannot be changed. By
        // the type invariant it has a buffer for its info block.
        let (uuid, used) = unsafe {
            let nd_pfn = bindings::to_nd_pfn(dev.as_raw());
            (
                (*nd_pfn).uuid.as_ref().ok_or(ENODEV)?.b,
                (*nd_pfn).pfn_sb.cast::<[u8; INFO_BLOCK_SIZE]>(),
            )
        };
        let bytes = self.read_readable()?;
        let expected = self.expected()?;
        let Some(block) =
            InfoBlock::of(&bytes).filter(|block| block.mode() == NamespaceMode::Fsdax)
        else {
            return Ok(None);
        };

        match block.check(&expected) {
            Ok(()) if block.uuid() != uuid => Ok(None),
            Ok(()) => {
                // For the attributes of the device, which are only read with its lock held.
                //
                // SAFETY: As above. A driver's callbacks are called with the device lock held.
                unsafe { used.copy_from_nonoverlapping(&raw const *bytes, 1) };
                Ok(block.data(&expected))
            }
            Err(error) if error.is_damaged_or_foreign() => Ok(None),
            Err(error) => Err(SetupError::InfoBlock(block.mode(), error)),
        }
    }

    /// Probes for an info block of each mode, and makes the device for it. May sleep.
    ///
    /// The block is checked before, since libnvdimm does not check it completely.
    ///
    /// # Errors
    ///
    /// - As in [`SetupError`]. A block that is damaged or of another namespace is an error too.
    /// - [`EOPNOTSUPP`] if there is a valid info block that this kernel cannot use.
    pub fn claim(&self) -> Result<Claim, SetupError> {
        let bytes = self.read_readable()?;
        if let Some(block) = InfoBlock::of(&bytes) {
            block
                .check(&self.expected()?)
                .map_err(|error| SetupError::InfoBlock(block.mode(), error))?;
        }

        let dev = self.namespace.device().as_raw();
        let ndns = self.namespace.ndns().as_ptr();

        // Each probe function returns zero if its info block is there and has been claimed. It
        // returns `EOPNOTSUPP` if the block is there and cannot be used. It returns another error
        // if there is no such block, no memory, another claim class, or `force_raw`.
        //
        // SAFETY: The namespace is enabled, by the type invariant, for a device that is valid.
        let btt = unsafe { bindings::nd_btt_probe(dev, ndns) };
        if btt == 0 {
            return Ok(Claim::Claimed);
        }
        for probe in [bindings::nd_pfn_probe, bindings::nd_dax_probe] {
            // SAFETY: The namespace is enabled, by the type invariant, for a device that is valid.
            match to_result(unsafe { probe(dev, ndns) }) {
                Ok(()) => return Ok(Claim::Claimed),
                Err(err) if err == EOPNOTSUPP => return Err(err.into()),
                Err(_) => {}
            }
        }

        Ok(Claim::Raw)
    }

    /// Reads the info block of a pfn device, or writes it if the device is new. May sleep.
    ///
    /// The block is checked before, since libnvdimm does not check it completely. Bad sectors where
    /// the `struct page`s are on the medium are cleared.
    ///
    /// # Errors
    ///
    /// - As in [`SetupError`], also for a new block that this kernel could not use. It is not
    ///   written.
    /// - [`ENODEV`] if the device is not a pfn, or has no uuid.
    /// - [`EOPNOTSUPP`] if the info block does not fit this kernel or the device's configuration.
    ///   libnvdimm logs the reason.
    /// - [`ENXIO`], [`EINVAL`] if the info block cannot be read or written, or is inconsistent, or
    ///   if a new device has no mode.
    ///
    /// # Examples
    ///
    /// The result is about this binding. The next one may have another info block:
    ///
    /// ```compile_fail,E0521
    /// use pmem_rs::abstractions::nvdimm::EnabledNamespace;
    ///
    /// fn keep<T: 'static>(_value: T) {}
    ///
    /// fn probe(namespace: EnabledNamespace<'_>) {
    ///     if let Ok((_, pages)) = namespace.setup_pfn() {
    ///         keep(pages);
    ///     }
    /// }
    /// ```
    pub fn setup_pfn(self) -> Result<(Self, PagemapConfig<'bound>), SetupError> {
        let dev = self.namespace.device();
        let data = self.data_of_pfn()?;
        // SAFETY: The device is a pfn device that is being bound, so its attributes cannot change.
        let (mode, align) = unsafe {
            let nd_pfn = bindings::to_nd_pfn(dev.as_raw());
            ((*nd_pfn).mode, (*nd_pfn).align)
        };
        let (on_medium, align) = (mode == bindings::nd_pfn_mode_PFN_MODE_PMEM, align as u64);
        if data.is_none() && self.can_be_new()? {
            self.expected()?
                .check_new(align, on_medium)
                .map_err(|error| SetupError::InfoBlock(NamespaceMode::Fsdax, error))?;
        }
        let this = if on_medium {
            self.clear_memmap(data, align)?
        } else {
            self
        };

        let mut pgmap = bindings::dev_pagemap::default();
        // To clear errors in the memory map, the function disables the namespace and enables it
        // again, and may fail in between. So after a failure nothing is disabled here: devres
        // releases what is enabled.
        let enabled = ManuallyDrop::new(this);
        // SAFETY: The device is a pfn device that is being bound, and its namespace is enabled.
        let (ret, pfn_sb) = unsafe {
            let nd_pfn = bindings::to_nd_pfn(dev.as_raw());
            (
                bindings::nvdimm_setup_pfn(nd_pfn, &mut pgmap),
                (*nd_pfn).pfn_sb,
            )
        };
        to_result(ret)?;
        let enabled = ManuallyDrop::into_inner(enabled);

        // The medium may have changed since the check, and a new block was not checked.
        //
        // SAFETY: After success the device has an info block, in memory that lives for as long as
        // the device is bound. Nothing writes to it.
        let used = unsafe { &*pfn_sb.cast::<[u8; INFO_BLOCK_SIZE]>() };
        let block = InfoBlock::of(used).ok_or(EINVAL)?;
        block
            .check_contents(&enabled.expected()?)
            .map_err(|error| SetupError::InfoBlock(block.mode(), error))?;
        let data_offset = block.data_offset();
        // SAFETY: The structure was zeroed. An altmap is between the info block and the data:
        // `__nvdimm_setup_pfn()` computes it from `data_offset`, which leaves room for both. The
        // device stays bound, with this info block, for the lifetime of the result. After that the
        // reservation keeps drivers away from the area.
        let pages = unsafe { PagemapConfig::from_raw(pgmap, data_offset) }?;

        Ok((enabled, pages))
    }
}

/// Returns the error of a read: [`EIO`] means a bad medium.
fn unreadable(err: Error) -> SetupError {
    if err == EIO {
        SetupError::Unreadable
    } else {
        err.into()
    }
}

impl Drop for EnabledNamespace<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the namespace is enabled.
        unsafe {
            bindings::devm_namespace_disable(
                self.namespace.device().as_raw(),
                self.namespace.ndns().as_ptr(),
            )
        };
    }
}

#[kunit_tests(pmem_rs_enabled_namespace)]
mod tests {
    use super::*;

    #[test]
    fn info_blocks_have_whole_pages_to_themselves() {
        // The info block of a pfn is at 4 KiB, and is 4 KiB long.
        assert!(info_block_reserve() >= 8 << 10);
        assert_eq!(info_block_reserve() % PAGE_SIZE as u64, 0);
    }
}
