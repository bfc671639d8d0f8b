// SPDX-License-Identifier: GPL-2.0

//! Files mapped into memory.
//!
//! The memory of a mapping changes under its user: another mapping, a `pwrite` or the unbinding of
//! the device may change it, and an access may raise a signal. So no reference into it is ever
//! made; bytes are copied in and out.

use std::ffi::c_void;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::ensure;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{
    MapFlags, MsFlags, ProtFlags, mlock, mmap, mmap_anonymous, mprotect, msync, munmap,
};

use crate::arch;
pub use crate::arch::Flush;
use crate::lab::Skip;
use crate::syscall::in_child;

/// The size that one entry of a PMD page table maps if pages have 4 KiB. Files and their parts have
/// this size on other kernels too, where [`huge_page`] is another one.
pub const PMD: usize = 2 << 20;

/// The size that one entry of a PMD page table of this kernel maps. A real-time kernel has no
/// transparent huge pages.
pub fn huge_page() -> Option<usize> {
    let size = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
    size.trim().parse().ok()
}

/// The reason to skip a test on such a kernel.
pub const NO_HUGE_PAGES: Skip = Skip("the kernel has no transparent huge pages");

/// Skips a test on a kernel that does not map [`PMD`] bytes of a file by one PMD.
pub fn need_huge_pages() -> anyhow::Result<()> {
    match huge_page() {
        Some(PMD) => Ok(()),
        Some(_) => Err(Skip("a PMD maps more than 2 MiB").into()),
        None => Err(NO_HUGE_PAGES.into()),
    }
}

/// The size of a page of the kernel, which one entry of a PTE page table maps. It is also the size
/// of the blocks of file systems with DAX.
pub const PAGE: usize = if cfg!(feature = "pages_of_16_kib") {
    16384
} else {
    4096
};

/// Checks that the kernel has pages of the size that the program was built for.
pub fn check_page_size() -> anyhow::Result<()> {
    // SAFETY: it only returns a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    ensure!(
        page == PAGE as i64,
        "the program was built for pages of {PAGE} bytes, but the kernel has {page}"
    );
    Ok(())
}

const CACHE_LINE: usize = 64;

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// `MAP_SHARED`: writes go to the file.
    Shared,
    /// `MAP_SHARED_VALIDATE | MAP_SYNC`: in addition, writes are durable as soon as they have left
    /// the CPU cache. Only DAX files support this.
    Synchronous,
    /// `MAP_PRIVATE`: writes stay in the process.
    Private,
}

impl Sharing {
    fn flags(self) -> MapFlags {
        match self {
            Sharing::Shared => MapFlags::MAP_SHARED,
            Sharing::Synchronous => MapFlags::MAP_SHARED_VALIDATE | MapFlags::MAP_SYNC,
            Sharing::Private => MapFlags::MAP_PRIVATE,
        }
    }
}

/// What `madvise(2)` can be told about a mapping.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Advice {
    /// The pages will not be used soon.
    Cold = libc::MADV_COLD,
    /// The pages are to be reclaimed; anonymous ones go to swap.
    PageOut = libc::MADV_PAGEOUT,
    /// The page table entries are to be dropped. Anonymous memory is zero afterwards.
    DontNeed = libc::MADV_DONTNEED,
    /// All pages are to be faulted in for reading.
    PopulateRead = libc::MADV_POPULATE_READ,
}

/// A readable and writable mapping of the first bytes of a file.
///
/// # Invariants
///
/// `start` is the start of a mapping of `len` bytes that this object owns.
pub struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the whole process.
unsafe impl Send for Mapping {}
// SAFETY: no reference into the mapping exists. Concurrent changes of its bytes are expected
// anyway, since other processes can make them.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, at an address that allows PMD mappings.
    pub fn new(file: &File, len: usize, sharing: Sharing) -> io::Result<Mapping> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        Mapping::map_at(file, len, sharing, prot, 0)
    }

    /// As [`Mapping::new`], but read-only. A store to it is a segmentation fault.
    pub fn read_only(file: &File, len: usize, sharing: Sharing) -> io::Result<Mapping> {
        Mapping::map_at(file, len, sharing, ProtFlags::PROT_READ, 0)
    }

    /// As [`Mapping::new`] or [`Mapping::read_only`], at an address that does not allow PMD
    /// mappings, so that every page has a PTE of its own.
    pub fn of_pages(
        file: &File,
        len: usize,
        sharing: Sharing,
        writable: bool,
    ) -> io::Result<Mapping> {
        let mut prot = ProtFlags::PROT_READ;
        prot.set(ProtFlags::PROT_WRITE, writable);
        Mapping::map_at(file, len, sharing, prot, PAGE)
    }

    /// Creates and allocates a file, maps it as [`Mapping::of_pages`] does, and writes to every
    /// page.
    pub fn of_new_file(path: &Path, len: usize) -> io::Result<Mapping> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        fallocate(&file, FallocateFlags::empty(), 0, len as i64)?;
        let mapping = Mapping::of_pages(&file, len, Sharing::Shared, true)?;
        for page in (0..len).step_by(PAGE) {
            mapping.store(page, 1);
        }
        Ok(mapping)
    }

    /// Maps a file `beyond` bytes after a multiple of what a PMD maps.
    fn map_at(
        file: &File,
        len: usize,
        sharing: Sharing,
        prot: ProtFlags,
        beyond: usize,
    ) -> io::Result<Mapping> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let align = huge_page().unwrap_or(PMD);
        let room = NonZeroUsize::new(len + align + beyond).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: this maps fresh memory, at an address of the kernel's choice.
        let reserved =
            unsafe { mmap_anonymous(None, room, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
        let aligned = (reserved.as_ptr() as usize).next_multiple_of(align) + beyond;
        let flags = sharing.flags() | MapFlags::MAP_FIXED;
        // SAFETY: [aligned, aligned + len) lies within the range reserved above, which nothing
        // uses.
        match unsafe { mmap(NonZeroUsize::new(aligned), size, prot, flags, file, 0) } {
            // INVARIANT: the range was just mapped, and this object owns it from here on. The rest
            // of the reservation around it is only address space; it stays until the process ends.
            Ok(start) => Ok(Mapping { start, len }),
            Err(error) => {
                // SAFETY: the range is the reservation, and nothing was mapped over it.
                unsafe { munmap(reserved, room.get()) }?;
                Err(error.into())
            }
        }
    }

    /// Maps anonymous memory.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: this maps fresh memory, at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, size, prot, MapFlags::MAP_PRIVATE) }?;
        // INVARIANT: the range was just mapped, and this object owns it from here on.
        Ok(Mapping { start, len })
    }

    /// Asks for huge pages. They are allocated on the first write, where one fits.
    pub fn prefer_huge_pages(&self) -> io::Result<()> {
        // SAFETY: by the invariant the range is mapped; its contents stay.
        let result = unsafe { libc::madvise(self.start.as_ptr(), self.len, libc::MADV_HUGEPAGE) };
        Errno::result(result)?;
        Ok(())
    }

    /// Gives the kernel advice about the whole mapping.
    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: by the invariant the range is mapped, and it stays mapped.
        let result = unsafe { libc::madvise(self.start.as_ptr(), self.len, advice as libc::c_int) };
        Errno::result(result)?;
        Ok(())
    }

    /// Changes whether stores are allowed. One that is not allowed is a segmentation fault.
    pub fn protect(&self, writable: bool) -> io::Result<()> {
        let mut prot = ProtFlags::PROT_READ;
        prot.set(ProtFlags::PROT_WRITE, writable);
        // SAFETY: by the invariant the range is mapped, and no reference into it exists.
        unsafe { mprotect(self.start, self.len, prot) }?;
        Ok(())
    }

    /// Moves the pages to another address, of the kernel's choice.
    pub fn moved(self) -> io::Result<Mapping> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        // SAFETY: by the invariant the range is mapped, and no reference into it exists. It stays
        // mapped, without pages, until this object is dropped.
        let start = unsafe {
            let anywhere = std::ptr::null_mut::<c_void>();
            libc::mremap(self.start.as_ptr(), self.len, self.len, flags, anywhere)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidInput)?;
        // INVARIANT: the range was just mapped, and the new object owns it from here on.
        Ok(Mapping {
            start,
            len: self.len,
        })
    }

    /// Reads a word, as a futex has it.
    pub fn word(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_ne_bytes(bytes)
    }

    /// `futex(FUTEX_WAIT)`: waits at a word while it has this value.
    pub fn await_futex(&self, offset: usize, value: u32) -> io::Result<()> {
        self.futex(offset, libc::FUTEX_WAIT, value).map(drop)
    }

    /// `futex(FUTEX_WAKE)`: wakes one thread that waits at a word, and returns how many there were.
    pub fn wake_futex(&self, offset: usize) -> io::Result<usize> {
        self.futex(offset, libc::FUTEX_WAKE, 1)
    }

    fn futex(&self, offset: usize, operation: libc::c_int, value: u32) -> io::Result<usize> {
        let word = self.at(offset, size_of::<u32>());
        let forever = std::ptr::null::<libc::timespec>();
        // SAFETY: the word is within the mapping, to which no reference exists.
        let result = unsafe { libc::syscall(libc::SYS_futex, word, operation, value, forever) };
        Ok(Errno::result(result)? as usize)
    }

    /// The start of the mapping in this process, for other processes that access it.
    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// The address of a part of the mapping.
    pub fn address_of(&self, offset: usize, len: usize) -> usize {
        self.at(offset, len) as usize
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "outside of the mapping"
        );
        // SAFETY: by the invariant and the check above, the result is within the mapping.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// Copies bytes out of the mapping.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: `from` has that many bytes, and no reference into the mapping exists.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies bytes out of the mapping into a new buffer.
    pub fn to_vec(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Copies bytes into the mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `to` has that many bytes, and no reference into the mapping exists.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Reads one byte, so that its page is faulted in for reading.
    pub fn load(&self, offset: usize) -> u8 {
        // SAFETY: the byte is within the mapping.
        unsafe { self.at(offset, 1).read_volatile() }
    }

    /// Writes one byte, so that its page is faulted in for writing.
    pub fn store(&self, offset: usize, byte: u8) {
        // SAFETY: the byte is within the mapping.
        unsafe { self.at(offset, 1).write_volatile(byte) }
    }

    /// Writes a part of the mapping to another file. With `O_DIRECT` the device accesses the pages
    /// themselves.
    pub fn write_to(&self, from: usize, len: usize, file: &File, offset: i64) -> io::Result<()> {
        let bytes = self.at(from, len).cast::<c_void>();
        // SAFETY: `bytes` has that many bytes, and no reference into the mapping exists.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), bytes, len, offset) };
        complete(written, len)
    }

    /// Reads a part of another file into the mapping.
    pub fn read_from(&self, to: usize, len: usize, file: &File, offset: i64) -> io::Result<()> {
        let bytes = self.at(to, len).cast::<c_void>();
        // SAFETY: `bytes` has room for that many bytes, and no reference into the mapping exists.
        let read = unsafe { libc::pread(file.as_raw_fd(), bytes, len, offset) };
        complete(read, len)
    }

    /// Puts the pages of a part of the mapping into a pipe, and returns how many bytes were put.
    pub fn give_to_pipe(&self, from: usize, len: usize, pipe: &OwnedFd) -> io::Result<usize> {
        let part = libc::iovec {
            iov_base: self.at(from, len).cast(),
            iov_len: len,
        };
        // SAFETY: `part` names bytes of the mapping, which the kernel reads.
        let given = unsafe { libc::vmsplice(pipe.as_raw_fd(), &part, 1, 0) };
        Ok(Errno::result(given)? as usize)
    }

    /// Sends a part of the mapping with `MSG_ZEROCOPY`, without waiting for room, and returns how
    /// many bytes were accepted. The socket, which has `SO_ZEROCOPY`, uses the pages themselves
    /// until the other side has received them.
    pub fn send(&self, from: usize, len: usize, socket: &impl AsRawFd) -> io::Result<usize> {
        let bytes = self.at(from, len).cast::<c_void>();
        let flags = libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT;
        // SAFETY: `bytes` has that many bytes, and no reference into the mapping exists.
        let sent = unsafe { libc::send(socket.as_raw_fd(), bytes, len, flags) };
        Ok(Errno::result(sent)? as usize)
    }

    /// `madvise(MADV_HWPOISON)` on a page: the kernel treats it as having a hardware memory error.
    pub fn poison(&self, offset: usize) -> io::Result<()> {
        let page = self.at(offset, PAGE).cast::<c_void>();
        // SAFETY: the page is within the mapping, to which no reference exists.
        let result = unsafe { libc::madvise(page, PAGE, libc::MADV_HWPOISON) };
        Errno::result(result)?;
        Ok(())
    }

    /// The physical address of a byte whose page is mapped, from `/proc/self/pagemap`.
    pub fn physical(&self, offset: usize) -> io::Result<u64> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let address = self.at(offset, 1) as usize;
        let mut entry = [0; 8];
        let index = (address / PAGE * entry.len()) as u64;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, index)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & PRESENT == 0 {
            return Err(io::Error::other("the page is not mapped"));
        }
        Ok((entry & FRAME) * PAGE as u64 + (address % PAGE) as u64)
    }

    /// `msync(MS_SYNC)` on the whole mapping.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_part(0, self.len)
    }

    /// `msync(MS_SYNC)` on the pages of a part of the mapping.
    pub fn sync_part(&self, from: usize, len: usize) -> io::Result<()> {
        let (from, len) = (from / PAGE * PAGE, from % PAGE + len);
        let part = NonNull::new(self.at(from, len).cast()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: by the invariant the range is mapped; `msync` changes nothing that is visible.
        unsafe { msync(part, len, MsFlags::MS_SYNC) }?;
        Ok(())
    }

    /// `mlock(2)` on the whole mapping.
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: by the invariant the range is mapped; locking it changes nothing that is visible.
        unsafe { mlock(self.start, self.len) }?;
        Ok(())
    }

    /// Writes the whole mapping back from the CPU cache. A program does this instead of `msync` if
    /// the mapping is [`Sharing::Synchronous`].
    pub fn flush_cpu_cache(&self) {
        self.flush_part(0, self.len);
    }

    /// As [`Mapping::flush_cpu_cache`], for a part of the mapping that starts at a cache line.
    pub fn flush_part(&self, from: usize, len: usize) {
        self.flush_lines(from..from + len, Flush::Clflush);
        self.fence();
    }

    /// Writes the cache lines of a part of the mapping back.
    pub fn flush_lines(&self, part: Range<usize>, flush: Flush) {
        for line in part.step_by(CACHE_LINE) {
            let line = self.at(line, 1);
            // SAFETY: the byte is within the mapping.
            unsafe { arch::flush_line(line, flush) }
        }
    }

    /// Waits until flushed lines and non-temporal stores are durable.
    pub fn fence(&self) {
        arch::fence();
    }

    /// Fills the mapping with a byte by non-temporal stores.
    pub fn write_past_caches(&self, byte: u8) {
        let word = i64::from_ne_bytes([byte; 8]);
        for offset in (0..self.len).step_by(size_of_val(&word)) {
            // SAFETY: the word is within the mapping, whose length is a multiple of a page, and
            // aligned. No reference into the mapping exists.
            unsafe { arch::store_past_cache(self.at(offset, size_of_val(&word)).cast(), word) }
        }
    }

    /// Reads a byte in a child process, which the access may kill, and returns how the child ended.
    pub fn load_in_child(&self, offset: usize) -> io::Result<nix::sys::wait::WaitStatus> {
        in_child(|| {
            self.load(offset);
        })
    }
}

/// Checks the result of a system call that should have moved `len` bytes.
fn complete(moved: isize, len: usize) -> io::Result<()> {
    let moved = Errno::result(moved)? as usize;
    if moved == len {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "only {moved} of {len} bytes were moved"
    )))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant the range belongs to this object, and no reference into it
        // exists.
        let unmapped = unsafe { munmap(self.start, self.len) };
        unmapped.expect("unmapping the mapping");
    }
}
