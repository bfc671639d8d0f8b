// SPDX-License-Identifier: GPL-2.0

//! The errors that a step may have.

use std::io;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use crate::errno;

/// The errors of a step whose device does not exist or is in another state.
pub const ABSENT: &[Errno] = &[Errno::ENOENT, Errno::ENXIO, Errno::ENODEV];
/// The same for an attribute, whose device may be removed while it is read.
pub const NOT_READABLE: &[Errno] = &[Errno::ENOENT, Errno::ENXIO, Errno::ENODEV, Errno::EIO];

/// Checks the result of a step against the allowed errors, and returns it as a word.
pub fn allowed(result: io::Result<()>, right: &[Errno]) -> Result<String> {
    allowed_of(result.map_err(anyhow::Error::from), right)
}

pub fn allowed_of(result: Result<()>, right: &[Errno]) -> Result<String> {
    let Err(error) = result else {
        return Ok("done".to_owned());
    };
    match errno::of(&error) {
        Some(errno) if right.contains(&errno) => Ok(format!("{errno:?}")),
        _ => Err(error).with_context(|| format!("expected one of {right:?}")),
    }
}

/// Checks that an error means that the device was not found, which may happen while it is being
/// added.
pub fn absent(error: &anyhow::Error) -> Result<String> {
    match errno::of(error) {
        None => Ok("absent".to_owned()),
        Some(errno) if NOT_READABLE.contains(&errno) => Ok("absent".to_owned()),
        Some(errno) => bail!("looking for it ended with {errno:?}: {error:?}"),
    }
}
