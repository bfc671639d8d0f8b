// SPDX-License-Identifier: GPL-2.0

//! A device tree for a PC, which has none.
//!
//! The kernel finds a device tree through a list of data that a boot loader leaves in memory. The
//! header of the kernel has the address of that list (`Documentation/arch/x86/boot.rst`). `-dtb` of
//! QEMU makes such a list, but QEMU 10.0 sets an address that is too high: it does not allow for
//! the setup code, which is not loaded there. Therefore the list is made here and loaded by QEMU's
//! generic loader, and its address is written into a copy of the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::env::Env;
use crate::tool::run;

/// The address of the list in the machine's memory: above the kernel, below its initrd and the
/// memory that suites reserve.
pub const ADDRESS: u64 = 0x3000_0000;

/// The offset of `setup_data` in the header of a kernel.
const POINTER: std::ops::Range<usize> = 0x250..0x258;
/// The type of a list element that is a device tree.
const SETUP_DTB: u32 = 2;

/// The files that a machine with a device tree boots.
pub struct DeviceTree {
    /// A copy of the kernel whose header has the address of the list.
    pub kernel: PathBuf,
    /// The list, to be loaded at that address.
    pub list: PathBuf,
}

impl DeviceTree {
    /// Compiles a device tree, and writes both files to `dir`.
    pub fn make(env: &Env, source: &str, dir: &Path) -> Result<DeviceTree> {
        let [text, blob, list, kernel] =
            ["machine.dts", "machine.dtb", "setup_data", "vmlinuz"].map(|name| dir.join(name));
        fs::write(&text, source)?;
        let mut compiler = Command::new(env.build.join("scripts/dtc/dtc"));
        compiler.args(["-I", "dts", "-O", "dtb", "-o"]);
        run(compiler.arg(&blob).arg(&text)).context("compiling the device tree")?;

        let blob = fs::read(&blob)?;
        // The address of the next element, which does not exist, the type, and the length.
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
