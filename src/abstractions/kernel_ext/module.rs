// SPDX-License-Identifier: GPL-2.0

//! References to a module, the count of its registrations, and values that live as long as it does.
//!
//! A module whose type is [`WaitOnExit`] is not unloaded while something is [`Registered`].
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::module::this_module;
use crate::abstractions::kernel::{
    kobject,
    percpu_ref::{
        self,
        Counted,
        Ref, //
    }, //
};
use crate::abstractions::kernel_ext::time::sleep;
use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu, //
    },
    InPlaceModule,
    ThisModule, //
};

/// The number of registrations, and whether more may be added.
///
/// Count and state are one atomic, so no registration is added after the count was found to be zero
/// and closed.
struct Registrations(Atomic<usize>);

impl Registrations {
    /// Not opened yet: refuses registrations.
    const NEW: usize = 0;
    /// Closed for good: refuses registrations.
    const CLOSED: usize = 1;
    /// Open, without registrations. Each registration adds 1.
    const OPEN: usize = 2;

    const fn new() -> Self {
        Self(Atomic::new(Self::NEW))
    }

    /// Allows registrations. Only the first call succeeds.
    fn open(&self) -> Result {
        self.0
            .cmpxchg(Self::NEW, Self::OPEN, Relaxed)
            .map(|_| ())
            .map_err(|_| EBUSY)
    }

    /// Counts one more registration. Fails before [`Self::open`] and after [`Self::close`].
    fn add(&self) -> Result {
        let mut found = self.0.load(Relaxed);

        loop {
            if found < Self::OPEN {
                return Err(ENODEV);
            }
            // Does not wrap, since nothing makes 2^64 registrations, not even of those that are
            // forgotten.
            match self.0.cmpxchg(found, found.wrapping_add(1), Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => found = other,
            }
        }
    }

    /// Counts one registration less. There must be one.
    fn remove(&self) {
        // ORDERING: Pairs with the acquire in `close()`. All uses of the registration come before.
        self.0.fetch_sub(1, Release);
    }

    fn count(&self) -> usize {
        self.0.load(Relaxed).saturating_sub(Self::OPEN)
    }

    /// Closes if there are no registrations. Returns whether it is closed now.
    fn close(&self) -> bool {
        // ORDERING: Pairs with the release in `remove()`.
        self.0.cmpxchg(Self::OPEN, Self::CLOSED, Acquire).is_ok()
    }

    /// Waits until there are no registrations, and closes. Sleeps.
    ///
    /// Logs the number of registrations if that takes long.
    fn wait_and_close(&self) {
        let mut pause = FIRST_PAUSE_MS;
        let mut waited: u32 = 0;
        let mut next_message = FIRST_MESSAGE_MS;

        while !self.close() {
            if waited >= next_message {
                pr_warn!(
                    "module exit waits: files of the module are open, or memory is in use ({} \
                     registrations). End the programs that use them\n",
                    self.count()
                );
                next_message = waited.saturating_add(MESSAGE_INTERVAL_MS);
            }
            sleep(pause);
            waited = waited.saturating_add(pause);
            pause = pause.saturating_mul(2).min(LAST_PAUSE_MS);
        }
    }
}

/// The first and the longest pause between two checks of the count, in milliseconds.
const FIRST_PAUSE_MS: u32 = 10;
const LAST_PAUSE_MS: u32 = 1000;
/// The time before the first message, and between messages, in milliseconds.
const FIRST_MESSAGE_MS: u32 = 1000;
const MESSAGE_INTERVAL_MS: u32 = 30_000;

static REGISTRATIONS: Registrations = Registrations::new();

/// The count of one registration through which the C side may call the text of this module.
///
/// An abstraction has it in its registration, as the field that is dropped last. [`WaitOnExit`]
/// keeps the module loaded until all counts were dropped. So forgetting a registration keeps the
/// text that the C side calls.
///
/// # Invariants
///
/// `REGISTRATIONS` counts `self` once.
#[must_use]
pub struct Registered(());

impl Registered {
    /// Counts a registration. Callable from any context. Fails with [`ENODEV`] before the
    /// [`WaitOnExit`] of the module is initialised, and after it was dropped.
    pub fn new() -> Result<Self> {
        REGISTRATIONS.add()?;
        // INVARIANT: `add()` has just counted it.
        Ok(Self(()))
    }

    /// Keeps the module loaded forever, for a registration that is leaked on purpose. Callable from
    /// any context.
    ///
    /// Takes a reference to the module too, so unloading fails with `EWOULDBLOCK`. If the module is
    /// already being unloaded there is no such reference, and unloading waits forever.
    pub fn leak(self) {
        core::mem::forget(ModuleRef::try_get(this_module::<crate::LocalModule>()));
        core::mem::forget(self);
    }

    /// Returns how many registrations there are.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(in crate::abstractions) fn count() -> usize {
        REGISTRATIONS.count()
    }

    /// Keeps the count without a value, for a registration that is not dropped.
    pub(in crate::abstractions) fn into_raw(self) {
        core::mem::forget(self);
    }

    /// Takes over a count that [`Self::into_raw`] has kept.
    ///
    /// # Safety
    ///
    /// Each call must follow a call of [`Self::into_raw`] of its own.
    pub(in crate::abstractions) unsafe fn from_raw() -> Self {
        // INVARIANT: By the safety requirements the count belongs to no other value.
        Self(())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        REGISTRATIONS.remove();
    }
}

/// A module that is not unloaded while something is [`Registered`].
///
/// `module!` takes this type, which contains the module's own type `M`. Unloading drops `M`, waits
/// until every [`Registered`] was dropped, and waits until all threads have left the text of the
/// module. It logs a message after a second and every 30 seconds. The same happens if `M` cannot be
/// initialised.
///
/// A crate that gives `module!` another type does not compile.
///
/// # Examples
///
/// ```
/// use kernel::{
///     module::this_module,
///     prelude::*,
///     InPlaceModule,
///     ThisModule, //
/// };
/// use pmem_rs::abstractions::kernel_ext::module::WaitOnExit;
///
/// struct Plain;
///
/// impl kernel::Module for Plain {
///     fn init(_module: &'static ThisModule) -> Result<Self> {
///         Ok(Self)
///     }
/// }
///
/// // module! { type: WaitOnExit<Plain>, ... }
///
/// // This module has one already.
/// let second = KBox::pin_init(
///     WaitOnExit::<Plain>::init(this_module::<pmem_rs::Module>()),
///     GFP_KERNEL,
/// );
/// assert!(second.is_err_and(|err| err == EBUSY));
/// ```
///
/// ```compile_fail,E0451
/// # use pmem_rs::{abstractions::kernel_ext::module::WaitOnExit, PmemModule};
/// // Only its initialiser makes one.
/// fn make(module: PmemModule) -> WaitOnExit<PmemModule> {
///     WaitOnExit { module, _exit: todo!() }
/// }
/// ```
#[pin_data]
pub struct WaitOnExit<M: InPlaceModule> {
    // Dropped in this order: the module first, then the wait for its registrations.
    #[pin]
    module: M,
    _exit: Exit,
}

impl<M: InPlaceModule> InPlaceModule for WaitOnExit<M> {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _exit: Exit::new()?,
            module <- M::init(module),
        })
    }
}

// `module!` calls `init` of its type before any other code of this crate runs. So that call is the
// first one of `Registrations::open()`, and the only one that succeeds. This compiles only if the
// type is a `WaitOnExit`.
const _: fn(crate::LocalModule) = |module| {
    let WaitOnExit { .. } = module;
};

/// Waits for the registrations when it is dropped. At most one exists.
struct Exit(());

impl Exit {
    fn new() -> Result<Self> {
        REGISTRATIONS.open()?;
        Ok(Self(()))
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        REGISTRATIONS.wait_and_close();

        // The thread that dropped the last registration may still be in the text of the module,
        // either preempted or with preemption disabled.
        //
        // SAFETY: Modules are initialised and unloaded in process context, which may sleep.
        unsafe {
            bindings::synchronize_rcu();
            bindings::synchronize_rcu_tasks();
            // A `percpu_ref` that was killed and forgotten calls its release function from RCU.
            bindings::rcu_barrier();
        }
    }
}

/// A reference to a module, which keeps the module loaded.
///
/// # Invariants
///
/// `self` owns one reference to the module.
pub struct ModuleRef(&'static ThisModule);

impl ModuleRef {
    /// Takes a reference, unless the module is being unloaded. Callable from any context.
    pub fn try_get(module: &'static ThisModule) -> Option<Self> {
        // SAFETY: A `&'static ThisModule` is valid.
        let got = unsafe { bindings::try_module_get(module.as_ptr()) };

        if !got {
            return None;
        }
        // INVARIANT: The reference was just taken.
        Some(Self(module))
    }

    /// Sends a `change` uevent of the module (`/module/NAME`), with one or more variables
    /// `NAME=value`. May sleep. Fails with [`EINVAL`] if the variables are too long, and with
    /// [`ENODEV`] if the module is built in.
    pub fn notify_change<const N: usize>(&self, variables: [&CStr; N]) -> Result {
        let module = self.0.as_ptr();
        if module.is_null() {
            return Err(ENODEV);
        }

        // SAFETY: By the type invariant the module stays loaded. Its kobject was added before its
        // code runs, and is deleted when it is freed. The one above it is never deleted.
        unsafe { kobject::notify_change_of(&raw mut (*module).mkobj.kobj, variables) }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant `self` owns the reference.
        unsafe { bindings::module_put(self.0.as_ptr()) };
    }
}

/// A static variable for a value that exists while the module is in use.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::percpu_ref::Counted;
/// use pmem_rs::abstractions::kernel_ext::module::Global;
///
/// static LIMIT: Global<u32> = Global::new();
///
/// // The module's own type keeps the returned value.
/// let installed = LIMIT.install(Counted::new(3)?)?;
///
/// assert_eq!(LIMIT.get().map(|limit| *limit), Some(3));
/// drop(installed);
/// assert!(LIMIT.get().is_none());
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The pointer is null, or that of the [`Counted`] of an [`Installed`]. The value is dropped only
/// after the pointer was null for an RCU grace period.
pub struct Global<T: Send + Sync + 'static>(Atomic<*mut percpu_ref::Inner<T>>);

// SAFETY: Only references to a `T` that is `Send` and `Sync` are shared.
unsafe impl<T: Send + Sync + 'static> Sync for Global<T> {}

impl<T: Send + Sync + 'static> Global<T> {
    /// Creates a variable without a value.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self(Atomic::new(core::ptr::null_mut()))
    }

    /// Sets the value until the returned [`Installed`] is dropped. Drops `value` and fails with
    /// [`EBUSY`] if there is a value already.
    pub fn install(&'static self, value: Counted<T>) -> Result<Installed<T>> {
        let ptr = value.as_ptr().as_ptr();

        self.0
            .cmpxchg(core::ptr::null_mut(), ptr, Release)
            .map_err(|_| EBUSY)?;
        // INVARIANT: The pointer was just stored.
        Ok(Installed {
            global: self,
            value,
        })
    }

    /// Takes a reference to the value, if there is one. Does not sleep.
    pub fn get(&self) -> Option<Ref<T>> {
        let _guard = rcu::read_lock();
        let ptr = NonNull::new(self.0.load(Acquire))?;

        // SAFETY: By the type invariant the value is not dropped before this RCU section ends.
        unsafe { Ref::try_new(ptr) }
    }
}

/// A value that a [`Global`] has.
///
/// Dropping it clears the variable, waits until nothing uses the value, and drops the value. This
/// sleeps. A thread that uses the value and drops this waits for ever.
///
/// # Invariants
///
/// `global` has the pointer of the value.
pub struct Installed<T: Send + Sync + 'static> {
    global: &'static Global<T>,
    // Dropped after `drop()`.
    value: Counted<T>,
}

impl<T: Send + Sync + 'static> Deref for Installed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Send + Sync + 'static> Drop for Installed<T> {
    fn drop(&mut self) {
        self.global.0.xchg(core::ptr::null_mut(), Relaxed);
        // SAFETY: Dropping `self` may sleep.
        unsafe { bindings::synchronize_rcu() };
    }
}

#[kunit_tests(pmem_rs_module)]
mod tests {
    use super::*;
    use crate::abstractions::kernel_ext::{
        time::Stopwatch,
        workqueue::OwnedQueue, //
    };
    use kernel::sync::Arc;

    static VALUE: Global<u32> = Global::new();

    #[test]
    fn registrations_are_counted_between_open_and_close() {
        let registrations = Registrations::new();

        assert!(registrations.add().is_err_and(|err| err == ENODEV));
        assert!(!registrations.close());
        assert!(registrations.open().is_ok());
        assert!(registrations.open().is_err_and(|err| err == EBUSY));

        assert!(registrations.add().is_ok());
        assert!(registrations.add().is_ok());
        assert_eq!(registrations.count(), 2);
        registrations.remove();
        assert_eq!(registrations.count(), 1);
        assert!(!registrations.close());
        registrations.remove();
        assert_eq!(registrations.count(), 0);

        assert!(registrations.close());
        assert!(registrations.add().is_err_and(|err| err == ENODEV));
        assert!(registrations.open().is_err_and(|err| err == EBUSY));
        assert_eq!(registrations.count(), 0);
    }

    #[test]
    fn closing_waits_for_the_last_registration() -> Result {
        let queue = OwnedQueue::new(c"pmem_rs_test")?;
        let began = Stopwatch::start();
        let registrations = Arc::new(Registrations::new(), GFP_KERNEL)?;
        registrations.open()?;
        registrations.add()?;

        let last = registrations.clone();
        queue.try_spawn(GFP_KERNEL, move || {
            // Long enough for a message.
            sleep(1500);
            last.remove();
        })?;
        registrations.wait_and_close();
        assert!(began.micros() >= 1_400_000);
        assert!(registrations.add().is_err());
        Ok(())
    }

    #[test]
    fn a_loaded_module_has_registrations() -> Result {
        let registered = Registered::new()?;

        assert!(REGISTRATIONS.count() >= 1);
        registered.into_raw();
        // SAFETY: `into_raw()` was just called.
        drop(unsafe { Registered::from_raw() });
        assert!(Exit::new().is_err_and(|err| err == EBUSY));
        Ok(())
    }

    #[test]
    fn a_module_sends_uevents() -> Result {
        let module = ModuleRef::try_get(this_module::<crate::LocalModule>()).ok_or(ENODEV)?;

        module.notify_change([c"PMEM_RS_TEST=1"])
    }

    #[test]
    fn a_value_is_available_while_it_is_installed() -> Result {
        assert!(VALUE.get().is_none());
        let installed = VALUE.install(Counted::new(7)?)?;

        assert!(VALUE.get().is_some_and(|value| *value == 7));
        assert!(VALUE
            .install(Counted::new(8)?)
            .is_err_and(|err| err == EBUSY));
        drop(installed);
        assert!(VALUE.get().is_none());
        Ok(())
    }
}

/// After this the module cannot be unloaded to the end, so it has a boot of its own (suite
/// `misuse`), which checks that the exit waits and logs it.
#[kunit_tests(pmem_rs_x_exit)]
mod misuse {
    use super::*;

    #[test]
    fn a_forgotten_registration_is_counted() -> Result {
        let before = REGISTRATIONS.count();

        core::mem::forget(Registered::new()?);
        assert!(REGISTRATIONS.count() > before);
        Ok(())
    }
}
