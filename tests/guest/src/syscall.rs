// SPDX-License-Identifier: GPL-2.0

//! System calls that neither the standard library nor `nix` wraps safely.
//!
//! Together with [`crate::mapping`], [`crate::aio`], [`crate::uring`], [`crate::userfault`],
//! [`crate::bus_error`] and [`crate::counter`] this is all the unsafe code of the guest.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

/// The constants of `linux/fs.h` that the `libc` crate lacks.
mod request {
    nix::ioctl_write_ptr_bad!(
        set_read_only,
        nix::request_code_none!(0x12, 93),
        libc::c_int
    );
    nix::ioctl_read_bad!(is_read_only, nix::request_code_none!(0x12, 94), libc::c_int);
    nix::ioctl_read_bad!(
        logical_block_size,
        nix::request_code_none!(0x12, 104),
        libc::c_int
    );
    nix::ioctl_read_bad!(
        physical_block_size,
        nix::request_code_none!(0x12, 123),
        libc::c_uint
    );
    nix::ioctl_read!(bytes, 0x12, 114, libc::size_t);
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_read_bad!(block_of_file, nix::request_code_none!(0, 1), libc::c_int);
    nix::ioctl_write_int_bad!(
        clone,
        nix::request_code_write!(0x94, 9, size_of::<libc::c_int>())
    );
    nix::ioctl_readwrite!(freeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(thaw, b'X', 120, libc::c_int);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);

    /// `struct nd_cmd_clear_error` of `linux/ndctl.h`.
    #[repr(C, packed)]
    pub struct ClearError {
        pub address: u64,
        pub len: u64,
        pub status: u32,
        pub reserved: [u8; 4],
        pub cleared: u64,
    }
    nix::ioctl_readwrite!(clear_error, b'N', 4, ClearError);

    /// `struct xfs_swapext`: version, the two files, offset, length, padding, and the state of the
    /// first file.
    pub type SwapExtents = [u64; 24];
    nix::ioctl_readwrite!(swap_extents, b'X', 109, SwapExtents);
    nix::ioctl_none!(swap_with_boot_loader, b'f', 17);

    /// `struct fiemap` of `linux/fiemap.h` with room for one extent.
    #[repr(C)]
    #[derive(Default)]
    pub struct FirstExtent {
        pub start: u64,
        pub len: u64,
        pub flags: u32,
        pub nr_mapped: u32,
        pub nr_extents: u32,
        pub reserved: u32,
        pub logical: u64,
        pub physical: u64,
        pub rest: [u64; 5],
    }
    /// The size in the number of the request is that without extents.
    const FIEMAP: usize = 32;
    nix::ioctl_readwrite_bad!(
        first_extent,
        nix::request_code_readwrite!(b'f', 11, FIEMAP),
        FirstExtent
    );

    /// `cachestat(2)`, which has this number on all architectures.
    pub const CACHESTAT: libc::c_long = 451;
}

fn iovec_count(len: usize) -> libc::c_int {
    libc::c_int::try_from(len).expect("more buffers than a system call takes")
}

fn file_offset(offset: u64) -> libc::off_t {
    libc::off_t::try_from(offset).expect("an offset that no file has")
}

/// `kexec_file_load(2)`: loads another kernel with its initramfs and its command line.
pub fn kexec_file_load(kernel: &File, initramfs: &File, line: &str) -> io::Result<()> {
    let line = CString::new(line)?;
    // SAFETY: the line is a C string, and its length includes the end.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            line.as_bytes_with_nul().len(),
            line.as_ptr(),
            0 as libc::c_ulong,
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

/// `preadv2(2)`: a vectored read at an offset, with `RWF_` flags.
pub fn preadv2(
    file: &File,
    buffers: &mut [IoSliceMut<'_>],
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let count = iovec_count(buffers.len());
    // SAFETY: `IoSliceMut` has the layout of `iovec`, and each names memory that is borrowed
    // mutably for the whole call.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            buffers.as_mut_ptr().cast(),
            count,
            file_offset(offset),
            flags,
        )
    };
    Ok(Errno::result(read)? as usize)
}

/// `pwritev2(2)`: a vectored write at an offset, with `RWF_` flags.
pub fn pwritev2(
    file: &File,
    buffers: &[IoSlice<'_>],
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let count = iovec_count(buffers.len());
    // SAFETY: `IoSlice` has the layout of `iovec`, and each names memory that is borrowed for the
    // whole call.
    let written = unsafe {
        libc::pwritev2(
            file.as_raw_fd(),
            buffers.as_ptr().cast(),
            count,
            file_offset(offset),
            flags,
        )
    };
    Ok(Errno::result(written)? as usize)
}

/// Whether `statx(2)` says that the file is accessed with DAX.
pub fn is_dax(path: &Path) -> io::Result<bool> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: the name is a C string, and `found` has room for the answer.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            name.as_ptr(),
            0,
            libc::STATX_BASIC_STATS,
            found.as_mut_ptr(),
        )
    };
    Errno::result(result)?;
    // SAFETY: the call succeeded, so the kernel filled it in.
    let found = unsafe { found.assume_init() };
    Ok(found.stx_attributes & libc::STATX_ATTR_DAX as u64 != 0)
}

/// `BLKGETSIZE64`: the size of a block device.
pub fn block_device_bytes(disk: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the pointer is to a number of the type that the request fills in.
    unsafe { request::bytes(disk.as_raw_fd(), &mut bytes) }?;
    Ok(bytes as u64)
}

/// `BLKSSZGET`: the logical block size of the disk.
pub fn logical_block_size(disk: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the pointer is to a number of the type that the request fills in.
    unsafe { request::logical_block_size(disk.as_raw_fd(), &mut bytes) }?;
    Ok(bytes as u64)
}

/// `BLKPBSZGET`: the physical block size of the disk.
pub fn physical_block_size(disk: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the pointer is to a number of the type that the request fills in.
    unsafe { request::physical_block_size(disk.as_raw_fd(), &mut bytes) }?;
    Ok(u64::from(bytes))
}

/// Any request whose argument is a pointer to at most 128 bytes. Passes zeros and returns the first
/// eight bytes.
pub fn ask(disk: &File, request: u64) -> io::Result<u64> {
    let mut argument = [0_u64; 16];
    // SAFETY: callers pass only requests that access no more than the argument's 128 bytes.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), request, argument.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(argument[0])
}

/// `BLKROGET`: whether a disk or a partition is read-only.
pub fn is_read_only(disk: &File) -> io::Result<bool> {
    let mut read_only = 0;
    // SAFETY: the pointer is to a number of the type that the request fills in.
    unsafe { request::is_read_only(disk.as_raw_fd(), &mut read_only) }?;
    Ok(read_only != 0)
}

/// `BLKROSET`: makes a disk read-only or writable, as `blockdev --setro` does.
pub fn set_read_only(disk: &File, read_only: bool) -> io::Result<()> {
    // `BLKDISCARD`: tells the disk that a range is no longer needed.
    unsafe { request::set_read_only(disk.as_raw_fd(), &libc::c_int::from(read_only)) }?;
    Ok(())
}

/// `BLKDISCARD`: tells the disk that a range is not needed any more.
pub fn discard(disk: &File, start: u64, len: u64) -> io::Result<()> {
    // SAFETY: the request reads two numbers.
    unsafe { request::discard(disk.as_raw_fd(), &[start, len]) }?;
    Ok(())
}

/// `fallocate` on a disk: zeroes or discards a range.
pub fn fallocate(disk: &File, zero: bool, start: u64, len: u64) -> io::Result<()> {
    let mode = if zero {
        libc::FALLOC_FL_ZERO_RANGE
    } else {
        libc::FALLOC_FL_PUNCH_HOLE
    };
    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call takes numbers and touches no memory.
    let result =
        unsafe { libc::fallocate(disk.as_raw_fd(), mode, file_offset(start), file_offset(len)) };
    Errno::result(result)?;
    Ok(())
}

/// `BLKZEROOUT`: zeroes a range.
pub fn zero_out(disk: &File, start: u64, len: u64) -> io::Result<()> {
    // SAFETY: the request reads two numbers.
    unsafe { request::zero_out(disk.as_raw_fd(), &[start, len]) }?;
    Ok(())
}

/// `ND_IOCTL_CLEAR_ERROR` on a bus of NVDIMMs: asks its provider to clear errors, and returns how
/// many bytes were cleared.
pub fn clear_error(bus: &File, address: u64, len: u64) -> io::Result<u64> {
    let mut command = request::ClearError {
        address,
        len,
        status: 0,
        reserved: [0; 4],
        cleared: 0,
    };
    // SAFETY: the pointer is to a command of the type that the request reads and fills in.
    unsafe { request::clear_error(bus.as_raw_fd(), &mut command) }?;
    Ok(command.cleared)
}

/// `FIBMAP`: which block of the device holds a block of a file.
pub fn block_of_file(file: &File, block: u32) -> io::Result<u64> {
    let mut number = libc::c_int::try_from(block).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a number of the type that the request reads and fills in.
    unsafe { request::block_of_file(file.as_raw_fd(), &mut number) }?;
    u64::try_from(number).map_err(io::Error::other)
}

/// `FS_IOC_FIEMAP`: where a file begins, in bytes of its device. `FIBMAP` refuses files with shared
/// blocks.
pub fn start_of_file(file: &File) -> io::Result<u64> {
    let mut extent = request::FirstExtent {
        len: u64::MAX,
        nr_extents: 1,
        ..Default::default()
    };
    // SAFETY: the pointer is to a structure with room for the one extent that it asks for.
    unsafe { request::first_extent(file.as_raw_fd(), &mut extent) }?;
    if extent.nr_mapped == 0 || extent.logical != 0 {
        return Err(io::Error::other("the file begins with a hole"));
    }
    Ok(extent.physical)
}

/// `FICLONE`: makes a file share all of its blocks with another one.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the request takes a file descriptor, which is open for the whole call.
    unsafe { request::clone(to.as_raw_fd(), from.as_raw_fd()) }?;
    Ok(())
}

/// `XFS_IOC_SWAPEXT`: asks xfs to swap the blocks of two files. It refuses that at the end, because
/// the state of the first file is not given.
pub fn swap_extents(file: &File, other: &File) -> io::Result<()> {
    let mut argument: request::SwapExtents = [0; 24];
    argument[1] = u64::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    argument[2] = u64::try_from(other.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to an argument of the size that the request reads.
    unsafe { request::swap_extents(file.as_raw_fd(), &mut argument) }?;
    Ok(())
}

/// `EXT4_IOC_SWAP_BOOT`: swaps a file of ext4 with the inode of the boot loader.
pub fn swap_with_boot_loader(file: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { request::swap_with_boot_loader(file.as_raw_fd()) }?;
    Ok(())
}

/// `cachestat(2)` on a whole file: how many pages are in the page cache, dirty, under writeback,
/// evicted, and recently evicted.
pub fn page_cache_statistics(file: &File) -> io::Result<[u64; 5]> {
    let whole = [0_u64; 2];
    let mut found = [0_u64; 5];
    // SAFETY: the kernel reads two numbers and writes five.
    let result = unsafe {
        libc::syscall(
            request::CACHESTAT,
            file.as_raw_fd(),
            whole.as_ptr(),
            found.as_mut_ptr(),
            0,
        )
    };
    Errno::result(result)?;
    Ok(found)
}

/// `fsetxattr(2)`: sets an extended attribute of a file.
pub fn set_xattr(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (bytes, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: the name is a C string, and the value has that many bytes.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), bytes, len, 0) };
    Errno::result(result)?;
    Ok(())
}

/// `fgetxattr(2)`: the value of an extended attribute of a file.
pub fn xattr(file: &File, name: &CStr) -> io::Result<Vec<u8>> {
    // The kernel accepts no longer ones.
    let mut value = vec![0_u8; 64 << 10];
    let (bytes, len) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: the name is a C string, and the value has room for that many bytes.
    let result = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), bytes, len) };
    value.truncate(Errno::result(result)? as usize);
    Ok(value)
}

/// `FIFREEZE`: blocks all writes to a file system, given by any of its directories.
pub fn freeze(dir: &File) -> io::Result<()> {
    // SAFETY: the request ignores its argument.
    unsafe { request::freeze(dir.as_raw_fd(), std::ptr::null_mut()) }?;
    Ok(())
}

/// `FITHAW`: undoes [`freeze`].
pub fn thaw(dir: &File) -> io::Result<()> {
    // SAFETY: the request ignores its argument.
    unsafe { request::thaw(dir.as_raw_fd(), std::ptr::null_mut()) }?;
    Ok(())
}

/// `prctl(PR_MCE_KILL)`: requests SIGBUS as soon as the kernel finds a memory error of this
/// process.
pub fn request_early_memory_failure_signals() -> io::Result<()> {
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe {
        libc::prctl(
            libc::PR_MCE_KILL,
            libc::PR_MCE_KILL_SET,
            libc::PR_MCE_KILL_EARLY,
            0,
            0,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// `swapon(2)`: swaps to a file.
pub fn swap_on(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name is a C string.
    let result = unsafe { libc::swapon(name.as_ptr(), 0) };
    Errno::result(result)?;
    Ok(())
}

/// `swapoff(2)`: undoes [`swap_on`].
pub fn swap_off(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name is a C string.
    let result = unsafe { libc::swapoff(name.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}

/// Makes the program that `command` starts the leader of a session with a controlling terminal, so
/// that a shell has job control.
pub fn own_terminal(command: &mut Command, terminal: File) {
    let become_leader = move || {
        nix::unistd::setsid()?;
        // SAFETY: the request takes a number and touches no memory.
        let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
        Errno::result(result)?;
        Ok(())
    };
    // SAFETY: between fork and exec this makes two system calls; it takes no lock and allocates
    // nothing.
    unsafe { command.pre_exec(become_leader) };
}

/// A non-blocking socket that receives the kernel's uevents, one for each `read`.
pub fn uevent_socket() -> io::Result<File> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes numbers and touches no memory.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) };
    let fd = Errno::result(fd)?;
    // SAFETY: the call has just made this descriptor, which has no other owner.
    let socket = unsafe { File::from_raw_fd(fd) };
    // SAFETY: an address is valid with all of its bytes zero.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    // The kernel sends to the first group.
    address.nl_groups = 1;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length describe an address of the socket's family.
    let result = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
    Errno::result(result)?;
    Ok(socket)
}

/// Sets an option of a socket (`SOL_SOCKET`) that is a number.
pub fn set_socket_option(
    socket: &impl AsRawFd,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe a number.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Runs `work` in a child process and returns how it ended: for accesses that may raise a signal.
pub fn in_child(work: impl FnOnce()) -> io::Result<WaitStatus> {
    Ok(waitpid(start_child(work)?, None)?)
}

/// Starts a child process that runs `work` and then exits: with code 101 if `work` panicked, else
/// with 0.
pub fn start_child(work: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: a test process has a single thread when it calls this, so no lock is held by a thread
    // that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = if catch_unwind(AssertUnwindSafe(work)).is_ok() {
                0
            } else {
                101
            };
            exit_at_once(code)
        }
    }
}

/// Ends this process without running destructors: a child must not unmount what its parent has
/// mounted.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: this only ends the process.
    unsafe { libc::_exit(code) }
}
