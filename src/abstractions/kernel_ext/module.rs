// SPDX-License-Identifier: GPL-2.0

//! What belongs to a module as a whole: references to it, the count of its registrations, and
//! values that live as long as it does.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::abstractions::{
    bindings,
    kernel::percpu_ref::{
        self,
        Counted,
        Ref, //
    },
    kernel_ext::time::sleep, //
};
use core::ptr::NonNull;
use kernel::{
    module::this_module,
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

/// How many registrations there are, and whether there may be any.
///
/// The count is one atomic together with the state, so that none is added once it was found to be
/// zero for the last time.
struct Registrations(Atomic<usize>);

impl Registrations {
    /// Not opened yet.
    const NEW: usize = 0;
    /// Closed, for good.
    const CLOSED: usize = 1;
    /// Open, without a registration; each one adds 1.
    const OPEN: usize = 2;

    const fn new() -> Self {
        Self(Atomic::new(Self::NEW))
    }

    /// Allows registrations.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] unless this is the first call.
    fn open(&self) -> Result {
        self.0
            .cmpxchg(Self::NEW, Self::OPEN, Relaxed)
            .map(|_| ())
            .map_err(|_| EBUSY)
    }

    /// Counts one registration more.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] unless it is open.
    fn add(&self) -> Result {
        let mut found = self.0.load(Relaxed);

        loop {
            if found < Self::OPEN {
                return Err(ENODEV);
            }
            // Does not wrap: each registration takes some memory.
            match self.0.cmpxchg(found, found.wrapping_add(1), Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => found = other,
            }
        }
    }

    /// Counts one registration less. There must be one.
    fn remove(&self) {
        // ORDERING: Pairs with `close`: what was done to the registration comes before.
        self.0.fetch_sub(1, Release);
    }

    /// Returns how many registrations there are.
    fn count(&self) -> usize {
        self.0.load(Relaxed).saturating_sub(Self::OPEN)
    }

    /// Allows no registration any more, if there is none. Returns whether that is so.
    fn close(&self) -> bool {
        // ORDERING: Pairs with `remove`.
        self.0.cmpxchg(Self::OPEN, Self::CLOSED, Acquire).is_ok()
    }

    /// Closes it once there is no registration any more. Says how many there are when that takes
    /// long. Sleeps.
    fn wait_and_close(&self) {
        let mut pause = FIRST_PAUSE_MS;
        let mut waited: u32 = 0;
        let mut next_message = FIRST_MESSAGE_MS;

        while !self.close() {
            if waited >= next_message {
                pr_warn!(
                    "{} registrations are left, the module waits for them before it goes\n",
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

/// The pauses between two looks at the count, in milliseconds: the first one, and the longest.
const FIRST_PAUSE_MS: u32 = 10;
const LAST_PAUSE_MS: u32 = 1000;
/// When the first message is printed, and how long after one the next, in milliseconds.
const FIRST_MESSAGE_MS: u32 = 1000;
const MESSAGE_INTERVAL_MS: u32 = 30_000;

static REGISTRATIONS: Registrations = Registrations::new();

/// One registration with the C side that may call into the text of this module.
///
/// An abstraction keeps it in its registration, as the field that is dropped last. The module is
/// not unloaded before all were dropped: see [`WaitOnExit`]. So a registration that is forgotten
/// keeps what the C side calls.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel_ext::module::Registered;
///
/// struct Registration {
///     // What the C side knows comes first.
///     _registered: Registered,
/// }
///
/// let registration = Registration {
///     _registered: Registered::new()?,
/// };
/// # drop(registration);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// It is counted once in `REGISTRATIONS`.
#[must_use]
pub struct Registered(());

impl Registered {
    /// Counts a registration. Callable from any context.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] before the [`WaitOnExit`] of the module is initialised, and once it was dropped.
    pub fn new() -> Result<Self> {
        REGISTRATIONS.add()?;
        // INVARIANT: Just counted.
        Ok(Self(()))
    }

    /// Keeps the module for as long as the system runs, for what is leaked on purpose.
    ///
    /// It stays counted. It takes a reference to the module as well, so that unloading is refused
    /// with `EBUSY`. When the module is already being unloaded there is no such reference to be
    /// had, and unloading waits for ever. Callable from any context.
    pub fn leak(self) {
        core::mem::forget(ModuleRef::try_get(this_module::<crate::LocalModule>()));
        core::mem::forget(self);
    }

    /// Keeps the count without a value, for a registration whose memory belongs to the C side or is
    /// not dropped.
    pub(in crate::abstractions) fn into_raw(self) {
        core::mem::forget(self);
    }

    /// Takes back a count that [`Self::into_raw`] has kept.
    ///
    /// # Safety
    ///
    /// Each call needs a call of [`Self::into_raw`] of its own, before it.
    pub(in crate::abstractions) unsafe fn from_raw() -> Self {
        // INVARIANT: By the safety requirements it is counted, and nothing else stands for it.
        Self(())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        REGISTRATIONS.remove();
    }
}

/// A module that is not unloaded before its registrations have gone.
///
/// This is the type that `module!` is given; it contains the module's own type, which is dropped
/// first. Then it waits until all that is [`Registered`] was dropped, with a message in the log
/// after a second and every 30 seconds, and until all threads have left the text of the module. The
/// same happens when the module's own type cannot be initialised.
///
/// A crate whose `module!` has another type does not compile, so `module!` itself initialises and
/// drops the one that counts.
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
/// // There is one already, that of the module that this is built into.
/// let second = KBox::pin_init(
///     WaitOnExit::<Plain>::init(this_module::<pmem_rs::Module>()),
///     GFP_KERNEL,
/// );
/// assert!(second.is_err_and(|err| err == EBUSY));
/// ```
///
/// ```compile_fail,E0451
/// # use pmem_rs::{abstractions::module::WaitOnExit, PmemModule};
/// // It is made by its initialiser only.
/// fn make(module: PmemModule) -> WaitOnExit<PmemModule> {
///     WaitOnExit { module, _exit: todo!() }
/// }
/// ```
#[pin_data]
pub struct WaitOnExit<M: InPlaceModule> {
    // In this order: the module goes, and then its registrations have to be gone.
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

// Nothing of this crate runs before `module!` has called `init` of its type. That is then the first
// caller of `Registrations::open`, and the only one to succeed. This compiles for that type only.
const _: fn(crate::LocalModule) = |module| {
    let WaitOnExit { .. } = module;
};

/// Waits for the registrations when it is dropped. There is one of these at most.
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

        // The thread that dropped the last registration may still be in the text of the module:
        // with preemption disabled, or preempted.
        //
        // SAFETY: Modules are initialised and unloaded in process context, where it may sleep.
        unsafe {
            bindings::synchronize_rcu();
            bindings::synchronize_rcu_tasks();
            // A `percpu_ref` that was killed and forgotten calls its release function from RCU.
            bindings::rcu_barrier();
        }
    }
}

/// A reference that keeps a module from being unloaded.
///
/// # Invariants
///
/// One reference of the module is ours.
pub struct ModuleRef(&'static ThisModule);

impl ModuleRef {
    /// Takes a reference, unless the module is being unloaded.
    pub fn try_get(module: &'static ThisModule) -> Option<Self> {
        // SAFETY: The module is valid, its code is running.
        let got = unsafe { bindings::try_module_get(module.as_ptr()) };

        if !got {
            return None;
        }
        // INVARIANT: Just taken.
        Some(Self(module))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::module_put(self.0.as_ptr()) };
    }
}

/// A place in static memory for a value that exists while the module is in use.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::{
///     kernel::percpu_ref::Counted,
///     kernel_ext::module::Global, //
/// };
///
/// static LIMIT: Global<u32> = Global::new();
///
/// // What is returned belongs into the module's own structure.
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
/// `ptr` is null, or that of the [`Counted`] of an [`Installed`], which is dropped only after an
/// RCU grace period in which this was null.
pub struct Global<T: Send + Sync + 'static>(Atomic<*mut percpu_ref::Inner<T>>);

// SAFETY: What is shared is a `T` that is counted.
unsafe impl<T: Send + Sync + 'static> Sync for Global<T> {}

impl<T: Send + Sync + 'static> Global<T> {
    /// Makes an empty place.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self(Atomic::new(core::ptr::null_mut()))
    }

    /// Puts a value in its place, until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there is one; the value is dropped then.
    pub fn install(&'static self, value: Counted<T>) -> Result<Installed<T>> {
        let ptr = value.as_ptr().as_ptr();

        self.0
            .cmpxchg(core::ptr::null_mut(), ptr, Release)
            .map_err(|_| EBUSY)?;
        // INVARIANT: The pointer was just stored.
        Ok(Installed {
            place: self,
            _value: value,
        })
    }

    /// Returns the value, if there is one. Does not sleep.
    pub fn get(&self) -> Option<Ref<T>> {
        let _guard = rcu::read_lock();
        let ptr = NonNull::new(self.0.load(Acquire))?;

        // SAFETY: By the type invariant the value is not dropped before this section ends.
        unsafe { Ref::try_new(ptr) }
    }
}

/// Takes a value from its place when it is dropped, waits until it is not used any more, and drops
/// it. That sleeps.
///
/// # Invariants
///
/// The place holds the value.
pub struct Installed<T: Send + Sync + 'static> {
    place: &'static Global<T>,
    // Dropped after what `drop` does.
    _value: Counted<T>,
}

impl<T: Send + Sync + 'static> Drop for Installed<T> {
    fn drop(&mut self) {
        self.place.0.xchg(core::ptr::null_mut(), Relaxed);
        // SAFETY: May sleep here.
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

    static PLACE: Global<u32> = Global::new();

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
            // Late enough for a message.
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
        // SAFETY: Given away just now.
        drop(unsafe { Registered::from_raw() });
        assert!(Exit::new().is_err_and(|err| err == EBUSY));
        Ok(())
    }

    #[test]
    fn a_value_can_be_had_while_it_is_installed() -> Result {
        assert!(PLACE.get().is_none());
        let installed = PLACE.install(Counted::new(7)?)?;

        assert!(PLACE.get().is_some_and(|value| *value == 7));
        assert!(PLACE
            .install(Counted::new(8)?)
            .is_err_and(|err| err == EBUSY));
        drop(installed);
        assert!(PLACE.get().is_none());
        Ok(())
    }
}
