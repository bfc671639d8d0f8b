// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of this module. A driver reports what it does, and generic abstractions do not.
//!
//! They are defined in C, in `rust-bindings/tracepoints.h`, and described in `docs/tracing.md`. The
//! functions here do what `tracepoint::declare_trace!` of the kernel crate does, whose tracepoints
//! must be in the bindings of that crate. A tracepoint that is off is a NOP. In a kernel without
//! `CONFIG_TRACEPOINTS` the functions do nothing.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)
//!
//! # Examples
//!
//! ```
//! use pmem_rs::abstractions::kernel_ext::tracepoint;
//!
//! tracepoint::expose(c"pfn0.0", 0, 4096);
//! // For an argument that takes time.
//! if tracepoint::free_is_on() {
//!     tracepoint::free(c"pfn0.0", false, (1..10).sum());
//! }
//! ```

#[cfg(CONFIG_TRACEPOINTS)]
use crate::abstractions::bindings;
use kernel::{
    macros::paste,
    prelude::*, //
};

/// A value that a tracepoint records.
#[cfg(CONFIG_TRACEPOINTS)]
trait Argument {
    /// The type in C.
    type Raw;

    fn into_raw(self) -> Self::Raw;
}

#[cfg(CONFIG_TRACEPOINTS)]
impl Argument for &CStr {
    type Raw = *const c_char;

    #[inline(always)]
    fn into_raw(self) -> Self::Raw {
        self.as_char_ptr()
    }
}

#[cfg(CONFIG_TRACEPOINTS)]
impl Argument for u64 {
    type Raw = u64;

    #[inline(always)]
    fn into_raw(self) -> Self::Raw {
        self
    }
}

#[cfg(CONFIG_TRACEPOINTS)]
impl Argument for bool {
    type Raw = bool;

    #[inline(always)]
    fn into_raw(self) -> Self::Raw {
        self
    }
}

/// An error is recorded as a negative number, and success as 0.
#[cfg(CONFIG_TRACEPOINTS)]
impl Argument for Result {
    type Raw = c_int;

    #[inline(always)]
    fn into_raw(self) -> Self::Raw {
        self.map_or_else(|err| err.to_errno(), |()| 0)
    }
}

/// Declares a function `NAME` for each tracepoint `pmem_NAME`, and a function `NAME_is_on`.
macro_rules! tracepoints {
    ($($(#[$attr:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {paste! {$(
        #[doc = concat!("Returns whether `pmem_", stringify!($name), "` is on.")]
        /// Callable from any context.
        #[inline(always)]
        pub fn [<$name _is_on>]() -> bool {
            #[cfg(CONFIG_TRACEPOINTS)]
            {
                // SAFETY: The tracepoint has a static key, which lives as long as this module.
                unsafe {
                    kernel::jump_label::static_branch_unlikely!(
                        bindings::[<__tracepoint_pmem_ $name>],
                        bindings::tracepoint,
                        key
                    )
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            {
                false
            }
        }

        $(#[$attr])*
        ///
        /// Callable from any context.
        #[inline(always)]
        pub fn $name($($argument: $type),*) {
            if [<$name _is_on>]() {
                #[cfg(CONFIG_TRACEPOINTS)]
                // SAFETY: Tracepoints may be hit in any context. They copy the strings, which are
                // valid during the call.
                unsafe {
                    bindings::[<rust_do_trace_pmem_ $name>]($(Argument::into_raw($argument)),*)
                };
                #[cfg(not(CONFIG_TRACEPOINTS))]
                {
                    $(let _ = $argument;)*
                }
            }
        }
    )*}};
}

tracepoints! {
    /// A driver's probe of a device has ended. `mode` is what the device is bound as; empty after
    /// an error. Not recorded if [`Adapter`](crate::abstractions::nvdimm::Adapter) has refused the
    /// device before.
    fn bind(dev: &CStr, mode: &CStr, start: u64, len: u64, result: Result);

    /// User space is notified that a device is going to be torn down.
    fn leaving(dev: &CStr, notice_ms: u64, timeout_ms: u64);

    /// A step of the teardown of a device, or of a suspension of its disk, has ended. `age_us` is
    /// the time since the teardown or the suspension began.
    fn step(dev: &CStr, step: &CStr, duration_us: u64, age_us: u64);

    /// The teardown of a device has waited for a user of its range.
    fn wait(dev: &CStr, user: &CStr, duration_us: u64, age_us: u64);

    /// All files were revoked.
    fn revoked(dev: &CStr, inodes: u64, pages: u64, age_us: u64);

    /// A range was retired, with so many pages in use.
    fn retire(dev: &CStr, referenced: u64, cached: u64, age_us: u64);

    /// A range is free. `retired` is whether it had been retired.
    fn free(dev: &CStr, retired: bool, age_us: u64);

    /// A chunk of the data is exposed that was not before. The offset is that of what was asked
    /// for.
    fn expose(dev: &CStr, offset: u64, len: u64);

    /// A flush of a region has ended.
    fn flush(dev: &CStr, duration_ns: u64, result: Result);

    /// Memory has failed, or its failure was simulated. `result` is that of notifying its user.
    fn memory_failure(dev: &CStr, offset: u64, len: u64, result: Result);

    /// Poison was to be cleared before a write.
    fn repair(dev: &CStr, offset: u64, len: u64, result: Result);

    /// A request or a call of the DAX core was refused.
    fn refuse(dev: &CStr, op: &CStr, offset: u64, len: u64, result: Result);
}

#[kunit_tests(pmem_rs_tracepoint)]
mod tests {
    use super::*;

    #[test]
    fn tracepoints_are_off_at_first() {
        assert!(!flush_is_on());
        // Does nothing.
        flush(c"pfn0.0", 1, Ok(()));
    }
}
