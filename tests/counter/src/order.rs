// SPDX-License-Identifier: GPL-2.0

//! The lines from the guest.

use crate::count::{Kind, Range};

/// A parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `forget`: removes all ranges.
    Forget,
    /// `driver|copy|entry START END`: the kind of an address range, in hexadecimal digits.
    Range(Kind, Range),
    /// `start`: starts counting from zero.
    Start,
    /// `stop LABEL`: stops, and writes the counts under this label.
    Stop(String),
}

impl Order {
    /// Parses a line.
    pub fn parse(line: &str) -> Option<Order> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match verb {
            "forget" => Order::Forget,
            "start" => Order::Start,
            "stop" => Order::Stop(rest.to_owned()),
            "driver" => Order::Range(Kind::Driver, range(rest)?),
            "copy" => Order::Range(Kind::Copy, range(rest)?),
            "entry" => Order::Range(Kind::Entry, range(rest)?),
            _ => return None,
        })
    }
}

fn range(text: &str) -> Option<Range> {
    let (start, end) = text.split_once(' ')?;
    let std::ops::Range { start, end } = plugin::range(start, end)?;
    Some(Range { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_parsed() {
        let range = Range {
            start: 0x10,
            end: 0xff,
        };
        assert_eq!(
            Order::parse("copy 10 ff"),
            Some(Order::Range(Kind::Copy, range))
        );
        assert_eq!(
            Order::parse("stop a label"),
            Some(Order::Stop("a label".to_owned()))
        );
    }

    #[test]
    fn invalid_orders_are_refused() {
        for line in [
            "",
            "begin",
            "driver",
            "driver 10",
            "entry 10 10",
            "copy x y",
        ] {
            assert_eq!(Order::parse(line), None, "{line}");
        }
    }
}
