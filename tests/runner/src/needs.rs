// SPDX-License-Identifier: GPL-2.0

//! Which suites run where: what a suite needs beside NVDIMMs, and what kernels and machines offer.

use std::collections::HashSet;
use std::fs;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::env::Env;

/// What not every kernel and every machine offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A plugin of QEMU that watches the guest.
    Plugin,
    /// Memory that the command line declares persistent (`memmap=SIZE!START`).
    DeclaredMemory,
    /// Memory that only a device tree describes.
    DeviceTree,
    /// A command line that takes any range away from the kernel, for a node in System RAM.
    ReservedNode,
    /// virtio-pmem devices.
    VirtioPmem,
    /// Persistent memory behind CXL.
    Cxl,
    /// A kernel that can be one for a crash dump.
    CrashDump,
    /// A kernel that can be locked down.
    Lockdown,
    /// Sleep with the firmware's help (S3), and hibernation.
    Sleep,
    /// Pages as large as the blocks of an erofs.
    SmallPages,
    /// A kernel that is fast and has memory left.
    NoCheckers,
    /// KUnit.
    KUnit,
    /// The patches of `upstream/`.
    Patches,
    /// Allocations that fail on demand.
    FailingAllocations,
}

use Need::*;

/// The suites with needs.
const TABLE: &[(&str, &[Need])] = &[
    ("counting", &[Plugin, NoCheckers]),
    ("ordering", &[Plugin, NoCheckers]),
    ("kunit", &[KUnit]),
    ("kunit_abstractions", &[KUnit, Patches]),
    ("misuse", &[KUnit, DeclaredMemory]),
    ("allocations", &[FailingAllocations]),
    ("allocations_more", &[FailingAllocations]),
    ("device_tree", &[DeviceTree]),
    ("device_tree_reserved", &[DeviceTree, ReservedNode]),
    ("legacy", &[DeclaredMemory]),
    ("kdump", &[CrashDump]),
    ("lockdown", &[Lockdown]),
    ("platform", &[DeclaredMemory]),
    ("bench_metal", &[DeclaredMemory]),
    ("cxl", &[Cxl]),
    ("revoke_cxl", &[Cxl]),
    ("virtio", &[VirtioPmem]),
    ("container_images", &[VirtioPmem]),
    ("sequences", &[VirtioPmem]),
    ("sleep", &[Sleep, VirtioPmem]),
    ("sleep_idle", &[Sleep, VirtioPmem]),
    ("revoke_erofs", &[SmallPages]),
    // Under all checkers the programs would take minutes, and KASAN has no memory left beside
    // 16 GiB.
    ("programs", &[NoCheckers]),
    ("scale", &[NoCheckers]),
    ("scale_large", &[NoCheckers]),
    ("namespaces", &[NoCheckers]),
];

/// A kernel and the machines for it.
pub struct Platform {
    pub arch: Arch,
    has_checkers: bool,
    /// The symbols that are set in the kernel's configuration.
    configured: HashSet<String>,
}

impl Platform {
    pub fn of(env: &Env) -> Result<Platform> {
        let config = env.build.join(".config");
        let config =
            fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
        let set = config.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            matches!(value, "y" | "m").then(|| name.to_owned())
        });
        Ok(Platform {
            arch: env.arch,
            has_checkers: env.planted.is_some(),
            configured: set.collect(),
        })
    }

    fn has(&self, symbol: &str) -> bool {
        self.configured.contains(symbol)
    }

    /// Returns why a need is not met.
    fn lack(&self, need: Need) -> Option<&'static str> {
        let pc = self.arch == Arch::Amd64;
        let (met, reason) = match need {
            Plugin => (pc, "the plugins of QEMU know x86 only"),
            DeclaredMemory => (
                self.has("CONFIG_X86_PMEM_LEGACY"),
                "only x86 has memmap=SIZE!START",
            ),
            DeviceTree => (
                self.has("CONFIG_OF_PMEM"),
                "the kernel has no of_pmem (CONFIG_OF)",
            ),
            ReservedNode => (pc, "QEMU's virt lists all memory in its memory nodes"),
            VirtioPmem => (pc, "QEMU has virtio-pmem for x86 only"),
            Cxl if pc => (
                self.has("CONFIG_CXL_PMEM"),
                "the kernel has no CONFIG_CXL_PMEM",
            ),
            Cxl => (false, "QEMU's virt has no CXL host bridge"),
            CrashDump => (
                self.has("CONFIG_CRASH_DUMP"),
                "the kernel has no CONFIG_CRASH_DUMP",
            ),
            Lockdown => (
                self.has("CONFIG_SECURITY_LOCKDOWN_LSM"),
                "the kernel has no CONFIG_SECURITY_LOCKDOWN_LSM",
            ),
            Sleep if pc => (
                self.has("CONFIG_SUSPEND") && self.has("CONFIG_HIBERNATION"),
                "the kernel has no CONFIG_SUSPEND or no CONFIG_HIBERNATION",
            ),
            Sleep => (false, "QEMU's virt has no S3"),
            SmallPages => (
                !self.has("CONFIG_ARM64_16K_PAGES"),
                "mkfs.erofs makes blocks of at most 4 KiB, which have no DAX",
            ),
            NoCheckers => (
                !self.has_checkers,
                "takes too long, or too much memory, under all checkers",
            ),
            KUnit => (self.has("CONFIG_KUNIT"), "the kernel has no CONFIG_KUNIT"),
            Patches => (
                self.has("CONFIG_BLK_DEV_PMEM_RUST"),
                "only make guests KERNEL_BUILD=patched has a kernel with the patches",
            ),
            FailingAllocations => (
                self.has("CONFIG_FAILSLAB"),
                "the kernel has no CONFIG_FAILSLAB",
            ),
        };
        (!met).then_some(reason)
    }

    /// Returns why a suite cannot run, if it cannot.
    pub fn reason_to_skip(&self, suite: &str) -> Option<&'static str> {
        let (_, needs) = TABLE.iter().find(|(name, _)| *name == suite)?;
        needs.iter().find_map(|need| self.lack(*need))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suites::Special;

    #[test]
    fn every_name_in_the_table_is_a_suite() {
        for (name, _) in TABLE {
            let special = Special::ALL.iter().any(|special| special.name() == *name);
            assert!(special || crate::suites::find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_reason_names_what_is_missing() {
        let platform = |arch, symbols: &[&str]| Platform {
            arch,
            has_checkers: false,
            configured: symbols.iter().map(|&symbol| symbol.to_owned()).collect(),
        };
        let pc = platform(Arch::Amd64, &["CONFIG_X86_PMEM_LEGACY"]);
        assert_eq!(pc.reason_to_skip("legacy"), None);
        assert_eq!(pc.reason_to_skip("ext4"), None);
        assert!(
            pc.reason_to_skip("cxl")
                .is_some_and(|why| why.contains("CXL_PMEM"))
        );
        let arm = platform(Arch::Arm64, &["CONFIG_CXL_PMEM", "CONFIG_OF_PMEM"]);
        assert_eq!(arm.reason_to_skip("device_tree"), None);
        assert!(arm.reason_to_skip("legacy").is_some());
        assert!(
            arm.reason_to_skip("cxl")
                .is_some_and(|why| why.contains("virt"))
        );
        assert!(
            arm.reason_to_skip("ordering")
                .is_some_and(|why| why.contains("plugins"))
        );
    }
}
