// SPDX-License-Identifier: GPL-2.0

//! Device trees with persistent memory.
//!
//! QEMU makes a device tree for its machine `virt`, and passes an extended copy to the kernel. A PC
//! has none. Its kernel finds a device tree through a list of data that a boot loader leaves in
//! memory. The header of the kernel has the address of that list
//! (`Documentation/arch/x86/boot.rst`). `-dtb` of QEMU makes such a list, but QEMU 10.0 sets an
//! address that is too high: it does not allow for the setup code, which is not loaded there.
//! Therefore the list is made here and loaded by QEMU's generic loader, and its address is written
//! into a copy of the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::env::Env;
use crate::tool::run;

/// The nodes for a PC, and for `virt`.
const PC: &str = include_str!("device_tree.dts");
const VIRT: &str = include_str!("device_tree_arm64.dts");

/// The address of the list in the machine's memory: above the kernel, below its initrd and the
/// memory that suites reserve.
pub const ADDRESS: u64 = 0x3000_0000;

/// The offset of `setup_data` in the header of a kernel.
const POINTER: std::ops::Range<usize> = 0x250..0x258;
/// The type of a list element that is a device tree.
const SETUP_DTB: u32 = 2;

fn compiler(env: &Env, from: &str, to: &str) -> Command {
    let mut compiler = Command::new(env.build.join("scripts/dtc/dtc"));
    compiler.args(["-q", "-I", from, "-O", to]);
    compiler
}

/// Adds nodes to the device tree of the machine that `qemu` runs, writes it to `dir`, and returns
/// its path.
pub fn extend(env: &Env, mut qemu: Command, dir: &Path) -> Result<PathBuf> {
    let [dumped, text, blob] =
        ["dumped.dtb", "machine.dts", "machine.dtb"].map(|name| dir.join(name));
    let dump = format!("dumpdtb={}", dumped.display());
    run(qemu.args(["-machine", &dump])).context("asking QEMU for its device tree")?;
    let source = run(compiler(env, "dtb", "dts").arg(&dumped))?.stdout;
    fs::write(&text, String::from_utf8(source)? + VIRT)?;
    run(compiler(env, "dts", "dtb").arg("-o").arg(&blob).arg(&text))
        .context("compiling the device tree")?;
    Ok(blob)
}

/// The files that a PC with a device tree boots.
pub struct DeviceTree {
    /// A copy of the kernel whose header has the address of the list.
    pub kernel: PathBuf,
    /// The list, to be loaded at that address.
    pub list: PathBuf,
}

impl DeviceTree {
    /// Compiles the device tree, and writes both files to `dir`.
    pub fn make(env: &Env, dir: &Path) -> Result<DeviceTree> {
        let [text, blob, list, kernel] =
            ["machine.dts", "machine.dtb", "setup_data", "vmlinuz"].map(|name| dir.join(name));
        fs::write(&text, PC)?;
        run(compiler(env, "dts", "dtb").arg("-o").arg(&blob).arg(&text))
            .context("compiling the device tree")?;

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
