// SPDX-License-Identifier: GPL-2.0

//! The error of a probe, with a reason for users.

use super::device::Device;
use kernel::{
    alloc::AllocError,
    device::Core,
    fmt,
    prelude::*,
    str::CString, //
};

/// The error of a probe.
///
/// The reason is shown in sysfs, until the device is probed again or another driver has bound it.
pub struct ProbeError {
    err: Error,
    reason: Option<CString>,
}

impl ProbeError {
    /// Logs the reason as an error of the device. Allocates memory to keep it. If there is none,
    /// the reason is not shown. May sleep.
    pub fn logged(dev: &Device<Core<'_>>, err: Error, reason: fmt::Arguments<'_>) -> Self {
        dev.err(fmt!("{}\n", reason));
        Self::silent(err, reason)
    }

    /// Like [`Self::logged`], but does not log the reason.
    pub fn silent(err: Error, reason: fmt::Arguments<'_>) -> Self {
        Self {
            err,
            reason: CString::try_from_fmt(reason).ok(),
        }
    }

    /// Returns the error for the driver core.
    pub fn to_error(&self) -> Error {
        self.err
    }

    /// Returns what is shown to users: the reason. Without one it is the number of the error, or
    /// nothing if the device is not for this driver ([`ENODEV`], [`ENXIO`]).
    pub(super) fn into_shown_reason(self) -> Option<CString> {
        let err = self.err;

        self.reason.or_else(|| {
            if err == ENODEV || err == ENXIO {
                return None;
            }
            CString::try_from_fmt(fmt!("error {}", err.to_errno())).ok()
        })
    }
}

impl From<Error> for ProbeError {
    fn from(err: Error) -> Self {
        Self { err, reason: None }
    }
}

impl From<AllocError> for ProbeError {
    fn from(err: AllocError) -> Self {
        Error::from(err).into()
    }
}
