// SPDX-License-Identifier: GPL-2.0

//! The lines from the guest.

use std::ops::Range;

/// A parsed line. Ranges are of physical addresses, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `watch START END`: records the state of this range, all of which is durable now.
    Watch(Range<u64>),
    /// `rest`: stops recording until the next `watch`.
    Rest,
    /// `fences START END`: only fences in this code count, and those in code that was named before.
    /// These are virtual addresses.
    FencesIn(Range<u64>),
    /// `fences`: all fences count, as at the start.
    AllFences,
    /// `begin`: stores count from here on.
    Begin,
    /// `look START END LABEL`: writes the state of the range under this label. The label has the
    /// expected state, for the reader of the results.
    Look(Range<u64>, String),
    /// `finally START END LABEL`: as `look`, when the machine is off.
    Finally(Range<u64>, String),
}

impl Order {
    /// Parses a line.
    pub fn parse(line: &str) -> Option<Order> {
        let mut words = line.splitn(4, ' ');
        let verb = words.next()?;
        let mut range = || plugin::range(words.next()?, words.next()?);
        Some(match verb {
            "watch" => Order::Watch(range()?),
            "rest" => Order::Rest,
            "fences" if line == verb => Order::AllFences,
            "fences" => Order::FencesIn(range()?),
            "begin" => Order::Begin,
            "look" => Order::Look(range()?, words.next()?.to_owned()),
            "finally" => Order::Finally(range()?, words.next()?.to_owned()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_parsed() {
        assert_eq!(Order::parse("watch 40 ff"), Some(Order::Watch(0x40..0xff)));
        assert_eq!(
            Order::parse("look 40 ff a label"),
            Some(Order::Look(0x40..0xff, "a label".to_owned()))
        );
        assert_eq!(
            Order::parse("finally 40 ff a label"),
            Some(Order::Finally(0x40..0xff, "a label".to_owned()))
        );
        assert_eq!(
            Order::parse("fences 40 ff"),
            Some(Order::FencesIn(0x40..0xff))
        );
        assert_eq!(Order::parse("fences"), Some(Order::AllFences));
        assert_eq!(Order::parse("begin"), Some(Order::Begin));
        assert_eq!(Order::parse("rest"), Some(Order::Rest));
    }

    #[test]
    fn invalid_orders_are_refused() {
        for line in [
            "",
            "watch",
            "watch 40",
            "fences 40",
            "look 40 ff",
            "look 40 40 label",
            "see",
        ] {
            assert_eq!(Order::parse(line), None, "{line}");
        }
    }
}
