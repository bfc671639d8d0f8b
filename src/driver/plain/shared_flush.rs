// SPDX-License-Identifier: GPL-2.0

//! Flushes that several threads share.
//!
//! A flush makes durable what was written before it started. So a thread can share a flush that
//! another thread starts later, but not one that is in progress when the thread arrives. A thread
//! waits for two flushes at most.
//!
//! If a flush fails, what it should have made durable may be lost: a later flush that succeeds says
//! nothing about it. So a thread that has arrived while a flush was in progress gets its error too.
//!
//! Threads wait for the flush in progress or for the next one. There is a queue for each, so that
//! the end of a flush does not wake threads that wait for the next one, except one that starts it.
//!
//! While the system sleeps, requests to the host fail. So no flush is started then.
//!
//! The methods are called with a lock held, and the flush itself without it. The kernel uses a
//! mutex and condition variables (`driver/flush.rs`), and the model in `tests/host` those of loom.

/// The flushes of a region, which are numbered from 1 on.
#[derive(Debug)]
pub struct SharedFlush<E> {
    /// The number of flushes that were started.
    started: u64,
    /// The number of flushes that have ended. At most one is in progress.
    ended: u64,
    /// The last flush that has failed, and its error.
    failed: Option<(u64, E)>,
    /// The region cannot be flushed.
    is_paused: bool,
    /// Flushes cannot be paused any more.
    is_permitted: bool,
}

/// The flushes that matter to a thread.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// The first flush that makes durable what the thread has written.
    number: u64,
    /// The first flush whose failure may have lost it.
    suspect: u64,
}

/// One of the two queues of waiting threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Of flushes with an even number.
    Even,
    /// Of flushes with an odd number.
    Odd,
}

impl Queue {
    const fn of(number: u64) -> Self {
        if number % 2 == 0 {
            Self::Even
        } else {
            Self::Odd
        }
    }

    /// Returns the queue of the next flush.
    pub const fn next(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }
}

/// What a thread has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushStep<E> {
    /// It flushes the region and calls [`SharedFlush::end`]. Then it wakes all threads in the queue
    /// that this returns, and one in the next queue.
    Flush,
    /// It waits in this queue until it is woken.
    Wait(Queue),
    /// It has the result of a flush.
    Done(Result<(), E>),
}

impl<E: Copy> SharedFlush<E> {
    /// Creates the state of a region that is not being flushed.
    pub const fn new() -> Self {
        Self {
            started: 0,
            ended: 0,
            failed: None,
            is_paused: false,
            is_permitted: false,
        }
    }

    /// Lets no flush start until [`Self::unpause`]. The system may sleep once none
    /// [is in progress](Self::is_flushing). Does nothing after [`Self::permit_for_good`].
    pub fn pause(&mut self) {
        self.is_paused = !self.is_permitted;
    }

    /// Lets flushes start again. After this all threads in both queues have to be woken.
    pub fn unpause(&mut self) {
        self.is_paused = false;
    }

    /// Permits flushes for good. Called before the teardown of a device, because the teardown
    /// flushes, and may begin while the system goes to sleep. The PM core may still call for a
    /// pause, and would not call for its end, as the device is in none of its lists any more. After
    /// this all threads that wait for a flush, or for a pause, have to be woken.
    pub fn permit_for_good(&mut self) {
        self.is_permitted = true;
        self.is_paused = false;
    }

    /// Returns whether flushes are paused.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns whether a flush is in progress.
    pub fn is_flushing(&self) -> bool {
        self.started != self.ended
    }

    /// Returns the ticket of a thread that arrives now.
    pub fn arrive(&self) -> Ticket {
        let number = self.started.wrapping_add(1);
        let suspect = if self.is_flushing() {
            self.started
        } else {
            number
        };

        Ticket { number, suspect }
    }

    /// Returns what a thread has to do. If it is [`FlushStep::Flush`], a flush was started.
    ///
    /// A thread that sees its result late may get the error of a later flush.
    pub fn step(&mut self, ticket: Ticket) -> FlushStep<E> {
        if self.ended >= ticket.number {
            return FlushStep::Done(match self.failed {
                Some((number, err)) if number >= ticket.suspect => Err(err),
                _ => Ok(()),
            });
        }
        if self.is_flushing() || self.is_paused {
            return FlushStep::Wait(Queue::of(ticket.number));
        }
        self.started = self.started.wrapping_add(1);
        FlushStep::Flush
    }

    /// Ends the flush in progress. Returns the queue of the threads that have waited for it.
    pub fn end(&mut self, result: Result<(), E>) -> Queue {
        self.ended = self.started;
        if let Err(err) = result {
            self.failed = Some((self.ended, err));
        }
        Queue::of(self.ended)
    }
}

impl<E: Copy> Default for SharedFlush<E> {
    fn default() -> Self {
        Self::new()
    }
}
