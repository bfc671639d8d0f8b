// SPDX-License-Identifier: GPL-2.0

//! The state that all devices share.

use super::{
    queues::Queues,
    registry::Registry, //
};
use crate::abstractions::kernel::percpu_ref::Counted;
use crate::abstractions::kernel_ext::module::Global;
use kernel::prelude::*;

/// Installed before the first device is bound, until after the last one is unbound.
///
/// Probe takes a reference, and gives it to the objects that it creates.
pub static SHARED: Global<Shared> = Global::new();

/// The state that all devices share.
#[pin_data]
pub struct Shared {
    /// The work queues.
    pub queues: Queues,
    /// The devices that are bound or retired.
    #[pin]
    pub devices: Registry,
}

impl Shared {
    /// Creates the queues, and an empty registry. May sleep.
    pub fn new() -> Result<Counted<Self>> {
        let queues = Queues::new()?;

        Counted::pin_init(try_pin_init!(Self {
            queues,
            devices <- Registry::new(),
        }))
    }
}
