// SPDX-License-Identifier: GPL-2.0

//! What Linux 7.3 has and older kernels lack.
//!
//! The module is written for the kernel crate of Linux 7.3. Each item here has the name that it has
//! there, at the same path below this module ([`pin_init::raw_try_init`] is in the crate
//! `pin_init`). If the kernel has the item, it is the kernel's. Only [`bvec_iter_offset`] is no
//! item of the kernel crate: it reads a field of a C structure whose name has changed.
//!
//! `src/Kbuild` searches the source of the kernel, and sets the cfg `kernel_has_…` for what it has.
//!
//! | item | cfg | kernels without it |
//! |---|---|---|
//! | [`error::code`]: some codes | `kernel_has_errno` | 7.2 |
//! | [`module::this_module`] | `kernel_has_this_module` | 7.2 |
//! | [`sync::barrier`]: barriers by type | `kernel_has_typed_barriers` | 7.2 |
//! | [`sync::Srcu`] | `kernel_has_srcu` | 7.2 |
//! | [`device_id::IdArray`] without further data, [`of_device_table`] | `kernel_has_id_array` | 7.2 |
//! | [`pin_init::raw_try_init`] | `kernel_has_raw_try_init` | 7.2 |
//! | [`bvec_iter_offset`]: `bi_offset`, before that `bi_bvec_done` | `kernel_has_bi_offset` | 7.2 |
//!
//! When no kernel without an item is supported any more, the item and its cfg can go, and its users
//! can name the kernel's: `kernel::` (or `::pin_init`) instead of `crate::abstractions::compat::`.
//!
//! Private C code that differs is in `rust-bindings/vetted`.
//!
//! # Examples
//!
//! ```
//! use kernel::prelude::*;
//! use pmem_rs::abstractions::compat::error::code::ENODATA;
//!
//! let result: Result = Err(ENODATA);
//! # assert_eq!(result, Err(Error::from_errno(-61)));
//! ```

use crate::abstractions::bindings;

/// Error codes.
pub mod error {
    /// Error codes that are constants of the kernel crate.
    pub mod code {
        #[cfg(kernel_has_errno)]
        pub use kernel::error::code::{
            ECANCELED,
            EHWPOISON,
            ENODATA,
            EOPNOTSUPP, //
        };

        #[cfg(not(kernel_has_errno))]
        pub use before_7_3::*;

        #[cfg(not(kernel_has_errno))]
        mod before_7_3 {
            use crate::abstractions::bindings;
            use core::num::NonZeroI32;
            use kernel::error::{
                code::EIO,
                Error, //
            };

            const fn from_number(number: u32) -> Error {
                let errno = NonZeroI32::new(0_i32.wrapping_sub_unsigned(number));

                match errno {
                    // SAFETY: `Error` has one field, a `NonZeroI32`. It is a negative number of
                    // at least `-MAX_ERRNO`, as are the constants below.
                    Some(errno) => unsafe { core::mem::transmute::<NonZeroI32, Error>(errno) },
                    None => EIO,
                }
            }

            // The kernel crate represents an error number in the same way.
            const _: () = assert!(matches!(from_number(bindings::EIO), EIO));

            /// Operation canceled.
            pub const ECANCELED: Error = from_number(bindings::ECANCELED);
            /// Memory page has hardware error.
            pub const EHWPOISON: Error = from_number(bindings::EHWPOISON);
            /// No data available.
            pub const ENODATA: Error = from_number(bindings::ENODATA);
            /// Operation not supported on transport endpoint.
            pub const EOPNOTSUPP: Error = from_number(bindings::EOPNOTSUPP);
        }
    }
}

/// The module itself.
pub mod module {
    #[cfg(kernel_has_this_module)]
    pub use kernel::module::this_module;

    #[cfg(not(kernel_has_this_module))]
    pub use before_7_3::*;

    #[cfg(not(kernel_has_this_module))]
    mod before_7_3 {
        use kernel::{
            prelude::*,
            ModuleMetadata,
            ThisModule, //
        };

        extern "C" {
            /// The `struct module`, of which only the address is used.
            static __this_module: c_void;
        }

        static THIS_MODULE: ThisModule =
            // SAFETY: This is the module that contains the code, and lives as long as the code.
            unsafe { ThisModule::from_ptr((&raw const __this_module).cast_mut().cast()) };

        /// Returns the `THIS_MODULE` of a module type. All module types of a crate have the same.
        #[inline]
        pub const fn this_module<M: ModuleMetadata>() -> &'static ThisModule {
            &THIS_MODULE
        }
    }
}

/// Synchronisation.
pub mod sync {
    #[cfg(kernel_has_srcu)]
    pub use kernel::{
        new_srcu,
        sync::Srcu, //
    };

    #[cfg(not(kernel_has_srcu))]
    pub use before_7_3::*;

    /// Memory barriers.
    pub mod barrier {
        #[cfg(kernel_has_typed_barriers)]
        pub use kernel::sync::barrier::{
            smp_mb,
            Full,
            Read,
            Write, //
        };

        #[cfg(not(kernel_has_typed_barriers))]
        pub use before_7_3::*;

        #[cfg(not(kernel_has_typed_barriers))]
        mod before_7_3 {
            use kernel::sync::barrier;

            pub use kernel::sync::atomic::Full;

            /// The type of a read-read barrier.
            pub struct Read;

            /// The type of a write-write barrier.
            pub struct Write;

            /// A type of barrier between CPUs.
            pub trait MemoryBarrier {
                /// Executes the barrier.
                fn run();
            }

            impl MemoryBarrier for Full {
                #[inline]
                fn run() {
                    barrier::smp_mb();
                }
            }

            impl MemoryBarrier for Read {
                #[inline]
                fn run() {
                    barrier::smp_rmb();
                }
            }

            impl MemoryBarrier for Write {
                #[inline]
                fn run() {
                    barrier::smp_wmb();
                }
            }

            /// Executes a memory barrier between CPUs.
            #[inline]
            pub fn smp_mb<T: MemoryBarrier>(_: T) {
                T::run();
            }
        }
    }

    #[cfg(not(kernel_has_srcu))]
    mod before_7_3 {
        use crate::abstractions::bindings;
        use kernel::{
            error::to_result,
            prelude::*,
            sync::LockClassKey,
            types::{
                NotThreadSafe,
                Opaque, //
            }, //
        };

        /// Creates an initializer of an [`Srcu`] with this name and a new lock class.
        macro_rules! new_srcu {
            ($name:literal) => {
                $crate::abstractions::compat::sync::Srcu::new(
                    kernel::optional_name!($name),
                    kernel::static_lock_class!(),
                )
            };
        }
        pub(crate) use new_srcu;

        /// A domain of sleepable read-copy update. Lockdep does not know its readers.
        ///
        /// Dropping it waits for readers, and forever for one whose [`Guard`] was forgotten.
        ///
        /// # Invariants
        ///
        /// The structure is initialised.
        #[repr(transparent)]
        #[pin_data(PinnedDrop)]
        pub struct Srcu {
            #[pin]
            inner: Opaque<bindings::srcu_struct>,
        }

        // SAFETY: A `struct srcu_struct` may be used by any thread.
        unsafe impl Send for Srcu {}

        // SAFETY: A `struct srcu_struct` may be used by several threads at once.
        unsafe impl Sync for Srcu {}

        impl Srcu {
            /// Creates a domain.
            pub fn new(
                name: &'static CStr,
                key: Pin<&'static LockClassKey>,
            ) -> impl PinInit<Self, Error> {
                #[cfg(not(CONFIG_DEBUG_LOCK_ALLOC))]
                let _ = (name, key);

                try_pin_init!(Self {
                    // INVARIANT: The C function initialises the structure, or fails.
                    inner <- Opaque::try_ffi_init(move |srcu| {
                        // SAFETY: The structure is valid, and stays where it is.
                        #[cfg(not(CONFIG_DEBUG_LOCK_ALLOC))]
                        let result = unsafe { bindings::init_srcu_struct(srcu) };
                        // SAFETY: As above. Name and key are static.
                        #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
                        let result = unsafe {
                            bindings::__init_srcu_struct(srcu, name.as_char_ptr(), key.as_ptr())
                        };
                        to_result(result)
                    }),
                })
            }

            /// Enters a read-side section, which ends when the guard is dropped.
            #[inline]
            pub fn read_lock(&self) -> Guard<'_> {
                // SAFETY: By the type invariant the structure is initialised.
                let index = unsafe { bindings::__srcu_read_lock(self.inner.get()) };

                // INVARIANT: The function has just returned the index.
                Guard {
                    srcu: self,
                    index,
                    _not_send: NotThreadSafe,
                }
            }

            /// Waits until the read-side sections that exist now have ended. Sleeps.
            #[inline]
            pub fn synchronize(&self) {
                // SAFETY: By the type invariant the structure is initialised.
                unsafe { bindings::synchronize_srcu(self.inner.get()) };
            }
        }

        #[pinned_drop]
        impl PinnedDrop for Srcu {
            fn drop(self: Pin<&mut Self>) {
                // `cleanup_srcu_struct()` would leak the structure if there were readers.
                self.synchronize();
                // SAFETY: By the type invariant the structure is initialised. There are no readers,
                // and this type has no callbacks (`call_srcu()`).
                unsafe { bindings::cleanup_srcu_struct(self.inner.get()) };
            }
        }

        /// A read-side section.
        ///
        /// # Invariants
        ///
        /// `__srcu_read_lock()` has returned `index` for `srcu`.
        #[must_use = "the section ends when the guard is dropped"]
        pub struct Guard<'a> {
            srcu: &'a Srcu,
            index: c_int,
            _not_send: NotThreadSafe,
        }

        impl Drop for Guard<'_> {
            #[inline]
            fn drop(&mut self) {
                // SAFETY: By the type invariants the index belongs to the domain.
                unsafe { bindings::__srcu_read_unlock(self.srcu.inner.get(), self.index) };
            }
        }
    }
}

/// Tables of devices.
pub mod device_id {
    #[cfg(kernel_has_id_array)]
    pub use kernel::device_id::IdArray;

    #[cfg(not(kernel_has_id_array))]
    pub use before_7_3::*;

    #[cfg(not(kernel_has_id_array))]
    mod before_7_3 {
        use core::{
            marker::PhantomData,
            mem::{
                size_of,
                MaybeUninit, //
            }, //
        };
        use kernel::device_id::{
            IdTable,
            RawDeviceId, //
        };

        /// A table of devices without further data, which ends with an entry of zeroes.
        #[repr(C)]
        pub struct IdArray<T: RawDeviceId, U: 'static, const N: usize> {
            ids: [T; N],
            end: MaybeUninit<T>,
            _infos: PhantomData<&'static U>,
        }

        // SAFETY: The table is never changed, and the data of its entries are not used.
        unsafe impl<T: RawDeviceId, const N: usize> Send for IdArray<T, (), N> {}

        // SAFETY: As above.
        unsafe impl<T: RawDeviceId, const N: usize> Sync for IdArray<T, (), N> {}

        impl<T: RawDeviceId, const N: usize> IdArray<T, (), N> {
            /// Creates a table.
            pub const fn new_without_index(ids: [T; N]) -> Self {
                Self {
                    ids,
                    end: MaybeUninit::zeroed(),
                    _infos: PhantomData,
                }
            }

            /// For `kernel::module_device_table!`.
            #[doc(hidden)]
            pub const fn raw_ids(&self) -> &Self {
                self
            }

            /// For `kernel::module_device_table!`.
            #[doc(hidden)]
            pub const fn size(&self) -> usize {
                size_of::<Self>()
            }
        }

        // Unlike `kernel::device_id::IdArray`, it cannot panic.
        impl<T: RawDeviceId, const N: usize> IdTable<T, ()> for IdArray<T, (), N> {
            fn as_ptr(&self) -> *const T::RawType {
                // CAST: By the safety requirements of `RawDeviceId`, `T` has the layout of the raw
                // type.
                core::ptr::from_ref(self).cast()
            }

            fn id(&self, index: usize) -> &T::RawType {
                // SAFETY: The offset is that of one of the `N` entries, or of `end`. `RawDeviceId`
                // guarantees the layout, and an entry of zeroes is valid.
                unsafe { &*self.as_ptr().add(index.min(N)) }
            }

            fn info(&self, _index: usize) -> &() {
                &()
            }
        }
    }
}

#[cfg(kernel_has_id_array)]
pub use kernel::of_device_table;

/// Creates a table of device tree nodes, whose further data are `()`, and aliases of the module.
#[cfg(not(kernel_has_id_array))]
macro_rules! of_device_table {
    ($table:ident, (), [$(($id:expr, () $(,)?)),* $(,)?]) => {
        const $table: $crate::abstractions::compat::device_id::IdArray<
            kernel::of::DeviceId,
            (),
            { <[kernel::of::DeviceId]>::len(&[$($id,)*]) },
        > = $crate::abstractions::compat::device_id::IdArray::new_without_index([$($id),*]);

        const _: () = {
            kernel::module_device_table!("of", MODULE_TABLE, $table);
        };
    };
}
#[cfg(not(kernel_has_id_array))]
pub(crate) use of_device_table;

/// Initialisation in place.
pub mod pin_init {
    #[cfg(kernel_has_raw_try_init)]
    pub use ::pin_init::raw_try_init;

    /// Initialises `slot`.
    ///
    /// # Safety
    ///
    /// As [`PinInit::__pinned_init`](::pin_init::PinInit::__pinned_init).
    #[cfg(not(kernel_has_raw_try_init))]
    #[inline(always)]
    pub unsafe fn raw_try_init<T, E>(
        slot: *mut T,
        init: impl ::pin_init::PinInit<T, E>,
    ) -> Result<(), E> {
        // SAFETY: By the safety requirements.
        unsafe { init.__pinned_init(slot) }
    }
}

/// Returns the offset of an iterator in its current entry.
#[inline]
pub(in crate::abstractions) fn bvec_iter_offset(iter: &bindings::bvec_iter) -> u32 {
    #[cfg(kernel_has_bi_offset)]
    {
        iter.bi_offset
    }
    #[cfg(not(kernel_has_bi_offset))]
    {
        iter.bi_bvec_done
    }
}
