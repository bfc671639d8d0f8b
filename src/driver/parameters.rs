// SPDX-License-Identifier: GPL-2.0

//! The module parameters.

use crate::abstractions::kernel_ext::module_param::REVOKE_TIMEOUT_MS;

/// Returns how long unbind waits for users before it retires the range, in milliseconds. 0 means
/// without a limit. The value may change while an unbind is waiting.
pub fn revoke_timeout_ms() -> u32 {
    REVOKE_TIMEOUT_MS.get()
}
