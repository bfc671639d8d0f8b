// SPDX-License-Identifier: GPL-2.0

//! NUMA nodes.
//!
//! Not `alloc::NumaNode` of the kernel crate: it does not give its number to other crates.
//!
//! C header: [`include/linux/numa.h`](srctree/include/linux/numa.h)

use crate::abstractions::bindings;
use kernel::{
    io::PhysAddr,
    prelude::*, //
};

/// A NUMA node, or no node in particular.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::numa::Node;
///
/// assert_eq!(Node::NONE.nearest_online(), Node::NONE);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub(in crate::abstractions) c_int);

impl Node {
    /// No node in particular.
    pub const NONE: Self = Self(bindings::NUMA_NO_NODE);

    /// Returns the node that the firmware assigns to the memory at `start`. It may be offline.
    pub fn of_memory(start: PhysAddr) -> Self {
        // SAFETY: May be called for any address.
        Self(unsafe { bindings::phys_to_target_node(start) })
    }

    /// Returns the online node that is nearest to this one.
    pub fn nearest_online(self) -> Self {
        // SAFETY: May be called for any node, and for none.
        Self(unsafe { bindings::numa_map_to_online_node(self.0) })
    }
}
