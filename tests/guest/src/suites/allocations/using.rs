// SPDX-License-Identifier: GPL-2.0

//! Devices are used.

use std::os::unix::fs::FileExt;

use anyhow::Result;
use nix::errno::Errno;

use super::{Walk, small};
use crate::disk::Access;
use crate::injection::Whose;
use crate::lab::Lab;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};

const LEN: usize = 64 << 10;

/// What a read or write may fail with because there is no memory.
const IO_ERRORS: &[Errno] = &[Errno::ENOMEM, Errno::EIO, Errno::EAGAIN];

pub fn block_io(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = small(lab, mode)?.disk;
        let file = disk.open(Access::Direct)?;
        let right = Buffer::stamped(LEN, 3);
        let mut walk = Walk::new(lab, "block I/O")?;
        walk.along(Whose::Thread, |failing| {
            if failing
                .call(IO_ERRORS, || file.write_all_at(&right, 4096))?
                .is_none()
            {
                file.write_all_at(&right, 4096)?;
            }
            Ok(())
        })?;
        walk.along(Whose::Thread, |failing| {
            let mut found = Buffer::new(LEN);
            if failing
                .call(IO_ERRORS, || file.read_exact_at(&mut found, 4096))?
                .is_none()
            {
                file.read_exact_at(&mut found, 4096)?;
            }
            expect_same("what was written", &found, &right)
        })?;
        walk.along(Whose::Thread, |failing| {
            failing.call(IO_ERRORS, || file.sync_all()).map(drop)
        })?;
        drop(file);
        walk.end()?;
    }
    Ok(())
}
