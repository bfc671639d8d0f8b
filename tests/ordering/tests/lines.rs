// SPDX-License-Identifier: GPL-2.0

//! The state of lines, compared with the rules applied to a whole history.

use ordering::lines::{LINE, Lines, Summary};
use proptest::prelude::*;

/// The recorded range, which begins and ends in the middle of memory.
const START: u64 = 0x1000;
const COUNT: u64 = 8;
const END: u64 = START + COUNT * LINE;

#[derive(Clone, Copy, Debug)]
enum Event {
    Store { at: u64, len: u64 },
    StorePastCaches { at: u64, len: u64 },
    WriteBack(u64),
    WriteBackAndWait(u64),
    Fence,
}

fn event() -> impl Strategy<Value = Event> {
    let at = START - LINE..END + LINE;
    let len = 1_u64..=32;
    prop_oneof![
        (at.clone(), len.clone()).prop_map(|(at, len)| Event::Store { at, len }),
        (at.clone(), len).prop_map(|(at, len)| Event::StorePastCaches { at, len }),
        at.clone().prop_map(Event::WriteBack),
        at.prop_map(Event::WriteBackAndWait),
        Just(Event::Fence),
    ]
}

fn play(lines: &mut Lines, event: Event) {
    match event {
        Event::Store { at, len } => lines.store(at..at + len),
        Event::StorePastCaches { at, len } => lines.store_past_caches(at..at + len),
        Event::WriteBack(at) => lines.write_back(at),
        Event::WriteBackAndWait(at) => lines.write_back_and_wait(at),
        Event::Fence => lines.fence(),
    }
}

/// The state of the line at an address according to the rules.
fn expected(history: &[Event], line: u64) -> Summary {
    let touches = |at: u64, len: u64| at < line + LINE && line < at + len;
    let last = |is: &dyn Fn(&Event) -> bool| history.iter().rposition(is);

    let stored = last(&|event| matches!(event, Event::Store { at, len } if touches(*at, *len)));
    let past =
        last(&|event| matches!(event, Event::StorePastCaches { at, len } if touches(*at, *len)));
    let flushed = last(&|event| match event {
        Event::WriteBack(at) | Event::WriteBackAndWait(at) => touches(*at, 1),
        _ => false,
    });
    // The first flush after a store is the one with an effect.
    let sent = history.iter().enumerate().rposition(|(index, event)| {
        let Event::WriteBack(at) = event else {
            return false;
        };
        touches(*at, 1) && expected(&history[..index], line).dirty == 1
    });
    let fenced = last(&|event| matches!(event, Event::Fence));

    let dirty = stored.is_some() && stored > flushed;
    let pending = past.max(sent).is_some() && past.max(sent) > fenced;
    Summary {
        lines: 1,
        written: u64::from(stored.is_some() || past.is_some()),
        dirty: u64::from(dirty),
        pending: u64::from(pending && !dirty),
    }
}

proptest! {
    #[test]
    fn states_follow_the_history(history in proptest::collection::vec(event(), 0..24)) {
        let mut lines = Lines::new(START..END);
        for event in &history {
            play(&mut lines, *event);
        }
        let mut sum = Summary::default();
        for line in (START..END).step_by(LINE as usize) {
            let found = lines.summary(line..line + LINE);
            prop_assert_eq!(found, expected(&history, line));
            sum.lines += found.lines;
            sum.written += found.written;
            sum.dirty += found.dirty;
            sum.pending += found.pending;
        }
        prop_assert_eq!(lines.summary(0..u64::MAX), sum);
    }

    #[test]
    fn flushes_and_a_fence_make_all_durable(history in proptest::collection::vec(event(), 0..64)) {
        let mut lines = Lines::new(START..END);
        for event in history {
            play(&mut lines, event);
        }
        for line in (START..END).step_by(LINE as usize) {
            lines.write_back(line);
        }
        lines.fence();
        let Summary { dirty, pending, .. } = lines.summary(START..END);
        prop_assert_eq!((dirty, pending), (0, 0));
    }
}

#[test]
fn stores_before_begin_do_not_count() {
    let mut lines = Lines::new(START..END);
    lines.store(START..START + 1);
    lines.begin();
    let found = lines.summary(START..END);
    assert_eq!((found.written, found.dirty), (0, 1));
    lines.store_past_caches(START + LINE - 1..START + LINE + 1);
    assert_eq!(lines.summary(START..END).written, 2);
}
