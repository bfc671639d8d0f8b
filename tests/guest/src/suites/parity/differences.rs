// SPDX-License-Identifier: GPL-2.0

//! Intended differences between pmem_rs and nd_pmem. `docs/parity.md` has the same list, for users.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::facts::Facts;
use crate::ndctl::Mode;

/// One intended difference.
struct Difference {
    /// The name of the fact. A `*` at its end stands for any rest.
    fact: &'static str,
    /// In which modes the drivers differ.
    modes: &'static [Mode],
    /// The reason.
    reason: &'static str,
}

/// The modes in which the driver is bound.
const DRIVEN: &[Mode] = &[Mode::Raw, Mode::FsdaxMem, Mode::FsdaxDev, Mode::Sector];
/// The modes in which the driver makes the disk.
const OWN_DISK: &[Mode] = &[Mode::Raw, Mode::FsdaxMem, Mode::FsdaxDev];
const ALL: &[Mode] = &[
    Mode::Raw,
    Mode::FsdaxMem,
    Mode::FsdaxDev,
    Mode::Sector,
    Mode::Devdax,
];

const WANTED: &[Difference] = &[
    Difference {
        fact: "nd/driver",
        modes: DRIVEN,
        reason: "it is another driver",
    },
    Difference {
        fact: "nd/uevent",
        modes: DRIVEN,
        reason: "it names the driver",
    },
    Difference {
        fact: "namespace/driver",
        modes: &[Mode::Raw],
        reason: "it is another driver",
    },
    Difference {
        fact: "namespace/uevent",
        modes: &[Mode::Raw],
        reason: "it names the driver",
    },
    Difference {
        fact: "nd/pmem_rs/*",
        modes: DRIVEN,
        reason: "it says what is bound",
    },
    Difference {
        fact: "namespace/pmem_rs/*",
        modes: &[Mode::Raw],
        reason: "it says what is bound",
    },
    Difference {
        fact: "rebind/uevent/bind BOUND",
        modes: DRIVEN,
        reason: "it names the driver",
    },
    Difference {
        fact: "rebind/uevent/change BOUND",
        modes: OWN_DISK,
        reason: "users are notified before the device is unbound",
    },
    Difference {
        fact: "rebind/uevent/change DISK",
        modes: OWN_DISK,
        reason: "users are notified before the device is unbound",
    },
    Difference {
        fact: "rebind/uevents",
        modes: OWN_DISK,
        reason: "users are notified before the device is unbound",
    },
    Difference {
        fact: "modinfo/parm",
        modes: ALL,
        reason: "how long unbind waits can be chosen",
    },
    Difference {
        fact: "modinfo/alias",
        modes: ALL,
        reason: "it also drives what nd_e820 and of_pmem do",
    },
    Difference {
        fact: "debugfs",
        modes: ALL,
        reason: "debugfs shows the users and the retired ranges",
    },
    Difference {
        fact: "sysfs/queue/write_zeroes_max_bytes",
        modes: OWN_DISK,
        reason: "zeroes are written without data",
    },
    Difference {
        fact: "partitioned/sysfs/queue/write_zeroes_max_bytes",
        modes: OWN_DISK,
        reason: "zeroes are written without data",
    },
    Difference {
        fact: "io/fallocate/punch",
        modes: OWN_DISK,
        reason: "zeroes are written without data",
    },
    Difference {
        fact: "io/write/nowait",
        modes: OWN_DISK,
        reason: "a write does not wait, unless it repairs memory",
    },
    Difference {
        fact: "io/read/bad",
        modes: OWN_DISK,
        reason: "a bad medium is distinguished from a failed request",
    },
];

impl Difference {
    fn is_about(&self, fact: &str) -> bool {
        match self.fact.strip_suffix('*') {
            Some(start) => fact.starts_with(start),
            None => fact == self.fact,
        }
    }
}

/// Checks that the drivers differ only where they are intended to, and do so there.
pub fn judge(mode: Mode, ours: &Facts, theirs: &Facts) -> Result<()> {
    let none = "(not there)".to_owned();
    let all: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differ = |fact: &&&String| ours.get(**fact) != theirs.get(**fact);
    let differing: Vec<&String> = all.iter().filter(differ).copied().collect();

    let mut complaints = Vec::new();
    for fact in &differing {
        let wanted = WANTED
            .iter()
            .any(|wanted| wanted.modes.contains(&mode) && wanted.is_about(fact));
        if !wanted {
            let (our, their) = (ours.get(*fact), theirs.get(*fact));
            complaints.push(format!(
                "{fact}: `{}`, with nd_pmem `{}`",
                our.unwrap_or(&none),
                their.unwrap_or(&none),
            ));
        }
    }
    for wanted in WANTED.iter().filter(|wanted| wanted.modes.contains(&mode)) {
        if !differing.iter().any(|fact| wanted.is_about(fact)) {
            complaints.push(format!(
                "{}: no difference any more; it was wanted because {}",
                wanted.fact, wanted.reason
            ));
        }
    }
    ensure!(
        complaints.is_empty(),
        "{mode:?}:\n{}",
        complaints.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::WANTED;

    #[test]
    fn all_differences_are_documented() {
        let text = include_str!("../../../../../docs/parity.md");
        for wanted in WANTED {
            let entry = format!("`{}`", wanted.fact);
            assert!(
                text.contains(&entry),
                "docs/parity.md does not have {entry}"
            );
        }
    }
}
