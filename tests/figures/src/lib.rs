// SPDX-License-Identifier: GPL-2.0

//! Figures of both drivers: medians and confidence intervals. [`text`] shows them.

#![forbid(unsafe_code)]

pub mod text;

use serde::{Deserialize, Serialize};

/// The prefix of a line with a [`Series`] in the output of a case.
pub const MARK: &str = "bench: ";

/// The units of counted instructions.
pub const DRIVER: &str = "instructions of the driver";
pub const WITHOUT_COPIES: &str = "instructions of the driver and what it calls, without copies";
pub const COPIES: &str = "instructions of copies";
pub const LINES: &str = "cache lines that the driver accesses";
pub const WRITTEN: &str = "cache lines that the driver stores to";

/// The mode of figures that counters of the CPU give, and their units.
pub const COUNTER: &str = "counter";
pub const INSTRUCTIONS: &str = "instructions in the kernel";
pub const CYCLES: &str = "cycles in the kernel";
pub const CACHE_MISSES: &str = "cache misses in the kernel";

/// All figures of a case, in pairs of nd_pmem and pmem_rs that were measured one after the other.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Series {
    pub case: String,
    pub mode: String,
    pub unit: String,
    pub rounds: Vec<[Option<f64>; 2]>,
}

/// The result of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: String,
    /// `time`, `count`, or [`COUNTER`].
    pub mode: String,
    pub unit: String,
    /// The medians. There is none where the driver lacks the feature.
    pub nd_pmem: Option<f64>,
    pub pmem_rs: Option<f64>,
    /// The median of the ratios of the pairs, and its confidence interval.
    pub ratio: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

impl Series {
    /// Makes an empty series.
    pub fn new(case: &str, mode: &str, unit: &str) -> Series {
        Series {
            case: case.to_owned(),
            mode: mode.to_owned(),
            unit: unit.to_owned(),
            rounds: Vec::new(),
        }
    }

    /// Returns the result, unless all figures of both drivers are zero.
    pub fn row(&self) -> Option<Row> {
        let column = |index: usize| -> Vec<f64> {
            let figures = self.rounds.iter().filter_map(|round| round[index]);
            figures.collect()
        };
        let (theirs, ours) = (column(0), column(1));
        if theirs.iter().chain(&ours).all(|figure| *figure == 0.0) {
            return None;
        }
        let mut ratios: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|[theirs, ours]| Some((*ours)? / (*theirs)?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        ratios.sort_by(f64::total_cmp);
        let spread = (ratios.len() == self.rounds.len()).then(|| interval(&ratios));
        Some(Row {
            case: self.case.clone(),
            mode: self.mode.clone(),
            unit: self.unit.clone(),
            nd_pmem: median(theirs),
            pmem_rs: median(ours),
            ratio: spread.and(median(ratios)),
            low: spread.map(|(low, _)| low),
            high: spread.map(|(_, high)| high),
        })
    }
}

/// Adds figures to those of the same case, mode and unit.
pub fn add(all: &mut Vec<Series>, more: Series) {
    let same = |series: &&mut Series| {
        series.case == more.case && series.mode == more.mode && series.unit == more.unit
    };
    match all.iter_mut().find(same) {
        Some(series) => series.rounds.extend(more.rounds),
        None => all.push(more),
    }
}

/// Returns the median.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = figures.get(middle)?;
    if figures.len() % 2 == 1 {
        return Some(*upper);
    }
    Some((figures.get(middle.checked_sub(1)?)? + upper) / 2.0)
}

/// Returns the interval in which the median lies with at least 95 % confidence, whatever the
/// distribution is. Each figure is below the median with probability ½. So the k-th of n sorted
/// figures from either end is a bound if fewer than k of n coins show heads in at most 2.5 % of
/// throws. Fewer than six figures do not give such an interval: then it spans all of them.
fn interval(sorted: &[f64]) -> (f64, f64) {
    let n = sorted.len();
    let mut probability = 0.5_f64.powi(n as i32);
    let mut tail = probability;
    let mut outside = 0;
    while tail <= 0.025 && 2 * (outside + 1) < n {
        outside += 1;
        probability *= (n - outside + 1) as f64 / outside as f64;
        tail += probability;
    }
    let outside = outside.saturating_sub(1);
    (sorted[outside], sorted[n - 1 - outside])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_up(n: usize) -> Vec<f64> {
        (1..=n).map(|number| number as f64).collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    /// From tables of the sign test.
    #[test]
    fn intervals() {
        for (n, low) in [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6)] {
            let expected = (low as f64, (n + 1 - low) as f64);
            assert_eq!(interval(&count_up(n)), expected, "of {n}");
        }
    }

    #[test]
    fn a_driver_that_cannot_has_no_ratio() {
        let mut series = Series::new("case", "time", "ns");
        series.rounds = vec![[None, Some(2.0)], [None, Some(4.0)]];
        let row = series.row().expect("there are figures");
        assert_eq!((row.nd_pmem, row.pmem_rs), (None, Some(3.0)));
        assert_eq!((row.ratio, row.low), (None, None));
    }

    #[test]
    fn what_is_always_nothing_is_not_shown() {
        let mut series = Series::new("case", "count", "copies");
        series.rounds = vec![[Some(0.0), Some(0.0)]];
        assert!(series.row().is_none());
    }
}
