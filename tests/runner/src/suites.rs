// SPDX-License-Identifier: GPL-2.0

//! What can be run, and the machine that each needs. The tests themselves are the guest's.

use anyhow::{Result, bail};

use crate::guest::Cut;
use crate::machine::{Machine, Nvdimm, PLAIN};

/// One or more boots of one machine, whose kept NVDIMMs are the same in all of them. A suite of one boot may share
/// it with others.
pub struct Suite {
    pub name: &'static str,
    pub machine: Machine,
    pub boots: &'static [Boot],
    /// Its tests judge how long something takes, so no other guest may run meanwhile.
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

/// One boot: it runs one of the guest's suites.
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
    /// The guest is killed when it has done its work, and before it has tidied up.
    Cut,
    /// The guest is killed in the middle of its work.
    Lost(Cut),
}

impl Boot {
    /// More words for the kernel.
    pub fn kernel_words(&self) -> &'static str {
        if self.suite == KUNIT.name {
            "kunit.filter_glob=pmem_rs_[!x]*"
        } else if self.suite == MISUSE.name {
            "kunit.filter_glob=pmem_rs_x_misuse*"
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

    const fn cut(suite: &'static str) -> Boot {
        Boot {
            suite,
            end: Power::Cut,
        }
    }
}

/// An NVDIMM on which xfs fits.
pub const ONE: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512)],
    ..PLAIN
};
const TWO: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512), Nvdimm::volatile(512)],
    ..PLAIN
};
/// Memory that only the command line calls persistent, in the middle of the guest's.
const LEGACY: Machine = Machine {
    kernel_words: "memmap=512M!1G",
    ..PLAIN
};
/// Two such ranges, with other memory between them, and one that is not whole pages.
const TWO_LEGACY: Machine = Machine {
    kernel_words: "memmap=256M!1G memmap=256M!1344M memmap=6K!1700M",
    ..PLAIN
};
/// Memory that nobody uses until the module `injector` does.
const RESERVED: Machine = Machine {
    kernel_words: "memmap=512M$1G",
    ..PLAIN
};
/// An NVDIMM on which a file of 1 GiB fits.
const LARGE: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(1536)],
    ..PLAIN
};
/// A virtio-pmem device beside an NVDIMM, and one more to be plugged in.
const VIRTIO: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(512)],
    virtio: &[256],
    spares: &[128],
    ..PLAIN
};
/// One region of each provider, on each of which xfs fits.
const ONE_OF_EACH: Machine = Machine {
    kernel_words: "memmap=512M$1G",
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
const KEPT: Machine = Machine {
    nvdimms: &[Nvdimm::kept(512), Nvdimm::kept(512), Nvdimm::kept(512)],
    ..PLAIN
};

/// One for each kind of place that crashes are survived in.
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

/// Memory that only a device tree describes.
const WITH_DEVICE_TREE: Machine = Machine {
    kernel_words: "memmap=448M$1G",
    device_tree: Some(include_str!("device_tree.dts")),
    ..PLAIN
};

/// The tests inside the module, for kernels that have KUnit, but for those that leak.
const KUNIT: Suite = simple(ONE, &[Boot::off("kunit")]);
/// Those that leak ranges until reboot, and persistent memory of two kinds that must stay as good as ever.
const MISUSE: Suite = simple(
    Machine {
        kernel_words: "memmap=512M!1G",
        ..ONE
    },
    &[Boot::off("misuse")],
);
/// What only the debug kernel has what it takes for.
const DEBUG_ONLY: &[Suite] = &[
    KUNIT,
    MISUSE,
    simple(WITH_DEVICE_TREE, &[Boot::off("device_tree")]),
    // On one NVDIMM of two: so it shares a boot with `revoke_ext4`.
    simple(TWO, &[Boot::off("allocations")]),
    simple(ONE, &[Boot::off("allocations_more")]),
];
/// What the other suites tell such a kernel: or it would run those tests whenever the module is loaded.
const WITHOUT_KUNIT: &str = "kunit.enable=0";

/// In the order in which they are run: what everything else depends on comes first.
pub const ALL: &[Suite] = &[
    simple(ONE, &[Boot::off("bind")]),
    simple(ONE, &[Boot::off("modes")]),
    simple(ONE, &[Boot::off("probe")]),
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
    simple(LEGACY, &[Boot::off("legacy")]),
    simple(RESERVED, &[Boot::off("media")]),
    simple(TWO_LEGACY, &[Boot::off("platform")]),
    simple(VIRTIO, &[Boot::off("virtio")]),
    simple(NODES, &[Boot::off("providers")]),
    simple(TWO, &[Boot::off("revoke_ext4")]),
    simple(TWO, &[Boot::off("revoke_ext4_nojournal")]),
    simple(TWO, &[Boot::off("revoke_xfs")]),
    simple(TWO, &[Boot::off("revoke_xfs_rmap")]),
    simple(TWO, &[Boot::off("revoke_xfs_reflink")]),
    simple(TWO, &[Boot::off("revoke_erofs")]),
    simple(TWO, &[Boot::off("revoke_special")]),
    simple(TWO, &[Boot::off("revoke_stress")]),
    simple(ONE, &[Boot::off("window")]),
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
];

/// Suites that are more than what guests say of themselves. Each has guests of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The runner itself.
    Selftest,
    /// That instructions are counted right.
    Counting,
    /// What is flushed, as a plugin sees it.
    Ordering,
    /// Guests that are killed.
    Crash,
}

impl Special {
    const ALL: [Special; 4] = [
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

    /// Whether it says something about the kernel with all checkers, too.
    fn is_for_debug(self) -> bool {
        matches!(self, Special::Selftest | Special::Crash)
    }
}

/// An NVDIMM, one CPU, and addresses of the kernel that the plugin knows.
pub const WATCHED: Machine = Machine {
    cpus: 1,
    kernel_words: "nokaslr",
    ..ONE
};

/// These tests as a suite, for who wants to run them without judging them.
pub const UNJUDGED_ORDERING: Suite = simple(WATCHED, &[Boot::off(Special::Ordering.name())]);

/// Both drivers side by side, each with an NVDIMM on which a device of 1 GiB fits, and a CPU whose instructions
/// can be counted.
pub const COUNTED_PAIR: Machine = Machine {
    nvdimms: &[Nvdimm::volatile(1152), Nvdimm::volatile(1152)],
    cpus: 1,
    ..PLAIN
};
/// The same to be timed: there may be two who use a device.
pub const TIMED_PAIR: Machine = Machine {
    cpus: PLAIN.cpus,
    ..COUNTED_PAIR
};

/// What was asked for.
pub struct Selection {
    pub specials: Vec<Special>,
    pub suites: Vec<&'static Suite>,
}

/// Picks suites by name; none means all. A debug kernel has some more.
pub fn select(names: &[String], debug: bool) -> Result<Selection> {
    let more = if debug { DEBUG_ONLY } else { &[] };
    let all: Vec<&'static Suite> = more.iter().chain(ALL).collect();
    if names.is_empty() {
        let mut specials = Special::ALL.to_vec();
        specials.retain(|special| !debug || special.is_for_debug());
        return Ok(Selection {
            specials,
            suites: all,
        });
    }
    let mut selection = Selection {
        specials: Vec::new(),
        suites: Vec::new(),
    };
    for name in names {
        let special = Special::ALL
            .into_iter()
            .find(|special| special.name() == name);
        match (all.iter().find(|suite| suite.name == name), special) {
            (Some(suite), _) => selection.suites.push(suite),
            (None, Some(special)) => selection.specials.push(special),
            (None, None) => {
                let known = Special::ALL.map(Special::name).into_iter();
                let known: Vec<&str> = known.chain(all.iter().map(|suite| suite.name)).collect();
                bail!("no suite `{name}`; there are {}", known.join(", "))
            }
        }
    }
    Ok(selection)
}
