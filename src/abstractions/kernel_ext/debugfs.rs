// SPDX-License-Identifier: GPL-2.0

//! Files in debugfs that keep their module.
//!
//! Those of [`kernel::debugfs`] do not: their operations have no owner, so a module can be unloaded while one is open, and
//! closing it then uses operations that are not there any more (`full_proxy_release()` in `fs/debugfs/file.c`).
//!
//! As everywhere in debugfs, what cannot be made is not there, and nobody is told. Nothing but messages may depend on it.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use crate::abstractions::{
    bindings,
    kernel_ext::module::Registered, //
};
use core::ptr::null_mut;
use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    fmt,
    module::this_module,
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
/// The pointer is null, an error, or that of an entry that is ours to remove.
struct Entry(*mut bindings::dentry);

// SAFETY: Entries may be removed by any thread.
unsafe impl Send for Entry {}

// SAFETY: Of a reference nothing is used but the pointer, to make files in a directory, which the C
// side serialises.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        #[cfg(CONFIG_DEBUG_FS)]
        unsafe {
            bindings::debugfs_remove(self.0)
        };
    }
}

/// A directory in the root of debugfs.
pub struct Dir {
    entry: Entry,
    // Of the directory, and of the files in it: each has a reference to it.
    _registered: Registered,
}

impl Dir {
    /// Makes a directory of this name. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`ENODEV`] while the module has no registrations ([`Registered::new`]).
    pub fn new(name: &CStr) -> Result<Arc<Self>> {
        let registered = Registered::new()?;
        #[cfg(CONFIG_DEBUG_FS)]
        // SAFETY: The name is a string; null stands for the root.
        let dentry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), null_mut()) };
        #[cfg(not(CONFIG_DEBUG_FS))]
        let dentry = {
            let _ = name;
            null_mut()
        };

        // INVARIANT: The directory was just made, if it could be.
        let dir = Self {
            entry: Entry(dentry),
            _registered: registered,
        };
        Ok(Arc::new(dir, GFP_KERNEL)?)
    }
}

/// What a [`File`] says.
pub trait Contents: 'static {
    /// What it is about.
    type Data: Send + Sync + 'static;

    /// The module that the file belongs to; it cannot be unloaded while the file is open.
    type OwnerModule: ModuleMetadata;

    /// Writes the contents. Called when somebody reads the file; may sleep. What is written is thrown away and asked for
    /// again if it does not fit into the buffer.
    fn show(data: &Self::Data, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// A file that root can read. It is removed when this is dropped, which waits for those who are reading.
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
    // In this order: the data is not read once the file has been removed, and a directory is
    // removed with its files.
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

    /// Makes a file of this name. May sleep.
    pub fn new(dir: &Arc<Dir>, name: &CStr, data: Arc<C::Data>) -> Self {
        #[cfg(CONFIG_DEBUG_FS)]
        // SAFETY: The name is a string, and the directory is null, an error, or there. The
        // operations are those for a pointer to `C::Data`, which is owned by what this returns, and
        // so is the file. debugfs calls them only while the file is there (`debugfs_file_get()` in
        // `fs/debugfs/file.c`), but for `release`, which does not use that pointer.
        let dentry = unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                dir.entry.0,
                Arc::as_ptr(&data).cast_mut().cast(),
                core::ptr::null(),
                &Self::OPS,
            )
        };
        #[cfg(not(CONFIG_DEBUG_FS))]
        let dentry = {
            let _ = name;
            null_mut()
        };

        Self {
            // INVARIANT: The file was just made, if it could be.
            _entry: Entry(dentry),
            _data: data,
            dir: dir.clone(),
        }
    }

    /// Returns the directory that the file is in.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// # Safety
    ///
    /// For debugfs only: `inode` must be that of a `File<C>` that has not been removed, and `file` be about to be opened.
    #[cfg(CONFIG_DEBUG_FS)]
    unsafe extern "C" fn open_callback(
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> c_int {
        // SAFETY: By the safety requirements; `show_callback` is the one for that pointer.
        unsafe { bindings::single_open(file, Some(Self::show_callback), (*inode).i_private) }
    }

    /// # Safety
    ///
    /// For seq_file only: `seq` must have been opened by [`Self::open_callback`], and the file not have been removed.
    #[cfg(CONFIG_DEBUG_FS)]
    unsafe extern "C" fn show_callback(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: By the safety requirements the pointer is that to the data that the `File<C>`
        // owns.
        let data = unsafe { &*(*seq).private.cast::<C::Data>() };
        // SAFETY: By the safety requirements; whoever reads has it locked.
        let seq = unsafe { SeqFile::from_raw(seq) };

        seq_print!(seq, "{}", Shown::<C>(data));
        0
    }
}

/// All fields null, for what a file leaves out.
#[cfg(CONFIG_DEBUG_FS)]
const ZEROED_OPS: bindings::file_operations = pin_init::zeroed();

/// What is shown, as something that can be formatted.
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
    fn a_file_keeps_its_module_and_lets_its_data_go() -> Result {
        let data = Arc::new(7, GFP_KERNEL)?;
        let dir = Dir::new(c"pmem_rs_test")?;
        let file = File::<Number>::new(&dir, c"number", data.clone());

        let owner = File::<Number>::OPS.owner;
        assert!(!owner.is_null());
        assert!(owner == this_module::<crate::LocalModule>().as_ptr());
        // The directory stays for as long as there are files.
        drop(dir);
        drop(file);
        assert!(Arc::into_unique_or_drop(data).is_some());
        Ok(())
    }
}
