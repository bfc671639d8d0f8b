// SPDX-License-Identifier: GPL-2.0

//! The status of a block I/O request.
//!
//! C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::abstractions::bindings;
use kernel::prelude::*;

/// The status with which a request ends (`blk_status_t`).
///
/// What user space sees, it sees with direct I/O. A read through the page cache fails with `EIO` in
/// all cases.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::block::bio::Status;
///
/// assert_eq!(Status::from(Ok(())), Status::OK);
/// assert_eq!(Status::from(Err(EIO)), Status::IOERR);
/// assert_eq!(Status::from(ENODATA), Status::MEDIUM);
/// assert_eq!(Status::from(EOPNOTSUPP), Status::NOTSUPP);
/// assert_eq!(Status::from(EAGAIN), Status::AGAIN);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub(super) bindings::blk_status_t);

impl Status {
    /// The request succeeded.
    pub const OK: Self = Self(bindings::BLK_STS_OK);
    /// The request failed. User space sees `EIO`.
    pub const IOERR: Self = Self(bindings::BLK_STS_IOERR);
    /// The medium has an error at these sectors. User space sees `ENODATA`.
    pub const MEDIUM: Self = Self(bindings::BLK_STS_MEDIUM);
    /// The request must not sleep, and would have to. User space sees `EAGAIN`.
    pub const AGAIN: Self = Self(bindings::BLK_STS_AGAIN);
    /// The device does not support the operation. User space sees `EOPNOTSUPP`.
    pub const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        // SAFETY: The function only looks up a table, and accepts any number.
        Self(unsafe { bindings::errno_to_blk_status(err.to_errno()) })
    }
}

impl From<Result> for Status {
    fn from(result: Result) -> Self {
        match result {
            Ok(()) => Self::OK,
            Err(err) => err.into(),
        }
    }
}

#[kunit_tests(pmem_rs_blk_status)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_conversion_to_a_status() {
        let errno = |status: Status| {
            // SAFETY: The function only looks up a table.
            unsafe { bindings::blk_status_to_errno(status.0) }
        };

        for err in [EIO, EOPNOTSUPP, ENOSPC, ENOMEM, ENODATA] {
            assert_eq!(errno(err.into()), err.to_errno());
        }
        // The block layer maps an error that it does not know to an I/O error.
        assert!(Status::from(ENXIO) == Status::IOERR);
        assert!(Status::from(Ok(())) == Status::OK);
    }
}
