// SPDX-License-Identifier: GPL-2.0

//! How long an unbind waits for users.

use host::waiting::{
    Memmap,
    Waiting, //
};

const BEGUN: Waiting = Waiting {
    micros: 0,
    limit_ms: 10,
    is_killed: false,
    is_going_down: false,
    memmap: Memmap::Ram,
};
const LATE: Waiting = Waiting {
    micros: 10_000,
    ..BEGUN
};
const WITHOUT_LIMIT: Waiting = Waiting {
    micros: u64::MAX,
    limit_ms: 0,
    ..BEGUN
};

fn killed(waiting: Waiting) -> Waiting {
    Waiting {
        is_killed: true,
        ..waiting
    }
}

fn going_down(waiting: Waiting) -> Waiting {
    Waiting {
        is_going_down: true,
        ..waiting
    }
}

#[test]
fn a_wait_ends_at_its_limit() {
    assert!(BEGUN.notice_goes_on() && !BEGUN.is_over() && !BEGUN.should_retire(false));
    let almost = Waiting {
        micros: 9_999,
        ..BEGUN
    };
    assert!(almost.notice_goes_on() && !almost.is_over() && !almost.should_retire(false));
    assert!(!LATE.notice_goes_on() && LATE.is_over() && LATE.should_retire(false));
}

#[test]
fn zero_is_no_notice_and_no_limit() {
    assert!(!WITHOUT_LIMIT.notice_goes_on());
    assert!(!WITHOUT_LIMIT.is_over());
    assert!(!WITHOUT_LIMIT.should_retire(false));
    assert!(!WITHOUT_LIMIT.should_retire(true));
}

#[test]
fn a_keeper_is_not_waited_for() {
    assert!(BEGUN.should_retire(true));
    assert!(!BEGUN.is_over());
}

#[test]
fn a_fatal_signal_and_the_end_of_the_system_end_every_wait() {
    for waiting in [BEGUN, WITHOUT_LIMIT] {
        for ended in [killed(waiting), going_down(waiting)] {
            assert!(!ended.notice_goes_on());
            assert!(ended.is_over());
            assert!(ended.should_retire(false));
        }
    }
}

#[test]
fn struct_pages_on_a_medium_stay_until_the_end_of_the_system() {
    for waiting in [BEGUN, LATE, WITHOUT_LIMIT, killed(LATE)] {
        let on_medium = Waiting {
            memmap: Memmap::Medium,
            ..waiting
        };
        assert!(!on_medium.should_retire(false) && !on_medium.should_retire(true));
        assert!(going_down(on_medium).should_retire(false));

        let removable = Waiting {
            memmap: Memmap::RemovableMedium,
            ..going_down(waiting)
        };
        assert!(!removable.should_retire(false) && !removable.should_retire(true));
        // Holders of leases do not delay the removal of the disk.
        assert!(on_medium.is_over() == waiting.is_over() && removable.is_over());
    }
}

#[test]
fn a_medium_that_can_be_taken_away_is_waited_for_to_the_end() {
    for (is_on_medium, is_removable, is_retired) in [
        (false, false, true),
        (false, true, true),
        (true, false, true),
        (true, true, false),
    ] {
        let waiting = Waiting {
            memmap: Memmap::new(is_on_medium, is_removable),
            ..going_down(BEGUN)
        };
        assert_eq!(waiting.should_retire(false), is_retired);
    }
}
