// SPDX-License-Identifier: GPL-2.0

//! Memory whose first access waits until the test provides the page: `userfaultfd(2)`.
//!
//! It stops a system call that uses it as a buffer where the kernel copies.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use crate::mapping::PAGE;

/// The parts of `linux/userfaultfd.h` that are used.
mod interface {
    #[repr(C)]
    pub struct Api {
        pub api: u64,
        pub features: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct Register {
        pub start: u64,
        pub len: u64,
        pub mode: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct ZeroPage {
        pub start: u64,
        pub len: u64,
        pub mode: u64,
        pub zeroed: i64,
    }

    pub const API: u64 = 0xaa;
    pub const REGISTER_MODE_MISSING: u64 = 1;

    nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_readwrite!(zero_page, 0xaa, 0x04, ZeroPage);
}

/// A page that is not present. An access to it waits for [`Absent::serve`].
///
/// # Invariants
///
/// `page` is the address of a page of anonymous memory, which stays mapped.
pub struct Absent {
    fd: OwnedFd,
    page: usize,
}

impl Absent {
    /// Maps a page that is not present.
    pub fn new() -> io::Result<Absent> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes flags and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: the call has just made this descriptor, which has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };

        let mut hello = interface::Api {
            api: interface::API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the pointer is to what the request reads and fills in.
        unsafe { interface::api(fd.as_raw_fd(), &mut hello) }?;

        let len = NonZeroUsize::new(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: this maps fresh memory, at an address of the kernel's choice.
        let page = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) }?;
        let page = page.as_ptr() as usize;
        let mut register = interface::Register {
            start: page as u64,
            len: PAGE as u64,
            mode: interface::REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the pointer is to what the request reads and fills in; the range is memory of our
        // own that nothing uses yet.
        unsafe { interface::register(fd.as_raw_fd(), &mut register) }?;
        // INVARIANT: that page was just mapped, and nothing unmaps it.
        Ok(Absent { fd, page })
    }

    /// Fills the page by `read`, which waits until the page is served.
    pub fn fill_from(&self, file: &File) -> io::Result<usize> {
        let page = self.page as *mut libc::c_void;
        // SAFETY: by the invariant there is a page at that address, and no reference into it
        // exists.
        let read = unsafe { libc::pread(file.as_raw_fd(), page, PAGE, 0) };
        Ok(Errno::result(read)? as usize)
    }

    /// Writes the page to the start of a file, which waits until the page is served.
    pub fn write_to(&self, file: &File) -> io::Result<usize> {
        let page = self.page as *const libc::c_void;
        // SAFETY: by the invariant there is a page at that address, which the kernel reads.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), page, PAGE, 0) };
        Ok(Errno::result(written)? as usize)
    }

    /// Waits until a thread waits for the page.
    pub fn await_touch(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(10_000_u16))? {
            0 => Err(io::Error::other("no thread has accessed the page")),
            _ => Ok(()),
        }
    }

    /// Maps a page of zeros, which wakes the waiting threads.
    pub fn serve(&self) -> io::Result<()> {
        let mut zero_page = interface::ZeroPage {
            start: self.page as u64,
            len: PAGE as u64,
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: the pointer is to what the request reads and fills in; the page holds nothing
        // yet.
        unsafe { interface::zero_page(self.fd.as_raw_fd(), &mut zero_page) }?;
        Ok(())
    }

    /// The contents of the page, once it is present.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        let page = self.page as *const u8;
        // SAFETY: by the invariant there is a page at that address, and `bytes` is as large.
        unsafe { page.copy_to_nonoverlapping(bytes.as_mut_ptr(), PAGE) }
        bytes
    }
}
