// SPDX-License-Identifier: GPL-2.0

//! Asynchronous I/O of the kernel (`io_submit(2)`): several requests of one process in flight at
//! once.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::mapping::Mapping;

/// One of several requests.
pub enum Request<'a> {
    /// Fills the bytes from this offset on.
    Read(&'a mut [u8], u64),
    /// Writes the bytes from this offset on.
    Write(&'a [u8], u64),
    /// Makes durable what was written before.
    Sync,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const SYNC: u16 = 2;

/// `struct iocb` of `linux/aio_abi.h`, on little-endian machines.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `struct io_event` of the same.
#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    more: i64,
}

/// Submits all requests at once and waits for them. Returns the result of each: the number of bytes
/// moved, or a negative error number.
pub fn run(file: &File, requests: &mut [Request<'_>]) -> io::Result<Vec<i64>> {
    let mut blocks = Vec::with_capacity(requests.len());
    for (number, request) in requests.iter_mut().enumerate() {
        let (opcode, buffer, len, offset) = match request {
            Request::Read(bytes, at) => (READ, bytes.as_mut_ptr() as u64, bytes.len(), *at),
            Request::Write(bytes, at) => (WRITE, bytes.as_ptr() as u64, bytes.len(), *at),
            Request::Sync => (SYNC, 0, 0, 0),
        };
        blocks.push(Iocb {
            data: number as u64,
            opcode,
            file: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            buffer,
            len: len as u64,
            offset: i64::try_from(offset).map_err(io::Error::other)?,
            ..Iocb::default()
        });
    }

    let context = Context::new(blocks.len())?;
    let pointers: Vec<*const Iocb> = blocks.iter().map(|block| &raw const *block).collect();
    let mut submitted = 0;
    let mut error = None;
    while submitted < pointers.len() && error.is_none() {
        let rest = &pointers[submitted..];
        // SAFETY: The pointers are to as many requests. Their buffers are borrowed by the caller of
        // this function, which returns only when all submitted requests have completed.
        let result =
            unsafe { libc::syscall(libc::SYS_io_submit, context.0, rest.len(), rest.as_ptr()) };
        match Errno::result(result) {
            Ok(count) => submitted += count as usize,
            Err(errno) => error = Some(errno),
        }
    }
    let events = context.wait(submitted);
    if let Some(errno) = error {
        return Err(errno.into());
    }
    let mut results = vec![0; requests.len()];
    for event in events {
        results[event.data as usize] = event.result;
    }
    Ok(results)
}

/// A write that was submitted.
pub struct Pending(Context);

impl Pending {
    /// Submits a write of a part of a mapping to the start of a file. With `O_DIRECT` the device
    /// accesses the pages themselves, also after they were unmapped.
    pub fn write(mapping: &Mapping, from: usize, len: usize, file: &File) -> io::Result<Pending> {
        let context = Context::new(1)?;
        let block = Iocb {
            opcode: WRITE,
            file: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            buffer: mapping.address_of(from, len) as u64,
            len: len as u64,
            ..Iocb::default()
        };
        let blocks = [&raw const block];
        // SAFETY: The pointer is to one request, of which the kernel makes a copy. The kernel only
        // reads the buffer, to which no reference exists.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, context.0, 1, blocks.as_ptr()) };
        Errno::result(result)?;
        Ok(Pending(context))
    }

    /// Waits for its end, and returns the number of bytes written.
    pub fn wait(self) -> io::Result<usize> {
        let events = self.0.wait(1);
        let result = events.first().map_or(0, |event| event.result);
        usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result as i32))
    }
}

/// The kernel's context for a set of requests.
struct Context(libc::c_ulong);

impl Context {
    fn new(requests: usize) -> io::Result<Context> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: The pointer is to a number of the type that the call fills in.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, requests.max(1), &raw mut id) };
        Errno::result(result)?;
        Ok(Context(id))
    }

    /// Waits until `count` requests have completed. The kernel may write to the buffers of a
    /// request until then, so this does not return earlier.
    fn wait(&self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let mut event = MaybeUninit::<Event>::uninit();
            // SAFETY: There is room for one event; no time is given, so the call waits for one.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.0,
                    1,
                    1,
                    event.as_mut_ptr(),
                    std::ptr::null_mut::<libc::timespec>(),
                )
            };
            if result == 1 {
                // SAFETY: The call says that it has filled in one event.
                events.push(unsafe { event.assume_init() });
            }
        }
        events
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: The context is this object's, and the call waits for its requests.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
