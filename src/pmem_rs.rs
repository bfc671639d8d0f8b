// SPDX-License-Identifier: GPL-2.0

//! A driver for persistent memory: block devices and DAX devices on NVDIMM namespaces.
//!
//! [`abstractions`] are the safe APIs for the C subsystems, [`driver`] is the driver on top of
//! them. `docs/architecture.md` follows a request, a fault and an unbind through both.

#![deny(unsafe_code)]
// For rustdoc, when it collects examples. Kbuild passes the options to the compiler.
#![cfg_attr(doctest, no_std, feature(asm_goto))]
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
    kernel::{
        block::gendisk::RemovedDisks,
        lease,
        reboot::RebootNotifier,
        suspend::PmNotifier, //
    },
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
use driver::{
    debugfs_files::{
        Devices,
        RetiredRanges, //
    },
    going_down::RebootPolicy,
    nd_driver::NdDriver,
    platform_driver::PlatformDriver,
    shared::{
        Shared, //
        SHARED,
    },
    sleep::SleepPolicy, //
};
use kernel::sync::Arc;

/// The module: the registrations of its drivers, and the state that all devices share. The fields
/// are dropped in this order.
#[pin_data]
pub struct PmemModule {
    #[pin]
    _nd_driver: kernel::driver::Registration<nvdimm::Adapter<NdDriver>>,
    #[pin]
    _pm_notifier: PmNotifier<SleepPolicy>,
    #[pin]
    _reboot_notifier: RebootNotifier<RebootPolicy>,
    // Dropped after `_nd_driver`, which unbinds the devices on the nd buses of this driver one by
    // one, each with only its own device lock held. Dropping the buses then unbinds the devices
    // that other drivers have, whether they are in use or not.
    #[pin]
    _platform_driver: kernel::driver::Registration<platform::Adapter<PlatformDriver>>,
    _devices: File<Devices>,
    _retired: File<RetiredRanges>,
    _leases: lease::InstalledTable,
    _removed_disks: Installed<RemovedDisks>,
    _shared: Installed<Shared>,
}

impl InPlaceModule for PmemModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _shared: SHARED.install(Shared::new()?)?,
            _removed_disks: RemovedDisks::install()?,
            _leases: lease::Table::install()?,
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
            _pm_notifier <- PmNotifier::new(),
            _reboot_notifier <- RebootNotifier::new(),
            _nd_driver <- kernel::driver::Registration::new(Module::NAME, module),
            _platform_driver <- kernel::driver::Registration::new(Module::NAME, module),
            _: {
                if let Some(shared) = SHARED.get() {
                    shared.except_list.report_unmatched();
                }
            },
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

// The examples of the abstractions, which `tests/examples` has converted to tests. They use this
// crate by its name.
#[cfg(pmem_rs_examples)]
extern crate self as pmem_rs;
#[cfg(pmem_rs_examples)]
include!(env!("PMEM_RS_EXAMPLES"));
