// SPDX-License-Identifier: GPL-2.0

//! Namespaces.

use super::{
    device::{
        Device,
        Kind, //
    },
    identity::DeviceIdentity,
    pfn::make_info_block,
    probe_error::ProbeError, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    block::gendisk::DiskName,
    memremap::compat_align, //
};
use crate::abstractions::kernel_ext::{
    device::name_of,
    io::resource::MemRegion, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    device::{
        Bound,
        Core, //
    },
    error::from_err_ptr,
    io::{
        PhysAddr,
        ResourceSize, //
    },
    prelude::*,
    str::CString, //
};

/// The name of the type of namespaces with a label, as their attribute `devtype` shows it.
const NAMESPACE_PMEM: &CStr = c"nd_namespace_pmem";

/// The use of a namespace that its label records (`enum nvdimm_claim_class`), as its attribute
/// `holder_class` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimClass {
    /// None is recorded: the namespace is raw, or its info block alone has the mode. Labels of
    /// version 1.1 cannot record another one.
    None,
    /// A btt device claims the namespace.
    Btt,
    /// A pfn device claims the namespace.
    Pfn,
    /// A dax device claims the namespace.
    Dax,
    /// A use that libnvdimm does not know.
    Unknown,
}

/// The namespace behind a device that is being bound or is bound.
///
/// It cannot be resized or reconfigured meanwhile, except for `force_raw`. Another device may claim
/// a namespace that is bound itself, but that device cannot be bound then. The
/// [`Adapter`](super::Adapter) makes one for each call of [`Driver::probe`](super::Driver::probe).
/// The methods that enable or attach the namespace consume it, so that it is in one state at a
/// time.
///
/// # Examples
///
/// Reserves the range of a pfn device, and reads from its info block how it is to be mapped:
///
/// ```no_run
/// use kernel::prelude::*;
/// use kernel::str::CString;
/// use pmem_rs::abstractions::kernel::memremap::PagemapConfig;
/// use pmem_rs::abstractions::kernel_ext::io::resource::MemRegion;
/// use pmem_rs::abstractions::nvdimm::Namespace;
///
/// fn layout(namespace: Namespace<'_>) -> Result<(MemRegion, PagemapConfig<'_>)> {
///     // The range of an enabled namespace is in use.
///     let (enabled, pages) = namespace.enable()?.setup_pfn()?;
///     let namespace = enabled.disable();
///
///     let name = CString::try_from_fmt(fmt!("{}", namespace.name()))?;
///     Ok((namespace.reserve(name)?, pages))
/// }
/// ```
///
/// A driver cannot make a second one for the same device:
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
/// A driver cannot keep one for longer than the device is bound:
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

// SAFETY: The C functions that are called with a namespace may be called by any thread.
unsafe impl Send for Namespace<'_> {}

// SAFETY: Nothing is written through a shared reference.
unsafe impl Sync for Namespace<'_> {}

impl<'bound> Namespace<'bound> {
    /// Finds the namespace behind a device that is being bound. May sleep.
    ///
    /// To be called once for each probe.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the device is an empty seed, or the namespace is too small or incomplete.
    /// - [`EBUSY`] if the device is a pfn or btt device whose namespace is bound itself.
    /// - [`ENXIO`] if another device has claimed the namespace.
    /// - [`ENXIO`] if the region is not bound. The log has the remedy.
    /// - [`EACCES`] if the media are locked.
    /// - [`EOPNOTSUPP`] if the range cannot be mapped because of its alignment. The log has the
    ///   remedy.
    pub(super) fn probe(dev: &'bound Device<Core<'_>>) -> Result<Self, ProbeError> {
        if !dev.has_bound_region() {
            let region = dev.region_name();
            return Err(ProbeError::logged(
                dev,
                ENXIO,
                fmt!(
                    "{region} was unbound while this device was added. Write {region} to \
                     /sys/bus/nd/drivers/nd_region/bind, then to unbind there, then to bind again; \
                     the kernel warns about a duplicate name meanwhile"
                ),
            ));
        }

        make_info_block(dev)?;
        // SAFETY: The device is valid and on the nd bus; the reference proves that it is being
        // bound, so its lock is held.
        let ndns = from_err_ptr(unsafe { bindings::nvdimm_namespace_common_probe(dev.as_raw()) })
            .map_err(|err| match err {
            EOPNOTSUPP => ProbeError::logged(
                dev,
                err,
                fmt!(
                    "a range that is not aligned to {:#x} bytes cannot have DAX: correct its \
                         address and its size where it is configured, or write 1 to the force_raw \
                         of {} and bind it, for a disk without DAX (if it had a mode, only read \
                         that disk)",
                    compat_align(),
                    dev.name()
                ),
            ),
            EBUSY => ProbeError::silent(err, fmt!("the namespace itself is bound")),
            ENXIO if dev.kind() == Kind::Namespace => {
                ProbeError::silent(err, fmt!("another device has claimed the namespace"))
            }
            EACCES => ProbeError::silent(err, fmt!("the media of the region are locked")),
            err => err.into(),
        })?;

        // SAFETY: For a namespace this is the device itself. For a pfn or btt device it is what the
        // device has claimed, and a device that has a driver keeps its claim.
        Ok(unsafe { Self::from_raw(dev, NonNull::new(ndns).ok_or(ENODEV)?) })
    }

    /// Returns the namespace behind a device that another driver is about to probe.
    ///
    /// [`None`] if a pfn or btt device has claimed no namespace, or if a namespace is claimed.
    ///
    /// # Safety
    ///
    /// For `'bound`, the device lock must be held, and the driver must not have begun its probe.
    pub(super) unsafe fn of_idle(dev: &'bound Device<Bound>) -> Option<Self> {
        // SAFETY: The kind determines the type that embeds the device.
        let ndns = unsafe {
            match dev.kind() {
                // `to_ndns()`
                Kind::Namespace => {
                    container_of!(dev.as_raw(), bindings::nd_namespace_common, dev)
                }
                Kind::Pfn => (*bindings::to_nd_pfn(dev.as_raw())).ndns,
                Kind::Btt => (*bindings::to_nd_btt(dev.as_raw())).ndns,
            }
        };
        let ndns = NonNull::new(ndns)?;
        // SAFETY: A device keeps its claim, and a reference to the namespace, while its lock is
        // held. Another device may claim the namespace meanwhile, so this is `READ_ONCE()`.
        let claim = unsafe { (&raw const (*ndns.as_ptr()).claim).read_volatile() };
        if dev.kind() == Kind::Namespace && !claim.is_null() {
            return None;
        }

        // SAFETY: By the reasons above. A driver enables or attaches a namespace in its probe.
        Some(unsafe { Self::from_raw(dev, ndns) })
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

    /// Checks that the namespace is within its region, and where its labels allocate space to it.
    /// May sleep. Takes the bus lock.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if it is not, so that it would be over other memory. The log has the remedy.
    pub(super) fn check_place(&self, dev: &Device<Core<'_>>) -> Result<(), ProbeError> {
        let range = self.range()?;
        let uuid = self.labelled().map(|_| self.uuid());
        if dev.region().has_allocated(&range, uuid.as_ref())? {
            return Ok(());
        }

        let region = dev.region_name();
        Err(ProbeError::logged(
            dev,
            EOPNOTSUPP,
            fmt!(
                "the labels contradict each other: {} would be at {:#x}..{:#x}, which is not what \
                 they allocate to it in {region}, and may be over other data. To read what is \
                 there, add the UUID of the namespace (`ndctl list -Ni`) to \
                 /sys/bus/nd/drivers/pmem_rs/except, write the name of this device to the file \
                 `bind` there, which ends in ENODEV, load nd_pmem, and write it to the file `bind` \
                 of that driver. Save the data of the other namespaces \
                 in {region}, then disable it and its NVDIMMs, delete all labels with `ndctl \
                 zero-labels`, and make the namespaces anew",
                self.name(),
                range.start,
                range.end
            ),
        ))
    }

    /// Returns the device that is bound: the namespace itself, or the one that has claimed it.
    pub fn device(&self) -> &'bound Device<Bound> {
        self.dev
    }

    pub(super) fn ndns(&self) -> NonNull<bindings::nd_namespace_common> {
        self.ndns
    }

    /// Returns the part of the namespace that has its physical range (`to_nd_namespace_io()`).
    ///
    /// All types of namespaces that are offered to a driver start with it.
    pub(super) fn io(&self) -> *mut bindings::nd_namespace_io {
        self.ndns.as_ptr().cast()
    }

    /// Returns the name of the namespace.
    pub fn name(&self) -> &'bound CStr {
        // SAFETY: By the type invariant the namespace is valid for `'bound`. Its device has been
        // added, so it has a name, which does not change.
        unsafe { name_of(&raw const (*self.ndns.as_ptr()).dev) }
    }

    /// Returns the physical range of the namespace.
    pub fn range(&self) -> Result<Range<PhysAddr>> {
        // SAFETY: By the type invariant the namespace is valid, and it is not resized.
        let (start, last) = unsafe { ((*self.io()).res.start, (*self.io()).res.end) };

        Ok(start..last.checked_add(1).ok_or(EOVERFLOW)?)
    }

    /// Returns the size of the namespace in bytes.
    pub(super) fn size(&self) -> Result<ResourceSize> {
        let range = self.range()?;

        range.end.checked_sub(range.start).ok_or(EINVAL)
    }

    /// Reserves the physical range of the namespace under `name`. May sleep.
    ///
    /// The reservation may outlive the binding of the device. No driver can use the range
    /// meanwhile.
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

    /// Returns the namespace as one with a label, which has more fields.
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

    /// Returns the logical block size of the disk in bytes.
    ///
    /// `pmem_sector_size()` is not called: it warns with a stack trace if the label, which is on
    /// the medium, has another size.
    ///
    /// # Errors
    ///
    /// The size in the label, if it is not 0, 512 or 4096. 512 is to be used then.
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

    /// Returns the uuid; all zeroes if there is none.
    pub fn uuid(&self) -> [u8; 16] {
        let Some(namespace) = self.labelled() else {
            return [0; 16];
        };

        // SAFETY: By the type invariant the namespace is valid. `uuid_store()` and `size_store()`
        // fail for a namespace that has a driver or is claimed. A deleted namespace has no uuid.
        unsafe { (*namespace.as_ptr()).uuid.as_ref() }.map_or([0; 16], |uuid| uuid.b)
    }

    /// Returns what identifies the namespace to users.
    pub(super) fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            uuid: Some(self.uuid()).filter(|uuid| *uuid != [0; 16]),
            start: self.range().ok().map(|range| range.start),
        }
    }

    /// Returns whether the user has asked for info blocks to be ignored (`force_raw`).
    ///
    /// The value may change at any time: `force_raw_store()` takes no lock.
    pub fn is_forced_raw(&self) -> bool {
        // SAFETY: By the type invariant the namespace is valid. The flag may be written meanwhile,
        // by one store. A volatile read is `READ_ONCE()`.
        unsafe { (&raw const (*self.ndns.as_ptr()).force_raw).read_volatile() != 0 }
    }

    /// Returns the claim class in the label; [`None`] if there is no label.
    ///
    /// A namespace without a label has a claim class too, which a user has set. It is not kept.
    pub fn claim_class(&self) -> Option<ClaimClass> {
        self.labelled()?;

        // SAFETY: By the type invariant the namespace is valid. `holder_class_store()` fails for a
        // namespace that has a driver or is claimed.
        Some(match unsafe { (*self.ndns.as_ptr()).claim_class } {
            bindings::nvdimm_claim_class_NVDIMM_CCLASS_NONE => ClaimClass::None,
            bindings::nvdimm_claim_class_NVDIMM_CCLASS_BTT
            | bindings::nvdimm_claim_class_NVDIMM_CCLASS_BTT2 => ClaimClass::Btt,
            bindings::nvdimm_claim_class_NVDIMM_CCLASS_PFN => ClaimClass::Pfn,
            bindings::nvdimm_claim_class_NVDIMM_CCLASS_DAX => ClaimClass::Dax,
            _ => ClaimClass::Unknown,
        })
    }

    /// Returns whether there is a label, and it has a place for a claim class. If there is none, or
    /// this is not known, [`ClaimClass::None`] does not say that there is no info block. Sleeps.
    pub fn label_has_claim_class(&self) -> bool {
        self.labelled().is_some() && self.device().region().labels_have_claim_class()
    }

    /// Returns the name of the disk to be created. Fails if the namespace cannot have a disk.
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

    /// Returns whether the provider asks for `struct page`s for raw namespaces, as the legacy one
    /// does (`pmem_should_map_pages()`). False if the namespace has `force_raw`, or is partly
    /// System RAM.
    pub fn wants_pages(&self) -> bool {
        if self.dev.kind() != Kind::Namespace {
            return false;
        }

        // SAFETY: The device is valid, and a namespace.
        unsafe { bindings::pmem_should_map_pages(self.dev.as_raw()) }
    }

    /// Returns the configured sector size of a btt device, with metadata, in bytes.
    ///
    /// [`None`] if the device is no btt, or the size was not set yet.
    pub fn btt_sector_size(&self) -> Option<usize> {
        if self.dev.kind() != Kind::Btt {
            return None;
        }

        // SAFETY: The device is valid, and a btt. It is being bound, and `sector_size_store()` in
        // `btt_devs.c` fails for a device with a driver.
        let size = unsafe { (*bindings::to_nd_btt(self.dev.as_raw())).lbasize };

        (size != 0).then_some(size)
    }
}

#[kunit_tests(pmem_rs_namespace)]
mod tests {
    use super::*;
    use crate::abstractions::kernel_ext::io::resource::free_range;
    use crate::abstractions::nvdimm::SetupError;
    use kernel::{
        device,
        faux, //
    };

    /// Calls `f` with a namespace that has only a range and a name.
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
            // which the tested methods do not depend on.
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
            assert!(namespace.claim_class().is_none());
        })
    }

    #[test]
    fn a_namespace_that_is_smaller_than_its_info_blocks_is_not_enabled() -> Result {
        with_namespace(0x1_0000_0000, 0x1_0000_0fff, |namespace| {
            assert!(namespace.enable().is_err_and(|err| err == EINVAL));
        })
    }

    /// Calls `f` with a namespace that has a label with the fields that `set` sets.
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
            // SAFETY: The device lives until the end of the function. It is not on the nd bus,
            // which the tested methods do not depend on.
            dev: unsafe { &*core::ptr::from_ref(generic).cast() },
            ndns: NonNull::from(&mut *nspm).cast(),
        }))
    }

    #[test]
    fn a_label_may_have_an_unknown_sector_size() -> Result {
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
    fn a_label_may_have_a_claim_class() -> Result {
        for (class, expected) in [
            (
                bindings::nvdimm_claim_class_NVDIMM_CCLASS_NONE,
                ClaimClass::None,
            ),
            (
                bindings::nvdimm_claim_class_NVDIMM_CCLASS_BTT,
                ClaimClass::Btt,
            ),
            (
                bindings::nvdimm_claim_class_NVDIMM_CCLASS_BTT2,
                ClaimClass::Btt,
            ),
            (
                bindings::nvdimm_claim_class_NVDIMM_CCLASS_PFN,
                ClaimClass::Pfn,
            ),
            (
                bindings::nvdimm_claim_class_NVDIMM_CCLASS_DAX,
                ClaimClass::Dax,
            ),
            (
                bindings::nvdimm_claim_class_NVDIMM_CCLASS_UNKNOWN,
                ClaimClass::Unknown,
            ),
        ] {
            with_label(
                |nspm| nspm.nsio.common.claim_class = class,
                |namespace| assert!(namespace.claim_class() == Some(expected)),
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
            assert!(namespace
                .attach_btt()
                .is_err_and(|err| matches!(err, SetupError::Other(ENODEV))));
        })
    }
}
