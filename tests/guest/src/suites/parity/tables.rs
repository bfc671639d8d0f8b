// SPDX-License-Identifier: GPL-2.0

//! What is asked about a disk: attributes and values to write, and requests.

/// Two partitions, with the same names on every disk.
pub const PARTITIONS: &str = "label: gpt
label-id: 7b9a9f0c-55f0-4a2a-8f5b-6a4b7a3c1d01
start=2MiB, size=64MiB, uuid=7b9a9f0c-55f0-4a2a-8f5b-6a4b7a3c1d02
start=66MiB, size=64MiB, uuid=7b9a9f0c-55f0-4a2a-8f5b-6a4b7a3c1d03
";

/// Attributes that count, measure time or memory, or number devices.
pub const VOLATILE: &[&str] = &[
    "id",
    "handle",
    "iset_id",
    "max_bytes",
    "stat",
    "inflight",
    "diskseq",
    "disk-seq",
    "maj:min",
    "min",
    "runtime_active_time",
    "runtime_suspended_time",
];

/// `RWF_ATOMIC` of `linux/fs.h`, which the `libc` crate lacks.
pub const RWF_ATOMIC: libc::c_int = 0x40;

/// Attributes, and values to write, valid and invalid ones.
pub const STORES: &[(&str, &[&str])] = &[
    (
        "dax/write_cache",
        &[
            "0", "1", "n", "y\n", "off", "on", "", "\n", "2", "-1", " 1", "perhaps", "1",
        ],
    ),
    (
        "badblocks",
        &[
            "64 2\n",
            "64 2",
            "66 1\n",
            "-64 2\n",
            "x\n",
            "64\n",
            "64 0\n",
            "1 -1\n",
            "9999999999 1\n",
        ],
    ),
    (
        "queue/write_cache",
        &["write through", "write back", "none", "write back"],
    ),
    ("queue/fua", &["0", "1"]),
    ("queue/dax", &["0", "1"]),
    ("queue/max_sectors_kb", &["64", "1280", "0", "x"]),
    ("queue/read_ahead_kb", &["256", "128", "x"]),
    ("queue/iostats", &["0", "1"]),
    ("queue/discard_max_bytes", &["4096", "0"]),
    ("queue/zoned", &["1"]),
    ("ro", &["1"]),
    ("size", &["1"]),
];

/// Names, numbers and the size of the result, from `linux/fs.h`, `linux/blkzoned.h`,
/// `linux/hdreg.h`, `linux/blkpg.h` and `scsi/sg.h`.
pub const REQUESTS: &[(&str, u64, u32)] = &[
    ("BLKROGET", 0x125e, 4),
    ("BLKRRPART", 0x125f, 4),
    ("BLKGETSIZE", 0x1260, 8),
    ("BLKFLSBUF", 0x1261, 4),
    ("BLKRAGET", 0x1263, 8),
    ("BLKFRAGET", 0x1265, 8),
    ("BLKSECTGET", 0x1267, 2),
    ("BLKSSZGET", 0x1268, 4),
    ("BLKBSZGET", 0x8008_1270, 4),
    ("BLKGETSIZE64", 0x8008_1272, 8),
    ("BLKIOMIN", 0x1278, 4),
    ("BLKIOOPT", 0x1279, 4),
    ("BLKALIGNOFF", 0x127a, 4),
    ("BLKPBSZGET", 0x127b, 4),
    ("BLKDISCARDZEROES", 0x127c, 4),
    ("BLKSECDISCARD", 0x127d, 8),
    ("BLKROTATIONAL", 0x127e, 2),
    ("BLKDISCARD", 0x1277, 8),
    ("BLKZEROOUT", 0x127f, 8),
    ("BLKGETZONESZ", 0x8004_1284, 4),
    ("BLKGETNRZONES", 0x8004_1285, 4),
    ("BLKPG", 0x1269, 4),
    ("BLKTRACETEARDOWN", 0x1276, 4),
    ("HDIO_GETGEO", 0x0301, 8),
    ("SG_IO", 0x2285, 8),
    ("CDROM_GET_CAPABILITY", 0x5331, 4),
    ("unknown", 0x12ff, 8),
];
