// SPDX-License-Identifier: GPL-2.0

//! Random input: info blocks and labels on the medium, bytes for attributes and parameters,
//! requests.
//!
//! Everything derives from the seed. Cases run until the time is over. A failure reports the number
//! of its case: with the same seed all cases before it are the same.

mod attributes;
mod info_blocks;
mod labels;
mod parameters;
mod requests;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Suite, Test};
use crate::lab::Lab;
use crate::messages::Messages;

pub const SUITE: Suite = Suite {
    name: "fuzz",
    tests: &[
        Test::new("info_blocks", info_blocks::fuzz)
            .within(120)
            .or_as_long_as_asked(),
        Test::new("labels", labels::fuzz)
            .within(120)
            .or_as_long_as_asked(),
        Test::new("attributes", attributes::fuzz)
            .within(120)
            .or_as_long_as_asked(),
        Test::new("parameters", parameters::fuzz)
            .within(120)
            .or_as_long_as_asked(),
        Test::new("requests", requests::fuzz)
            .within(120)
            .or_as_long_as_asked(),
    ],
};

/// The share of the time that each test gets. The rest is for preparations.
const PART: u32 = 6;
/// How often progress is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// How long a test runs.
fn share(lab: &Lab) -> Duration {
    lab.stress / PART
}

/// Runs cases until the time is over. A warning of the kernel is a failure of the case that just
/// ran.
fn cases(
    lab: &mut Lab,
    what: &str,
    time: Duration,
    mut case: impl FnMut(&mut Lab, &mut ChaCha8Rng) -> Result<()>,
) -> Result<u64> {
    let mut messages = Messages::from_now()?;
    let (start, mut reported) = (Instant::now(), Instant::now());
    let mut number = 0;
    while number == 0 || start.elapsed() < time {
        let mut random = ChaCha8Rng::from_rng(&mut lab.random);
        let place = format!("{what}, case {number} with seed {}", lab.seed);
        case(lab, &mut random).with_context(|| place.clone())?;
        if let Some(trouble) = messages
            .so_far()?
            .iter()
            .find(|message| klog::is_trouble(message))
        {
            bail!("{place}: the kernel complains: {trouble}");
        }
        messages = Messages::from_now()?;
        number += 1;
        if reported.elapsed() > REPORT_INTERVAL {
            println!("{what}: {number} cases");
            reported = Instant::now();
        }
    }
    Ok(number)
}

/// A random number around a valid one, or at a limit.
fn hostile(random: &mut ChaCha8Rng, right: u64, size: u64) -> u64 {
    const ODD: &[u64] = &[
        0,
        1,
        2,
        3,
        511,
        512,
        4095,
        4096,
        8191,
        8192,
        1 << 20,
        1 << 21,
        1 << 24,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 4096,
        (1 << 32) - 1,
        1 << 32,
        1 << 39,
        1 << 52,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
    ];
    let near = *[0, 1, 8, 512, 4096, 1 << 21].choose(random).unwrap_or(&0);
    let base = match random.random_range(0..5) {
        0 => right,
        1 => size,
        2 => random.random_range(0..=size),
        3 => return random.random(),
        _ => return *ODD.choose(random).unwrap_or(&0),
    };
    match random.random_range(0..4) {
        0 => base.wrapping_add(near),
        1 => base.wrapping_sub(near),
        2 => base << random.random_range(1..3),
        _ => base >> random.random_range(1..3),
    }
}
