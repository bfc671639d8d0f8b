// SPDX-License-Identifier: GPL-2.0

//! Registered buffers of io_uring: the kernel pins their pages for as long as they are registered.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::mapping::Mapping;

/// `struct io_uring_params` of `linux/io_uring.h`, which is that large. Zeros ask for defaults.
type Parameters = [u64; 15];

const REGISTER_BUFFERS: libc::c_uint = 0;

/// A ring without requests.
pub struct Ring(OwnedFd);

impl Ring {
    /// `io_uring_setup(2)`.
    pub fn new() -> io::Result<Ring> {
        let mut parameters: Parameters = [0; 15];
        // SAFETY: the pointer is to what the call reads and fills in.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        let fd = Errno::result(fd)?;
        // SAFETY: the call has just made this descriptor, which has no other owner.
        Ok(Ring(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// `io_uring_register(IORING_REGISTER_BUFFERS)`: makes a part of a mapping the ring's buffer.
    pub fn register(&self, mapping: &Mapping, from: usize, len: usize) -> io::Result<()> {
        let part = libc::iovec {
            iov_base: mapping.address_of(from, len) as *mut libc::c_void,
            iov_len: len,
        };
        // SAFETY: `part` names bytes of the mapping, which the kernel does not access before it
        // gets a request.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.0.as_raw_fd(),
                REGISTER_BUFFERS,
                &raw const part,
                1,
            )
        };
        Errno::result(result)?;
        Ok(())
    }
}
