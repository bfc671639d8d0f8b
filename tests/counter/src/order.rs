// SPDX-License-Identifier: GPL-2.0

//! What the guest tells the plugin.

use crate::count::{Kind, Range};

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `forget`: no range has a meaning any more.
    Forget,
    /// `driver|copy|entry START END`: what a range of addresses is, in hexadecimal digits.
    Range(Kind, Range),
    /// `start`: count from zero on.
    Start,
    /// `stop LABEL`: stop, and write down under this label what was counted.
    Stop(String),
}

impl Order {
    /// Understands a line.
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
    fn orders_are_understood() {
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
    fn nonsense_is_not() {
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
