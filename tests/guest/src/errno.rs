// SPDX-License-Identifier: GPL-2.0

//! Errors that a test expects.

use std::fmt::Debug;
use std::io;

use anyhow::{Result, bail};
use nix::errno::Errno;

/// The kernel's error at the root of another error, if there is one.
pub fn of(error: &anyhow::Error) -> Option<Errno> {
    let error = error.root_cause().downcast_ref::<io::Error>()?;
    error.raw_os_error().map(Errno::from_raw)
}

/// Whether a call has failed with an error number.
pub fn is(result: &Result<()>, number: i32) -> bool {
    let found = result.as_ref().err().and_then(of);
    found.is_some_and(|errno| errno as i32 == number)
}

/// Checks that an operation failed with one of the expected errors.
pub fn expect<T: Debug>(what: &str, result: io::Result<T>, right: &[Errno]) -> Result<Errno> {
    match result {
        Ok(value) => bail!("{what}: succeeded with {value:?}, expected {right:?}"),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if right.contains(&errno) => Ok(errno),
            _ => bail!("{what}: failed with `{error}`, expected {right:?}"),
        },
    }
}
