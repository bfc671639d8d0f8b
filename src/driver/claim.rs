// SPDX-License-Identifier: GPL-2.0

//! Checks info blocks, and finds the mode in which a namespace is bound.

use super::messages::{
    bad_memmap,
    bad_outside,
    info_block_error,
    missing,
    not_set_up,
    sleeping_flush,
    unreadable, //
};
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::memremap::PagemapConfig;
use crate::abstractions::nvdimm::{
    Btt,
    Claim,
    ClaimClass,
    Device,
    EnabledNamespace,
    InfoBlock,
    InfoBlockError,
    NamespaceMode,
    ProbeError,
    SetupError, //
};
use core::ops::Range;
use kernel::{
    device::Core,
    io::PhysAddr,
    prelude::*, //
};

/// Returns the mode of namespaces with this claim class.
fn mode_of(class: ClaimClass) -> Option<NamespaceMode> {
    match class {
        ClaimClass::Btt => Some(NamespaceMode::Sector),
        ClaimClass::Pfn => Some(NamespaceMode::Fsdax),
        ClaimClass::Dax => Some(NamespaceMode::Devdax),
        ClaimClass::None | ClaimClass::Unknown => None,
    }
}

/// Lets libnvdimm make the device for the mode in the info block of a namespace.
///
/// # Errors
///
/// [`EOPNOTSUPP`] if the info block cannot be used or read, or is missing although the label says
/// that there is one. With `force_raw` any block is ignored. If there is a label that records no
/// mode, a block of another namespace is ignored, and, if the label could record one, also a block
/// that cannot be read.
pub fn claim(dev: &Device<Core<'_>>, enabled: &EnabledNamespace<'_>) -> Result<Claim, ProbeError> {
    let namespace = enabled.namespace();
    if namespace.is_forced_raw() {
        return Ok(Claim::Raw);
    }
    // `None` if there is no label; `ClaimClass::None` if there is one that records no mode.
    let class = namespace.claim_class();
    let bytes = match enabled.read_info_block() {
        Ok(bytes) => bytes,
        Err(err)
            if err == EIO
                && class == Some(ClaimClass::None)
                && namespace.label_has_claim_class() =>
        {
            dev.warn(fmt!(
                "the medium is bad where an info block would be; \
                 the label says that there is none\n"
            ));
            return Ok(Claim::Raw);
        }
        // There may be a block. If the namespace were bound as raw, a write would destroy the data.
        Err(err) if err == EIO => {
            return Err(unreadable(dev, namespace.name()));
        }
        Err(err) => return Err(err.into()),
    };
    let Some(block) = InfoBlock::of(&bytes) else {
        return match class {
            None | Some(ClaimClass::None) => enabled.claim().map_err(|err| match err {
                SetupError::Unreadable => unreadable(dev, namespace.name()),
                SetupError::InfoBlock(mode, error) => {
                    info_block_error(dev, namespace.name(), mode, error)
                }
                err => Error::from(err).into(),
            }),
            // The block is lost, or was never written.
            Some(class) => Err(missing(dev, namespace.name(), mode_of(class))),
        };
    };

    let error = match enabled.claim() {
        Ok(Claim::Claimed) => return Ok(Claim::Claimed),
        // The block is left over from a deleted namespace.
        Err(SetupError::InfoBlock(_, InfoBlockError::Foreign))
            if class == Some(ClaimClass::None) =>
        {
            dev.info(fmt!(
                "there is an info block of another namespace; \
                 the label of this one records no mode\n"
            ));
            return Ok(Claim::Raw);
        }
        Err(SetupError::InfoBlock(_, error)) => error,
        Err(SetupError::Unreadable) => return Err(unreadable(dev, namespace.name())),
        Err(SetupError::Other(err)) if err != EOPNOTSUPP => return Err(err.into()),
        // `force_raw` was set since the check above.
        _ if namespace.is_forced_raw() => return Ok(Claim::Raw),
        _ => match class {
            None | Some(ClaimClass::None) => InfoBlockError::Refused,
            Some(class) if mode_of(class) == Some(block.mode()) => InfoBlockError::Refused,
            Some(_) => InfoBlockError::OtherMode,
        },
    };
    Err(info_block_error(dev, namespace.name(), block.mode(), error))
}

/// Reads from the info block of a pfn device how the memory is to be mapped. libnvdimm writes an
/// info block if the device is new.
pub fn setup_pfn<'bound>(
    dev: &Device<Core<'_>>,
    enabled: EnabledNamespace<'bound>,
) -> Result<(EnabledNamespace<'bound>, PagemapConfig<'bound>), ProbeError> {
    let name = enabled.namespace().name();

    enabled
        .setup_pfn()
        .map_err(|err| setup_error(dev, name, err))
}

/// Reads from the info block of a pfn device where the data are, and writes nothing. A device
/// without a usable info block is refused.
pub fn data_of_pfn(
    dev: &Device<Core<'_>>,
    enabled: &EnabledNamespace<'_>,
) -> Result<Range<PhysAddr>, ProbeError> {
    let name = enabled.namespace().name();

    enabled
        .data_of_pfn()
        .map_err(|err| setup_error(dev, name, err))?
        .ok_or_else(|| {
            ProbeError::logged(
                dev,
                EOPNOTSUPP,
                fmt!(
                    "a kdump kernel writes no info block: configure {} with the normal kernel",
                    name
                ),
            )
        })
}

/// Attaches the namespace of a btt device to the btt driver. libnvdimm writes an info block if the
/// device is new.
pub fn setup_btt<'bound>(
    dev: &Device<Core<'_>>,
    enabled: EnabledNamespace<'bound>,
) -> Result<Btt<'bound>, ProbeError> {
    let name = enabled.namespace().name();

    enabled
        .disable()
        .attach_btt()
        .map_err(|err| setup_error(dev, name, err))
}

/// Logs why a pfn or btt device cannot be set up.
fn setup_error(dev: &Device<Core<'_>>, name: &CStr, err: SetupError) -> ProbeError {
    match err {
        // libnvdimm would refuse it too. Of a pfn device it would not log why.
        SetupError::Unreadable => unreadable(dev, name),
        SetupError::InfoBlock(mode, error) => info_block_error(dev, name, mode, error),
        SetupError::BadMemmap => bad_memmap(dev, name),
        SetupError::BadOutside(address) => bad_outside(dev, name, address),
        SetupError::SleepingFlush => sleeping_flush(dev, name),
        // An empty seed is no error.
        SetupError::Other(ENODEV) => ENODEV.into(),
        SetupError::Other(err) => not_set_up(dev, name, err),
    }
}
