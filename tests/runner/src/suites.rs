// SPDX-License-Identifier: GPL-2.0

//! The suites, and the machine that each needs. The tests themselves are in the guest's program.

use anyhow::{Result, bail};

use crate::guest::Cut;
use crate::machine::{Machine, Nvdimm, PLAIN};
use crate::needs::Platform;

/// One or more boots of one machine, with the same files behind its NVDIMMs. A suite of one boot
/// may share it with others.
pub struct Suite {
    pub name: &'static str,
    pub machine: Machine,
    pub boots: &'static [Boot],
    /// Whether the suite shares no boot, and no other guest runs at the same time: its tests judge
    /// durations, or leave what other suites cannot use.
    pub alone: bool,
}

impl Suite {
    /// Whether one boot can run both suites.
    pub fn can_share_boot(&self, other: &Suite) -> bool {
        let ([mine], [others]) = (self.boots, other.boots) else {
            return false;
        };
        !self.alone
            && !other.alone
            && self.machine == other.machine
            && mine.end == Power::Off
            && others.end == Power::Off
            && mine.kernel_words() == others.kernel_words()
    }
}

/// A boot, which runs one of the guest's suites.
pub struct Boot {
    pub suite: &'static str,
    pub end: Power,
}

/// How a boot ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// The guest switches itself off.
    Off,
    /// The guest switches itself off while processes use its devices.
    InUse,
    /// The guest switches itself off, or reboots, while a device is being unbound.
    Unbinding,
    /// The guest reboots without a sync, which ends QEMU.
    Rebooted,
    /// The guest starts another kernel without a sync. That kernel reboots, which ends QEMU.
    Kexec,
    /// The guest hibernates while processes use its devices.
    Hibernated,
    /// The guest goes on with what the boot before has left, and reboots, which ends QEMU.
    Resumed,
    /// The guest is killed after its work, without cleaning up.
    Cut,
    /// The guest is killed in the middle of its work.
    Lost(Cut),
}

impl Boot {
    /// Additional parameters of the kernel.
    pub fn kernel_words(&self) -> &'static str {
        if self.suite == KUNIT.name {
            "kunit.filter_glob=pmem_rs_[!x]*"
        } else if self.suite == KUNIT_ABSTRACTIONS.name {
            "kunit.filter_glob=rust_*"
        } else if self.suite == MISUSE.name {
            "kunit.filter_glob=pmem_rs_x_misuse*"
        } else if self.suite == MISUSE_EXIT {
            "kunit.filter_glob=pmem_rs_x_exit*"
        } else {
            WITHOUT_KUNIT
        }
    }

    pub const fn off(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Off,
        }
    }

    const fn in_use(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::InUse,
        }
    }

    const fn unbinding(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Unbinding,
        }
    }

    pub const fn rebooted(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Rebooted,
        }
    }

    pub const fn kexec(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Kexec,
        }
    }

    const fn hibernated(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Hibernated,
        }
    }

    const fn resumed(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Resumed,
        }
    }

    const fn cut(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Cut,
        }
    }
}

/// An NVDIMM that is large enough for xfs.
pub const ONE: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512)],
    ..PLAIN
};
const TWO: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512), Nvdimm::volatile(512)],
    ..PLAIN
};
/// A machine of its own, since a boot that was locked down stays so.
const LOCKED_DOWN: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(496)],
    ..PLAIN
};
/// Memory that the command line declares persistent, in the middle of the guest's, and a range
/// whose size is no multiple of 16 MiB.
const LEGACY: Machine = Machine {
    kernel_words: "memmap=512M!1G memmap=34M!1600M",
    ..PLAIN
};
/// Two such ranges with other memory between them, one that is too small, and one whose address is
/// not aligned.
const TWO_LEGACY: Machine = Machine {
    kernel_words: "memmap=256M!1G memmap=256M!1344M memmap=6K!1700M memmap=9M!1705M",
    ..PLAIN
};
/// Two such ranges that adjoin, and a smaller one, for the benchmark of a user's machine.
const METAL: Machine = Machine {
    kernel_words: "memmap=384M!1G memmap=384M!1408M memmap=64M!1792M",
    ..PLAIN
};
/// Memory that the kernel leaves unused, for the module `injector`, and an NVDIMM.
pub const RESERVED: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512)],
    unused_mib: Some(512),
    ..PLAIN
};
/// The same with two NVDIMMs, for mapped devices.
const LEASED: Machine = Machine {
    nvdimms: TWO.nvdimms,
    ..RESERVED
};
/// An NVDIMM that is large enough for a file of 1 GiB.
const LARGE: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(1536)],
    ..PLAIN
};
/// A virtio-pmem device beside an NVDIMM, and one more to be plugged in.
const VIRTIO: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512)],
    virtio: &[256],
    spares: &[128, 3],
    ..PLAIN
};
/// The devices on which container runtimes offer an image.
const FOR_IMAGES: Machine = Machine {
    nvdimms: &[Nvdimm::for_image(256)],
    virtio: &[256],
    ..PLAIN
};
/// An NVDIMM, and a kernel that is told of the memory of a crashed one.
const KDUMP: Machine = Machine {
    nvdimms: &[Nvdimm::for_image(256)],
    kernel_words: "elfcorehdr=0x90000000",
    ..PLAIN
};
/// A region of each provider, each large enough for xfs.
const ONE_OF_EACH: Machine = Machine {
    unused_mib: Some(512),
    nvdimms: &[Nvdimm::volatile(512)],
    virtio: &[512],
    ..PLAIN
};
/// NVDIMMs on two nodes, and one more to be plugged in, label area included.
const NODES: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512), Nvdimm::volatile(512)],
    spares: &[130],
    numa: true,
    ..PLAIN
};
/// Persistent memory behind CXL, of the smallest size that a region can have: QEMU emulates each
/// access to it, which takes microseconds.
const CXL: Machine = Machine {
    cxl: Some(256),
    // A boot without this and `no5lvl`, which every guest has, was seen to hang.
    kernel_words: "nokaslr",
    ..PLAIN
};
const KEPT: Machine = Machine {
    nvdimms: &[Nvdimm::kept(512), Nvdimm::kept(512), Nvdimm::kept(512)],
    ..PLAIN
};

/// A machine that can sleep, with what outlives it: two NVDIMMs, two virtio-pmem devices and a disk
/// for the image.
const SLEEPING: Machine = Machine {
    nvdimms: &[Nvdimm::kept(512), Nvdimm::kept(128)],
    virtio: &[256, 128],
    disk: Some(2048),
    ..PLAIN
};

/// An NVDIMM for each kind of storage in the crash tests.
pub const FOUR_KEPT: Machine = Machine {
    nvdimms: &[
        Nvdimm::kept(512),
        Nvdimm::kept(512),
        Nvdimm::kept(512),
        Nvdimm::kept(512),
    ],
    ..PLAIN
};

const fn simple(machine: Machine, boots: &'static [Boot]) -> Suite {
    Suite {
        name: boots[0].suite,
        machine,
        boots,
        alone: false,
    }
}

const fn alone(machine: Machine, boots: &'static [Boot]) -> Suite {
    Suite {
        alone: true,
        ..simple(machine, boots)
    }
}

/// Two NVDIMMs, and one that is so large that its contents are in a sparse file.
const SCALE: Machine = Machine {
    nvdimms: &[
        Nvdimm::volatile(512),
        Nvdimm::volatile(512),
        Nvdimm::kept(16384),
    ],
    memory_gib: [2, 32],
    ..PLAIN
};
/// The same for a million inodes, and for a file of 4 GiB.
const SCALE_LARGE: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512), Nvdimm::volatile(4608)],
    memory_gib: [6, 32],
    ..PLAIN
};

/// An NVDIMM on which a btt has two arenas, in a sparse file.
const HUGE: Machine = Machine {
    nvdimms: &[Nvdimm::kept((512 << 10) + 64)],
    memory_gib: [2, 640],
    ..PLAIN
};

/// Memory that only a device tree describes.
const WITH_DEVICE_TREE: Machine = Machine {
    unused_mib: Some(448),
    device_tree: true,
    ..PLAIN
};

/// The same, with the memory of a node taken out of System RAM, as the log advises.
const WITH_RESERVED_NODE: Machine = Machine {
    kernel_words: "memmap=16M$512M",
    ..WITH_DEVICE_TREE
};

/// KUnit suites that leak nothing.
const KUNIT: Suite = simple(ONE, &[Boot::off("kunit")]);
/// KUnit suites of the kernel crate.
const KUNIT_ABSTRACTIONS: Suite = simple(ONE, &[Boot::off("kunit_abstractions")]);
/// KUnit suites that leak ranges until reboot, and two kinds of persistent memory that must stay
/// intact.
const MISUSE: Suite = Suite {
    name: "misuse",
    machine: Machine {
        kernel_words: "memmap=512M!1G",
        ..ONE
    },
    alone: false,
    boots: &[Boot::off("misuse"), Boot::off(MISUSE_EXIT)],
};
/// The boot of the KUnit suite after which an unload of the module never ends.
const MISUSE_EXIT: &str = "misuse_exit";

/// In the order of their run: the basic suites come first. Not every kernel can run all
/// (`needs.rs`).
const ALL: &[Suite] = &[
    KUNIT,
    KUNIT_ABSTRACTIONS,
    MISUSE,
    simple(WITH_DEVICE_TREE, &[Boot::off("device_tree")]),
    simple(WITH_RESERVED_NODE, &[Boot::off("device_tree_reserved")]),
    // It uses one NVDIMM of two, so that it shares a boot with `revoke_ext4`.
    simple(TWO, &[Boot::off("allocations")]),
    simple(ONE, &[Boot::off("allocations_more")]),
    simple(ONE, &[Boot::off("bind")]),
    simple(ONE, &[Boot::off("modes")]),
    simple(ONE, &[Boot::off("probe")]),
    simple(HUGE, &[Boot::off("arenas")]),
    simple(ONE, &[Boot::off("except")]),
    simple(ONE, &[Boot::off("status")]),
    simple(ONE, &[Boot::off("trace")]),
    simple(ONE, &[Boot::off("notice")]),
    simple(LEASED, &[Boot::off("lease")]),
    simple(KDUMP, &[Boot::off("kdump")]),
    simple(ONE, &[Boot::off("fuzz")]),
    simple(ONE, &[Boot::off("block")]),
    simple(ONE, &[Boot::off("block_errors")]),
    simple(ONE, &[Boot::off("flush")]),
    simple(ONE, &[Boot::off("fio")]),
    simple(ONE, &[Boot::off("ext4")]),
    simple(ONE, &[Boot::off("xfs")]),
    simple(ONE, &[Boot::off("partitions")]),
    simple(TWO, &[Boot::off("several")]),
    simple(TWO, &[Boot::off("dm")]),
    simple(TWO, &[Boot::off("parity")]),
    // After `parity`, which compares devices that were used alike.
    simple(TWO, &[Boot::off("suspend")]),
    simple(LEGACY, &[Boot::off("legacy")]),
    simple(LOCKED_DOWN, &[Boot::off("lockdown")]),
    simple(RESERVED, &[Boot::off("media")]),
    simple(TWO_LEGACY, &[Boot::off("platform")]),
    simple(METAL, &[Boot::off("bench_metal")]),
    simple(VIRTIO, &[Boot::off("virtio")]),
    simple(FOR_IMAGES, &[Boot::off("container_images")]),
    simple(NODES, &[Boot::off("providers")]),
    simple(TWO, &[Boot::off("revoke_ext4")]),
    simple(TWO, &[Boot::off("revoke_ext4_nojournal")]),
    simple(TWO, &[Boot::off("revoke_xfs")]),
    simple(TWO, &[Boot::off("revoke_xfs_rmap")]),
    simple(TWO, &[Boot::off("revoke_xfs_reflink")]),
    simple(TWO, &[Boot::off("revoke_erofs")]),
    simple(TWO, &[Boot::off("revoke_special")]),
    simple(TWO, &[Boot::off("revoke_stress")]),
    simple(TWO, &[Boot::off("window")]),
    // It leaves a region that cannot be used.
    alone(ONE, &[Boot::off("region")]),
    alone(LARGE, &[Boot::off("revoke_time")]),
    simple(ONE_OF_EACH, &[Boot::off("sequences")]),
    Suite {
        name: "persistence",
        machine: KEPT,
        alone: false,
        boots: &[
            Boot::cut("persistence_write"),
            Boot::off("persistence_after_power_cut"),
            Boot::off("persistence_after_power_off"),
        ],
    },
    Suite {
        name: "in_use",
        machine: KEPT,
        alone: false,
        boots: &[
            Boot::in_use("in_use_power_off"),
            Boot::off("in_use_after_power_off"),
        ],
    },
    Suite {
        name: "going_down",
        machine: ONE,
        alone: false,
        boots: &[
            Boot::unbinding("down_with_lease_on_medium"),
            Boot::unbinding("down_with_lease_without_limit"),
            Boot::unbinding("down_with_pin_without_limit"),
            Boot::unbinding("down_during_notice"),
        ],
    },
    simple(CXL, &[Boot::off("cxl")]),
    simple(CXL, &[Boot::off("revoke_cxl")]),
    simple(TWO, &[Boot::off("programs")]),
    simple(SCALE, &[Boot::off("scale")]),
    simple(SCALE, &[Boot::off("namespaces")]),
    Suite {
        name: "sleep",
        machine: SLEEPING,
        alone: false,
        boots: &[
            Boot::hibernated("sleep"),
            Boot::resumed("sleep_after_hibernation"),
        ],
    },
    simple(SLEEPING, &[Boot::off("sleep_idle")]),
];

/// Disables KUnit in the other suites. Otherwise the kernel runs those tests whenever the module is
/// loaded.
const WITHOUT_KUNIT: &str = "kunit.enable=0";

/// Suites that take too long to be run with all others.
const BY_NAME: &[Suite] = &[alone(SCALE_LARGE, &[Boot::off("scale_large")])];

/// Suites whose results are not the guest's alone. Each has its own guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The runner itself.
    Selftest,
    /// The counting of instructions.
    Counting,
    /// The order of stores, flushes and fences, as a plugin sees it.
    Ordering,
    /// Guests that are killed.
    Crash,
}

impl Special {
    pub const ALL: [Special; 4] = [
        Special::Selftest,
        Special::Counting,
        Special::Ordering,
        Special::Crash,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Special::Selftest => "selftest",
            Special::Counting => "counting",
            Special::Ordering => "ordering",
            Special::Crash => "crash",
        }
    }
}

/// An NVDIMM, one CPU, and fixed addresses of the kernel, which the plugin needs.
pub const WATCHED: Machine = Machine {
    cpus: 1,
    kernel_words: "nokaslr",
    ..ONE
};

/// The same with another kernel to start.
pub const WATCHED_KEXEC: Machine = Machine {
    kernel_on_disk: true,
    ..WATCHED
};

/// The tests of `ordering` as a suite that does not judge what the plugin sees.
pub const UNJUDGED_ORDERING: Suite = simple(WATCHED, &[Boot::off(Special::Ordering.name())]);

/// Both drivers side by side, on one CPU, which counting needs, and on a kernel as users have it.
/// Each has an NVDIMM that is large enough for a device of 1 GiB.
pub const COUNTED_PAIR: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(1152), Nvdimm::volatile(1152)],
    cpus: 1,
    fast: false,
    ..PLAIN
};
/// The same for times, with two CPUs for the two jobs of some cases.
pub const TIMED_PAIR: Machine = Machine {
    cpus: PLAIN.cpus,
    ..COUNTED_PAIR
};

/// The selected suites.
#[derive(Default)]
pub struct Selection {
    pub specials: Vec<Special>,
    pub suites: Vec<&'static Suite>,
    /// Those that cannot run, with the reason.
    pub skipped: Vec<(&'static str, &'static str)>,
}

/// Returns the suite of this name.
pub fn find(name: &str) -> Option<&'static Suite> {
    let mut all = ALL.iter().chain(BY_NAME);
    all.find(|suite| suite.name == name)
}

/// Selects suites by name. No name means all but [`BY_NAME`].
pub fn select(names: &[String], platform: &Platform) -> Result<Selection> {
    let mut selection = Selection::default();
    let all = ALL.iter().map(|suite| suite.name);
    let mut wanted: Vec<&str> = Special::ALL
        .map(Special::name)
        .into_iter()
        .chain(all)
        .collect();
    if !names.is_empty() {
        wanted = names.iter().map(String::as_str).collect();
    }
    for name in wanted {
        let special = Special::ALL
            .into_iter()
            .find(|special| special.name() == name);
        match (find(name), special) {
            (None, None) => {
                let all = ALL.iter().chain(BY_NAME).map(|suite| suite.name);
                let known = Special::ALL.map(Special::name).into_iter().chain(all);
                let known: Vec<&str> = known.collect();
                bail!("no suite `{name}`; there are {}", known.join(", "))
            }
            (suite, special) => match platform.reason_to_skip(name) {
                Some(reason) => {
                    let name = suite.map(|suite| suite.name);
                    let name = name.or(special.map(Special::name)).unwrap_or_default();
                    selection.skipped.push((name, reason));
                }
                None => {
                    selection.suites.extend(suite);
                    selection.specials.extend(special);
                }
            },
        }
    }
    Ok(selection)
}
