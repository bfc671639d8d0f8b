// SPDX-License-Identifier: GPL-2.0

//! Benchmarks of the two drivers: each case is a test, and reports its figures.
//!
//! There is a suite for times and one for counts of instructions, which need different machines.
//! Most cases are in both. A case leaves its devices as they are for the next one.

mod block;
#[cfg(target_arch = "x86_64")]
pub mod counting;
pub mod cpu;
mod dax;
mod lifecycle;
mod measure;
mod pair;

use anyhow::Result;

use self::block::Memory::{Huge, Pages};
use self::block::Operation::{DurableWrite, Read, Write};
use self::block::Order::{Random, Sequential};
pub use self::block::{HUGE_PAGES, NULL};
use self::block::{NULL_REQUESTS, fio, fio_job, flushes, mkfs, requests, zeroes};
use self::dax::Unit::{Page, Pmd};
use self::dax::{calls, copies, faults, fsync, sync_faults};
use self::lifecycle::Step::{Bind, Unbind};
pub use self::lifecycle::make_files;
use self::lifecycle::{
    Beside, memory_of_a_device, rebind, rebind_whole, unbind_exposed, unbind_mapped,
};
use self::measure::{Case, Mode, measure};
use super::{Suite, Test};
use crate::counter::{IO_URING, learn};
use crate::driver::Driver;
use crate::lab::Lab;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// How long a case may take.
const LIMIT: u64 = 450;

/// A suite of cases. Some are the same in both modes; others have functions of their own.
macro_rules! suite {
    ($suite:literal, $mode:expr, first: [$($first:ident: $prepare:expr),*],
     cases: [$($name:ident: $case:expr,)*], own: [$($own:ident: $run:expr,)*]) => {
        Suite {
            name: $suite,
            tests: &[
                $(Test::step(stringify!($first), $prepare).within(LIMIT),)*
                $(Test::step(stringify!($name), |lab| {
                    const CASE: Case = $case;
                    measure(lab, $mode, stringify!($name), &CASE)
                })
                .within(LIMIT),)*
                $(Test::step(stringify!($own), |lab| {
                    let run: fn(&mut Lab, &str) -> Result<()> = $run;
                    run(lab, stringify!($own))
                })
                .within(LIMIT),)*
            ],
        }
    };
}

/// The same cases in both modes, and further ones in one of them. Cases that make file systems come
/// after those that write to the disk. Cases that change its size are the last.
macro_rules! cases {
    ($suite:literal, $mode:expr, first: $first:tt, more: [$($more:tt)*], own: $own:tt) => {
        suite!($suite, $mode, first: $first, cases: [
            read_512_sequential: Case::many(|side| requests(side, Read, Sequential, 512, Pages)),
            read_512_random: Case::many(|side| requests(side, Read, Random, 512, Pages)),
            read_4k_sequential: Case::many(|side| requests(side, Read, Sequential, 4 * KIB, Pages)),
            read_4k_random: Case::many(|side| requests(side, Read, Random, 4 * KIB, Pages)),
            read_64k_sequential: Case::many(|side| {
                requests(side, Read, Sequential, 64 * KIB, Pages)
            }),
            read_64k_random: Case::many(|side| requests(side, Read, Random, 64 * KIB, Pages)),
            read_64k_huge_page: Case::many(|side| requests(side, Read, Sequential, 64 * KIB, Huge)),
            read_1m_sequential: Case::many(|side| requests(side, Read, Sequential, MIB, Pages)),
            read_1m_random: Case::many(|side| requests(side, Read, Random, MIB, Pages)),
            read_1m_huge_page: Case::many(|side| requests(side, Read, Sequential, MIB, Huge)),
            write_512_sequential: Case::many(|side| requests(side, Write, Sequential, 512, Pages)),
            write_512_random: Case::many(|side| requests(side, Write, Random, 512, Pages)),
            write_4k_sequential: Case::many(|side| {
                requests(side, Write, Sequential, 4 * KIB, Pages)
            }),
            write_4k_random: Case::many(|side| requests(side, Write, Random, 4 * KIB, Pages)),
            write_64k_sequential: Case::many(|side| {
                requests(side, Write, Sequential, 64 * KIB, Pages)
            }),
            write_64k_random: Case::many(|side| requests(side, Write, Random, 64 * KIB, Pages)),
            write_64k_huge_page: Case::many(|side| {
                requests(side, Write, Sequential, 64 * KIB, Huge)
            }),
            write_1m_sequential: Case::many(|side| requests(side, Write, Sequential, MIB, Pages)),
            write_1m_random: Case::many(|side| requests(side, Write, Random, MIB, Pages)),
            write_1m_huge_page: Case::many(|side| requests(side, Write, Sequential, MIB, Huge)),
            write_512_fua: Case::many(|side| requests(side, DurableWrite, Sequential, 512, Pages)),
            write_4k_fua: Case::many(|side| {
                requests(side, DurableWrite, Sequential, 4 * KIB, Pages)
            }),
            flush: Case::many(flushes),
            null_request: NULL_REQUESTS,
            write_zeroes_16m: Case::exactly(4, zeroes),
            mkfs_ext4: Case::exactly(1, mkfs),
            dax_read_4k: Case::many(|side| calls(side, false, 4 * KIB)),
            dax_read_1m: Case::many(|side| calls(side, false, MIB)),
            dax_write_4k: Case::many(|side| calls(side, true, 4 * KIB)),
            dax_write_1m: Case::many(|side| calls(side, true, MIB)),
            dax_read_fault_4k: Case::exactly(1024, |side| faults(side, Page, false)),
            dax_write_fault_4k: Case::exactly(1024, |side| faults(side, Page, true)),
            dax_read_fault_2m: Case::exactly(32, |side| faults(side, Pmd, false)),
            dax_write_fault_2m: Case::exactly(32, |side| faults(side, Pmd, true)),
            dax_map_sync_first_write: Case::exactly(32, sync_faults),
            dax_fsync_256_dirty_pages: Case::exactly(1, fsync),
            $($more)*
            read_4k_bad_block_elsewhere: Case::many(|side| {
                block::add_bad_block(side)?;
                requests(side, Read, Sequential, 4 * KIB, Pages)
            }),
            write_4k_bad_block_elsewhere: Case::many(|side| {
                block::add_bad_block(side)?;
                requests(side, Write, Sequential, 4 * KIB, Pages)
            }),
            dax_read_4k_bad_block_elsewhere: Case::many(|side| {
                dax::make_file(side)?;
                block::add_bad_block(side)?;
                calls(side, false, 4 * KIB)
            }),
            dax_read_fault_4k_bad_block_elsewhere: Case::exactly(1024, |side| {
                dax::make_file(side)?;
                block::add_bad_block(side)?;
                faults(side, Page, false)
            }),
            bind_64m: Case::exactly(1, |side| rebind(side, Bind, 64)),
            bind_256m: Case::exactly(1, |side| rebind(side, Bind, 256)),
            bind_1g: Case::exactly(1, |side| rebind(side, Bind, 1024)),
            unbind_64m: Case::exactly(1, |side| rebind(side, Unbind, 64)),
            unbind_256m: Case::exactly(1, |side| rebind(side, Unbind, 256)),
            unbind_1g: Case::exactly(1, |side| rebind(side, Unbind, 1024)),
        ], own: $own)
    };
}

pub const TIME: Suite = cases!("bench_time", Mode::Time, first: [get_ready: touch_memory], more: [
    null_copy_4k: Case::many(|side| copies(side, 4 * KIB)),
    null_copy_1m: Case::many(|side| copies(side, MIB)),
], own: [
    uring_read_4k_depth_1: |lab, name| fio(lab, name, 1, 1, "randread", "4k"),
    uring_read_4k_depth_32: |lab, name| fio(lab, name, 32, 1, "randread", "4k"),
    uring_write_4k_depth_1: |lab, name| fio(lab, name, 1, 1, "randwrite", "4k"),
    uring_write_4k_depth_32: |lab, name| fio(lab, name, 32, 1, "randwrite", "4k"),
    uring_read_4k_depth_32_2_threads: |lab, name| fio(lab, name, 32, 2, "randread", "4k"),
    uring_write_4k_depth_32_2_threads: |lab, name| fio(lab, name, 32, 2, "randwrite", "4k"),
    uring_read_4k_depth_1_one_cpu: |lab, name| {
        block::on_one_cpu(|| fio(lab, name, 1, 1, "randread", "4k"))
    },
    uring_read_4k_depth_32_one_cpu: |lab, name| {
        block::on_one_cpu(|| fio(lab, name, 32, 1, "randread", "4k"))
    },
    uring_write_4k_depth_1_one_cpu: |lab, name| {
        block::on_one_cpu(|| fio(lab, name, 1, 1, "randwrite", "4k"))
    },
    uring_write_4k_depth_32_one_cpu: |lab, name| {
        block::on_one_cpu(|| fio(lab, name, 32, 1, "randwrite", "4k"))
    },
    uring_read_64k_depth_32: |lab, name| fio(lab, name, 32, 1, "read", "64k"),
    uring_write_64k_depth_32: |lab, name| fio(lab, name, 32, 1, "write", "64k"),
    unbind_mapped_16m: |lab, name| unbind_mapped(lab, name, 16),
    unbind_mapped_64m: |lab, name| unbind_mapped(lab, name, 64),
    unbind_mapped_256m: |lab, name| unbind_mapped(lab, name, 256),
    memory_of_a_device: |lab, name| memory_of_a_device(lab, name),
]);

pub const COUNT: Suite = cases!("bench_count", Mode::Count,
    first: [get_ready: learn_modules], more: [
    uring_read_4k_depth_1: block::uring_requests(|side| fio_job(side, "randread", 1)),
    uring_read_4k_depth_32: block::uring_requests(|side| fio_job(side, "randread", 32)),
    uring_write_4k_depth_1: block::uring_requests(|side| fio_job(side, "randwrite", 1)),
    uring_write_4k_depth_32: block::uring_requests(|side| fio_job(side, "randwrite", 32)),
    unbind_64m_exposed: Case::exactly(1, |side| unbind_exposed(side, 64, Beside::Nothing)),
    unbind_512m_exposed: Case::exactly(1, |side| unbind_exposed(side, 512, Beside::Nothing)),
    unbind_beside_inodes: Case::exactly(1, |side| {
        unbind_exposed(side, 64, Beside::Inodes(30_000))
    }),
    unbind_beside_64m_mapped: Case::exactly(1, |side| {
        unbind_exposed(side, 64, Beside::Mapped(64))
    }),
], own: []);

/// The cases of devices whose size is not chosen, for a user's machine.
pub const WHOLE: Suite = suite!("bench_whole", Mode::Time, first: [], cases: [
    bind_whole: Case::exactly(1, |side| rebind_whole(side, Bind)),
    unbind_whole: Case::exactly(1, |side| rebind_whole(side, Unbind)),
], own: []);

/// Loads all modules whose instructions are counted, and looks up their addresses.
fn learn_modules(lab: &mut Lab) -> Result<()> {
    pair::Pair::ready(lab)?;
    block::load_null()?;
    learn(&[
        Driver::NdPmem.name(),
        Driver::PmemRs.name(),
        block::NULL,
        IO_URING,
    ])
}

/// Writes to all memory that is accessed later: on the first access to a page the emulator
/// allocates memory for it.
fn touch_memory(lab: &mut Lab) -> Result<()> {
    for side in pair::Pair::ready(lab)?.sides() {
        block::touch(side)?;
    }
    Ok(())
}
