// SPDX-License-Identifier: GPL-2.0

//! Vectors in the memory of a NUMA node.
//!
//! The allocators of the kernel crate take a node, but its vectors always pass none.

use crate::abstractions::kernel::numa::Node;
use core::alloc::Layout;
use kernel::{
    alloc::{
        allocator::KVmalloc,
        Allocator,
        Flags,
        KVVec,
        NumaNode, //
    },
    prelude::*, //
};

/// Allocates an empty vector for `capacity` elements, in memory of the node if there is any. May
/// sleep, as the flags say.
pub(in crate::abstractions) fn vec_on_node<T>(
    capacity: usize,
    flags: Flags,
    node: Node,
) -> Result<KVVec<T>> {
    let layout = Layout::array::<T>(capacity).map_err(|_| ENOMEM)?;
    // A node that is none, or that the kernel does not know, stands for all.
    let node = NumaNode::new(node.0).unwrap_or(NumaNode::NO_NODE);
    let memory = KVmalloc::alloc(layout, flags, node)?;

    // SAFETY: The memory is of the allocator of `KVVec`, aligned and large enough for the elements,
    // of which there are none. If its size is zero, the pointer is dangling. `Layout` limits the
    // size to `isize::MAX`.
    Ok(unsafe { KVVec::from_raw_parts(memory.as_ptr().cast(), 0, capacity) })
}

#[kunit_tests(pmem_rs_alloc)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_on_a_node_grows_as_others_do() -> Result {
        for node in [Node::NONE, Node(0), Node(c_int::MAX)] {
            let mut vec = vec_on_node(2, GFP_KERNEL, node)?;

            assert_eq!((vec.len(), vec.capacity()), (0, 2));
            for number in 0..1000_u64 {
                vec.push(number, GFP_KERNEL)?;
            }
            assert!(vec.iter().copied().eq(0..1000));
        }
        assert!(vec_on_node::<u64>(usize::MAX, GFP_KERNEL, Node::NONE).is_err());
        assert!(vec_on_node::<u64>(0, GFP_KERNEL, Node::NONE)?.is_empty());
        Ok(())
    }
}
