// SPDX-License-Identifier: GPL-2.0

//! The functions of `rust-bindings/pmem_rs_lease.h`, which `rust-bindings/lease.c` exports.
//!
//! They check what C code passes, as far as that can be checked.

use super::held_lease::Lease;
use crate::abstractions::bindings;
use kernel::prelude::*;

// The functions have the types that the header says.
const _: () = {
    let _ = [pmem_rs_lease_get, bindings::pmem_rs_lease_get];
    let _ = [pmem_rs_lease_put, bindings::pmem_rs_lease_put];
    let _ = [pmem_rs_lease_address, bindings::pmem_rs_lease_address];
    let _ = [pmem_rs_lease_size, bindings::pmem_rs_lease_size];
    let _ = [pmem_rs_lease_read, bindings::pmem_rs_lease_read];
    let _ = [pmem_rs_lease_write, bindings::pmem_rs_lease_write];
    let _ = [pmem_rs_lease_flush, bindings::pmem_rs_lease_flush];
};

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(err) => err.to_errno(),
    }
}

/// Returns the lease that C code passes.
///
/// # Safety
///
/// `lease` must be null, an error pointer, or a lease that is not given back for `'a`.
unsafe fn lease<'a>(lease: *const bindings::pmem_rs_lease) -> Result<&'a Lease> {
    // The last addresses are those of error pointers.
    let is_error = lease as usize >= (bindings::MAX_ERRNO as usize).wrapping_neg();
    if lease.is_null() || is_error {
        return Err(EINVAL);
    }
    // SAFETY: By the safety requirements it is a lease.
    Ok(unsafe { &*lease.cast::<Lease>() })
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// `ops` must be null or valid for reading. Its callbacks must be callable with `data` until the
/// lease was given back; its owner must be null or the module of their code.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_get(
    dev: bindings::dev_t,
    offset: u64,
    len: u64,
    ops: *const bindings::pmem_rs_lease_ops,
    data: *mut c_void,
) -> *mut bindings::pmem_rs_lease {
    // SAFETY: By the safety requirements.
    let result = unsafe { ops.as_ref() }.ok_or(EINVAL).and_then(|ops| {
        // SAFETY: By the safety requirements.
        unsafe { Lease::new(dev, offset, len, *ops, data) }
    });

    match result {
        Ok(lease) => lease.cast_mut().cast(),
        Err(err) => err.to_ptr(),
    }
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// No other thread may use the lease.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_put(lease: *mut bindings::pmem_rs_lease) {
    // SAFETY: By the safety requirements.
    unsafe { Lease::give_back(lease.cast_const().cast()) };
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// As for [`lease`], during the call.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_address(raw: *const bindings::pmem_rs_lease) -> *mut c_void {
    // SAFETY: By the safety requirements.
    unsafe { lease(raw).map_or(core::ptr::null_mut(), |lease| lease.addr().cast()) }
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// As for [`lease`], during the call.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_size(raw: *const bindings::pmem_rs_lease) -> u64 {
    // SAFETY: By the safety requirements.
    unsafe { lease(raw).map_or(0, |lease| lease.len() as u64) }
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// As for [`lease`], during the call. `buffer` must be null, or valid for writing `len` bytes,
/// which nothing else uses meanwhile.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_read(
    raw: *const bindings::pmem_rs_lease,
    offset: u64,
    buffer: *mut c_void,
    len: usize,
) -> c_int {
    if buffer.is_null() || isize::try_from(len).is_err() {
        return EINVAL.to_errno();
    }
    // SAFETY: By the safety requirements. Any bytes are valid.
    errno(unsafe {
        let buffer = core::slice::from_raw_parts_mut(buffer.cast(), len);
        lease(raw).and_then(|lease| lease.read(offset, buffer))
    })
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// As for [`lease`], during the call. `buffer` must be null, or valid for reading `len` bytes,
/// which do not change meanwhile.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_write(
    raw: *const bindings::pmem_rs_lease,
    offset: u64,
    buffer: *const c_void,
    len: usize,
) -> c_int {
    if buffer.is_null() || isize::try_from(len).is_err() {
        return EINVAL.to_errno();
    }
    // SAFETY: By the safety requirements. Any bytes are valid.
    errno(unsafe {
        let buffer = core::slice::from_raw_parts(buffer.cast(), len);
        lease(raw).and_then(|lease| lease.write(offset, buffer))
    })
}

/// See `pmem_rs_lease.h`.
///
/// # Safety
///
/// As for [`lease`], during the call.
#[no_mangle]
unsafe extern "C" fn pmem_rs_lease_flush(raw: *const bindings::pmem_rs_lease) -> c_int {
    // SAFETY: By the safety requirements.
    errno(unsafe { lease(raw).and_then(|lease| lease.flush()) })
}
