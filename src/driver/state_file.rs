// SPDX-License-Identifier: GPL-2.0

//! The file `pmem_rs/state` of a device in sysfs.

use super::{
    device_state::DeviceState,
    plain::{
        suspension::{
            self,
            Cause,
            Failure,
            Phase, //
        },
        teardown::State, //
    }, //
};
use crate::abstractions::compat::error::code::ECANCELED;
use crate::abstractions::nvdimm;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The file with the state of a device: `live`, `suspended` or `leaving`. A program can write the
/// first two to it.
pub struct StateFile(pub Arc<DeviceState>);

impl nvdimm::StateAttribute for StateFile {
    fn state(&self) -> &'static CStr {
        let is_bound = matches!(self.0.teardown.lock().state, State::Bound(_));
        if !is_bound {
            return c"leaving";
        }

        match self.0.suspension.machine.lock().phase {
            Phase::Live | Phase::Suspending => c"live",
            Phase::Suspended | Phase::Resuming => c"suspended",
        }
    }

    fn set_state(&self, state: &[u8]) -> Result {
        let result = match state {
            b"suspended" => suspension::suspend(&self.0),
            b"live" => suspension::resume(&self.0),
            _ => return Err(EINVAL),
        };

        result.map_err(|failure| match failure {
            Failure::Busy => EBUSY,
            Failure::Live => EINVAL,
            Failure::Disabled | Failure::Ended(Cause::Leaving) => ENODEV,
            Failure::Killed | Failure::Ended(Cause::Killed) => EINTR,
            Failure::Ended(Cause::Limit) => ETIMEDOUT,
            Failure::Ended(Cause::Resumed) | Failure::Thawed => ECANCELED,
            Failure::Failed(err) => err,
        })
    }
}
