// SPDX-License-Identifier: GPL-2.0

//! Files in debugfs that keep their module loaded.
//!
//! Not [`kernel::debugfs`]: its file operations have no owner, so a module can be unloaded while a
//! file is open. Closing the file then calls an operation that was freed (`full_proxy_release()` in
//! `fs/debugfs/file.c`).
//!
//! As everywhere in debugfs, a file that cannot be created is missing without an error. So only
//! diagnostics may depend on it.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::module::this_module;
use crate::abstractions::kernel_ext::module::Registered;
use core::ptr::null_mut;
use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    fmt,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::Arc,
    ModuleMetadata, //
};

/// A directory, or a file in one.
///
/// # Invariants
///
/// The pointer is null, an error pointer, or that of an entry that `self` owns.
struct Entry(*mut bindings::dentry);

// SAFETY: Entries may be removed by any thread.
unsafe impl Send for Entry {}

// SAFETY: A shared reference only gives the pointer, to create files in a directory. The C side
// serialises that.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the entry is owned, or the function ignores the pointer.
        #[cfg(CONFIG_DEBUG_FS)]
        unsafe {
            bindings::debugfs_remove(self.0)
        };
    }
}

/// A directory in the root of debugfs.
pub struct Dir {
    entry: Entry,
    // Also for the files in the directory, each of which has a reference to it.
    _registered: Registered,
}

impl Dir {
    /// Creates a directory (`debugfs_create_dir()`). May sleep. Fails as [`Registered::new`].
    pub fn new(name: &CStr) -> Result<Arc<Self>> {
        let registered = Registered::new()?;
        #[cfg(CONFIG_DEBUG_FS)]
        // SAFETY: The name is a C string. Null stands for the root.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), null_mut()) };
        #[cfg(not(CONFIG_DEBUG_FS))]
        let dentry = {
            let _ = name;
            null_mut()
        };

        // INVARIANT: The directory was just created, or this is an error pointer.
        let dir = Self {
            entry: Entry(dentry),
            _registered: registered,
        };
        Ok(Arc::new(dir, GFP_KERNEL)?)
    }
}

/// The contents of a [`File`].
pub trait Contents: 'static {
    /// The data that the contents describe.
    type Data: Send + Sync + 'static;

    /// The module that implements the file. It cannot be unloaded while the file is open.
    type OwnerModule: ModuleMetadata;

    /// Writes the contents. Called when the file is read from its start; may sleep. Later reads of
    /// the open file get the rest of these contents.
    ///
    /// If the contents do not fit into the buffer, they are discarded, and this is called again.
    fn show(data: &Self::Data, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// A file that root can read.
///
/// Dropping it waits for reads in progress, and removes the file. So no read may do that
/// ([`Contents::show`]): it would wait for itself.
///
/// # Examples
///
/// ```
/// use kernel::{fmt, sync::Arc};
/// use pmem_rs::abstractions::kernel_ext::debugfs::{
///     Contents,
///     Dir,
///     File, //
/// };
///
/// struct Answer;
///
/// impl Contents for Answer {
///     type Data = u32;
///     type OwnerModule = pmem_rs::Module;
///
///     fn show(data: &u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         f.write_fmt(fmt!("{data}\n"))
///     }
/// }
///
/// let dir = Dir::new(c"example")?;
/// let file = File::<Answer>::new(&dir, c"answer", Arc::new(42, GFP_KERNEL)?);
/// # drop(file);
/// # Ok::<(), Error>(())
/// ```
pub struct File<C: Contents> {
    // Dropped in this order: nothing reads the data after the file was removed, and a directory is
    // removed after its files.
    _entry: Entry,
    _data: Arc<C::Data>,
    dir: Arc<Dir>,
}

impl<C: Contents> File<C> {
    #[cfg(CONFIG_DEBUG_FS)]
    const OPS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<C::OwnerModule>().as_ptr(),
        open: Some(Self::open_callback),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..ZEROED_OPS
    };

    /// Creates a file (`debugfs_create_file_full()`). May sleep.
    pub fn new(dir: &Arc<Dir>, name: &CStr, data: Arc<C::Data>) -> Self {
        #[cfg(CONFIG_DEBUG_FS)]
        let ops: &'static bindings::file_operations = &Self::OPS;
        #[cfg(CONFIG_DEBUG_FS)]
        // SAFETY: The name is a C string. The directory is null, an error pointer, or valid. The
        // operations expect a pointer to `C::Data`, which the returned value owns together with
        // the file. debugfs calls operations only until the file was removed
        // (`debugfs_file_get()` in `fs/debugfs/file.c`), except `release`, which does not use the
        // pointer.
        let dentry = unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                dir.entry.0,
                Arc::as_ptr(&data).cast_mut().cast(),
                core::ptr::null(),
                ops,
            )
        };
        #[cfg(not(CONFIG_DEBUG_FS))]
        let dentry = {
            let _ = name;
            null_mut()
        };

        Self {
            // INVARIANT: The file was just created, or this is an error pointer.
            _entry: Entry(dentry),
            _data: data,
            dir: dir.clone(),
        }
    }

    /// Returns the directory of the file.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// # Safety
    ///
    /// Called by debugfs only. `inode` must be that of a `File<C>` that was not removed. `file`
    /// must be in the process of being opened.
    #[cfg(CONFIG_DEBUG_FS)]
    unsafe extern "C" fn open_callback(
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> c_int {
        // SAFETY: By the safety requirements the private data is the `C::Data` of the `File<C>`.
        // `show_callback` expects that.
        unsafe { bindings::single_open(file, Some(Self::show_callback), (*inode).i_private) }
    }

    /// # Safety
    ///
    /// Called by seq_file only. [`Self::open_callback`] must have opened `seq`, and the file must
    /// not have been removed.
    #[cfg(CONFIG_DEBUG_FS)]
    unsafe extern "C" fn show_callback(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: By the safety requirements the `File<C>` owns the data.
        let data = unsafe { &*(*seq).private.cast::<C::Data>() };
        // SAFETY: By the safety requirements `seq` is valid, and its lock is held during the call.
        let seq = unsafe { SeqFile::from_raw(seq) };

        seq_print!(seq, "{}", Shown::<C>(data));
        0
    }
}

/// The operations that a file does not have.
#[cfg(CONFIG_DEBUG_FS)]
const ZEROED_OPS: bindings::file_operations = pin_init::zeroed();

/// Displays the contents of a file.
struct Shown<'a, C: Contents>(&'a C::Data);

impl<C: Contents> fmt::Display for Shown<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        C::show(self.0, f)
    }
}

#[kunit_tests(pmem_rs_debugfs)]
mod tests {
    use super::*;

    struct Number;

    impl Contents for Number {
        type Data = u32;
        type OwnerModule = crate::LocalModule;

        fn show(data: &u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_fmt(fmt!("{data}"))
        }
    }

    #[test]
    fn a_file_has_an_owner_and_drops_its_data() -> Result {
        let data = Arc::new(7, GFP_KERNEL)?;
        let dir = Dir::new(c"pmem_rs_test")?;
        let file = File::<Number>::new(&dir, c"number", data.clone());

        let owner = File::<Number>::OPS.owner;
        assert!(!owner.is_null());
        assert!(owner == this_module::<crate::LocalModule>().as_ptr());
        // The file keeps its directory.
        drop(dir);
        drop(file);
        assert!(Arc::into_unique_or_drop(data).is_some());
        Ok(())
    }
}
