// SPDX-License-Identifier: GPL-2.0

//! A driver for persistent memory: block devices and DAX devices on NVDIMM namespaces.
//!
//! [`abstractions`] are the safe APIs for the C subsystems that it stands on, [`driver`] is what it
//! does with them. The way of a request, a fault and an unbind through both is described in
//! `docs/architecture.md`.

#![deny(unsafe_code)]
// For rustdoc, when it looks for examples; the kernel's make says so to the compiler.
#![cfg_attr(doctest, no_std)]
#![doc(test(no_crate_inject))]

use kernel::{
    prelude::*,
    InPlaceModule,
    ModuleMetadata,
    ThisModule, //
};

#[allow(unsafe_code)]
pub mod abstractions;
pub mod driver;

use abstractions::nvdimm;

/// The module: nothing but the registration of its driver.
#[pin_data]
pub struct PmemModule {
    #[pin]
    _nd_driver: kernel::driver::Registration<nvdimm::Adapter<driver::nd_driver::NdDriver>>,
}

impl InPlaceModule for PmemModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _nd_driver <- kernel::driver::Registration::new(Self::NAME, module),
        })
    }
}

module! {
    type: PmemModule,
    name: "pmem_rs",
    authors: ["The pmem-rs authors"],
    description: "Persistent memory block and DAX driver",
    license: "GPL v2",
    alias: ["pmem", "nd:t4*", "nd:t5*"],
}

// The examples of the abstractions, when `tests/examples` has made tests of them. They name this crate
// as if it were another one.
#[cfg(pmem_rs_examples)]
extern crate self as pmem_rs;
#[cfg(pmem_rs_examples)]
include!(env!("PMEM_RS_EXAMPLES"));
