// SPDX-License-Identifier: GPL-2.0

//! Superblocks and inodes, as far as they have to be found to take memory away from files.
//!
//! No step of a walk allocates memory. Inodes are taken one at a time. References that cannot be
//! put at once are put by a worker, in places that were reserved before ([`InodePool`]).
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/fs/super_types.h`](srctree/include/linux/fs/super_types.h)

use crate::abstractions::{
    bindings,
    kernel::{
        percpu_ref::Ref,
        wait::WaitQueue, //
    },
    kernel_ext::{
        list::Stack,
        module_list::Code,
        workqueue::OwnedQueue, //
    }, //
};
use core::ptr::{
    addr_of,
    addr_of_mut,
    NonNull, //
};
use kernel::{
    container_of,
    impl_has_work,
    new_mutex,
    new_work,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    time::Msecs,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// A type of file system that can have DAX files, and the code that brings it.
struct FileSystemType {
    name: &'static CStr,
    code: Code,
}

const EXT4: Code = Code {
    built_in: cfg!(CONFIG_EXT4_FS = "y"),
    module: c"ext4",
};

/// All of them in this kernel that take their memory from a block device: the callers of
/// `dax_iomap_fault()`, which are vetted (`rust-bindings/vetted`). Those of `fs/fuse` and
/// `device-dax` bring their own memory.
const TYPES: &[FileSystemType] = &[
    FileSystemType {
        name: c"ext4",
        code: EXT4,
    },
    FileSystemType {
        name: c"ext3",
        code: EXT4,
    },
    #[cfg(CONFIG_EXT4_USE_FOR_EXT2)]
    FileSystemType {
        name: c"ext2",
        code: EXT4,
    },
    FileSystemType {
        name: c"xfs",
        code: Code {
            built_in: cfg!(CONFIG_XFS_FS = "y"),
            module: c"xfs",
        },
    },
    FileSystemType {
        name: c"erofs",
        code: Code {
            built_in: cfg!(CONFIG_EROFS_FS = "y"),
            module: c"erofs",
        },
    },
];

/// An inode that stays, with its superblock.
///
/// Dropping it may write back and evict the inode, and unmount the file system if it was unmounted
/// meanwhile, which sleeps and takes locks of the file system. It waits for pages of the file that
/// are pinned.
///
/// # Invariants
///
/// One active reference of the superblock is ours, and one reference of the inode, if there is one.
pub(in crate::abstractions) struct Inode {
    inode: Option<NonNull<bindings::inode>>,
    sb: NonNull<bindings::super_block>,
}

// SAFETY: References to inodes and superblocks may be used and put by any thread.
unsafe impl Send for Inode {}

impl Inode {
    /// Returns the page cache of the file, if the inode is still there.
    pub(in crate::abstractions) fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariant the inode is valid.
        self.inode.map_or(core::ptr::null_mut(), |inode| unsafe {
            (*inode.as_ptr()).i_mapping
        })
    }

    /// Takes references, unless the inode is being evicted. Does not sleep.
    ///
    /// # Safety
    ///
    /// Both must be valid, the inode one of the superblock, whose `s_umount` must be held.
    unsafe fn try_get(inode: *mut bindings::inode, sb: *mut bindings::super_block) -> Option<Self> {
        // SAFETY: By the safety requirements.
        let inode = NonNull::new(unsafe { bindings::igrab(inode) })?;

        // SAFETY: By the safety requirements. An active reference exists as long as the superblock
        // is not dying, which it is not, since `s_umount` was taken before that. If it is only just
        // being given up, the thread that does so waits for `s_umount`.
        if !unsafe { bindings::atomic_inc_not_zero(addr_of_mut!((*sb).s_active)) } {
            // SAFETY: The reference was just taken. The thread that gives the superblock up still
            // has to evict the inode.
            unsafe { bindings::iput_not_last(inode.as_ptr()) };
            return None;
        }

        // INVARIANT: Both references were just taken.
        Some(Self {
            inode: Some(inode),
            // SAFETY: By the safety requirements the superblock is valid, so it is not null.
            sb: unsafe { NonNull::new_unchecked(sb) },
        })
    }

    /// Takes further references to the same inode. Does not sleep.
    fn again(&self) -> Self {
        // SAFETY: By the type invariant neither count is zero.
        unsafe {
            if let Some(inode) = self.inode {
                bindings::ihold(inode.as_ptr());
            }
            bindings::atomic_inc_not_zero(addr_of_mut!((*self.sb.as_ptr()).s_active));
        }

        // INVARIANT: Both references were just taken.
        Self { ..*self }
    }

    /// Puts the references that are not the last ones. Does not sleep. Returns what is left.
    fn put_unless_last(mut self) -> Option<Self> {
        if let Some(inode) = self.inode {
            // SAFETY: By the type invariant the inode is valid. This is the first step of `iput()`.
            if !unsafe { bindings::atomic_add_unless(&raw mut (*inode.as_ptr()).i_count, -1, 1) } {
                return Some(self);
            }
            // INVARIANT: That reference was put.
            self.inode = None;
        }

        // SAFETY: By the type invariant the superblock is valid. This is the first step of
        // `deactivate_super()`.
        if !unsafe { bindings::atomic_add_unless(&raw mut (*self.sb.as_ptr()).s_active, -1, 1) } {
            return Some(self);
        }
        // Nothing is left that could be dropped.
        core::mem::forget(self);
        None
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the references are ours.
        unsafe {
            if let Some(inode) = self.inode {
                bindings::iput(inode.as_ptr());
            }
            bindings::deactivate_super(self.sb.as_ptr());
        }
    }
}

/// How many references to inodes a pool has places for.
const PLACES: usize = 128;
/// How often it is looked whether a kept inode may go when there is no place, in milliseconds.
const LOOK_INTERVAL: Msecs = 1000;
/// After how many looks it is said again that there is no place.
const LOOKS_PER_MESSAGE: u32 = 30;

/// Places for references to inodes that are kept, or that a worker puts.
///
/// The last reference to an inode may evict it, and the last one to a superblock unmounts it.
/// Either may wait for a file system, or for pins, so the worker does it.
#[pin_data]
pub(in crate::abstractions) struct InodePool {
    /// For messages.
    name: CString,
    queue: Ref<OwnedQueue>,
    /// Innermost but for locks of lists; nothing that sleeps is called with it held.
    #[pin]
    places: Mutex<Places>,
    /// Woken when a place has become free.
    #[pin]
    freed: WaitQueue,
    #[pin]
    work: Work<InodePool>,
}

struct Places {
    free: Stack<Option<Inode>>,
    nr_free: usize,
    kept: Stack<Option<Inode>>,
    /// To be put by the worker.
    going: Stack<Option<Inode>>,
    /// The worker puts something at the moment.
    is_putting: bool,
}

impl_has_work! {
    impl HasWork<Self> for InodePool { self.work }
}

impl WorkItem for InodePool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        while let Some(mut element) = this.next_going() {
            drop(element.value_mut().take());

            {
                let mut places = this.places.lock();
                places.free.push_node(element);
                places.nr_free = places.nr_free.saturating_add(1);
                places.is_putting = false;
            }
            this.freed.wake_up();
        }
    }
}

impl InodePool {
    /// Reserves the places. May sleep.
    pub(in crate::abstractions) fn new(name: CString, queue: Ref<OwnedQueue>) -> Result<Arc<Self>> {
        let mut free = Stack::new();
        for _ in 0..PLACES {
            free.push(None)?;
        }

        Arc::pin_init(
            try_pin_init!(Self {
                name,
                queue,
                places <- new_mutex!(
                    Places {
                        free,
                        nr_free: PLACES,
                        kept: Stack::new(),
                        going: Stack::new(),
                        is_putting: false,
                    },
                    "pmem_rs::InodePool::places"
                ),
                freed <- WaitQueue::new(),
                work <- new_work!("pmem_rs::InodePool::work"),
            }),
            GFP_KERNEL,
        )
    }

    fn next_going(&self) -> Option<crate::abstractions::kernel_ext::list::Element<Option<Inode>>> {
        let mut places = self.places.lock();
        let element = places.going.pop_node()?;

        places.is_putting = true;
        Some(element)
    }

    /// Stores a reference in a place, if more than `spare` places are free. Otherwise lets kept
    /// inodes go that may, waits, and says so.
    fn store(
        self: &Arc<Self>,
        inode: Inode,
        spare: usize,
        may_go: &dyn Fn(&Inode) -> bool,
        list: fn(&mut Places) -> &mut Stack<Option<Inode>>,
    ) {
        let mut inode = Some(inode);
        let mut looks: u32 = 0;

        loop {
            let stored = self.freed.wait_until(LOOK_INTERVAL, || {
                let mut places = self.places.lock();
                if places.nr_free <= spare {
                    return None;
                }
                let mut element = places.free.pop_node()?;
                places.nr_free = places.nr_free.saturating_sub(1);
                *element.value_mut() = inode.take();
                list(&mut places).push_node(element);
                Some(())
            });
            if stored.is_some() {
                return;
            }
            if looks % LOOKS_PER_MESSAGE == 0 {
                pr_warn!(
                    "{}: waiting for pins: {} files have pages pinned, or cannot be closed\n",
                    *self.name,
                    PLACES
                );
            }
            looks = looks.wrapping_add(1);
            self.release(may_go);
        }
    }

    /// Keeps an inode until [`Self::release`]. Sleeps if there is no place, until a kept inode may
    /// go.
    pub(in crate::abstractions) fn keep(
        self: &Arc<Self>,
        inode: &Inode,
        may_go: &dyn Fn(&Inode) -> bool,
    ) {
        // One place is for what a walk puts.
        self.store(inode.again(), 1, may_go, |places| &mut places.kept);
    }

    /// Puts a reference, without waiting for what that may wait for. Sleeps if there is no place.
    fn put(self: &Arc<Self>, inode: Inode, may_go: &dyn Fn(&Inode) -> bool) {
        let Some(rest) = inode.put_unless_last() else {
            return;
        };

        self.store(rest, 0, may_go, |places| &mut places.going);
        self.start();
    }

    fn start(self: &Arc<Self>) {
        // If it is queued already, it will find what has come.
        let _ = self.queue.enqueue(self.clone());
    }

    /// Puts the kept inodes for which `may_go` returns true. Does not wait.
    pub(in crate::abstractions) fn release(self: &Arc<Self>, may_go: impl Fn(&Inode) -> bool) {
        {
            let mut places = self.places.lock();
            let mut rest = Stack::new();
            while let Some(element) = places.kept.pop_node() {
                if element.value().as_ref().is_none_or(&may_go) {
                    places.going.push_node(element);
                } else {
                    rest.push_node(element);
                }
            }
            places.kept = rest;
            if places.going.is_empty() {
                return;
            }
        }
        self.start();
    }

    /// Waits, for at most `limit` milliseconds, until the worker has put all that it was given.
    pub(in crate::abstractions) fn wait_put(&self, limit: Msecs) {
        self.freed.wait_until(limit, || {
            let places = self.places.lock();
            (places.going.is_empty() && !places.is_putting).then_some(())
        });
    }
}

/// A walk through the inodes with DAX entries, of all mounted file systems.
///
/// No superblock is skipped. That the disk has no claim of it says little: a device-mapper table
/// that was replaced gives its claim up, while the file system above still has pages and faults
/// under way.
///
/// An inode that is being evicted is not found: its pages are seen by `PagemapInner::first_used`.
/// An inode that gets its first entry after the walk began may be missed.
///
/// Sleeps; waits for mounts and unmounts of the same types of file system that are under way.
pub(in crate::abstractions) struct Walk<'a> {
    pool: &'a Arc<InodePool>,
    /// Which kept inodes may go, should there be no place for another one.
    may_go: &'a dyn Fn(&Inode) -> bool,
    /// The type of file system that the walk is at, in [`TYPES`].
    index: usize,
    /// The inode that the walk is at. It stays in the list of its superblock, since it is
    /// referenced.
    cursor: Option<Inode>,
    /// The superblock of the cursor has been passed.
    is_behind_cursor: bool,
    found: Option<Found>,
}

struct Found {
    inode: Inode,
    has_entries: bool,
}

impl<'a> Walk<'a> {
    /// How many inodes are passed with the list locked.
    const BATCH: u32 = 1024;

    /// Begins a walk.
    pub(in crate::abstractions) fn new(
        pool: &'a Arc<InodePool>,
        may_go: &'a dyn Fn(&Inode) -> bool,
    ) -> Self {
        Self {
            pool,
            may_go,
            index: 0,
            cursor: None,
            is_behind_cursor: false,
            found: None,
        }
    }

    /// Returns the next inode, which stays until the next call.
    pub(in crate::abstractions) fn next(&mut self) -> Option<&Inode> {
        loop {
            let fs_type = TYPES.get(self.index)?;
            self.is_behind_cursor = self.cursor.is_none();
            // `get_fs_type` would load the module.
            if fs_type.code.is_there() {
                self.visit_type(fs_type.name);
            }

            let found = self.found.take();
            let has_entries = found.as_ref().is_some_and(|found| found.has_entries);
            if found.is_none() {
                self.index = self.index.wrapping_add(1);
            }
            let old = core::mem::replace(&mut self.cursor, found.map(|found| found.inode));
            if let Some(old) = old {
                self.pool.put(old, self.may_go);
            }
            if has_entries {
                return self.cursor.as_ref();
            }
        }
    }

    fn visit_type(&mut self, name: &CStr) {
        // SAFETY: The name is a string.
        let fs_type = unsafe { bindings::get_fs_type(name.as_char_ptr()) };
        if fs_type.is_null() {
            return;
        }

        // SAFETY: The type is valid, and its module held, until it is put. The callback is that for
        // the argument, which lives as long as the call.
        unsafe {
            bindings::iterate_supers_type(
                fs_type,
                Some(Self::visit_super_callback),
                addr_of_mut!(*self).cast(),
            );
            // `put_filesystem()`
            bindings::module_put((*fs_type).owner);
        }
    }

    /// # Safety
    ///
    /// For `iterate_supers_type` only: `sb` must be valid, with `s_umount` held, and `walk` be a
    /// `Walk` that is not used otherwise.
    unsafe extern "C" fn visit_super_callback(sb: *mut bindings::super_block, walk: *mut c_void) {
        // SAFETY: By the safety requirements.
        let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };

        // SAFETY: By the safety requirements.
        unsafe { walk.visit_super(sb) };
    }

    /// Looks for the next inode in a superblock, unless it was found or the superblock was passed
    /// before. Superblocks that were mounted since are in front of the one that the cursor is in.
    ///
    /// # Safety
    ///
    /// `sb` must be valid, with `s_umount` held.
    unsafe fn visit_super(&mut self, sb: *mut bindings::super_block) {
        if self.found.is_some() {
            return;
        }
        // SAFETY: By the safety requirements.
        let (lock, head) = unsafe {
            (
                addr_of_mut!((*sb).s_inode_list_lock),
                addr_of_mut!((*sb).s_inodes),
            )
        };

        let mut before = head;
        match &self.cursor {
            Some(cursor) if cursor.sb.as_ptr() == sb => {
                self.is_behind_cursor = true;
                if let Some(inode) = cursor.inode {
                    // SAFETY: By the invariant of `Inode` the inode is valid.
                    before = unsafe { addr_of_mut!((*inode.as_ptr()).i_sb_list) };
                }
            }
            _ if !self.is_behind_cursor => return,
            _ => {}
        }

        let mut passed: u32 = 0;
        // SAFETY: The lock is valid, and protects the list. An entry that is not the head is part
        // of an inode, which is not freed while it is in the list and the lock is held. The inode
        // of the cursor is in the list, since it is referenced.
        unsafe {
            bindings::spin_lock(lock);
            let mut entry = (*before).next;
            while entry != head {
                let inode = container_of!(entry, bindings::inode, i_sb_list);
                let has_entries = has_dax_entries(inode);
                // From time to time other threads get the lock and the CPU.
                passed = passed.wrapping_add(1);
                if has_entries || passed >= Self::BATCH {
                    if let Some(inode) = Inode::try_get(inode, sb) {
                        self.found = Some(Found { inode, has_entries });
                        break;
                    }
                }
                entry = (*entry).next;
            }
            bindings::spin_unlock(lock);
        }
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if let Some(inode) = self.cursor.take() {
            self.pool.put(inode, self.may_go);
        }
    }
}

/// Returns whether an inode is one of a DAX file with entries in its page cache.
///
/// # Safety
///
/// The inode must be in the list of its superblock, which must be locked.
unsafe fn has_dax_entries(inode: *mut bindings::inode) -> bool {
    // SAFETY: By the safety requirements the inode is valid, and so is its mapping. The number of
    // entries is read as the C code does, without the lock that protects it. An entry that was made
    // before the gate was closed is seen: both sides have a full barrier in between.
    unsafe {
        let mapping = (*inode).i_mapping;
        !mapping.is_null()
            && addr_of!((*mapping).nrpages).read_volatile() != 0
            && bindings::dax_mapping(mapping)
    }
}
