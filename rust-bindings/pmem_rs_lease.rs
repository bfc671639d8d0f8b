// SPDX-License-Identifier: GPL-2.0

//! Leases of disks of pmem_rs, for holders in Rust.
//!
//! The module of a holder includes this file, with `#[path]`. `pmem_rs_lease.h` documents the
//! functions. It is linked with the `Module.symvers` of pmem_rs (`KBUILD_EXTRA_SYMBOLS`).

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::Arc, //
};

/// `struct pmem_rs_lease`.
#[repr(C)]
struct RawLease([u8; 0]);

/// `struct pmem_rs_lease_ops`.
#[repr(C)]
struct Ops {
    owner: *mut c_void,
    revoke: Option<unsafe extern "C" fn(*mut RawLease, *mut c_void)>,
    bad_memory: Option<unsafe extern "C" fn(*mut RawLease, *mut c_void, u64, u64)>,
}

extern "C" {
    fn pmem_rs_lease_get(
        dev: u32,
        offset: u64,
        len: u64,
        ops: *const Ops,
        data: *mut c_void,
    ) -> *mut RawLease;
    fn pmem_rs_lease_put(lease: *mut RawLease);
    fn pmem_rs_lease_address(lease: *const RawLease) -> *mut c_void;
    fn pmem_rs_lease_size(lease: *const RawLease) -> u64;
    fn pmem_rs_lease_read(
        lease: *const RawLease,
        offset: u64,
        buffer: *mut c_void,
        len: usize,
    ) -> c_int;
    fn pmem_rs_lease_write(
        lease: *const RawLease,
        offset: u64,
        buffer: *const c_void,
        len: usize,
    ) -> c_int;
    fn pmem_rs_lease_flush(lease: *const RawLease) -> c_int;
}

/// The callbacks of the holder of a lease. The functions are called one at a time, may sleep,
/// and may drop the [`Lease`]. They may be called before [`Lease::new`] has returned.
pub(crate) trait Holder: Send + Sync + 'static {
    /// The device is going to be unbound. The disk can be read and written until the lease is given
    /// back, the time limit has passed or the unbind is killed.
    fn revoke(&self);

    /// The `len` bytes from `offset` on have failed.
    fn bad_memory(&self, offset: u64, len: u64);

    /// Returns whether [`Self::bad_memory`] is to be called. If not, a failure is handled as if
    /// there was no lease. Called once, by [`Lease::new`].
    fn handles_bad_memory(&self) -> bool {
        true
    }
}

/// A range of a disk that is held. Dropping it gives it back. Sleeps, and waits for a function of
/// the [`Holder`] that runs in another thread.
pub(crate) struct Lease<H: Holder> {
    raw: NonNull<RawLease>,
    holder: ManuallyDrop<Arc<H>>,
}

// SAFETY: A lease may be used and given back by any thread.
unsafe impl<H: Holder> Send for Lease<H> {}

// SAFETY: The functions of a lease may be called by several threads at once.
unsafe impl<H: Holder> Sync for Lease<H> {}

impl<H: Holder> Lease<H> {
    /// Holds the `len` bytes from `offset` on of the block device with this number; with 0 for
    /// `len`, all up to the end. May sleep.
    ///
    /// # Safety
    ///
    /// `module` must be the one of the holder. The lease must be dropped before that is unloaded:
    /// if it is forgotten, functions of the holder may be called when they are gone.
    pub(crate) unsafe fn new(
        module: &'static ThisModule,
        dev: u32,
        offset: u64,
        len: u64,
        holder: Arc<H>,
    ) -> Result<Self> {
        let mut ops = Ops {
            owner: module.as_ptr().cast(),
            revoke: Some(Self::revoke_callback),
            bad_memory: None,
        };
        if holder.handles_bad_memory() {
            ops.bad_memory = Some(Self::bad_memory_callback);
        }
        let data = Arc::as_ptr(&holder).cast_mut().cast();

        // SAFETY: The functions are called with an `Arc<H>` that is dropped after the lease was
        // given back. By the safety requirements they are those of the module, which gives it back
        // before it is unloaded.
        let raw = from_err_ptr(unsafe { pmem_rs_lease_get(dev, offset, len, &ops, data) })?;
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENXIO)?,
            holder: ManuallyDrop::new(holder),
        })
    }

    /// Returns the address of the first byte.
    pub(crate) fn address(&self) -> *mut c_void {
        // SAFETY: The lease is held.
        unsafe { pmem_rs_lease_address(self.raw.as_ptr()) }
    }

    /// Returns the length in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The lease is held.
        unsafe { pmem_rs_lease_size(self.raw.as_ptr()) }
    }

    /// Copies from the memory. Does not sleep.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result {
        // SAFETY: The lease is held, and the buffer has the length.
        to_result(unsafe {
            let len = buffer.len();
            pmem_rs_lease_read(self.raw.as_ptr(), offset, buffer.as_mut_ptr().cast(), len)
        })
    }

    /// Copies to the memory, past the CPU caches. Does not sleep.
    pub(crate) fn write(&self, offset: u64, buffer: &[u8]) -> Result {
        // SAFETY: The lease is held, and the buffer has the length.
        to_result(unsafe {
            pmem_rs_lease_write(
                self.raw.as_ptr(),
                offset,
                buffer.as_ptr().cast(),
                buffer.len(),
            )
        })
    }

    /// Makes durable what was written. May sleep.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: The lease is held.
        to_result(unsafe { pmem_rs_lease_flush(self.raw.as_ptr()) })
    }

    /// Returns the holder that a callback gets, with a reference of its own: the callback may drop
    /// the lease.
    ///
    /// # Safety
    ///
    /// For callbacks of the lease of an `Arc<H>` only.
    unsafe fn holder(data: *mut c_void) -> Arc<H> {
        // SAFETY: By the safety requirements, and since the lease was not given back when the
        // callback began. The reference of the lease is not dropped here.
        let holder = ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<H>().cast_const()) });

        (*holder).clone()
    }

    /// # Safety
    ///
    /// As for [`Self::holder`].
    unsafe extern "C" fn revoke_callback(_lease: *mut RawLease, data: *mut c_void) {
        // SAFETY: By the safety requirements.
        unsafe { Self::holder(data) }.revoke();
    }

    /// # Safety
    ///
    /// As for [`Self::holder`].
    unsafe extern "C" fn bad_memory_callback(
        _lease: *mut RawLease,
        data: *mut c_void,
        offset: u64,
        len: u64,
    ) {
        // SAFETY: By the safety requirements.
        unsafe { Self::holder(data) }.bad_memory(offset, len);
    }
}

impl<H: Holder> Drop for Lease<H> {
    fn drop(&mut self) {
        // SAFETY: The lease is held, and nothing else uses it. No callback runs after this in
        // another thread, and one in this thread has a reference of its own.
        unsafe {
            pmem_rs_lease_put(self.raw.as_ptr());
            ManuallyDrop::drop(&mut self.holder);
        }
    }
}
