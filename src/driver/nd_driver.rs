// SPDX-License-Identifier: GPL-2.0

//! The driver of devices on the nd bus.

use super::{
    binding::Binding,
    shared::SHARED, //
};
use crate::abstractions::kernel_ext::tracepoint;
use crate::abstractions::nvdimm::{
    self,
    Device,
    DeviceIdentity,
    DeviceTypes,
    Event,
    Namespace,
    ProbeError,
    StateAttribute,
    TextAttribute, //
};
use kernel::{
    device::Core,
    prelude::*,
    sync::Arc, //
};

/// The driver of namespaces, and of the pfn and btt devices that claim them.
pub struct NdDriver;

impl nvdimm::Driver for NdDriver {
    type Data<'bound> = Binding<'bound>;

    const TYPES: DeviceTypes = DeviceTypes::NAMESPACE;

    // The namespaces that are left to other drivers. A new list takes effect when a device is bound
    // the next time.
    const ATTRIBUTE: Option<TextAttribute> = Some(TextAttribute {
        name: c"except",
        show: || SHARED.get().ok_or(ENODEV)?.except_list.text(),
        store: |list| SHARED.get().ok_or(ENODEV)?.except_list.set(list),
    });

    fn present(identity: DeviceIdentity) {
        if let Some(shared) = SHARED.get() {
            shared.except_list.mark(identity);
        }
    }

    fn admit(dev: &Device<Core<'_>>, namespace: DeviceIdentity) -> Result<(), ProbeError> {
        SHARED
            .get()
            .ok_or(ENODEV)?
            .except_list
            .check(dev, namespace)
    }

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        namespace: Namespace<'bound>,
    ) -> impl PinInit<Self::Data<'bound>, ProbeError> + 'bound {
        let range = namespace.range().unwrap_or_default();
        let result = Binding::new(dev, namespace);
        let (mode, bound) = match &result {
            Ok(binding) => (binding.mode(), Ok(())),
            Err(err) => (c"", Err(err.to_error())),
        };

        let len = range.end.saturating_sub(range.start);
        tracepoint::bind(dev.name(), mode, range.start, len, bound);
        result
    }

    fn mode<'bound>(this: Pin<&Self::Data<'bound>>) -> &'static CStr {
        this.mode()
    }

    fn state<'bound>(this: Pin<&Self::Data<'bound>>) -> Option<Arc<dyn StateAttribute>> {
        this.state()
    }

    fn shutdown<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        this.sync();
    }

    fn notify<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>, event: Event) {
        match event {
            Event::RevalidatePoison => this.revalidate_poison(dev),
            Event::RevalidateRegion => this.revalidate_region(dev),
        }
    }
}
