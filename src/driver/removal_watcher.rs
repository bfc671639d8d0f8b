// SPDX-License-Identifier: GPL-2.0

//! What a device does when its provider is removed.

use super::{
    device_state::DeviceState,
    plain::teardown, //
};
use crate::abstractions::nvdimm::ProviderWatcher;
use kernel::sync::Arc;

/// Begins the teardown of a device when the region or the bus above it is being unbound. The memory
/// may be removed soon, so users are notified, and are not waited for.
///
/// The teardowns of all devices below begin at the same time. So unbind waits for one deadline, and
/// not for one of each device.
pub struct RemovalWatcher(pub Arc<DeviceState>);

impl ProviderWatcher for RemovalWatcher {
    fn provider_unbinding(&self) {
        teardown::announce(&self.0, false);
        // The worker refuses mappings too, but it may start late.
        self.0.with_parts(|parts| {
            if let Some(pages) = parts.memory.pages() {
                pages.refuse_mappings();
            }
        });
        teardown::begin(&self.0);
    }
}
