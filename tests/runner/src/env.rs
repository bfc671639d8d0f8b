// SPDX-License-Identifier: GPL-2.0

//! The result of the build: `KEY=value` lines, as `make env` prints them. One file describes one
//! kernel.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;

/// A kernel, with the modules and files that belong to it.
#[derive(Clone, Debug)]
pub struct Env {
    pub arch: Arch,
    /// The firmware of guests that do not start the kernel without one.
    pub firmware: Option<PathBuf>,
    /// The module under test. It need not exist if the in-tree driver is tested.
    pub module: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The guest image that holds tools and the kernel's own modules.
    pub image: PathBuf,
    /// The kernel's source, which has the KTAP parser.
    pub source: PathBuf,
    /// The folder that the kernel was built in, which has the tools that build modules.
    pub build: PathBuf,
    /// The kernel's release string.
    pub release: String,
    /// The commit that was built, with `-dirty` if files differed from it.
    pub commit: String,
    /// The module with planted bugs. Only the debug kernel, which detects them, has it.
    pub planted: Option<PathBuf>,
    /// The module that stops page faults half-way.
    pub window: PathBuf,
    /// The module that injects memory errors.
    pub injector: PathBuf,
    /// The module that holds leases.
    pub lessee: PathBuf,
}

/// How much longer everything takes on a kernel with all checkers. The guest has the same factor.
const DEBUG_PATIENCE: u32 = 4;

impl Env {
    /// Returns the factor for time limits.
    pub fn patience(&self) -> u32 {
        if self.planted.is_some() {
            DEBUG_PATIENCE
        } else {
            1
        }
    }

    /// Reads a file and checks that the files that it names exist.
    pub fn read(path: &Path) -> Result<Env> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let values: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let value = |key: &str| {
            let value = values
                .get(key)
                .with_context(|| format!("{} has no {key}", path.display()))?;
            Ok::<_, anyhow::Error>((*value).to_owned())
        };
        let env = Env {
            arch: Arch::named(&value("ARCH")?)?,
            firmware: values.get("FIRMWARE").map(PathBuf::from),
            module: value("KO")?.into(),
            kernel: value("VMLINUZ")?.into(),
            image: value("INITRD")?.into(),
            source: value("KSRC")?.into(),
            build: value("KDIR")?.into(),
            release: value("RELEASE")?,
            commit: value("COMMIT")?,
            planted: values.get("PLANTED").map(PathBuf::from),
            window: value("WINDOW")?.into(),
            injector: value("INJECTOR")?.into(),
            lessee: value("LESSEE")?.into(),
        };
        for file in [&env.kernel, &env.image, &env.source] {
            ensure!(
                file.exists(),
                "{} names {}, which is not there",
                path.display(),
                file.display()
            );
        }
        Ok(env)
    }
}
