// SPDX-License-Identifier: GPL-2.0

//! The architectures of guests: what QEMU, the kernel and the tools call things there.

use anyhow::{Result, bail};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// Returns the architecture that Debian calls so.
    pub fn named(name: &str) -> Result<Arch> {
        match name {
            "amd64" => Ok(Arch::Amd64),
            "arm64" => Ok(Arch::Arm64),
            _ => bail!("guests of {name} are not known"),
        }
    }

    /// The emulator.
    pub fn emulator(self) -> &'static str {
        match self {
            Arch::Amd64 => "qemu-system-x86_64",
            Arch::Arm64 => "qemu-system-aarch64",
        }
    }

    /// The machine that QEMU emulates.
    pub fn machine(self) -> &'static str {
        match self {
            Arch::Amd64 => "q35,nvdimm=on",
            Arch::Arm64 => "virt,nvdimm=on,gic-version=3",
        }
    }

    /// The emulated CPU: one that has everything, or one that QEMU emulates fast.
    pub fn cpu(self, fast: bool) -> &'static str {
        match (self, fast) {
            (Arch::Amd64, false) => "max",
            // QEMU executes string instructions with `rep` byte by byte, and the kernel uses those
            // of bytes only if the CPU says that they are fast.
            (Arch::Amd64, true) => "max,erms=off,fsrm=off",
            (Arch::Arm64, false) => "max,pauth-impdef=on",
            // Without signed pointers, whose signatures QEMU computes in each function, without
            // vectors of other lengths, and with four levels of page tables.
            (Arch::Arm64, true) => "max,pauth=off,sve=off,sme=off,lpa2=off",
        }
    }

    /// The parameters of every kernel.
    ///
    /// QEMU flushes its TLB when CR3 is written, which page table isolation does twice in each
    /// system call, and it walks all levels of page tables in software. So mitigations of flaws
    /// that an emulated CPU does not have are off, and there are four levels. Four levels also keep
    /// KASAN from reporting valid memory while the first CPU is set up: see docs/kernel-bugs.md.
    ///
    /// On a busy host an emulated timer may be late for the kernel's check at boot, and a failed
    /// check is a panic. Under KVM the kernel skips the check as well. The runner sends an NMI to a
    /// guest that hangs.
    pub fn kernel_words(self) -> &'static str {
        match self {
            Arch::Amd64 => "console=ttyS0 mitigations=off no5lvl no_timer_check unknown_nmi_panic",
            Arch::Arm64 => "console=ttyAMA0 mitigations=off",
        }
    }

    /// How a kernel leaves so many MiB unused on a machine that has `memory` GiB: the memory that
    /// the machine must have, and the parameters. They are at the address that the guest's program
    /// also knows (`tests/guest/src/arch`).
    pub fn unused_memory(self, memory: u32, mib: u64) -> (u32, String) {
        match self {
            Arch::Amd64 => (memory, format!("memmap={mib}M$1G")),
            // Memory begins at 1 GiB, and the kernel uses no more than `mem`.
            Arch::Arm64 => (memory + 1, format!("mem={memory}G")),
        }
    }

    /// The prefix of the names of compilers and binutils.
    pub fn tool(self, name: &str) -> String {
        match self {
            Arch::Amd64 => name.to_owned(),
            Arch::Arm64 => format!("aarch64-linux-gnu-{name}"),
        }
    }

    /// The folder of the guest's program, relative to that of the runner.
    pub fn programs(self) -> &'static str {
        match self {
            Arch::Amd64 => ".",
            Arch::Arm64 => "../aarch64-unknown-linux-gnu/release",
        }
    }
}
