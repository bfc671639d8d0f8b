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

use abstractions::{
    kernel_ext::{
        debugfs::{
            Dir,
            File, //
        },
        module::{
            Installed,
            WaitOnExit, //
        },
        platform, //
    },
    nvdimm, //
};
use driver::retired::{
    BoundList,
    RetiredList,
    Shared, //
    SHARED,
};
use kernel::sync::Arc;

/// The module: the registrations of its drivers, and what all devices share. The fields go in the
/// order in which they stand here.
#[pin_data]
pub struct PmemModule {
    #[pin]
    _nd_driver: kernel::driver::Registration<nvdimm::Adapter<driver::nd_driver::NdDriver>>,
    // After the driver of what is on its buses: each device of that is unbound under its own lock
    // only. With the buses then go the devices that other drivers have, whether they are in use or
    // not.
    #[pin]
    _platform_driver:
        kernel::driver::Registration<platform::Adapter<driver::platform_driver::PlatformDriver>>,
    _devices: File<BoundList>,
    _retired: File<RetiredList>,
    _shared: Installed<Shared>,
}

impl InPlaceModule for PmemModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _shared: SHARED.install(Shared::new()?)?,
            _devices: File::new(
                &Dir::new(c"pmem_rs")?,
                c"devices",
                Arc::new(SHARED.get().ok_or(ENODEV)?, GFP_KERNEL)?,
            ),
            _retired: File::new(
                _devices.dir(),
                c"retired",
                Arc::new(SHARED.get().ok_or(ENODEV)?, GFP_KERNEL)?,
            ),
            _nd_driver <- kernel::driver::Registration::new(Module::NAME, module),
            _platform_driver <- kernel::driver::Registration::new(Module::NAME, module),
        })
    }
}

/// The type that `module!` initialises and drops.
pub type Module = WaitOnExit<PmemModule>;

module! {
    type: Module,
    name: "pmem_rs",
    authors: ["The pmem-rs authors"],
    description: "Persistent memory block and DAX driver",
    license: "GPL v2",
    alias: ["pmem", "nd:t4*", "nd:t5*", "platform:e820_pmem*"],
}

// The examples of the abstractions, when `tests/examples` has made tests of them. They name this
// crate as if it were another one.
#[cfg(pmem_rs_examples)]
extern crate self as pmem_rs;
#[cfg(pmem_rs_examples)]
include!(env!("PMEM_RS_EXAMPLES"));
