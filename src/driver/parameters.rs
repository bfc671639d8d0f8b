// SPDX-License-Identifier: GPL-2.0

//! What the administrator can choose, while the module is loaded too.

use crate::abstractions::kernel_ext::module_param::REVOKE_TIMEOUT_MS;

/// Returns how long unbind waits for pinned pages before it retires the range, in milliseconds; 0
/// for as long as it takes. The value may change while an unbind is waiting.
pub fn revoke_timeout_ms() -> u32 {
    REVOKE_TIMEOUT_MS.get()
}
