// SPDX-License-Identifier: GPL-2.0

//! One figure of many, and how sure it is.

use serde::Serialize;

/// All figures of a case: those of nd_pmem and of pmem_rs, in pairs that were measured one after the other.
#[derive(Clone, Debug)]
pub struct Series {
    pub case: String,
    pub mode: String,
    pub unit: String,
    pub rounds: Vec<[Option<f64>; 2]>,
}

/// What is said of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: String,
    /// `time` or `count`.
    pub mode: String,
    pub unit: String,
    /// The medians. There is none where the driver cannot do that.
    pub nd_pmem: Option<f64>,
    pub pmem_rs: Option<f64>,
    /// The median of the ratios of the pairs, and between what values it lies.
    pub ratio: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

impl Series {
    /// An empty one.
    pub fn new(case: &str, mode: &str, unit: &str) -> Series {
        Series {
            case: case.to_owned(),
            mode: mode.to_owned(),
            unit: unit.to_owned(),
            rounds: Vec::new(),
        }
    }

    /// What is to be said, unless both drivers have always needed nothing.
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

/// The middle one, or the mean of the two in the middle.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = figures.get(middle)?;
    if figures.len() % 2 == 1 {
        return Some(*upper);
    }
    Some((figures.get(middle.checked_sub(1)?)? + upper) / 2.0)
}

/// Between what values the median of all that could be measured lies, with at least 95 % confidence, whatever the
/// distribution is. Each figure is below it with probability ½, so of n sorted figures the k-th from either end
/// will do if fewer than k of n coins show heads in at most 2.5 % of throws. Fewer than six figures cannot say so
/// much: then it is all of them.
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

    /// As tables of the sign test have it.
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
