// SPDX-License-Identifier: GPL-2.0

//! Namespaces, and the personalities that claim them.

use crate::abstractions::nvdimm::{
    bindings,
    Device,
    Kind, //
};
use crate::abstractions::{
    kernel::{
        block::gendisk::DiskName,
        memremap::PagemapConfig, //
    },
    kernel_ext::io::resource::MemRegion, //
};
use core::{
    mem::ManuallyDrop,
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    device::{
        self,
        Bound,
        Core, //
    },
    devres,
    error::{
        from_err_ptr,
        to_result, //
    },
    io::{
        PhysAddr,
        ResourceSize, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
    sync::aref::ARef, //
};

/// The namespace behind a device that is being bound or is bound.
///
/// It cannot be resized, reconfigured or claimed by another device meanwhile. There is one for each
/// binding: the [`Adapter`](super::Adapter) makes it, for [`Driver::probe`](super::Driver::probe).
/// What is done with it consumes it, so that it is in one state at a time.
///
/// # Examples
///
/// Reserves the range of a pfn device, and finds out how its data wants to be mapped:
///
/// ```no_run
/// use kernel::{
///     prelude::*,
///     str::CString, //
/// };
/// use pmem_rs::abstractions::{
///     kernel::memremap::PagemapConfig,
///     kernel_ext::io::resource::MemRegion,
///     nvdimm::Namespace, //
/// };
///
/// fn layout(namespace: Namespace<'_>) -> Result<(MemRegion, PagemapConfig)> {
///     // While it is enabled, its range cannot be reserved.
///     let (enabled, pages) = namespace.enable()?.setup_pfn()?;
///     let namespace = enabled.disable();
///
///     let name = CString::try_from_fmt(fmt!("{}", namespace.name()))?;
///     Ok((namespace.reserve(name)?, pages))
/// }
/// ```
///
/// A driver cannot make another one for the same device:
///
/// ```compile_fail,E0624
/// use kernel::device::Core;
/// use pmem_rs::abstractions::nvdimm::{
///     Device,
///     Namespace, //
/// };
///
/// fn again<'bound>(dev: &'bound Device<Core<'_>>) -> Result<Namespace<'bound>> {
///     Namespace::probe(dev)
/// }
/// ```
///
/// Nor can it keep one for longer than the device is bound:
///
/// ```compile_fail,E0521
/// use pmem_rs::abstractions::nvdimm::Namespace;
///
/// fn keep<T: 'static>(_value: T) {}
///
/// fn probe(namespace: Namespace<'_>) {
///     keep(namespace);
/// }
/// ```
///
/// # Invariants
///
/// `ndns` is a valid namespace for `'bound`: it is `dev` itself, or is claimed by it. It is neither
/// enabled nor attached.
pub struct Namespace<'bound> {
    dev: &'bound Device<Bound>,
    ndns: NonNull<bindings::nd_namespace_common>,
}

// SAFETY: What can be done with a namespace may be done by any thread.
unsafe impl Send for Namespace<'_> {}

// SAFETY: As above; nothing is written through a shared reference.
unsafe impl Sync for Namespace<'_> {}

/// The outcome of looking for a personality on a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// There is no info block: the namespace is raw.
    Raw,
    /// There is an info block, and a device for its personality has been made, which now owns the
    /// namespace.
    Claimed,
}

impl<'bound> Namespace<'bound> {
    /// Finds the namespace behind a device that is being bound. May sleep. To be called once for
    /// each probe.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the device is an empty seed, or the namespace is too small or incomplete.
    /// - [`EBUSY`] or [`ENXIO`] if another personality uses the namespace.
    /// - [`EACCES`] if the media are locked.
    /// - [`EOPNOTSUPP`] if the range cannot be mapped because of its alignment.
    pub(super) fn probe(dev: &'bound Device<Core<'_>>) -> Result<Self> {
        // SAFETY: The device is valid and on the nd bus; the reference proves that it is being
        // bound, so its lock is held.
        let ndns = from_err_ptr(unsafe { bindings::nvdimm_namespace_common_probe(dev.as_raw()) })?;

        // SAFETY: For a namespace this is the device itself; for a personality it is what the
        // device has claimed, which it cannot give up while it has a driver.
        Ok(unsafe { Self::from_raw(dev, NonNull::new(ndns).ok_or(ENODEV)?) })
    }

    /// Makes a namespace from a pointer.
    ///
    /// # Safety
    ///
    /// For `'bound`, `ndns` must be valid, and be `dev` itself or be claimed by it. It must be
    /// neither enabled nor attached.
    pub(super) unsafe fn from_raw(
        dev: &'bound Device<Bound>,
        ndns: NonNull<bindings::nd_namespace_common>,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self { dev, ndns }
    }

    /// Returns the device that it was found behind.
    pub fn device(&self) -> &'bound Device<Bound> {
        self.dev
    }

    /// The part of the namespace that has its physical range.
    ///
    /// `to_nd_namespace_io()`: all kinds of namespaces that reach a driver start with it.
    fn io(&self) -> *mut bindings::nd_namespace_io {
        self.ndns.as_ptr().cast()
    }

    /// Returns the name of the namespace.
    pub fn name(&self) -> &'bound CStr {
        // SAFETY: By the type invariant the namespace is valid for `'bound`. Its device has been
        // added, so it has a name, which does not change.
        unsafe { super::name_of(&raw const (*self.ndns.as_ptr()).dev) }
    }

    /// Returns the physical range of the namespace.
    pub fn range(&self) -> Result<Range<PhysAddr>> {
        // SAFETY: By the type invariant the namespace is valid, and it is not resized.
        let (start, last) = unsafe { ((*self.io()).res.start, (*self.io()).res.end) };

        Ok(start..last.checked_add(1).ok_or(EOVERFLOW)?)
    }

    /// Reserves the physical range of the namespace under `name`. May sleep. The reservation may be
    /// kept for longer than the device is bound; meanwhile no driver can use the range.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a part of the range is in use, as it is while the namespace is
    /// [enabled](Self::enable); [`EOVERFLOW`] if its end is not an address.
    pub fn reserve(&self, name: CString) -> Result<MemRegion> {
        let range = self.range()?;

        // A namespace that was probed is not empty.
        MemRegion::request(range.start, range.end.saturating_sub(range.start), name)
    }

    /// The whole of a namespace with a label, whose other fields those without one lack.
    fn labelled(&self) -> Option<NonNull<bindings::nd_namespace_pmem>> {
        // SAFETY: By the type invariant the namespace is valid. The type of a device does not
        // change, and has a name.
        let is_pmem = unsafe {
            let kind = (*self.ndns.as_ptr()).dev.type_;
            !kind.is_null() && bindings::strcmp((*kind).name, NAMESPACE_PMEM.as_char_ptr()) == 0
        };

        // A namespace of this type starts with the common part.
        is_pmem.then(|| self.ndns.cast())
    }

    /// Returns the smallest unit that its disk is to address, in bytes.
    ///
    /// This is what `pmem_sector_size()` returns, which cannot be called: it warns with a stack trace
    /// if the label, which is on the medium, asks for another one.
    ///
    /// # Errors
    ///
    /// The size that the label asks for, if there is none such; 512 is to be used then.
    pub fn sector_size(&self) -> Result<u32, u64> {
        let asked = match self.labelled() {
            // SAFETY: By the type invariant the namespace is valid; it is not reconfigured.
            Some(namespace) => unsafe { (*namespace.as_ptr()).lbasize },
            None => 0,
        };

        match asked {
            0 | 512 => Ok(512),
            4096 => Ok(4096),
            // CAST: `unsigned long` has at most 64 bits.
            other => Err(other as u64),
        }
    }

    /// Returns its uuid; all zeroes if it has no label.
    pub fn uuid(&self) -> [u8; 16] {
        let Some(namespace) = self.labelled() else {
            return [0; 16];
        };

        // SAFETY: By the type invariant the namespace is valid. `Namespace::probe` has seen that
        // there is a uuid; it is not changed while a device of the namespace has a driver.
        unsafe { (*(*namespace.as_ptr()).uuid).b }
    }

    /// Returns whether info blocks are to be left alone: the user wants the namespace as it is.
    ///
    /// The user can change that at any time: `force_raw_store()` takes no lock.
    pub fn is_forced_raw(&self) -> bool {
        // SAFETY: By the type invariant the namespace is valid. The flag may be written meanwhile,
        // as a whole; a volatile read is what `READ_ONCE()` does.
        unsafe { (&raw const (*self.ndns.as_ptr()).force_raw).read_volatile() != 0 }
    }

    /// Returns whether there is a label, and it names no personality.
    ///
    /// Labels of version 1.1 cannot name any, so they say this of every namespace.
    pub fn is_raw_by_label(&self) -> bool {
        // SAFETY: By the type invariant the namespace is valid. `holder_class_store()` needs the
        // lock of the device, and a namespace that is not claimed.
        let class = unsafe { (*self.ndns.as_ptr()).claim_class };

        self.labelled().is_some() && class == bindings::nvdimm_claim_class_NVDIMM_CCLASS_NONE
    }

    /// Returns the name that its disk is to have.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for a namespace that cannot have a disk.
    pub fn disk_name(&self) -> Result<DiskName> {
        let mut name = DiskName([0; bindings::DISK_NAME_LEN as usize]);

        // SAFETY: By the type invariant the namespace is valid. The buffer is as long as that of a
        // disk, which is what the C function writes to.
        let ptr = unsafe {
            bindings::nvdimm_namespace_disk_name(self.ndns.as_ptr(), name.0.as_mut_ptr())
        };
        if ptr.is_null() {
            return Err(EINVAL);
        }

        Ok(name)
    }

    /// Returns whether a raw namespace is to have `struct page`s (it is in a region of a provider
    /// that asks for them, as the legacy one does).
    pub fn wants_pages(&self) -> bool {
        if self.dev.kind() != Kind::Namespace {
            return false;
        }

        // SAFETY: The device is valid, and a namespace.
        unsafe { bindings::pmem_should_map_pages(self.dev.as_raw()) }
    }

    /// Returns the size of the sectors that a btt device is to have, with their metadata, in bytes; [`None`]
    /// if the device is no btt, or nobody has said it yet.
    pub fn btt_sector_size(&self) -> Option<usize> {
        if self.dev.kind() != Kind::Btt {
            return None;
        }

        // SAFETY: The device is valid, and a btt. It is being bound, and its attribute can only be
        // written to while it has no driver (`sector_size_store()` in `btt_devs.c`).
        let size = unsafe { (*bindings::to_nd_btt(self.dev.as_raw())).lbasize };

        (size != 0).then_some(size)
    }

    /// Makes the info block at the start of the namespace accessible to libnvdimm. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the range is in use, [`ENOMEM`].
    pub fn enable(self) -> Result<EnabledNamespace<'bound>> {
        // SAFETY: The device is being bound, so what this leaves to devres if it fails half-way is
        // released when the probe fails or the device is unbound.
        to_result(unsafe {
            bindings::devm_namespace_enable(
                self.dev.as_raw(),
                self.ndns.as_ptr(),
                info_block_reserve(),
            )
        })?;

        // INVARIANT: It has just been enabled.
        Ok(EnabledNamespace { namespace: self })
    }

    /// Gives the namespace of a btt device to the btt driver, which makes a disk of it. The disk is
    /// removed when the device is unbound, after the driver's data was dropped. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is not a btt, or is not fully configured.
    pub fn attach_btt(self) -> Result<Btt<'bound>> {
        if self.dev.kind() != Kind::Btt {
            return Err(ENODEV);
        }

        // SAFETY: The namespace is claimed by a btt device, which is being bound.
        to_result(unsafe { bindings::nvdimm_namespace_attach_btt(self.ndns.as_ptr()) })?;

        let dev: &device::Device<Bound> = self.dev.as_ref();
        // If this fails, the btt is detached at once.
        devres::register(dev, DetachBtt(dev.into()), GFP_KERNEL)?;

        // INVARIANT: It has just been attached, and will be until the device is unbound.
        Ok(Btt { dev: self.dev })
    }
}

/// A namespace whose info block is accessible to libnvdimm. Dropping this ends the access.
///
/// # Invariants
///
/// `devm_namespace_enable` was called for the namespace.
pub struct EnabledNamespace<'bound> {
    namespace: Namespace<'bound>,
}

impl<'bound> EnabledNamespace<'bound> {
    /// Returns the namespace.
    pub fn namespace(&self) -> &Namespace<'bound> {
        &self.namespace
    }

    /// Ends the access.
    pub fn disable(self) -> Namespace<'bound> {
        let namespace = Namespace { ..self.namespace };

        drop(self);
        namespace
    }

    /// Returns where in the namespace the first info block would be, in bytes.
    pub fn info_block_start(&self) -> ResourceSize {
        // SAFETY: By the type invariant the namespace is valid.
        match unsafe { (*self.namespace.ndns.as_ptr()).claim_class } {
            // Only a btt of version 2, for which the label is asked, has the first page for itself.
            bindings::nvdimm_claim_class_NVDIMM_CCLASS_BTT2 => 0,
            _ => INFO_BLOCK_SIZE as ResourceSize,
        }
    }

    /// Reads the place where the first info block would be. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the medium is bad there, [`ENOMEM`].
    pub fn read_info_block(&self) -> Result<KBox<[u8; INFO_BLOCK_SIZE]>> {
        const READ: c_int = 0;
        let ndns = self.namespace.ndns.as_ptr();
        let mut block = KBox::new([0; INFO_BLOCK_SIZE], GFP_KERNEL)?;

        // SAFETY: By the type invariant the namespace is valid, and enabled, so it can be read.
        // There is as much memory as is asked for.
        to_result(unsafe {
            let read = (*ndns).rw_bytes.ok_or(ENXIO)?;
            read(
                ndns,
                self.info_block_start(),
                block.as_mut_ptr().cast(),
                block.len(),
                READ,
                0,
            )
        })?;
        Ok(block)
    }

    /// Looks for an info block of any personality, and makes the device for it. May sleep.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if there is a valid info block that this kernel cannot use.
    pub fn claim(&self) -> Result<Claim> {
        let dev = self.namespace.dev.as_raw();
        let ndns = self.namespace.ndns.as_ptr();

        // For every kind of info block: zero if it is there and has been claimed, `EOPNOTSUPP` if
        // it is there and cannot be used, another error if it is not there.
        //
        // SAFETY: The namespace is enabled, by the type invariant, for a device that is valid.
        let btt = unsafe { bindings::nd_btt_probe(dev, ndns) };
        if btt == 0 {
            return Ok(Claim::Claimed);
        }
        for probe in [bindings::nd_pfn_probe, bindings::nd_dax_probe] {
            // SAFETY: As above.
            match to_result(unsafe { probe(dev, ndns) }) {
                Ok(()) => return Ok(Claim::Claimed),
                Err(err) if err == EOPNOTSUPP => return Err(err),
                Err(_) => {}
            }
        }

        Ok(Claim::Raw)
    }

    /// Reads the info block of a pfn device, or writes it if the device is new. May sleep.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the device is not a pfn, or is not fully configured.
    /// - [`EOPNOTSUPP`] if the info block does not fit this kernel or the device's configuration;
    ///   libnvdimm says in the log why.
    /// - [`ENXIO`], [`EINVAL`] if the info block cannot be read or written, or makes no sense.
    pub fn setup_pfn(self) -> Result<(Self, PagemapConfig)> {
        let dev = self.namespace.dev;
        if dev.kind() != Kind::Pfn {
            return Err(ENODEV);
        }

        let mut pgmap = bindings::dev_pagemap::default();
        // While it clears errors in the memory map, the function disables the namespace and enables
        // it again, and may fail in between. What is enabled after a failure is for devres to find
        // out, so nothing is disabled here then.
        let enabled = ManuallyDrop::new(self);
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

        // SAFETY: After success the device has an info block, in memory that lives as long as it
        // is bound.
        let data_offset = u64::from_le(unsafe { (*pfn_sb).dataoff });
        // libnvdimm does not check this for `map=dev`, and computes the altmap from it.
        if data_offset < info_block_reserve() {
            dev_err!(
                dev,
                "info block: the data cannot start at {:#x}, where the info block is\n",
                data_offset
            );
            return Err(EINVAL);
        }
        // SAFETY: The structure was zeroed. An altmap is between the info block and the data: that
        // is how `__nvdimm_setup_pfn()` computes it, from a `data_offset` that leaves room for
        // both.
        let pages = unsafe { PagemapConfig::from_raw(pgmap, data_offset) }?;

        Ok((enabled, pages))
    }
}

/// The name of the type of namespaces with a label, as their attribute `devtype` shows it.
const NAMESPACE_PMEM: &CStr = c"nd_namespace_pmem";

/// The size of an info block in bytes; one that is not at the start of a namespace is as far into it.
pub const INFO_BLOCK_SIZE: usize = 4096;

/// How many bytes at the start of a namespace are kept for info blocks: `nd_info_block_reserve()`.
pub fn info_block_reserve() -> ResourceSize {
    const SIZE: usize = 8 * 1024;

    SIZE.max(PAGE_SIZE) as ResourceSize
}

impl Drop for EnabledNamespace<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the namespace is enabled.
        unsafe {
            bindings::devm_namespace_disable(
                self.namespace.dev.as_raw(),
                self.namespace.ndns.as_ptr(),
            )
        };
    }
}

/// A namespace in the hands of the btt driver.
///
/// # Invariants
///
/// `dev` is a btt device, and for `'bound` it is attached (`nvdimm_namespace_attach_btt`).
pub struct Btt<'bound> {
    dev: &'bound Device<Bound>,
}

impl Btt<'_> {
    /// Makes the disk read-only or writable, as the region is, and says so in the log.
    pub fn sync_read_only(&self) {
        // SAFETY: By the type invariant the device is an attached btt, so it has a disk, whose
        // parent is the btt device, whose parent is a region.
        unsafe {
            let nd_btt = bindings::to_nd_btt(self.dev.as_raw());
            bindings::nvdimm_check_and_set_ro((*(*nd_btt).btt).btt_disk);
        }
    }

    /// Adds what is now known to be bad to the list of the namespace. May sleep, takes the lock of
    /// the bus.
    pub fn revalidate_poison(&self) {
        // SAFETY: By the type invariant the device is an attached btt, so it has a namespace, whose
        // list was initialised when it was enabled.
        unsafe {
            let nd_btt = bindings::to_nd_btt(self.dev.as_raw());
            // `to_nd_namespace_io()`
            let nsio = (*nd_btt).ndns.cast::<bindings::nd_namespace_io>();
            let range = bindings::range {
                start: (*nsio).res.start,
                end: (*nsio).res.end,
            };
            bindings::nvdimm_badblocks_populate(
                bindings::to_nd_region((*self.dev.as_raw()).parent),
                &raw mut (*nsio).bb,
                &range,
            );
        }
    }
}

/// Takes a namespace back from the btt driver when it is dropped.
///
/// It belongs to devres, so that no driver can keep it from being dropped: the btt disk uses
/// memory that is unmapped when the device is unbound.
struct DetachBtt(ARef<device::Device>);

impl Drop for DetachBtt {
    fn drop(&mut self) {
        let dev: *const device::Device = &*self.0;

        // SAFETY: The device is a btt that was attached, since `attach_btt` made this for it.
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        unsafe {
            bindings::nvdimm_namespace_detach_btt(bindings::to_nd_btt(dev.cast_mut().cast()))
        };
    }
}

#[kunit_tests(pmem_rs_namespace)]
mod tests {
    use super::*;
    use crate::abstractions::kernel_ext::io::resource::free_range;
    use kernel::faux;

    /// Calls `f` with a namespace that has a range and a name, and nothing else.
    fn with_namespace<R>(
        start: PhysAddr,
        last: PhysAddr,
        f: impl FnOnce(Namespace<'_>) -> R,
    ) -> Result<R> {
        let faux = faux::Registration::new(c"pmem_rs_namespace", None)?;
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        let mut nsio = KBox::new(bindings::nd_namespace_io::default(), GFP_KERNEL)?;
        nsio.res.start = start;
        nsio.res.end = last;
        nsio.common.dev.init_name = c"namespace7.3".as_char_ptr();

        Ok(f(Namespace {
            // SAFETY: The device lives until the end of the function. It is not on the nd bus,
            // which what is tested does not ask for.
            dev: unsafe { &*core::ptr::from_ref(generic).cast() },
            ndns: NonNull::from(&mut *nsio).cast(),
        }))
    }

    #[test]
    fn a_namespace_reserves_its_range_once() -> Result {
        const LEN: ResourceSize = 4 << 20;
        let start = free_range(LEN)?;
        let name = || CString::try_from_fmt(fmt!("pmem_rs test"));

        with_namespace(start, start + LEN - 1, |namespace| -> Result {
            let region = namespace.reserve(name()?)?;
            assert_eq!((region.start(), region.len()), (start, LEN));
            assert!(namespace.reserve(name()?).is_err_and(|err| err == EBUSY));
            drop(region);
            namespace.reserve(name()?)?;
            Ok(())
        })?
    }

    #[test]
    fn a_namespace_has_a_range_and_a_name() -> Result {
        with_namespace(0x1_0000_0000, 0x1_3fff_ffff, |namespace| {
            assert!(namespace.range() == Ok(0x1_0000_0000..0x1_4000_0000));
            assert!(namespace.name() == c"namespace7.3");
            assert!(namespace.sector_size() == Ok(512));
            assert!(namespace.uuid() == [0; 16]);
            assert!(!namespace.is_raw_by_label());
        })
    }

    /// Calls `f` with a namespace that has a label, whose fields `set` fills in.
    fn with_label<R>(
        set: impl FnOnce(&mut bindings::nd_namespace_pmem),
        f: impl FnOnce(Namespace<'_>) -> R,
    ) -> Result<R> {
        let faux = faux::Registration::new(c"pmem_rs_namespace", None)?;
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        let kind = bindings::device_type {
            name: NAMESPACE_PMEM.as_char_ptr(),
            ..Default::default()
        };
        let mut nspm = KBox::new(bindings::nd_namespace_pmem::default(), GFP_KERNEL)?;
        nspm.nsio.common.dev.type_ = &kind;
        set(&mut nspm);

        Ok(f(Namespace {
            // SAFETY: As in `with_namespace`.
            dev: unsafe { &*core::ptr::from_ref(generic).cast() },
            ndns: NonNull::from(&mut *nspm).cast(),
        }))
    }

    #[test]
    fn a_label_may_ask_for_sectors_that_do_not_exist() -> Result {
        let uuid = KBox::new(bindings::uuid_t { b: [7; 16] }, GFP_KERNEL)?;

        for (asked, size) in [
            (0, Ok(512)),
            (512, Ok(512)),
            (4096, Ok(4096)),
            (520, Err(520)),
        ] {
            with_label(
                |nspm| {
                    nspm.lbasize = asked;
                    nspm.uuid = core::ptr::from_ref(&*uuid).cast_mut();
                },
                |namespace| {
                    assert!(namespace.sector_size() == size);
                    assert!(namespace.uuid() == [7; 16]);
                    assert!(!namespace.is_forced_raw());
                },
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_label_may_name_a_personality() -> Result {
        for (class, raw) in [
            (bindings::nvdimm_claim_class_NVDIMM_CCLASS_NONE, true),
            (bindings::nvdimm_claim_class_NVDIMM_CCLASS_PFN, false),
            (bindings::nvdimm_claim_class_NVDIMM_CCLASS_UNKNOWN, false),
        ] {
            with_label(
                |nspm| nspm.nsio.common.claim_class = class,
                |namespace| assert!(namespace.is_raw_by_label() == raw),
            )?;
        }
        Ok(())
    }

    #[test]
    fn the_end_of_a_range_is_an_address() -> Result {
        with_namespace(0, PhysAddr::MAX, |namespace| {
            assert!(namespace.range().is_err_and(|err| err == EOVERFLOW));
        })
    }

    #[test]
    fn only_a_btt_goes_to_the_btt_driver() -> Result {
        with_namespace(0, 0xfff, |namespace| {
            assert!(namespace.attach_btt().is_err_and(|err| err == ENODEV));
        })
    }

    #[test]
    fn info_blocks_have_whole_pages_to_themselves() {
        // The info block of a pfn is at 4 KiB, and has as much.
        assert!(info_block_reserve() >= 8 << 10);
        assert_eq!(info_block_reserve() % PAGE_SIZE as u64, 0);
    }
}
