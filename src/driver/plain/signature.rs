// SPDX-License-Identifier: GPL-2.0

//! Signatures at the start of a range of memory: what is stored there.
//!
//! The magic numbers are those of `include/uapi/linux/magic.h`, of the headers of the file systems,
//! of `drivers/nvdimm`, and of libblkid.

/// How many bytes from the start on are enough for all signatures.
pub const LEN: usize = 68 << 10;

/// The offset of an info block in a namespace without a label (`SZ_4K` in `drivers/nvdimm`).
const INFO_BLOCK: usize = 4096;

/// Offset, bytes, and a name for messages.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (INFO_BLOCK, b"BTT_ARENA_INFO\0\0", "an info block"),
    (INFO_BLOCK, b"NVDIMM_PFN_INFO\0", "an info block"),
    (INFO_BLOCK, b"NVDIMM_DAX_INFO\0", "an info block"),
    (
        1024 + 56,
        &[0x53, 0xef],
        "an ext2, ext3 or ext4 file system",
    ),
    (0, b"XFSB", "an xfs file system"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "an erofs file system"),
    ((64 << 10) + 64, b"_BHRfS_M", "a btrfs file system"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an f2fs file system"),
    (0, b"hsqs", "a squashfs file system"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (
        510,
        &[0x55, 0xaa],
        "a partition table (MBR) or a FAT file system",
    ),
    (512, b"LABELONE", "a physical volume of LVM"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an array (md)"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an array (md)"),
    (4086, b"SWAPSPACE2", "swap space"),
];

/// Returns the name of what begins at the start of a range, of which `bytes` are the first ones.
/// [`None`] if no signature matches.
pub fn find(bytes: &[u8]) -> Option<&'static str> {
    SIGNATURES
        .iter()
        .find(|(offset, signature, _)| {
            bytes
                .get(*offset..)
                .is_some_and(|rest| rest.starts_with(signature))
        })
        .map(|(_, _, name)| *name)
}
