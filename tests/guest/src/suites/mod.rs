// SPDX-License-Identifier: GPL-2.0

//! The tests, by suite. A suite runs in one boot of a guest; the runner knows the machine for each.

mod allocations;
pub mod bench;
mod bench_metal;
mod bind;
mod block;
mod block_errors;
mod container_images;
mod crash;
mod cxl;
mod dax;
mod dax_layout;
mod dax_pages;
mod demo;
mod device_tree;
mod dm;
pub mod except;
mod fio;
mod flush;
mod fuzz;
pub mod going_down;
mod harness;
pub mod in_use;
mod kdump;
mod kernel_bugs;
mod kernel_users;
mod lease;
mod legacy;
mod lockdown;
mod media;
mod misuse;
mod modes;
mod namespaces;
pub mod notice;
mod ordering;
mod parity;
mod partitions;
mod persistence;
mod planted;
mod platform;
mod probe;
mod programs;
mod providers;
mod region;
pub mod revoke;
mod revoke_time;
mod scale;
mod sequences;
mod several;
pub mod sleep;
mod status;
pub mod suspend;
mod trace;
mod virtio;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::kunit;
use crate::lab::Lab;

/// The tests of one boot.
pub struct Suite {
    pub name: &'static str,
    pub tests: &'static [Test],
}

/// A test. It runs in a process of its own and has failed if it returns an error.
pub struct Test {
    pub name: &'static str,
    /// How long it may take under emulation on a busy machine.
    pub limit: Duration,
    /// Whether its state is kept for the tests after it.
    pub leaves_state: bool,
    /// Whether it runs for the time on the command line, in addition to the limit.
    pub as_long_as_asked: bool,
    pub run: fn(&mut Lab) -> Result<()>,
}

impl Test {
    const fn new(name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Test {
        Test {
            name,
            limit: Duration::from_secs(60),
            leaves_state: false,
            as_long_as_asked: false,
            run,
        }
    }

    /// A test that builds on the state of the tests before it.
    const fn step(name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Test {
        Test {
            leaves_state: true,
            ..Test::new(name, run)
        }
    }

    const fn within(mut self, seconds: u64) -> Test {
        self.limit = Duration::from_secs(seconds);
        self
    }

    const fn or_as_long_as_asked(mut self) -> Test {
        self.as_long_as_asked = true;
        self
    }
}

const ALL: &[Suite] = &[
    bind::SUITE,
    modes::SUITE,
    block::SUITE,
    block_errors::SUITE,
    flush::SUITE,
    fio::SUITE,
    dax::EXT4,
    dax::XFS,
    partitions::SUITE,
    several::SUITE,
    dm::SUITE,
    probe::SUITE,
    probe::ARENAS,
    except::SUITE,
    status::SUITE,
    trace::SUITE,
    notice::SUITE,
    suspend::SUITE,
    lease::SUITE,
    kdump::SUITE,
    fuzz::SUITE,
    parity::SUITE,
    legacy::SUITE,
    lockdown::SUITE,
    media::SUITE,
    platform::SUITE,
    kunit::SUITE,
    kunit::ABSTRACTIONS,
    misuse::SUITE,
    misuse::EXIT,
    device_tree::SUITE,
    device_tree::RESERVED,
    virtio::SUITE,
    container_images::SUITE,
    providers::SUITE,
    region::SUITE,
    cxl::SUITE,
    cxl::REVOKE,
    programs::SUITE,
    revoke::EXT4,
    revoke::EXT4_NO_JOURNAL,
    revoke::XFS,
    revoke::XFS_RMAP,
    revoke::XFS_REFLINK,
    revoke::EROFS,
    revoke::SPECIAL,
    revoke::STRESS,
    revoke::WINDOW,
    revoke_time::SUITE,
    scale::SUITE,
    scale::LARGE_SUITE,
    namespaces::SUITE,
    persistence::WRITE,
    persistence::AFTER_POWER_CUT,
    persistence::AFTER_POWER_OFF,
    crash::FIRST,
    crash::AGAIN,
    crash::LAST,
    in_use::POWER_OFF,
    in_use::AFTER_POWER_OFF,
    going_down::LEASE_ON_MEDIUM,
    going_down::LEASE_WITHOUT_LIMIT,
    going_down::PIN_WITHOUT_LIMIT,
    going_down::NOTICE,
    sleep::SUITE,
    sleep::AFTER,
    sleep::IDLE,
    #[cfg(target_arch = "x86_64")]
    bench::counting::SUITE,
    ordering::SUITE,
    ordering::KEXEC,
    bench::TIME,
    bench::COUNT,
    bench::WHOLE,
    bench_metal::SUITE,
    kernel_bugs::SUITE,
    allocations::SUITE,
    allocations::MORE,
    sequences::SUITE,
    harness::FAULTS,
    harness::PANIC,
    planted::SUITE,
    demo::FIRST_BOOT,
    demo::SECOND_BOOT,
];

/// Finds a suite by its name.
pub fn find(name: &str) -> Result<&'static Suite> {
    ALL.iter()
        .find(|suite| suite.name == name)
        .with_context(|| format!("no suite `{name}`"))
}
