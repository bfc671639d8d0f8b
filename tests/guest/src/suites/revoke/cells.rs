// SPDX-License-Identifier: GPL-2.0

//! The cells, a suite for each file system: every user on every file system, and every pair of
//! values of any two axes that is possible.
//!
//! Impossible in 7.3 are writes to files of erofs, and xfs with reflink on a partition that is
//! mounted with `dax=always`. `ndctl` is not among the ways: it refuses to disable or destroy what
//! is mounted or held by device-mapper.

use super::{Cell, Fs, Under, User, Way};
use crate::suites::{Suite, Test};

macro_rules! fs {
    (ext4) => {
        Fs::Ext4
    };
    (ext4_nojournal) => {
        Fs::Ext4NoJournal
    };
    (xfs) => {
        Fs::Xfs
    };
    (xfs_rmap) => {
        Fs::XfsRmap
    };
    (xfs_reflink) => {
        Fs::XfsReflink
    };
    (erofs) => {
        Fs::Erofs
    };
}

macro_rules! under {
    (whole) => {
        Under::Whole
    };
    (partition) => {
        Under::Partition
    };
    (linear) => {
        Under::Linear
    };
    (stripe) => {
        Under::Stripe
    };
}

macro_rules! user {
    (reader) => {
        User::Reader
    };
    (writer) => {
        User::Writer
    };
    (private) => {
        User::Private
    };
    (idle) => {
        User::Idle
    };
    (fork) => {
        User::Fork
    };
    (mlock) => {
        User::Mlock
    };
    (pmd) => {
        User::Pmd
    };
    (pipe) => {
        User::Pipe
    };
    (closed_pipe) => {
        User::ClosedPipe
    };
    (direct) => {
        User::Direct
    };
    (calls) => {
        User::Calls
    };
}

macro_rules! way {
    (unbind) => {
        Way::Unbind
    };
    (region) => {
        Way::Region
    };
    (provider) => {
        Way::Provider
    };
}

/// The suite and the list of cells of one file system. Tests are named by their axes.
macro_rules! cells {
    ($suite:ident, $list:ident, $fs:ident, [$($under:ident $user:ident $way:ident,)*]) => {
        pub const $suite: Suite = Suite {
            name: concat!("revoke_", stringify!($fs)),
            tests: &[$(Test::new(
                concat!(stringify!($fs), "_", stringify!($under), "_", stringify!($user), "_", stringify!($way)),
                |lab| {
                    let (fs, under) = (fs!($fs), under!($under));
                    let (user, way) = (user!($user), way!($way));
                    Cell { fs, under, user, way }.run(lab)
                },
            )),*],
        };
        #[cfg(test)]
        const $list: &[Cell] = &[$(
            Cell { fs: fs!($fs), under: under!($under), user: user!($user), way: way!($way) }
        ),*];
    };
}

cells!(EXT4, EXT4_CELLS, ext4, [
    whole reader unbind,
    linear reader region,
    whole writer unbind,
    partition writer region,
    stripe private provider,
    whole idle unbind,
    linear fork region,
    stripe mlock region,
    partition pmd provider,
    whole pipe unbind,
    stripe pipe unbind,
    whole closed_pipe region,
    whole direct region,
    linear calls unbind,
]);

cells!(EXT4_NO_JOURNAL, EXT4_NO_JOURNAL_CELLS, ext4_nojournal, [
    partition reader unbind,
    linear writer provider,
    whole private region,
    stripe idle region,
    partition fork region,
    whole mlock provider,
    stripe pmd unbind,
    partition pipe provider,
    linear closed_pipe region,
    partition direct region,
    whole calls region,
]);

cells!(XFS, XFS_CELLS, xfs, [
    stripe reader provider,
    whole writer unbind,
    linear private region,
    partition idle region,
    stripe fork unbind,
    linear mlock unbind,
    whole pmd region,
    linear pipe region,
    partition closed_pipe provider,
    linear direct provider,
    stripe calls region,
]);

cells!(XFS_RMAP, XFS_RMAP_CELLS, xfs_rmap, [
    whole reader unbind,
    whole reader region,
    whole writer unbind,
    stripe writer region,
    partition private unbind,
    whole idle unbind,
    linear idle provider,
    whole fork provider,
    partition mlock region,
    linear pmd region,
    whole pipe unbind,
    whole pipe region,
    stripe closed_pipe unbind,
    stripe direct unbind,
    partition calls provider,
]);

cells!(XFS_REFLINK, XFS_REFLINK_CELLS, xfs_reflink, [
    whole reader provider,
    linear writer region,
    stripe private region,
    whole idle unbind,
    linear fork unbind,
    stripe mlock provider,
    linear pmd region,
    stripe pipe region,
    whole closed_pipe region,
    stripe direct unbind,
    whole calls region,
]);

cells!(EROFS, EROFS_CELLS, erofs, [
    partition reader unbind,
    linear private provider,
    stripe idle region,
    whole fork region,
    partition mlock region,
    partition pmd provider,
    linear pipe unbind,
    partition closed_pipe region,
    whole direct provider,
    linear calls region,
]);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const FS: &[Fs] = &[
        Fs::Ext4,
        Fs::Ext4NoJournal,
        Fs::Xfs,
        Fs::XfsRmap,
        Fs::XfsReflink,
        Fs::Erofs,
    ];
    const UNDER: &[Under] = &[Under::Whole, Under::Partition, Under::Linear, Under::Stripe];
    const USER: &[User] = &[
        User::Reader,
        User::Writer,
        User::Private,
        User::Idle,
        User::Fork,
        User::Mlock,
        User::Pmd,
        User::Pipe,
        User::ClosedPipe,
        User::Direct,
        User::Calls,
    ];
    const WAY: &[Way] = &[Way::Unbind, Way::Region, Way::Provider];

    fn is_possible(cell: &Cell) -> bool {
        !(cell.fs == Fs::Erofs && cell.user == User::Writer
            || cell.fs == Fs::XfsReflink && cell.under == Under::Partition)
    }

    /// All pairs of values of a cell.
    fn pairs(cell: &Cell) -> [String; 6] {
        let Cell {
            fs,
            under,
            user,
            way,
        } = cell;
        [
            format!("{fs:?} {under:?}"),
            format!("{fs:?} {user:?}"),
            format!("{fs:?} {way:?}"),
            format!("{under:?} {user:?}"),
            format!("{under:?} {way:?}"),
            format!("{user:?} {way:?}"),
        ]
    }

    #[test]
    fn every_possible_pair_is_covered() {
        let lists = [
            EXT4_CELLS,
            EXT4_NO_JOURNAL_CELLS,
            XFS_CELLS,
            XFS_RMAP_CELLS,
            XFS_REFLINK_CELLS,
            EROFS_CELLS,
        ];
        let cells: Vec<&Cell> = lists.into_iter().flatten().collect();
        assert!(cells.iter().all(|cell| is_possible(cell)));
        let covered: HashSet<String> = cells.into_iter().flat_map(pairs).collect();
        let mut missing = HashSet::new();
        for &fs in FS {
            for &under in UNDER {
                for &user in USER {
                    for &way in WAY {
                        let cell = Cell {
                            fs,
                            under,
                            user,
                            way,
                        };
                        if is_possible(&cell) {
                            missing.extend(
                                pairs(&cell)
                                    .into_iter()
                                    .filter(|pair| !covered.contains(pair)),
                            );
                        }
                    }
                }
            }
        }
        assert!(missing.is_empty(), "{missing:?}");
    }
}
