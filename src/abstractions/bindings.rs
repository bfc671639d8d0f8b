// SPDX-License-Identifier: GPL-2.0

//! The raw bindings of the kernel crate, and those that `rust-bindings/` adds.

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

pub(in crate::abstractions) use kernel::bindings::*;
use kernel::ffi;

/// `struct dax_device`, which is private to `drivers/dax/`.
#[repr(C)]
pub(in crate::abstractions) struct dax_device {
    _opaque: [u8; 0],
}

/// `struct nvdimm_bus`, of which only pointers are used.
#[repr(C)]
pub(in crate::abstractions) struct nvdimm_bus {
    _opaque: [u8; 0],
}

/// `struct nvdimm`, of which only pointers are used.
#[repr(C)]
pub(in crate::abstractions) struct nvdimm {
    _opaque: [u8; 0],
}

/// `struct nvdimm_bus_fw_ops`, of which only pointers are used.
#[repr(C)]
pub(in crate::abstractions) struct nvdimm_bus_fw_ops {
    _opaque: [u8; 0],
}

/// `struct nd_region`, of which only pointers are used.
#[repr(C)]
pub(in crate::abstractions) struct nd_region {
    _opaque: [u8; 0],
}

include!(env!("PMEM_RS_BINDINGS"));
