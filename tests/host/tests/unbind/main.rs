// SPDX-License-Identifier: GPL-2.0

//! Models of teardown, for [loom](https://docs.rs/loom).
//!
//! The threads of the teardown run the driver's own code. `world` has models of the functions that
//! it calls, and of the users of the memory; `kernel` has the primitives of the kernel for both.
//! The other files have the models: which threads take part, and the initial state. Loom runs each
//! of them in all orders of the threads' interactions, and with all values that the memory model
//! lets them read, as long as threads are not preempted more often than the model says.
//!
//! Every model asserts:
//!
//! - User space is told once, before anything is revoked.
//! - The memory is freed once, and all threads have ended then. No thread sleeps for ever.
//! - When it is freed, no page table maps it, no entry of a page cache refers to it, there is no
//!   reference and no keeper, and every access is ordered before that.
//! - When unbind returns, no page table maps the memory, and none does after that. If it returns in
//!   time, the range is free; otherwise it is retired until it is free.
//! - The worker gets a reference to the module if and only if the range was retired.
//!
//! To show that a model finds defects, each of them is also run with those that it is for, and must
//! find every one.

mod accesses;
mod defect;
mod exploration;
mod faults;
mod inodes;
mod keepers;
mod kernel;
mod model;
mod module;
mod notice;
mod pins;
mod reboot;
mod retirement;
mod seen;
mod setup;
mod world;
