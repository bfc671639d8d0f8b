// SPDX-License-Identifier: GPL-2.0

//! The leases of one pgmap, and the table of all pgmaps that can be leased.

use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    percpu_ref::Counted,
    pmem_slice::{
        PmemSlice,
        WritableSlice, //
    },
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::{
    module::{
        Global,
        Installed, //
    },
    time::MINUTE,
    workqueue::OwnedQueue, //
};
use core::ops::Range;
use kernel::{
    fmt,
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    sync::{
        Arc,
        Mutex, //
    },
    time::Msecs, //
};

/// A counted reference to the memory of a pgmap, whatever its operations are.
pub(in crate::abstractions) trait LeasedMemory: Send + Sync {
    /// Returns the size of the data in bytes.
    fn size(&self) -> usize;

    /// Returns the kernel address of a byte of the data.
    fn addr_of(&self, offset: usize) -> *mut u8;

    /// Returns the `struct page` of a byte of the data, or null if there is none.
    fn page_of(&self, offset: usize) -> *mut bindings::page;

    /// Returns whether none of the bytes is known to be bad.
    fn is_good(&self, offset: usize, len: usize) -> bool;

    /// Returns whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// As `PagemapInner::readable`.
    fn readable(&self, offset: usize, len: usize) -> Option<PmemSlice<'_>>;

    /// As `PagemapInner::writable`.
    fn writable(&self, offset: usize, len: usize) -> Option<WritableSlice<'_>>;
}

/// A lease in the list of a pgmap.
pub(super) trait ListedLease: Send + Sync {
    /// Queues the callback that notifies the holder that the device is going to be unbound. Does
    /// not wait for it.
    fn request_return(self: Arc<Self>);

    /// Reports a memory failure to the holder: the `len` bytes at `offset` in the data of the pgmap
    /// of `leases` have failed. Returns whether the callback is going to be called: false if none
    /// of the bytes is in the lease, if there is no callback, if the module of the holder is being
    /// unloaded, or if the lease was given back.
    ///
    /// # Safety
    ///
    /// The lease must be in the list `leases`, and its lock be held.
    unsafe fn fail(self: Arc<Self>, leases: &Leases, offset: u64, len: u64) -> bool;

    /// Returns the name of the module of the holder, which must not have been unloaded.
    fn owner(&self) -> ModuleName;

    /// Returns whether a callback of the lease runs.
    fn is_in_callback(&self) -> bool;
}

/// The name of a module, and zeroes.
pub(super) type ModuleName = [c_char; 64];

/// The holders of leases, for messages. Displayed as `the module …`.
#[derive(Clone, Copy)]
pub struct LeaseHolders {
    module: ModuleName,
    /// A callback of it runs.
    is_in_callback: bool,
    /// How many leases there are besides.
    others: usize,
}

impl fmt::Display for LeaseHolders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module = CStr::from_bytes_until_nul(&self.module).unwrap_or(c"?");

        f.write_fmt(fmt!("the module {}", module))?;
        if self.is_in_callback {
            f.write_str(", which is in a callback")?;
        }
        if self.others != 0 {
            f.write_fmt(fmt!(
                " (and further leases of this or other modules: {})",
                self.others
            ))?;
        }
        Ok(())
    }
}

/// Refuses leases of some memory ([`Leases::pause`]).
pub struct Pause(Arc<Leases>);

impl Drop for Pause {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();

        state.pauses = state.pauses.saturating_sub(1);
    }
}

/// The leases of a pgmap.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::fs::dax::Pagemap;
/// use pmem_rs::abstractions::kernel::lease::LeaseHolders;
/// use pmem_rs::abstractions::kernel::memremap::PagemapOperations;
///
/// /// Notifies the holders of leases, and waits for a second. Returns those that still have one.
/// fn stop<T: PagemapOperations>(pages: &Pagemap<T>) -> Option<LeaseHolders> {
///     pages.leases().request_return();
///     pages.leases().wait_returned(1000);
///     pages.leases().holders()
/// }
/// ```
///
/// # Invariants
///
/// The pieces of a lease in the list stay while it is in the list.
#[pin_data]
pub struct Leases {
    #[pin]
    state: Mutex<State>,
    /// Woken when a lease was given back.
    #[pin]
    returned: WaitQueue,
}

struct State {
    /// The addresses of the memory.
    addresses: Range<usize>,
    /// The memory, while new leases are accepted.
    memory: Option<Arc<dyn LeasedMemory>>,
    /// The number of [`Pause`]s. No lease is accepted while there is one.
    pauses: usize,
    /// The leases, by their addresses.
    held: RBTree<usize, Arc<dyn ListedLease>>,
}

impl Leases {
    /// Creates the list of memory that cannot be leased yet. May sleep.
    pub(in crate::abstractions) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_mutex!(
                    State {
                        addresses: 0..0,
                        memory: None,
                        pauses: 0,
                        held: RBTree::new(),
                    },
                    "pmem_rs::Leases::state"
                ),
                returned <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Accepts leases of this memory, if there is a [`Table`]. May sleep.
    ///
    /// [`Self::request_return`] must be called before the references to the memory are waited for.
    pub(in crate::abstractions) fn accept(
        self: &Arc<Self>,
        memory: Arc<dyn LeasedMemory>,
    ) -> Result {
        let Some(table) = TABLE.get() else {
            return Ok(());
        };

        let start = memory.addr_of(0).addr();
        {
            let mut state = self.state.lock();
            state.addresses = start..start.saturating_add(memory.size());
            state.memory = Some(memory);
        }
        table.add(self.clone())
    }

    /// Removes the memory from the table. It is about to be freed, and its addresses may then be
    /// those of other memory. May sleep.
    pub(in crate::abstractions) fn remove_from_table(&self) {
        if let Some(table) = TABLE.get() {
            table.remove(self);
        }
    }

    /// Closes the list to new leases, and queues the `revoke` callback of each lease. Does not wait
    /// for a callback, but may sleep. Only the first call has an effect.
    pub fn request_return(&self) {
        let memory = {
            let mut state = self.state.lock();
            for lease in state.held.values() {
                lease.clone().request_return();
            }
            state.memory.take()
        };
        drop(memory);
    }

    /// Returns whether there are leases. May sleep.
    pub fn are_held(&self) -> bool {
        self.state.lock().held.iter().next().is_some()
    }

    /// Waits, for at most `limit` milliseconds, until all leases were given back. Sleeps. Returns
    /// whether that is so.
    pub fn wait_returned(&self, limit: Msecs) -> bool {
        self.returned
            .wait_until(limit, || (!self.are_held()).then_some(()))
            .is_some()
    }

    /// Returns the holders of leases, or [`None`] if there are none. May sleep.
    pub fn holders(&self) -> Option<LeaseHolders> {
        let state = self.state.lock();
        let mut leases = state.held.values();

        let first = leases.next()?;
        Some(LeaseHolders {
            module: first.owner(),
            is_in_callback: first.is_in_callback(),
            // The compiler cannot prove that `count()` does not overflow.
            others: leases.fold(0, |others: usize, _| others.saturating_add(1)),
        })
    }

    /// Refuses leases ([`EBUSY`]) until all [`Pause`]s of this memory were dropped. May sleep.
    /// Fails with the holders if there are any.
    pub fn pause(self: &Arc<Self>) -> Result<Pause, LeaseHolders> {
        {
            let mut state = self.state.lock();
            state.pauses = state.pauses.saturating_add(1);
        }
        let pause = Pause(self.clone());

        match self.holders() {
            Some(holders) => Err(holders),
            None => Ok(pause),
        }
    }

    /// Queues callbacks for the failure of the `len` bytes from `offset` bytes into the data on.
    /// May sleep. Returns whether any callback is going to be called.
    pub(in crate::abstractions) fn fail(&self, offset: u64, len: u64) -> bool {
        let state = self.state.lock();
        let mut any = false;

        for lease in state.held.values() {
            // SAFETY: By the type invariant the pieces stay while the lease is in the list, whose
            // lock is held.
            any |= unsafe { lease.clone().fail(self, offset, len) };
        }
        any
    }

    /// Returns the memory, and the offset of a kernel address in it. [`None`] if the address is not
    /// in this memory. Fails with [`ENXIO`] after [`Self::request_return`].
    fn find(&self, addr: usize) -> Option<Result<(Arc<dyn LeasedMemory>, usize)>> {
        let state = self.state.lock();
        let offset = addr.checked_sub(state.addresses.start)?;
        if !state.addresses.contains(&addr) {
            return None;
        }

        let memory = state.memory.clone().ok_or(ENXIO);
        Some(memory.map(|memory| (memory, offset)))
    }

    /// Adds a lease, unless it is there already. Fails with [`ENXIO`] after
    /// [`Self::request_return`], and with [`EBUSY`] while there is a [`Pause`].
    ///
    /// # Safety
    ///
    /// The pieces of the lease must be set, and must stay until [`Self::remove`].
    pub(super) unsafe fn add(&self, lease: Arc<dyn ListedLease>) -> Result {
        let key = address(Arc::as_ptr(&lease));
        let mut state = self.state.lock();

        if state.memory.is_none() {
            return Err(ENXIO);
        }
        if state.pauses != 0 {
            return Err(EBUSY);
        }
        if state.held.get(&key).is_none() {
            // INVARIANT: By the safety requirements.
            state.held.try_create_and_insert(key, lease, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Removes a lease, if it is there.
    pub(super) fn remove<L: ListedLease>(&self, lease: &L) {
        let removed = self.state.lock().held.remove(&address(lease));

        if removed.is_some() {
            self.returned.wake_up();
        }
    }
}

/// Returns the address of a value, as a key.
fn address<T: ?Sized>(value: *const T) -> usize {
    value.cast::<()>().addr()
}

/// Installed while the module is loaded.
pub(super) static TABLE: Global<Table> = Global::new();

/// The pgmaps that can be leased, and what all leases share.
///
/// # Invariants
///
/// While a lease of the table is held, the [`Global`] that the table was installed in has it.
#[pin_data]
pub struct Table {
    #[pin]
    lists: Mutex<RBTree<usize, Arc<Leases>>>,
    #[pin]
    held: Mutex<HeldLeases>,
    /// Woken when a lease was given back.
    #[pin]
    returned: WaitQueue,
    /// Callbacks may do what flushes other queues, so it has no rescuer.
    pub(super) queue: OwnedQueue,
}

/// The leases of a [`Table`] that are held.
struct HeldLeases {
    /// Their addresses, to check what C code gives back.
    addresses: RBTree<usize, ()>,
    /// No lease is added any more.
    is_closed: bool,
}

/// The [`Table`] while it is there.
///
/// Dropping it refuses new leases, waits until all leases were given back, and removes the table.
/// This sleeps, and logs the holders each minute. A callback of a holder must not do it.
pub struct InstalledTable(Installed<Table>);

impl Drop for InstalledTable {
    fn drop(&mut self) {
        let table = &*self.0;

        // INVARIANT: No lease is held after the loop, and the pointer is cleared only then. A lease
        // that was given back may still have a reference to the table. Clearing waits for that.
        table.held.lock().is_closed = true;
        let are_returned = || (!table.are_held()).then_some(());
        while table.returned.wait_until(MINUTE, are_returned).is_none() {
            match table.holders() {
                Some(holders) => pr_warn!(
                    "module exit waits for leases of {}: make it give them back, or unload it\n",
                    holders
                ),
                None => pr_warn!("module exit waits for leases that are being given back\n"),
            }
        }
    }
}

/// The leases of a pgmap, its memory, and an offset in the memory.
pub(super) type Found = (Arc<Leases>, Arc<dyn LeasedMemory>, usize);

impl Table {
    /// Makes the table. Without it, memory cannot be leased. May sleep.
    pub fn install() -> Result<InstalledTable> {
        Self::install_in(&TABLE)
    }

    /// As [`Self::install`], for another variable.
    pub(super) fn install_in(global: &'static Global<Self>) -> Result<InstalledTable> {
        let queue = OwnedQueue::new(c"pmem_rs_lease")?;

        // INVARIANT: No lease is held yet.
        let table = Counted::pin_init(try_pin_init!(Self {
            lists <- new_mutex!(RBTree::new(), "pmem_rs::Table::lists"),
            held <- new_mutex!(
                HeldLeases {
                    addresses: RBTree::new(),
                    is_closed: false,
                },
                "pmem_rs::Table::held"
            ),
            returned <- WaitQueue::new(),
            queue,
        }))?;
        Ok(InstalledTable(global.install(table)?))
    }

    fn add(&self, leases: Arc<Leases>) -> Result {
        let key = address(Arc::as_ptr(&leases));

        self.lists
            .lock()
            .try_create_and_insert(key, leases, GFP_KERNEL)
            .map(|_| ())
    }

    fn remove(&self, leases: &Leases) {
        // The caller has a reference too, so nothing is dropped here.
        self.lists.lock().remove(&address(leases));
    }

    /// Returns the memory that has a kernel address.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if it is not in the table, [`ENXIO`] if it accepts no more leases.
    pub(super) fn find(&self, addr: usize) -> Result<Found> {
        let lists = self.lists.lock();
        let (leases, found) = lists
            .values()
            .find_map(|leases| Some((leases, leases.find(addr)?)))
            .ok_or(EOPNOTSUPP)?;

        found.map(|(memory, offset)| (leases.clone(), memory, offset))
    }

    /// Records that the lease at this address is held. Fails with [`ENXIO`] if the table is about
    /// to be removed.
    pub(super) fn set_held(&self, addr: usize) -> Result {
        let mut held = self.held.lock();

        if held.is_closed {
            return Err(ENXIO);
        }
        held.addresses
            .try_create_and_insert(addr, (), GFP_KERNEL)
            .map(|_| ())
    }

    /// Records that the lease at this address is no longer held. Returns false if it was not.
    pub(super) fn set_given_back(&self, addr: usize) -> bool {
        let was_held = self.held.lock().addresses.remove(&addr).is_some();

        self.returned.wake_up();
        was_held
    }

    fn are_held(&self) -> bool {
        self.held.lock().addresses.iter().next().is_some()
    }

    /// Returns the holders of leases of one memory, if there are any.
    fn holders(&self) -> Option<LeaseHolders> {
        self.lists
            .lock()
            .values()
            .find_map(|leases| leases.holders())
    }
}

#[kunit_tests(pmem_rs_leases)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::fs::dax::testing::pages;

    struct Nothing;

    impl ListedLease for Nothing {
        fn request_return(self: Arc<Self>) {}

        unsafe fn fail(self: Arc<Self>, _leases: &Leases, _offset: u64, _len: u64) -> bool {
            false
        }

        fn owner(&self) -> ModuleName {
            [0; size_of::<ModuleName>()]
        }

        fn is_in_callback(&self) -> bool {
            false
        }
    }

    #[test]
    fn leases_are_refused_until_the_last_pause_ends() -> Result {
        let memory = pages()?;
        let leases = memory.leases();
        let lease = Arc::new(Nothing, GFP_KERNEL)?;
        // SAFETY: The lease has no pieces.
        let add = || unsafe { leases.add(lease.clone()) };

        let first = leases.pause().map_err(|_| EBUSY)?;
        let second = leases.pause().map_err(|_| EBUSY)?;
        drop(first);
        assert!(add() == Err(EBUSY));
        drop(second);
        assert!(add() == Ok(()));
        // A pause that failed refuses nothing.
        assert!(leases.pause().is_err());
        leases.remove(&*lease);
        assert!(add() == Ok(()));
        leases.remove(&*lease);
        Ok(())
    }
}
