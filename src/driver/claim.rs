// SPDX-License-Identifier: GPL-2.0

//! Checks info blocks, and finds the mode in which a namespace is bound.

use super::{
    messages::{
        info_block_error,
        missing,
        not_set_up,
        unreadable, //
    },
    plain::infoblock::{
        Expected,
        InfoBlock,
        InfoBlockError,
        NamespaceMode, //
    }, //
};
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::memremap::{
    start_align,
    PagemapConfig,
    PAGE_STRUCT_SIZE, //
};
use crate::abstractions::nvdimm::{
    self,
    Btt,
    Claim,
    ClaimClass,
    Device,
    EnabledNamespace,
    Kind,
    ProbeError, //
};
use core::ops::Range;
use kernel::{
    device::Core,
    io::PhysAddr,
    page::PAGE_SIZE,
    prelude::*, //
};

/// Returns the properties that an info block of the namespace must match.
fn expected(enabled: &EnabledNamespace<'_>, range: &Range<PhysAddr>) -> Expected {
    Expected {
        uuid: enabled.namespace().uuid(),
        start: range.start,
        size: range.end.saturating_sub(range.start),
        offset: enabled.info_block_start(),
        reserve: nvdimm::info_block_reserve(),
        page_size: PAGE_SIZE as u64,
        page_struct_size: PAGE_STRUCT_SIZE as u64,
        start_align: start_align(),
        sector_size: enabled.namespace().btt_sector_size(),
    }
}

/// Returns the mode of namespaces with this claim class.
fn mode_of(class: ClaimClass) -> Option<NamespaceMode> {
    match class {
        ClaimClass::Btt => Some(NamespaceMode::Sector),
        ClaimClass::Pfn => Some(NamespaceMode::Fsdax),
        ClaimClass::Dax => Some(NamespaceMode::Devdax),
        ClaimClass::None | ClaimClass::Unknown => None,
    }
}

/// Checks the info block of a namespace, and lets libnvdimm make the device for its mode.
///
/// # Errors
///
/// [`EOPNOTSUPP`] if the info block cannot be used or read, or is missing although the label says
/// that there is one.
pub fn claim(
    dev: &Device<Core<'_>>,
    enabled: &EnabledNamespace<'_>,
    range: &Range<PhysAddr>,
) -> Result<Claim, ProbeError> {
    let namespace = enabled.namespace();
    if namespace.is_forced_raw() {
        return Ok(Claim::Raw);
    }
    // `None` if there is no label; `ClaimClass::None` if there is one that records no mode.
    let class = namespace.claim_class();
    let bytes = match enabled.read_info_block() {
        Ok(bytes) => bytes,
        Err(err) if err == EIO && class == Some(ClaimClass::None) => {
            dev_warn!(
                dev,
                "the medium is bad where an info block would be; \
                 the label says that there is none\n"
            );
            return Ok(Claim::Raw);
        }
        // If the namespace were bound as raw, a write would destroy the data.
        Err(err) if err == EIO => {
            return Err(unreadable(dev, namespace.name()));
        }
        Err(err) => return Err(err.into()),
    };
    let Some(block) = InfoBlock::of(&bytes) else {
        return match class {
            None | Some(ClaimClass::None) => Ok(enabled.claim()?),
            // The block is lost, or was never written.
            Some(class) => Err(missing(dev, namespace.name(), mode_of(class))),
        };
    };

    let error = match block.check(&expected(enabled, range)) {
        // The block is left over from a deleted namespace.
        Err(InfoBlockError::Foreign) if class == Some(ClaimClass::None) => {
            dev_info!(
                dev,
                "there is an info block of another namespace; \
                 the label says that this one has none\n"
            );
            return Ok(Claim::Raw);
        }
        Err(error) => error,
        Ok(()) => match enabled.claim() {
            Ok(Claim::Claimed) => return Ok(Claim::Claimed),
            Err(err) if err != EOPNOTSUPP => return Err(err.into()),
            // `force_raw` was set since the check above.
            _ if namespace.is_forced_raw() => return Ok(Claim::Raw),
            _ => match class {
                None | Some(ClaimClass::None) => InfoBlockError::Refused,
                Some(class) if mode_of(class) == Some(block.mode()) => InfoBlockError::Refused,
                Some(_) => InfoBlockError::OtherMode,
            },
        },
    };
    Err(info_block_error(dev, namespace.name(), block.mode(), error))
}

/// Reads from the info block of a pfn device how the memory is to be mapped. libnvdimm writes an
/// info block if the device is new.
pub fn setup_pfn<'bound>(
    dev: &Device<Core<'_>>,
    enabled: EnabledNamespace<'bound>,
    range: &Range<PhysAddr>,
) -> Result<(EnabledNamespace<'bound>, PagemapConfig), ProbeError> {
    let name = enabled.namespace().name();
    check_info_block(dev, &enabled, range)?;

    enabled.setup_pfn().map_err(|err| match err {
        // An empty seed is no error.
        ENODEV => err.into(),
        err => not_set_up(dev, name, err),
    })
}

/// Reads from the info block of a pfn device where the data are, and writes nothing. A device
/// without a usable info block is refused.
pub fn data_of_pfn(
    dev: &Device<Core<'_>>,
    enabled: &EnabledNamespace<'_>,
    range: &Range<PhysAddr>,
) -> Result<Range<PhysAddr>, ProbeError> {
    check_info_block(dev, enabled, range)?;

    let expected = expected(enabled, range);
    let bytes = enabled.read_info_block()?;
    InfoBlock::of(&bytes)
        .filter(|block| block.mode() == NamespaceMode::Fsdax && block.check(&expected).is_ok())
        .and_then(|block| block.data(&expected))
        .ok_or_else(|| {
            ProbeError::logged(
                dev,
                EOPNOTSUPP,
                fmt!(
                    "a kdump kernel writes no info block: configure {} with the normal kernel",
                    enabled.namespace().name()
                ),
            )
        })
}

/// Attaches the namespace of a btt device to the btt driver. libnvdimm writes an info block if the
/// device is new.
pub fn setup_btt<'bound>(
    dev: &Device<Core<'_>>,
    enabled: EnabledNamespace<'bound>,
    range: &Range<PhysAddr>,
) -> Result<Btt<'bound>, ProbeError> {
    let name = enabled.namespace().name();
    check_info_block(dev, &enabled, range)?;

    enabled.disable().attach_btt().map_err(|err| match err {
        // An empty seed is no error.
        ENODEV => err.into(),
        err => not_set_up(dev, name, err),
    })
}

/// Refuses a pfn or btt device if its info block cannot be read, or has impossible values. A
/// damaged or foreign block is not refused: libnvdimm overwrites it.
fn check_info_block(
    dev: &Device<Core<'_>>,
    enabled: &EnabledNamespace<'_>,
    range: &Range<PhysAddr>,
) -> Result<(), ProbeError> {
    let name = enabled.namespace().name();

    let bytes = match enabled.read_info_block() {
        Ok(bytes) => bytes,
        // libnvdimm would refuse it too, but without a message.
        Err(err) if err == EIO => {
            return Err(unreadable(dev, name));
        }
        Err(err) => return Err(err.into()),
    };
    // A block that is damaged, foreign or of another mode is accepted: libnvdimm overwrites it. The
    // others are checked here, because libnvdimm does not check them completely.
    if let Some(block) = InfoBlock::of(&bytes) {
        let is_used = match block.mode() {
            NamespaceMode::Sector => dev.kind() == Kind::Btt,
            NamespaceMode::Fsdax => dev.kind() == Kind::Pfn,
            NamespaceMode::Devdax => false,
        };
        if let (true, Err(error)) = (is_used, block.check(&expected(enabled, range))) {
            if !error.is_damaged_or_foreign() {
                return Err(info_block_error(dev, name, block.mode(), error));
            }
        }
    }
    Ok(())
}
