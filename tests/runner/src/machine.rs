// SPDX-License-Identifier: GPL-2.0

//! The machines that guests run on, and the command line of QEMU that makes one.
//!
//! Everything is emulated (TCG), unless KVM is asked for: a `/dev/kvm` that exists need not work.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;

/// The devices and the memory of a machine that only some suites need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The NVDIMMs. Each is a separate region.
    pub nvdimms: &'static [Nvdimm],
    /// The sizes in MiB of virtio-pmem devices, whose contents are in files.
    pub virtio: &'static [u64],
    /// The sizes in MiB of file-backed memory that is not plugged in at first. The guest may plug
    /// it in as a device of either kind. QEMU calls it `spare0` and so on, and the slot for it has
    /// the same number.
    pub spares: &'static [u64],
    /// The size in MiB of a virtio disk, whose contents are in a file. The firmware of a machine
    /// with one supports S3 and S4.
    pub disk: Option<u64>,
    /// Whether a virtio disk that cannot be written has the packed kernel as its contents.
    pub kernel_on_disk: bool,
    /// The size in MiB of a CXL memory device, whose memory is persistent. It has a label area.
    pub cxl: Option<u64>,
    /// Whether there are two NUMA nodes, each with half of the memory. Then each NVDIMM is on the
    /// node of its number.
    pub numa: bool,
    /// Additional parameters of the kernel.
    pub kernel_words: &'static str,
    /// The number of CPUs.
    pub cpus: u32,
    /// The memory, and the limit that includes the devices', in GiB.
    pub memory_gib: [u32; 2],
    /// The size in MiB of memory that the kernel leaves unused (see [`Arch::unused_memory`]).
    pub unused_mib: Option<u64>,
    /// Whether a device tree describes the unused memory.
    pub device_tree: bool,
    /// Whether CPU and kernel are set up so that emulation is fast, and not as on users' machines.
    pub fast: bool,
}

/// The kernel makes no region of CXL memory on a virtual CPU, whose caches it cannot write back
/// (`cpu_cache_has_invalidate_memregion`). So the CPU must not say that it is virtual.
const CPU_FOR_CXL: &str = "hypervisor=off,vendor=GenuineIntel";
/// The largest number of bytes of a command line (`COMMAND_LINE_SIZE` without the final zero). A
/// guest with a longer one does not come up, and says nothing.
pub const MAX_COMMAND_LINE: usize = 2047;
/// What costs a fifth of the work of a guest: clearing allocated memory, accounting of stalled
/// tasks, loading the keys of modules (without them no signature is checked), and preparing the
/// entries of ftrace and the formats of trace events.
const FAST_WORDS: &str = "init_on_alloc=0 psi=0 initcall_blacklist=load_system_certificate_list,\
     ftrace_check_for_weak_functions,trace_eval_init";

/// A machine with a CXL host bridge, and a window of addresses for the memory behind it.
const CXL_MACHINE: &str = "q35,nvdimm=on,cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G";

/// A machine without devices. The others differ from it.
pub const PLAIN: Machine = Machine {
    nvdimms: &[],
    virtio: &[],
    spares: &[],
    disk: None,
    kernel_on_disk: false,
    cxl: None,
    numa: false,
    kernel_words: "",
    cpus: 2,
    memory_gib: [2, 16],
    unused_mib: None,
    device_tree: false,
    fast: true,
};

/// One emulated NVDIMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nvdimm {
    /// The size of the region in MiB. `ndctl` needs multiples of 16 MiB.
    pub mib: u64,
    /// Whether the contents are in a file, which outlives the guest.
    pub kept: bool,
    /// Whether there is a label area.
    pub labelled: bool,
    /// Whether the NVDIMM can make stores durable. Otherwise its region is read-only at first.
    pub armed: bool,
}

/// The size of a label area, which is added to the region's.
const LABEL_MIB: u64 = 2;

impl Nvdimm {
    /// An NVDIMM whose contents are lost with the guest.
    pub const fn volatile(mib: u64) -> Nvdimm {
        Nvdimm {
            mib,
            kept: false,
            labelled: true,
            armed: true,
        }
    }

    /// An NVDIMM as container runtimes make one for an image.
    pub const fn for_image(mib: u64) -> Nvdimm {
        Nvdimm {
            labelled: false,
            armed: false,
            ..Nvdimm::volatile(mib)
        }
    }

    /// An NVDIMM whose contents are in a file.
    pub const fn kept(mib: u64) -> Nvdimm {
        Nvdimm {
            kept: true,
            ..Nvdimm::volatile(mib)
        }
    }

    fn bytes(self) -> u64 {
        let label_mib = if self.labelled { LABEL_MIB } else { 0 };
        (self.mib + label_mib) << 20
    }
}

/// The host's side of a serial port.
pub enum Serial<'a> {
    /// To a file.
    File(&'a Path),
    /// To the terminal, together with QEMU's monitor.
    Terminal,
    /// None.
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

/// The kernel and its arguments for a boot.
pub struct Software<'a> {
    pub arch: Arch,
    /// The firmware of a machine that does not start the kernel without one.
    pub firmware: Option<&'a Path>,
    pub kernel: &'a Path,
    /// The kernel as it is installed, which `kernel` need not be.
    pub packed_kernel: &'a Path,
    pub image: &'a Path,
    /// The device tree, in the binary form that QEMU passes to the kernel.
    pub device_tree: Option<&'a Path>,
    /// A file that is loaded into memory, and its address.
    pub loaded: Option<(&'a Path, u64)>,
    /// Additional parameters of the kernel.
    pub kernel_words: &'a str,
    /// The arguments of the guest program.
    pub words: &'a [String],
    /// A plugin that watches the guest.
    pub plugin: Option<&'a Plugin>,
    /// Whether the host's CPUs run the guest (KVM).
    pub kvm: bool,
}

/// A plugin of QEMU.
pub struct Plugin {
    pub library: PathBuf,
    /// The file that the plugin writes.
    pub out: PathBuf,
}

impl Machine {
    /// Returns the file behind an NVDIMM (`m0` and so on), a virtio-pmem device, a spare, or the
    /// disk.
    fn backing(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("{name}.img"))
    }

    /// Returns the names that QEMU has for what is kept in files, with the sizes in bytes.
    fn kept(&self) -> impl Iterator<Item = (String, u64)> {
        let nvdimms = self.nvdimms.iter().enumerate();
        let nvdimms = nvdimms.filter(|(_, nvdimm)| nvdimm.kept);
        let disk = self.disk.as_slice();
        let others = [("v", self.virtio), ("spare", self.spares), ("disk", disk)];
        let others = others.into_iter().flat_map(|(kind, sizes)| {
            let sizes = sizes.iter().enumerate();
            sizes.map(move |(index, mib)| (format!("{kind}{index}"), mib << 20))
        });
        nvdimms
            .map(|(index, nvdimm)| (format!("m{index}"), nvdimm.bytes()))
            .chain(others)
    }

    /// Creates the files behind the memory, empty.
    pub fn create_backing(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        for (name, bytes) in self.kept() {
            let path = Self::backing(dir, &name);
            let file =
                File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            file.set_len(bytes)?;
        }
        Ok(())
    }

    /// Removes the files behind the memory.
    pub fn remove_backing(&self, dir: &Path) -> Result<()> {
        for (name, _) in self.kept() {
            fs::remove_file(Self::backing(dir, &name))?;
        }
        Ok(())
    }

    /// Whether the guest sends commands to QEMU.
    fn takes_orders(&self) -> bool {
        !self.virtio.is_empty() || !self.spares.is_empty()
    }

    /// Adds two serial ports for commands of the guest. One is QEMU's monitor, which speaks QMP.
    /// The other sets how the host handles flushes (see `tests/hostsync`). `virt` has two ports, so
    /// these are on a PCI card there.
    fn add_order_ports(&self, qemu: &mut Command, backing: &Path, arch: Arch) -> Result<()> {
        // The path of a socket must be short, so the socket lies in the folder where QEMU runs.
        const MONITOR: &str = "monitor";
        qemu.current_dir(backing);
        let socket = format!("socket,path={MONITOR}");
        // Both ends of this connection are in QEMU.
        qemu.args(["-chardev", &format!("{socket},id=qmp,server=on,wait=off")]);
        qemu.args(["-mon", "chardev=qmp,mode=control"]);
        qemu.args(["-chardev", &format!("{socket},id=orders")]);
        let control = backing.join("fsync");
        let flushes = format!("file,id=flushes,path={}", control.display());
        qemu.args(["-chardev", &flushes]);
        match arch {
            Arch::Amd64 => qemu.args(["-serial", "chardev:orders", "-serial", "chardev:flushes"]),
            Arch::Arm64 => qemu.args(["-device", "pci-serial-2x,chardev1=orders,chardev2=flushes"]),
        };
        let library = std::env::current_exe()?.with_file_name("libhostsync.so");
        ensure!(
            library.exists(),
            "{} is not there: it is built together with the runner",
            library.display()
        );
        qemu.env("LD_PRELOAD", library)
            .env("PMEM_RS_FSYNC", control);
        Ok(())
    }

    /// Returns the command that runs the machine. QEMU ends when the guest switches the power off
    /// or panics.
    pub fn command(
        &self,
        software: &Software<'_>,
        backing: &Path,
        ports: [Serial<'_>; 2],
    ) -> Result<Command> {
        // The guest is killed when the runner ends.
        let mut qemu = Command::new("setpriv");
        let arch = software.arch;
        qemu.args(["--pdeathsig", "KILL", arch.emulator()]);
        let (accelerator, cpu) = match software.kvm {
            true => ("kvm", "host"),
            false => ("tcg", arch.cpu(self.fast)),
        };
        let (machine, cpu) = match self.cxl {
            Some(_) => (CXL_MACHINE, format!("{cpu},{CPU_FOR_CXL}")),
            None => (arch.machine(), cpu.to_owned()),
        };
        qemu.args(["-machine", machine, "-accel", accelerator]);
        qemu.args(["-cpu", &cpu]);
        qemu.args(["-smp", &self.cpus.to_string()]);
        if let Some(Plugin { library, out }) = software.plugin {
            let argument = format!("{},out={}", library.display(), out.display());
            qemu.args(["-plugin", &argument]);
        }
        let [mut memory, limit] = self.memory_gib;
        let mut unused = String::new();
        if let Some(mib) = self.unused_mib {
            (memory, unused) = arch.unused_memory(memory, mib);
        }
        qemu.args(["-m", &format!("{memory}G,slots=4,maxmem={limit}G")]);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        for (index, nvdimm) in self.nvdimms.iter().enumerate() {
            let size = nvdimm.bytes();
            let object = if nvdimm.kept {
                file_object(backing, &format!("m{index}"), size)
            } else {
                format!("memory-backend-ram,id=m{index},size={size}")
            };
            let node = if self.numa { index } else { 0 };
            let mut device = format!("nvdimm,id=nv{index},memdev=m{index},node={node}");
            if nvdimm.labelled {
                device += &format!(",label-size={LABEL_MIB}M");
            }
            if !nvdimm.armed {
                device += ",unarmed=on";
            }
            qemu.args(["-object", &object, "-device", &device]);
        }
        for (index, mib) in self.virtio.iter().enumerate() {
            let object = file_object(backing, &format!("v{index}"), mib << 20);
            let device = format!("virtio-pmem-pci,id=virtio{index},memdev=v{index}");
            qemu.args(["-object", &object, "-device", &device]);
        }
        for (index, mib) in self.spares.iter().enumerate() {
            let object = file_object(backing, &format!("spare{index}"), mib << 20);
            let slot = format!(
                "pcie-root-port,id=slot{index},chassis={0},slot={0}",
                index + 1
            );
            qemu.args(["-object", &object, "-device", &slot]);
        }
        if self.disk.is_some() {
            let file = Self::backing(backing, "disk0");
            let drive = format!("if=none,id=disk0,format=raw,file={}", file.display());
            qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk0"]);
            for state in ["s3", "s4"] {
                qemu.args(["-global", &format!("ICH9-LPC.disable_{state}=0")]);
            }
        }
        if self.kernel_on_disk {
            let file = software.packed_kernel.display();
            let drive = format!("if=none,id=kernel,format=raw,readonly=on,file={file}");
            qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=kernel"]);
        }
        if let Some(mib) = self.cxl {
            let memory = format!("memory-backend-ram,id=cxl,size={mib}M");
            let labels = format!("memory-backend-ram,id=lsa,size={LABEL_MIB}M");
            qemu.args(["-object", &memory, "-object", &labels]);
            for device in [
                "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1",
                "cxl-rp,port=0,bus=cxl.1,id=cxlport,chassis=0,slot=0",
                // A region needs a serial number of its device.
                "cxl-type3,bus=cxlport,persistent-memdev=cxl,lsa=lsa,sn=1",
            ] {
                qemu.args(["-device", device]);
            }
        }
        if self.numa {
            // The CPUs share a cache, so they are on one node.
            for node in 0..2 {
                let object = format!("memory-backend-ram,id=ram{node},size=1G");
                let description = format!("node,nodeid={node},memdev=ram{node}");
                qemu.args(["-object", &object, "-numa", &description]);
            }
            qemu.args(["-numa", "cpu,node-id=0,socket-id=0"]);
        }
        for port in &ports {
            qemu.args(["-serial", &port.argument()]);
        }
        if let Some((file, address)) = software.loaded {
            let file = file.display();
            let device = format!("loader,file={file},addr={address:#x},force-raw=on");
            qemu.args(["-device", &device]);
        }
        if self.takes_orders() {
            self.add_order_ports(&mut qemu, backing, arch)?;
        }
        if let Some(firmware) = software.firmware {
            qemu.arg("-bios").arg(firmware);
        }
        if let Some(tree) = software.device_tree {
            qemu.arg("-dtb").arg(tree);
        }
        qemu.arg("-kernel")
            .arg(software.kernel)
            .arg("-initrd")
            .arg(software.image);
        let kernel_words = [
            arch.kernel_words(),
            if self.fast { FAST_WORDS } else { "" },
            self.kernel_words,
            &unused,
            software.kernel_words,
        ]
        .join(" ");
        let words = software.words.join(" ");
        let line = format!("loglevel=5 panic=-1 {kernel_words} rdinit=/pmem-rs/guest -- {words}");
        ensure!(
            line.len() <= MAX_COMMAND_LINE,
            "the command line of the guest has {} bytes, and {MAX_COMMAND_LINE} at most are \
             possible. Name fewer tests",
            line.len()
        );
        qemu.args(["-append", &line]);
        Ok(qemu)
    }
}

/// Describes file-backed memory for QEMU.
fn file_object(backing: &Path, name: &str, bytes: u64) -> String {
    let path = Machine::backing(backing, name);
    format!(
        "memory-backend-file,id={name},share=on,mem-path={},size={bytes}",
        path.display()
    )
}
