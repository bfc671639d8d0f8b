// SPDX-License-Identifier: GPL-2.0

//! Collections that cannot panic.
//!
//! The vectors of the kernel crate check the arithmetic of their growth, which leaves code that
//! panics in a module, even where it cannot be reached. These do without such arithmetic.

use crate::abstractions::bindings;
use core::{
    mem::MaybeUninit,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        AtomicType, //
    }, //
};

/// A singly linked list, to which elements are added at the front.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::list::Stack;
///
/// let mut stack = Stack::new();
/// // What comes later must not fail.
/// let slot = Stack::slot()?;
///
/// stack.push(1)?;
/// stack.fill(slot, 2);
/// assert!(stack.iter().eq(&[2, 1]));
/// assert_eq!(stack.pop(), Some(2));
/// # Ok::<(), Error>(())
/// ```
pub struct Stack<T> {
    head: Option<KBox<Node<T>>>,
}

/// Room for an element of a [`Stack`].
pub struct Slot<T>(KBox<MaybeUninit<Node<T>>>);

struct Node<T> {
    value: T,
    next: Option<KBox<Node<T>>>,
}

/// An element that was taken from a [`Stack`], and can be added to another without an allocation.
pub struct Element<T>(KBox<Node<T>>);

impl<T> Element<T> {
    /// Returns the value.
    pub fn value(&self) -> &T {
        &self.0.value
    }

    /// Returns the value, to be changed.
    pub fn value_mut(&mut self) -> &mut T {
        &mut self.0.value
    }
}

impl<T> Stack<T> {
    /// Makes an empty list.
    pub const fn new() -> Self {
        Self { head: None }
    }

    /// Adds an element. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; the element is dropped then.
    pub fn push(&mut self, value: T) -> Result {
        self.fill(Self::slot()?, value);
        Ok(())
    }

    /// Makes room for an element, so that adding it cannot fail. May sleep.
    pub fn slot() -> Result<Slot<T>> {
        Ok(Slot(KBox::new_uninit(GFP_KERNEL)?))
    }

    /// Adds an element in a place that was made for it.
    pub fn fill(&mut self, slot: Slot<T>, value: T) {
        let next = self.head.take();

        self.head = Some(KBox::write(slot.0, Node { value, next }));
    }

    /// Moves all elements of another list into this one.
    pub fn append(&mut self, other: &mut Self) {
        while let Some(element) = other.pop_node() {
            self.push_node(element);
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Takes the element that was added last, with its place.
    pub fn pop_node(&mut self) -> Option<Element<T>> {
        let mut node = self.head.take()?;

        self.head = node.next.take();
        Some(Element(node))
    }

    /// Adds an element that was taken from a list.
    pub fn push_node(&mut self, element: Element<T>) {
        let mut node = element.0;

        node.next = self.head.take();
        self.head = Some(node);
    }

    /// Takes the element that was added last.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_node()
            .map(|element| KBox::into_inner(element.0).value)
    }

    /// Returns the elements, the one that was added last first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut next = self.head.as_deref();

        core::iter::from_fn(move || {
            let node = next?;
            next = node.next.as_deref();
            Some(&node.value)
        })
    }

    /// Takes out all elements that `unwanted` says so of.
    pub fn remove(&mut self, mut unwanted: impl FnMut(&T) -> bool) {
        let mut link = &mut self.head;

        loop {
            match link {
                None => break,
                Some(node) if unwanted(&node.value) => {
                    let rest = node.next.take();
                    *link = rest;
                }
                Some(node) => link = &mut node.next,
            }
        }
    }
}

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Stack<T> {
    fn drop(&mut self) {
        // One after the other: the drop of a node with all that follow it would be recursive.
        while self.pop().is_some() {}
    }
}

/// An array whose length is chosen when it is made, and does not change.
///
/// # Invariants
///
/// `start` is an allocation of `kvmalloc` with `len` initialised elements.
pub struct Array<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: It owns its elements.
unsafe impl<T: Send> Send for Array<T> {}

// SAFETY: As above.
unsafe impl<T: Sync> Sync for Array<T> {}

impl<T: AtomicType + Zeroable> Array<Atomic<T>> {
    /// Makes an array of zeroes. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let size = core::mem::size_of::<Atomic<T>>()
            .checked_mul(len)
            // The C function warns about more.
            .filter(|size| *size <= c_int::MAX as usize)
            .ok_or(ENOMEM)?;

        // SAFETY: May sleep here.
        let start = unsafe {
            bindings::kvrealloc_node_align_noprof(
                core::ptr::null(),
                size,
                core::mem::align_of::<Atomic<T>>() as c_ulong,
                bindings::GFP_KERNEL | bindings::__GFP_ZERO,
                bindings::NUMA_NO_NODE,
            )
        };
        // INVARIANT: The allocation was just made, and zeroes are valid elements: an atomic is a
        // transparent wrapper of its value.
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(ENOMEM)?,
            len,
        })
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: By the type invariant.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        const { assert!(!core::mem::needs_drop::<T>()) };

        // SAFETY: By the type invariant the allocation is ours.
        unsafe { bindings::kvfree(self.start.as_ptr().cast()) };
    }
}

#[kunit_tests(pmem_rs_list)]
mod tests {
    use super::*;
    use kernel::sync::atomic::Relaxed;

    #[test]
    fn elements_come_back_in_reverse() -> Result {
        let mut stack = Stack::new();
        // More than a stack that drops them recursively could bear.
        for number in 0..2_000_u32 {
            stack.push(number)?;
        }

        assert!(stack.iter().copied().eq((0..2_000).rev()));
        stack.remove(|number| number % 3 != 0 || *number > 9);
        assert!(stack.iter().copied().eq([9, 6, 3, 0]));
        assert_eq!(stack.pop(), Some(9));
        let mut other = Stack::new();
        other.push(12)?;
        stack.append(&mut other);
        assert!(other.is_empty());
        assert!(stack.iter().copied().eq([12, 6, 3, 0]));
        stack.remove(|_| true);
        assert_eq!(stack.pop(), None);
        Ok(())
    }

    #[test]
    fn an_array_is_zero_and_as_long_as_asked() -> Result {
        let array: Array<Atomic<usize>> = Array::zeroed(10_000)?;

        assert_eq!(array.len(), 10_000);
        assert!(array.iter().all(|word| word.load(Relaxed) == 0));
        assert!(Array::<Atomic<u64>>::zeroed(usize::MAX / 4).is_err());
        assert!(Array::<Atomic<u64>>::zeroed(usize::MAX / 64).is_err());
        Ok(())
    }
}
