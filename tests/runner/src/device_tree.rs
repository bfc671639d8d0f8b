// SPDX-License-Identifier: GPL-2.0

//! A device tree for a machine that has none of its own.
//!
//! A PC gets one through a list of data that its boot loader has for the kernel; the header of the kernel
//! says where that is (`Documentation/arch/x86/boot.rst` of the kernel). `-dtb` of QEMU makes such a list,
//! but names an address that is too high (10.0 does not allow for the setup code, which is not loaded
//! there). So the list is made here, for QEMU's loader, and a copy of the kernel is told the address.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::env::Env;
use crate::tool::run;

/// Where the list lies in the memory of the machine: above the kernel, below its initrd and whatever
/// suites reserve.
pub const ADDRESS: u64 = 0x3000_0000;

/// `setup_data` in the header of a kernel.
const POINTER: std::ops::Range<usize> = 0x250..0x258;
/// The type of an element that is a device tree.
const SETUP_DTB: u32 = 2;

/// What a machine boots that has a device tree.
pub struct DeviceTree {
    /// A copy of the kernel that knows where to look.
    pub kernel: PathBuf,
    /// What is to be loaded there.
    pub list: PathBuf,
}

impl DeviceTree {
    /// Compiles a device tree, and makes what goes with it in `dir`.
    pub fn make(env: &Env, source: &str, dir: &Path) -> Result<DeviceTree> {
        let [text, blob, list, kernel] =
            ["machine.dts", "machine.dtb", "setup_data", "vmlinuz"].map(|name| dir.join(name));
        fs::write(&text, source)?;
        let mut compiler = Command::new(env.build.join("scripts/dtc/dtc"));
        compiler.args(["-I", "dts", "-O", "dtb", "-o"]);
        run(compiler.arg(&blob).arg(&text)).context("compiling the device tree")?;

        let blob = fs::read(&blob)?;
        // No next element, the type, the length.
        let mut element = 0_u64.to_le_bytes().to_vec();
        element.extend(SETUP_DTB.to_le_bytes());
        element.extend(u32::try_from(blob.len())?.to_le_bytes());
        element.extend(blob);
        fs::write(&list, element)?;

        let mut image = fs::read(&env.kernel)?;
        image
            .get_mut(POINTER)
            .context("the kernel has no header")?
            .copy_from_slice(&ADDRESS.to_le_bytes());
        fs::write(&kernel, image)?;
        Ok(DeviceTree { kernel, list })
    }
}
