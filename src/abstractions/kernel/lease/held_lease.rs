// SPDX-License-Identifier: GPL-2.0

//! A lease, from when it is taken until it is given back.

use super::{
    claimed_device::Claim,
    handover::{
        Call,
        Handover, //
    },
    leases::{
        Leases,
        ListedLease,
        ModuleName,
        Table,
        TABLE, //
    },
    pieces::{
        Address,
        Pieces, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::{
    percpu_ref::Ref,
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::{
    module::{
        Global,
        Registered, //
    },
    time::MINUTE, //
};
use core::{
    cell::UnsafeCell,
    ptr::{
        NonNull, //
    }, //
};
use kernel::{
    impl_has_work,
    new_mutex,
    new_work,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// What a lease holds. The fields are dropped in this order.
struct Parts {
    addr: Address,
    pieces: Pieces,
    len: usize,
    claim: Claim,
}

/// A lease.
///
/// # Invariants
///
/// The callbacks of `ops` may be called with `data` until the lease was given back; `ops.owner` is
/// null or a module, whose code they are.
///
/// `parts` are there from the end of [`Self::new`] until the end of [`Self::give_back`], and do not
/// change meanwhile. While they are there, a list of each piece may have the lease.
#[pin_data]
pub(super) struct Lease {
    ops: bindings::pmem_rs_lease_ops,
    data: *mut c_void,
    parts: UnsafeCell<Option<Parts>>,
    #[pin]
    handover: Mutex<Handover<usize>>,
    /// Woken when a callback has returned.
    #[pin]
    idle: WaitQueue,
    #[pin]
    work: Work<Lease>,
    table: Ref<Table>,
    // Dropped last.
    _registered: Registered,
}

// SAFETY: The callbacks may be called by any thread, and `Parts` are `Send`.
unsafe impl Send for Lease {}

// SAFETY: `parts` do not change while they are used, by the type invariant and the requirements of
// the functions that use them. All else is `Sync`, or only read.
unsafe impl Sync for Lease {}

impl_has_work! {
    impl HasWork<Self> for Lease { self.work }
}

impl WorkItem for Lease {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.make_calls();
    }
}

/// Keeps the module of a holder, if it has one.
struct KeptModule(*mut bindings::module);

impl Drop for KeptModule {
    fn drop(&mut self) {
        // SAFETY: A reference to the module was taken; null is permitted.
        unsafe { bindings::module_put(self.0) };
    }
}

/// Returns a name for the running thread.
fn this_thread() -> usize {
    kernel::current!().as_ptr() as usize
}

impl Lease {
    /// Takes a lease of the `len` bytes from `offset` on of a block device, to be given back by
    /// [`Self::give_back`]; see `pmem_rs_lease_get()`. May sleep.
    ///
    /// # Safety
    ///
    /// The callbacks must be callable with `data` until the lease was given back. `ops.owner` must
    /// be null or the module of their code.
    pub(super) unsafe fn new(
        dev: bindings::dev_t,
        offset: u64,
        len: u64,
        ops: bindings::pmem_rs_lease_ops,
        data: *mut c_void,
    ) -> Result<*const Self> {
        const PAGE: u64 = PAGE_SIZE as u64;
        if ops.revoke.is_none() || offset % PAGE != 0 || len % PAGE != 0 {
            return Err(EINVAL);
        }
        let table = TABLE.get().ok_or(ENXIO)?;

        // INVARIANT: By the safety requirements. There are no parts yet.
        let lease = Arc::pin_init(
            try_pin_init!(Self {
                ops,
                data,
                parts: UnsafeCell::new(None),
                handover <- new_mutex!(Handover::new(), "pmem_rs::Lease::handover"),
                idle <- WaitQueue::new(),
                work <- new_work!("pmem_rs::Lease::work"),
                table,
                _registered: Registered::new()?,
            }? Error),
            GFP_KERNEL,
        )?;
        let claim = Claim::new(dev, Arc::as_ptr(&lease).cast())?;
        let (dax, start) = claim.dax()?;
        let rest = claim.size().checked_sub(offset).ok_or(ERANGE)?;
        let len = if len == 0 { rest & !(PAGE - 1) } else { len };
        if len == 0 || len > rest {
            return Err(ERANGE);
        }
        let start = start.checked_add(offset).ok_or(ERANGE)?;
        let len = usize::try_from(len)?;
        let pieces = Pieces::find(&lease.table, &dax, start, len)?;
        // A device above the disk does not report that the disk is read-only.
        if pieces.are_read_only() {
            return Err(EACCES);
        }

        // SAFETY: Both are in `Parts`, where the address is dropped first. Nothing else has a
        // reference to the lease yet.
        unsafe {
            let addr = Address::new(&pieces)?;
            *lease.parts.get() = Some(Parts {
                addr,
                pieces,
                len,
                claim,
            });
        }
        lease.register().inspect_err(|_| {
            // SAFETY: The caller does not get the lease, and no call was permitted.
            unsafe { lease.release() };
        })?;

        // The caller owns this reference until it gives the lease back. From here on, a callback
        // may do that.
        let raw = Arc::into_raw(lease.clone());
        let has_calls = lease.handover.lock().open();
        if has_calls {
            lease.queue();
        }
        Ok(raw)
    }

    /// Adds the lease to the lists of its pieces, and to the table.
    fn register(self: &Arc<Self>) -> Result {
        // SAFETY: The parts were just set, and are released after this.
        for piece in unsafe { self.parts() }?.pieces.iter() {
            // SAFETY: The pieces stay until the lease is removed from all lists.
            unsafe { piece.leases.add(self.clone()) }?;
        }
        self.table.set_held(Arc::as_ptr(self) as usize)
    }

    /// Returns what the lease holds.
    ///
    /// # Safety
    ///
    /// The lease must not be given back while the result is used.
    unsafe fn parts(&self) -> Result<&Parts> {
        // SAFETY: By the safety requirements and the type invariant, the parts do not change.
        unsafe { (*self.parts.get()).as_ref() }.ok_or(ENXIO)
    }

    /// Returns the address of the memory.
    ///
    /// # Safety
    ///
    /// As for [`Self::read`].
    pub(super) unsafe fn addr(&self) -> *mut u8 {
        // SAFETY: By the safety requirements.
        unsafe { self.parts() }.map_or(core::ptr::null_mut(), |parts| parts.addr.as_ptr())
    }

    /// Returns the length in bytes.
    ///
    /// # Safety
    ///
    /// As for [`Self::read`].
    pub(super) unsafe fn len(&self) -> usize {
        // SAFETY: By the safety requirements.
        unsafe { self.parts() }.map_or(0, |parts| parts.len)
    }

    /// Copies from the memory. Does not sleep.
    ///
    /// # Safety
    ///
    /// The lease must not be given back before this has returned.
    pub(super) unsafe fn read(&self, offset: u64, buffer: &mut [u8]) -> Result {
        // SAFETY: By the safety requirements.
        let parts = unsafe { self.parts() }?;
        parts
            .pieces
            .read(parts.check(offset, buffer.len())?, buffer)
    }

    /// Copies to the memory. Does not sleep.
    ///
    /// # Safety
    ///
    /// As for [`Self::read`].
    pub(super) unsafe fn write(&self, offset: u64, buffer: &[u8]) -> Result {
        // SAFETY: By the safety requirements.
        let parts = unsafe { self.parts() }?;
        if parts.claim.is_read_only() {
            return Err(EROFS);
        }
        parts
            .pieces
            .write(parts.check(offset, buffer.len())?, buffer)
    }

    /// Makes durable what was written. Sleeps.
    ///
    /// # Safety
    ///
    /// As for [`Self::read`].
    pub(super) unsafe fn flush(&self) -> Result {
        // SAFETY: By the safety requirements.
        unsafe { self.parts() }?.claim.flush()
    }

    /// Gives a lease back; see `pmem_rs_lease_put()`. Sleeps.
    ///
    /// # Safety
    ///
    /// `addr` must not be that of a lease that another thread uses.
    pub(super) unsafe fn give_back(addr: *const Self) {
        // SAFETY: By the safety requirements.
        unsafe { Self::give_back_to(&TABLE, addr) };
    }

    /// As [`Self::give_back`], for the table in another variable.
    ///
    /// # Safety
    ///
    /// As for [`Self::give_back`].
    unsafe fn give_back_to(table: &Global<Table>, addr: *const Self) {
        // What is not held may not exist. By the invariant of `Table`, no lease is held if there is
        // no table.
        if !table
            .get()
            .is_some_and(|table| table.set_given_back(addr as usize))
        {
            pr_err!("a lease that is not held was given back\n");
            return;
        }

        // SAFETY: The lease was held, so the address is that of an `Arc` that `new` has made raw.
        // It is taken back once, since it is not held any more.
        let lease = unsafe { Arc::from_raw(addr) };
        lease.handover.lock().give_back();
        lease.wait_idle();
        // SAFETY: By the safety requirements no other thread uses the lease, and no callback
        // begins. If one runs, it is in this thread.
        unsafe { lease.release() };
    }

    /// Waits until no callback runs, except in this thread. The lease must have been given back.
    fn wait_idle(&self) {
        let thread = this_thread();
        let may_end = || self.handover.lock().may_end(thread).then_some(());

        while self.idle.wait_until(MINUTE, may_end).is_none() {
            pr_warn!(
                "a lease cannot be given back: a callback of the module {} does not return. \
                 Report this to the authors of that module\n",
                CStr::from_bytes_until_nul(&self.owner()).unwrap_or(c"?")
            );
        }
    }

    /// Removes the lease from all lists, and drops what it holds.
    ///
    /// # Safety
    ///
    /// Nothing else may use the parts, now or later, except by the lists.
    unsafe fn release(&self) {
        // SAFETY: By the safety requirements they do not change meanwhile.
        if let Ok(parts) = unsafe { self.parts() } {
            for piece in parts.pieces.iter() {
                piece.leases.remove(self);
            }
        }
        // SAFETY: By the safety requirements, and no list has the lease.
        drop(unsafe { (*self.parts.get()).take() });
    }

    fn queue(self: &Arc<Self>) {
        // An error means that the work is queued already. It has not begun then, so it sees the new
        // call.
        let _ = self.table.queue.enqueue::<_, 0>(self.clone());
    }

    /// Makes the calls that are to be made, in the work item.
    fn make_calls(&self) {
        let thread = this_thread();

        loop {
            let next = self.handover.lock().begin(thread, || self.try_get_module());
            let Some((call, module)) = next else {
                return;
            };
            let lease = core::ptr::from_ref(self).cast_mut().cast();
            // SAFETY: By the type invariant: the lease was not given back when the call began, and
            // giving it back waits for the end. The module stays.
            unsafe {
                match call {
                    Call::Revoke => {
                        if let Some(revoke) = self.ops.revoke {
                            revoke(lease, self.data);
                        }
                    }
                    Call::BadMemory { offset, len } => {
                        if let Some(bad_memory) = self.ops.bad_memory {
                            bad_memory(lease, self.data, offset, len);
                        }
                    }
                }
            }
            // Put before `end`. After it the lease may be given back, and `rmmod` of the holder
            // must not fail then because of this reference.
            drop(module);
            self.handover.lock().end();
            self.idle.wake_up();
        }
    }

    /// Keeps the module of the holder, unless it is being unloaded. Its exit gives the lease back
    /// then. [`Self::give_back`] must not have returned for the lease.
    fn try_get_module(&self) -> Option<KeptModule> {
        // SAFETY: By the type invariant it is null, for which the function returns true, or a
        // module, which is not freed before the lease was given back.
        unsafe { bindings::try_module_get(self.ops.owner) }.then(|| KeptModule(self.ops.owner))
    }
}

impl ListedLease for Lease {
    fn request_return(self: Arc<Self>) {
        let is_new = self.handover.lock().request_return();

        if is_new {
            self.queue();
        }
    }

    unsafe fn fail(self: Arc<Self>, leases: &Leases, offset: u64, len: u64) -> bool {
        // SAFETY: By the safety requirements the lease is removed from the list later.
        let Ok(parts) = (unsafe { self.parts() }) else {
            return false;
        };
        // The failure is not handled without a callback, or while the module is being unloaded.
        if self.ops.bad_memory.is_none() || self.try_get_module().is_none() {
            return false;
        }
        let mut handover = self.handover.lock();
        let mut is_new = false;

        for piece in parts.pieces.iter() {
            if !core::ptr::eq(Arc::as_ptr(&piece.leases), leases) {
                continue;
            }
            if let Some(bad) = piece.overlap(offset, len) {
                is_new |= handover.fail(bad.start, bad.end.saturating_sub(bad.start));
            }
        }
        drop(handover);
        if is_new {
            self.queue();
        }
        is_new
    }

    fn owner(&self) -> ModuleName {
        let mut copy = [0; size_of::<ModuleName>()];
        let Some(module) = NonNull::new(self.ops.owner) else {
            for (to, from) in copy.iter_mut().zip(b"(built in)") {
                *to = *from as c_char;
            }
            return copy;
        };

        // SAFETY: By the type invariant it is a module, which stays. Its name does not change.
        let name = unsafe { (*module.as_ptr()).name };
        // It ends with a zero, and is shorter than the copy.
        for (to, from) in copy.iter_mut().zip(name) {
            *to = from;
        }
        copy
    }

    fn is_in_callback(&self) -> bool {
        self.handover.lock().is_in_callback()
    }
}

impl Parts {
    /// Returns an offset as a number, if the `len` bytes from there on are in the lease.
    fn check(&self, offset: u64, len: usize) -> Result<usize> {
        let offset = usize::try_from(offset).map_err(|_| ERANGE)?;

        if len > self.len.checked_sub(offset).ok_or(ERANGE)? {
            return Err(ERANGE);
        }
        Ok(offset)
    }
}

#[kunit_tests(pmem_rs_lease_held)]
mod tests {
    use super::*;
    use crate::abstractions::kernel_ext::{
        time::{
            sleep,
            Stopwatch, //
        },
        workqueue::OwnedQueue, //
    };
    use kernel::sync::atomic::{
        Atomic,
        Relaxed, //
    };

    static TEST_TABLE: Global<Table> = Global::new();
    /// Leases that were really given back.
    static GIVEN_BACK: Atomic<u32> = Atomic::new(0);

    /// Makes a lease of nothing, which is held.
    fn hold() -> Result<Arc<Lease>> {
        let lease = Arc::pin_init(
            try_pin_init!(Lease {
                ops: bindings::pmem_rs_lease_ops::default(),
                data: core::ptr::null_mut(),
                parts: UnsafeCell::new(None),
                handover <- new_mutex!(Handover::new(), "pmem_rs::Lease::handover"),
                idle <- WaitQueue::new(),
                work <- new_work!("pmem_rs::Lease::work"),
                table: TEST_TABLE.get().ok_or(EINVAL)?,
                _registered: Registered::new()?,
            }? Error),
            GFP_KERNEL,
        )?;

        lease.table.set_held(Arc::as_ptr(&lease) as usize)?;
        Ok(lease)
    }

    #[test]
    fn the_table_stays_until_the_last_lease_was_given_back() -> Result {
        let queue = OwnedQueue::new(c"pmem_rs_test")?;
        let installed = Table::install_in(&TEST_TABLE)?;
        let leases = [hold()?, hold()?];
        let began = Stopwatch::start();

        GIVEN_BACK.store(0, Relaxed);
        queue.try_spawn(GFP_KERNEL, move || {
            for lease in leases {
                sleep(200);
                // The table is being removed.
                let is_closed = hold().is_err_and(|err| err == ENXIO);
                // SAFETY: The lease is held, and nothing else uses it.
                unsafe { Lease::give_back_to(&TEST_TABLE, Arc::into_raw(lease.clone())) };
                // No call is permitted any more.
                if is_closed && !lease.handover.lock().request_return() {
                    GIVEN_BACK.fetch_add(1, Relaxed);
                }
            }
        })?;
        drop(installed);
        assert!(began.micros() >= 390_000);
        assert!(TEST_TABLE.get().is_none());
        drop(queue);
        assert_eq!(GIVEN_BACK.load(Relaxed), 2);
        drop(Table::install_in(&TEST_TABLE)?);
        Ok(())
    }
}
