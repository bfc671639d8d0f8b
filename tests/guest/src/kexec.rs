// SPDX-License-Identifier: GPL-2.0

//! Another kernel, which is started without the firmware. It is on a disk of the machine.

use std::fs::{self, File};
use std::io;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::arch::RESULTS;
use crate::command::run;
use crate::lab::Skip;
use crate::{syscall, sysfs};

/// The disk with the kernel.
const DISK: &str = "/dev/vda";
/// Only a regular file can be loaded.
const KERNEL: &str = "/run/kernel";
/// The contents of the initramfs, and the archive.
const ROOT: &str = "/run/next";
const INITRAMFS: &str = "/run/next.cpio";
const BUSYBOX: &str = "/usr/bin/busybox";

/// Loads the kernel with an initramfs that says on the port of the results that all is done, and
/// reboots.
pub fn load() -> Result<()> {
    run("modprobe", &["-a", "virtio_pci", "virtio_blk"])?;
    // A file that is open for writing cannot be loaded.
    io::copy(&mut File::open(DISK)?, &mut File::create(KERNEL)?).context("reading the kernel")?;

    fs::create_dir_all(format!("{ROOT}/dev"))?;
    fs::copy(BUSYBOX, format!("{ROOT}/busybox")).context("copying busybox")?;
    let script = format!(
        "#!/busybox sh\n\
         /busybox mount -t devtmpfs dev /dev\n\
         echo '# done' >{RESULTS}\n\
         /busybox sleep 1\n\
         /busybox reboot -f\n"
    );
    fs::write(format!("{ROOT}/init"), script)?;
    let pack = "chmod 755 init; find . | busybox cpio -o -H newc >\"$0\"";
    run("sh", &["-ec", &format!("cd {ROOT}; {pack}"), INITRAMFS])?;

    let line = sysfs::read("/proc/cmdline")?;
    let (line, _) = line
        .split_once("rdinit=")
        .context("this kernel was told no program")?;
    let loaded = syscall::kexec_file_load(
        &File::open(KERNEL)?,
        &File::open(INITRAMFS)?,
        line.trim_end(),
    );
    match loaded {
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => {
            Err(Skip("the kernel has no kexec_file_load (CONFIG_KEXEC_FILE)").into())
        }
        loaded => loaded.context("loading the kernel"),
    }
}

/// Whether a kernel is loaded.
pub fn is_loaded() -> Result<bool> {
    const STATE: &str = "/sys/kernel/kexec_loaded";
    Ok(fs::exists(STATE)? && sysfs::read(STATE)? == "1")
}
