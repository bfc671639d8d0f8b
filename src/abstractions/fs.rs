// SPDX-License-Identifier: GPL-2.0

//! Superblocks and inodes, as far as one has to find them to take memory away from files.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/fs/super_types.h`](srctree/include/linux/fs/super_types.h)

use super::{
    bindings,
    dax::FileMapping,
    list::Stack, //
};
use core::ptr::{
    addr_of,
    addr_of_mut,
    NonNull, //
};
use kernel::{
    container_of,
    prelude::*,
    ThisModule, //
};

/// A type of file system that can have DAX files, and the modules that may bring it.
struct FileSystemType {
    name: &'static CStr,
    /// Whether it is part of the kernel image.
    built_in: bool,
    module: &'static CStr,
}

/// All of them in this kernel that take their memory from a block device. (Those of `fs/fuse` and
/// `device-dax` bring their own.)
const TYPES: &[FileSystemType] = &[
    FileSystemType {
        name: c"ext4",
        built_in: cfg!(CONFIG_EXT4_FS = "y"),
        module: c"ext4",
    },
    FileSystemType {
        name: c"ext3",
        built_in: cfg!(CONFIG_EXT4_FS = "y"),
        module: c"ext4",
    },
    #[cfg(CONFIG_EXT4_USE_FOR_EXT2)]
    FileSystemType {
        name: c"ext2",
        built_in: cfg!(CONFIG_EXT4_FS = "y"),
        module: c"ext4",
    },
    FileSystemType {
        name: c"ext2",
        built_in: cfg!(CONFIG_EXT2_FS = "y"),
        module: c"ext2",
    },
    FileSystemType {
        name: c"xfs",
        built_in: cfg!(CONFIG_XFS_FS = "y"),
        module: c"xfs",
    },
    FileSystemType {
        name: c"erofs",
        built_in: cfg!(CONFIG_EROFS_FS = "y"),
        module: c"erofs",
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
/// One reference of the inode and one active reference of its superblock are ours.
pub struct Inode(NonNull<bindings::inode>);

// SAFETY: References to inodes and superblocks may be used and put by any thread.
unsafe impl Send for Inode {}

impl Inode {
    /// Returns what the file has in memory.
    pub fn mapping(&self) -> FileMapping<'_> {
        // SAFETY: By the type invariant the inode is valid, and so is its mapping.
        unsafe { FileMapping::from_raw((*self.0.as_ptr()).i_mapping) }
    }

    /// Takes references, unless the inode is on its way out. Does not sleep.
    ///
    /// # Safety
    ///
    /// Both must be valid, the inode one of the superblock, whose `s_umount` must be held.
    unsafe fn try_get(inode: *mut bindings::inode, sb: *mut bindings::super_block) -> Option<Self> {
        // SAFETY: By the safety requirements.
        let inode = NonNull::new(unsafe { bindings::igrab(inode) })?;

        // SAFETY: By the safety requirements. An active reference exists as long as the superblock is
        // not dying, which it is not, since `s_umount` was taken before that; if it is only just being
        // given up, whoever does that waits for `s_umount`.
        if !unsafe { bindings::atomic_inc_not_zero(addr_of_mut!((*sb).s_active)) } {
            // SAFETY: The reference was just taken. Whoever gives the superblock up still has to evict
            // the inode.
            unsafe { bindings::iput_not_last(inode.as_ptr()) };
            return None;
        }

        // INVARIANT: Both references were just taken.
        Some(Self(inode))
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: By the type invariant both references are ours. An inode that is referenced has
        // a superblock.
        unsafe {
            let sb = (*self.0.as_ptr()).i_sb;
            bindings::iput(self.0.as_ptr());
            bindings::deactivate_super(sb);
        }
    }
}

/// What [`dax_inodes`] has found.
pub struct Found {
    /// The inodes that were wanted.
    pub wanted: Stack<Inode>,
    /// Others that had to be referenced on the way.
    pub others: Stack<Inode>,
    /// Whether that is all. [`ENOMEM`] if it is not.
    pub result: Result,
}

/// Finds the inodes with DAX entries, of all mounted file systems, that `wanted` wants.
///
/// `wanted` is called in process context with `s_umount` of a superblock held for reading, and may
/// sleep. An inode that is being evicted is not found.
///
/// Sleeps; waits for mounts and unmounts of the same types of file system that are under way. It puts
/// no reference: what that may wait for is the caller's decision.
///
/// # Examples
///
/// ```no_run
/// use core::ops::Range;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::fs;
///
/// /// Whether any file uses these page frames.
/// fn in_use(module: &'static ThisModule, frames: &Range<u64>) -> Result<bool> {
///     let found = fs::dax_inodes(module, |file| file.uses(frames));
///
///     found.result?;
///     Ok(!found.wanted.is_empty())
/// }
/// ```
pub fn dax_inodes(
    module: &'static ThisModule,
    wanted: impl FnMut(FileMapping<'_>) -> bool,
) -> Found {
    let mut search = Search {
        is_wanted: wanted,
        found: Found {
            wanted: Stack::new(),
            others: Stack::new(),
            result: Ok(()),
        },
    };

    for fs_type in TYPES {
        // `get_fs_type` would load the module.
        if !fs_type.built_in && !is_loaded(module, fs_type.module) {
            continue;
        }
        search.visit_type(fs_type.name);
    }

    search.found
}

struct Search<F> {
    is_wanted: F,
    found: Found,
}

impl<F: FnMut(FileMapping<'_>) -> bool> Search<F> {
    /// How many inodes are passed with the list locked.
    const BATCH: u32 = 1024;

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
    /// For `iterate_supers_type` only: `sb` must be valid, with `s_umount` held, and `search` be a
    /// `Search<F>` that nobody else uses.
    unsafe extern "C" fn visit_super_callback(sb: *mut bindings::super_block, search: *mut c_void) {
        // SAFETY: By the safety requirements.
        let search = unsafe { &mut *search.cast::<Self>() };

        // SAFETY: By the safety requirements.
        if let Err(err) = unsafe { search.visit_super(sb) } {
            search.found.result = Err(err);
        }
    }

    /// Goes through the inodes of a superblock. The list is locked while it goes from one candidate
    /// to the next; a candidate is referenced, so that it stays in the list while the lock is not
    /// held.
    ///
    /// # Safety
    ///
    /// `sb` must be valid, with `s_umount` held.
    unsafe fn visit_super(&mut self, sb: *mut bindings::super_block) -> Result {
        // SAFETY: By the safety requirements, for this and what follows.
        let (lock, head) = unsafe {
            (
                addr_of_mut!((*sb).s_inode_list_lock),
                addr_of_mut!((*sb).s_inodes),
            )
        };
        let mut slot = Stack::slot()?;
        let mut passed: u32 = 0;

        // SAFETY: The lock is valid.
        unsafe { bindings::spin_lock(lock) };
        // SAFETY: The list is protected by the lock, which is held.
        let mut entry = unsafe { (*head).next };
        while entry != head {
            // SAFETY: An entry that is not the head is part of an inode, which cannot be freed while
            // it is in the list and the lock is held.
            let inode = unsafe { container_of!(entry, bindings::inode, i_sb_list) };

            // SAFETY: As above.
            let candidate = unsafe { has_dax_entries(inode) };
            // From time to time others get the lock and the CPU.
            passed = passed.wrapping_add(1);
            let pause = passed % Self::BATCH == 0;
            let inode = if candidate || pause {
                // SAFETY: As above, and by the safety requirements.
                unsafe { Inode::try_get(inode, sb) }
            } else {
                None
            };
            if let Some(inode) = inode {
                // SAFETY: The lock is held. It is taken again below.
                unsafe { bindings::spin_unlock(lock) };

                let list = if candidate && (self.is_wanted)(inode.mapping()) {
                    &mut self.found.wanted
                } else {
                    &mut self.found.others
                };
                list.fill(slot, inode);
                slot = Stack::slot()?;

                // SAFETY: May sleep here. The lock is valid.
                unsafe {
                    bindings::cond_resched();
                    bindings::spin_lock(lock);
                }
            }

            // SAFETY: The entry is in the list, since its inode is referenced or the lock was held
            // all the time.
            entry = unsafe { (*entry).next };
        }
        // SAFETY: The lock is held.
        unsafe { bindings::spin_unlock(lock) };

        Ok(())
    }
}

/// Whether an inode is one of a DAX file with entries in its page cache.
///
/// # Safety
///
/// The inode must be in the list of its superblock, which must be locked.
unsafe fn has_dax_entries(inode: *mut bindings::inode) -> bool {
    // SAFETY: By the safety requirements the inode is valid, and so is its mapping. The number of
    // entries is read as the C code does, without the lock that protects it: an entry that was made
    // before an SRCU grace period of `dax_read_lock` is seen after it.
    unsafe {
        let mapping = (*inode).i_mapping;
        !mapping.is_null()
            && addr_of!((*mapping).nrpages).read_volatile() != 0
            && bindings::dax_mapping(mapping)
    }
}

/// Whether a module is loaded (or built in, and known to sysfs).
fn is_loaded(module: &'static ThisModule, name: &CStr) -> bool {
    // SAFETY: Our own module is in sysfs while its code runs, in the set of all modules, which
    // always exists.
    let set = unsafe { (*module.as_ptr()).mkobj.kobj.kset };
    if set.is_null() {
        // Better load a module in vain than miss one.
        return true;
    }

    let mut found = false;
    // SAFETY: The list and the names of its members are protected by the lock.
    unsafe {
        bindings::spin_lock(addr_of_mut!((*set).list_lock));
        let head = addr_of_mut!((*set).list);
        let mut entry = (*head).next;
        while entry != head {
            let kobj = container_of!(entry, bindings::kobject, entry);
            if !(*kobj).name.is_null() && bindings::strcmp((*kobj).name, name.as_char_ptr()) == 0 {
                found = true;
                break;
            }
            entry = (*entry).next;
        }
        bindings::spin_unlock(addr_of_mut!((*set).list_lock));
    }
    found
}
