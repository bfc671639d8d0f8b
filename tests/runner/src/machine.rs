// SPDX-License-Identifier: GPL-2.0

//! The machines that guests run on, and the command line of QEMU that makes one.
//!
//! Everything is emulated (TCG): a `/dev/kvm` that exists need not work.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// What a suite needs of a machine, apart from what all of them have.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The NVDIMMs. Each is a region of its own.
    pub nvdimms: &'static [Nvdimm],
    /// More words for the kernel.
    pub kernel_words: &'static str,
    /// How many CPUs there are.
    pub cpus: u32,
}

/// How many CPUs a machine has unless there is a reason for another number.
pub const CPUS: u32 = 2;

/// One emulated NVDIMM with a label area.
#[derive(Clone, Copy, Debug)]
pub struct Nvdimm {
    /// What the region has. `ndctl` wants multiples of 16 MiB.
    pub mib: u64,
    /// Whether the contents are in a file, which outlives the guest.
    pub kept: bool,
}

/// The size of the label area, which comes on top.
const LABEL_MIB: u64 = 2;

impl Nvdimm {
    /// One that forgets.
    pub const fn volatile(mib: u64) -> Nvdimm {
        Nvdimm { mib, kept: false }
    }

    /// One that remembers.
    pub const fn kept(mib: u64) -> Nvdimm {
        Nvdimm { mib, kept: true }
    }

    fn bytes(self) -> u64 {
        (self.mib + LABEL_MIB) << 20
    }
}

/// Where a serial port of the machine goes.
pub enum Serial<'a> {
    /// To a file.
    File(&'a Path),
    /// To the terminal, together with QEMU's monitor.
    Terminal,
    /// Nowhere.
    Nowhere,
}

impl Serial<'_> {
    fn argument(&self) -> String {
        match self {
            Serial::File(path) => format!("file:{}", path.display()),
            Serial::Terminal => "mon:stdio".to_owned(),
            Serial::Nowhere => "null".to_owned(),
        }
    }
}

/// What is booted on a machine.
pub struct Software<'a> {
    pub kernel: &'a Path,
    pub image: &'a Path,
    /// More words for the kernel.
    pub kernel_words: &'a str,
    /// The arguments of the guest program.
    pub words: &'a [String],
    /// Where instructions are counted, the plugin that does it, and the file that it writes.
    pub counter: Option<&'a Counter>,
}

/// The plugin of QEMU that counts instructions, on a machine with one CPU.
pub struct Counter {
    pub plugin: PathBuf,
    pub counts: PathBuf,
}

impl Machine {
    fn backing(dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("nvdimm{index}.img"))
    }

    /// Makes the files behind the NVDIMMs that are kept, empty.
    pub fn create_backing(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        for (index, nvdimm) in self
            .nvdimms
            .iter()
            .enumerate()
            .filter(|(_, nvdimm)| nvdimm.kept)
        {
            let path = Self::backing(dir, index);
            let file =
                File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            file.set_len(nvdimm.bytes())?;
        }
        Ok(())
    }

    /// Removes them.
    pub fn remove_backing(&self, dir: &Path) -> Result<()> {
        for (index, _) in self
            .nvdimms
            .iter()
            .enumerate()
            .filter(|(_, nvdimm)| nvdimm.kept)
        {
            fs::remove_file(Self::backing(dir, index))?;
        }
        Ok(())
    }

    /// The command that runs the machine. It ends when the guest switches the power off or panics.
    pub fn command(
        &self,
        software: &Software<'_>,
        backing: &Path,
        ports: [Serial<'_>; 2],
    ) -> Command {
        // A runner that is killed takes its guest with it.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args(["-machine", "q35,nvdimm=on", "-accel", "tcg", "-cpu", "max"]);
        qemu.args(["-smp", &self.cpus.to_string()]);
        if let Some(Counter { plugin, counts }) = software.counter {
            let argument = format!("{},out={}", plugin.display(), counts.display());
            qemu.args(["-plugin", &argument]);
        }
        qemu.args([
            "-m",
            "2G,slots=4,maxmem=16G",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ]);
        for (index, nvdimm) in self.nvdimms.iter().enumerate() {
            let size = nvdimm.bytes();
            let object = if nvdimm.kept {
                let path = Self::backing(backing, index);
                format!(
                    "memory-backend-file,id=m{index},share=on,mem-path={},size={size}",
                    path.display()
                )
            } else {
                format!("memory-backend-ram,id=m{index},size={size}")
            };
            let device = format!("nvdimm,id=nv{index},memdev=m{index},label-size={LABEL_MIB}M");
            qemu.args(["-object", &object, "-device", &device]);
        }
        for port in &ports {
            qemu.args(["-serial", &port.argument()]);
        }
        qemu.arg("-kernel")
            .arg(software.kernel)
            .arg("-initrd")
            .arg(software.image);
        let words = software.words.join(" ");
        // On a busy host an emulated timer may come too late for the check that the kernel makes
        // while it boots, and a missed check is a panic. Under KVM the kernel leaves it out, too.
        let line = format!(
            "console=ttyS0 loglevel=5 panic=-1 no_timer_check {} {} rdinit=/pmem-rs/guest -- {words}",
            self.kernel_words, software.kernel_words,
        );
        qemu.args(["-append", &line]);
        qemu
    }
}
