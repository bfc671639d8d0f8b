// SPDX-License-Identifier: GPL-2.0

//! Holders of leases, as a write cache has one: numbered pages are written to a disk through a
//! lease, and flushed now and then. In debugfs, under `lessee`:
//!
//! - `command`: writing one of the commands below executes it; the error is that of the write;
//! - `state`: one line for each holder, which [`Slot::show`] writes.
//!
//! | command | |
//! |---|---|
//! | `answer SLOT ANSWER MS` | what to do that long after the holder was told: 1 give it back, 0 nothing |
//! | `bad_memory SLOT 0\|1` | whether the next lease has the callback |
//! | `get SLOT MAJOR MINOR OFFSET LEN` | take a lease |
//! | `put SLOT` | give it back |
//! | `write SLOT` | write pages until the lease is given back |
//! | `store SLOT OFFSET VALUE` | write a number of 8 bytes |
//! | `load SLOT OFFSET VALUE` | compare a number of 8 bytes |
//! | `peek SLOT OFFSET VALUE` | the same by the address |
//!
//! Not a part of the driver.

#[path = "../../rust-bindings/pmem_rs_lease.rs"]
mod pmem_rs_lease;

use kernel::{
    debugfs::File,
    fmt,
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    uaccess::UserSliceReader, //
};
use pmem_rs_lease::{
    Holder,
    Lease, //
};

/// With the patches of `upstream/`, a folder knows the module that its files belong to.
#[cfg(CONFIG_BLK_DEV_PMEM_RUST)]
type Dir = kernel::debugfs::Dir<LocalModule>;
#[cfg(not(CONFIG_BLK_DEV_PMEM_RUST))]
use kernel::debugfs::Dir;

/// The number of holders.
const SLOTS: usize = 2;
/// After how many pages the cache is flushed.
const BATCH: u64 = 16;
/// How many pages the cache has.
const PAGES: u64 = 256;

/// A holder.
#[pin_data]
struct Slot {
    #[pin]
    lease: Mutex<Option<Lease<Slot>>>,
    /// Whether it gives the lease back when it is told.
    answers: Atomic<bool>,
    /// Whether it is told of bad memory.
    handles_bad_memory: Atomic<bool>,
    /// How long it takes to answer, in milliseconds.
    delay: Atomic<u64>,
    told: Atomic<u64>,
    /// It has answered.
    answered: Atomic<u64>,
    failures: Atomic<u64>,
    failed_offset: Atomic<u64>,
    failed_len: Atomic<u64>,
    /// The number of the last page that was flushed.
    flushed: Atomic<u64>,
}

impl Slot {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                lease <- new_mutex!(None, "lessee::lease"),
                answers: Atomic::new(true),
                handles_bad_memory: Atomic::new(true),
                delay: Atomic::new(0),
                told: Atomic::new(0),
                answered: Atomic::new(0),
                failures: Atomic::new(0),
                failed_offset: Atomic::new(0),
                failed_len: Atomic::new(0),
                flushed: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Gives the lease back, if there is one.
    fn put(&self) {
        // Not with the lock held: a callback that runs may need it.
        let lease = self.lease.lock().take();
        drop(lease);
    }

    fn with<R>(&self, f: impl FnOnce(&Lease<Slot>) -> Result<R>) -> Result<R> {
        f(self.lease.lock().as_ref().ok_or(ENOENT)?)
    }

    /// Writes the pages after number `last`, and flushes. Page `number` begins with its number, and
    /// is written to a place that repeats.
    fn write_batch(&self, last: u64) -> Result<u64> {
        let mut page = KVec::from_elem(0_u8, PAGE_SIZE, GFP_KERNEL)?;

        self.with(|lease| {
            let places = PAGES.min(lease.size() / PAGE_SIZE as u64).max(1);
            for number in last + 1..=last + BATCH {
                page.as_mut_slice()
                    .get_mut(..8)
                    .ok_or(EINVAL)?
                    .copy_from_slice(&number.to_ne_bytes());
                lease.write(number % places * PAGE_SIZE as u64, &page)?;
            }
            lease.flush()?;
            self.flushed.store(last + BATCH, Relaxed);
            Ok(last + BATCH)
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, size) = match &*self.lease.lock() {
            Some(lease) => (1, lease.size()),
            None => (0, 0),
        };
        writeln!(
            f,
            "held={held} size={size} told={} answered={} failures={} failed_offset={} \
             failed_len={} flushed={}",
            self.told.load(Relaxed),
            self.answered.load(Relaxed),
            self.failures.load(Relaxed),
            self.failed_offset.load(Relaxed),
            self.failed_len.load(Relaxed),
            self.flushed.load(Relaxed)
        )
    }
}

impl Holder for Slot {
    fn revoke(&self) {
        self.told.fetch_add(1, Relaxed);
        fsleep(Delta::from_millis(self.delay.load(Relaxed) as i64));
        if self.answers.load(Relaxed) {
            self.put();
        }
        self.answered.fetch_add(1, Relaxed);
    }

    fn bad_memory(&self, offset: u64, len: u64) {
        self.failed_offset.store(offset, Relaxed);
        self.failed_len.store(len, Relaxed);
        self.failures.fetch_add(1, Relaxed);
    }

    fn handles_bad_memory(&self) -> bool {
        self.handles_bad_memory.load(Relaxed)
    }
}

/// All holders, and their module.
struct Slots {
    slots: [Arc<Slot>; SLOTS],
    module: &'static ThisModule,
}

impl Slots {
    fn execute(&self, verb: &str, numbers: [u64; 5]) -> Result {
        let [slot, first, second, third, fourth] = numbers;
        let slot = self.slots.get(slot as usize).ok_or(EINVAL)?;

        match verb {
            "answer" => {
                slot.answers.store(first != 0, Relaxed);
                slot.delay.store(second, Relaxed);
                Ok(())
            }
            "bad_memory" => {
                slot.handles_bad_memory.store(first != 0, Relaxed);
                Ok(())
            }
            "get" => {
                // Held across the call, so that a callback waits until the lease is there.
                let mut lease = slot.lease.lock();
                if lease.is_some() {
                    return Err(EEXIST);
                }
                let dev = (first as u32) << 20 | second as u32;
                slot.told.store(0, Relaxed);
                slot.answered.store(0, Relaxed);
                slot.failures.store(0, Relaxed);
                // SAFETY: It is this module. Its exit drops the slots, and so the leases.
                let taken = unsafe { Lease::new(self.module, dev, third, fourth, slot.clone()) };
                *lease = Some(taken?);
                Ok(())
            }
            "put" => {
                slot.put();
                Ok(())
            }
            "write" => {
                let mut last = slot.flushed.load(Relaxed);
                loop {
                    match slot.write_batch(last) {
                        Ok(number) => last = number,
                        Err(err) if err == ENOENT => return Ok(()),
                        Err(err) => return Err(err),
                    }
                    fsleep(Delta::from_millis(1));
                }
            }
            "store" => slot.with(|lease| {
                lease.write(first, &second.to_ne_bytes())?;
                lease.flush()
            }),
            "load" => slot.with(|lease| {
                let mut found = [0; 8];
                lease.read(first, &mut found)?;
                expect(u64::from_ne_bytes(found), second)
            }),
            "peek" => slot.with(|lease| {
                if first % 8 != 0 || first >= lease.size() {
                    return Err(EINVAL);
                }
                let addr = lease.address().wrapping_byte_add(first as usize);
                // SAFETY: The lease has the bytes, and the memory of the tests does not fail.
                expect(unsafe { addr.cast::<u64>().read_volatile() }, second)
            }),
            _ => Err(EINVAL),
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in &self.slots {
            slot.put();
        }
    }
}

fn expect(found: u64, right: u64) -> Result {
    if found == right {
        Ok(())
    } else {
        Err(EBADF)
    }
}

fn command(slots: &Arc<Slots>, reader: &mut UserSliceReader) -> Result {
    let mut text = [0; 128];
    let text = text.get_mut(..reader.len()).ok_or(EINVAL)?;
    reader.read_slice(text)?;

    let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
    let mut words = text.split_whitespace();
    let verb = words.next().ok_or(EINVAL)?;
    let mut numbers = [0; 5];
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = word.parse().map_err(|_| EINVAL)?;
    }
    slots.execute(verb, numbers)
}

fn show_state(slots: &Arc<Slots>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    slots.slots.iter().try_for_each(|slot| slot.show(f))
}

/// The module. Fields are in the order in which they must be dropped.
struct Lessee {
    _files: [Pin<KBox<File<Arc<Slots>>>>; 2],
}

impl kernel::Module for Lessee {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let slots = Arc::new(
            Slots {
                slots: [Slot::new()?, Slot::new()?],
                module,
            },
            GFP_KERNEL,
        )?;

        let dir = Dir::new(c"lessee");
        Ok(Self {
            _files: [
                KBox::pin_init(
                    dir.write_callback_file(c"command", slots.clone(), &command),
                    GFP_KERNEL,
                )?,
                KBox::pin_init(
                    dir.read_callback_file(c"state", slots, &show_state),
                    GFP_KERNEL,
                )?,
            ],
        })
    }
}

module! {
    type: Lessee,
    name: "lessee",
    authors: ["The pmem-rs authors"],
    description: "Holders of leases of pmem_rs",
    license: "GPL v2",
}
