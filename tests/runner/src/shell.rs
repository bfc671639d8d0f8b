// SPDX-License-Identifier: GPL-2.0

//! An interactive guest.

use anyhow::{Context, Result};

use crate::env::Env;
use crate::machine::{Serial, Software};
use crate::{Setup, image, suites};

/// Runs the `shell` command. Returns whether the machine ended without an error.
pub fn run(setup: &Setup) -> Result<bool> {
    let env = Env::read(&setup.env)?;
    let dir = setup.results.join("shell-image");
    let image = image::build(&env, setup.driver, &dir)?;
    let words = ["shell", "--driver", setup.driver.name()].map(str::to_owned);
    let software = Software {
        arch: env.arch,
        firmware: env.firmware.as_deref(),
        kernel: &env.kernel,
        packed_kernel: &env.kernel,
        image: &image,
        device_tree: None,
        loaded: None,
        kernel_words: "",
        words: &words,
        plugin: None,
        kvm: false,
    };
    println!(
        "Booting a guest with {}; Ctrl-A X ends it.",
        setup.driver.name()
    );
    let ports = [Serial::Terminal, Serial::Nowhere];
    let status = suites::ONE
        .command(&software, &dir, ports)?
        .status()
        .context("starting QEMU")?;
    Ok(status.success())
}
