// SPDX-License-Identifier: GPL-2.0

//! The types of file systems that can have DAX files on a block device.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::abstractions::kernel_ext::module_list::Code;
use kernel::prelude::*;

/// A type of file system, and the code that registers it.
pub(super) struct FileSystemType {
    pub(super) name: &'static CStr,
    pub(super) code: Code,
}

const EXT4: Code = Code {
    built_in: cfg!(CONFIG_EXT4_FS = "y"),
    module: c"ext4",
};

/// All types whose DAX memory comes from a block device: the callers of `dax_iomap_fault()`, which
/// are vetted (`rust-bindings/vetted`). `fs/fuse` and `device-dax` have memory of their own.
pub(super) const DAX_TYPES: &[FileSystemType] = &[
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
