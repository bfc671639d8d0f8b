// SPDX-License-Identifier: GPL-2.0

//! The guest image: the tools and stock modules of the base image, the test program, the module
//! under test, and the modprobe rule that selects the driver of the devices.
//!
//! Unpacking the image takes most of a boot under emulation. Therefore nothing in it is compressed,
//! and files that no guest needs are removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Driver;
use crate::arch::Arch;
use crate::env::Env;
use crate::tool::run;

/// Folders of the base image that no guest needs: udev's hardware database.
const NOT_NEEDED: &str = "usr/lib/udev/hwdb.bin";

/// Sections of file systems that no test needs: function entries for ftrace, trace events, and
/// types for BPF. Most of the time to load a module is spent on them: for each function entry the
/// kernel searches all symbols of the module, which takes 8 s for xfs under emulation. A function
/// whose entry is not listed still calls `__fentry__()`, which returns, or begins with NOPs.
const SLOW_SECTIONS: &str = "-R __mcount_loc -R __patchable_function_entries -R _ftrace_events \
     -R _ftrace_eval_map -R .BTF";

/// Makes the image for one driver in `dir` and returns its path.
pub fn build(env: &Env, driver: Driver, dir: &Path) -> Result<PathBuf> {
    ensure!(
        driver != Driver::PmemRs || env.module.exists(),
        "{} is not there: build the module first",
        env.module.display()
    );
    let base = dir.join("base");
    if base.exists() {
        fs::remove_dir_all(&base)?;
    }
    fs::create_dir_all(&base)?;
    run(Command::new("unmkinitramfs").arg(&env.image).arg(&base))
        .context("unpacking the base image")?;
    // An image with an early part, for microcode, unpacks into several trees.
    let main = if base.join("main").exists() {
        base.join("main")
    } else {
        base.clone()
    };

    if main.join(NOT_NEEDED).exists() {
        fs::remove_file(main.join(NOT_NEEDED))?;
    }
    add_modules(env, &main)?;
    add_rule(driver, &main)?;
    add_program(env, &main)?;

    let image = fs::canonicalize(dir)?.join("initrd.img");
    let pack = "find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 > \"$0\"";
    let mut shell = Command::new("sh");
    run(shell.current_dir(&main).args(["-ec", pack]).arg(&image)).context("packing the image")?;
    fs::remove_dir_all(&base)?;
    Ok(image)
}

/// Returns the kernel in the form that starts fastest. If the kernel can be started directly (PVH),
/// that is the ELF file that it was compressed from, which is written to `dir`: the guest need not
/// unpack it. The kernel is then at the addresses that it was linked for.
pub fn kernel(env: &Env, dir: &Path) -> Result<PathBuf> {
    let config = env.build.join(".config");
    let config =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    if !config.lines().any(|line| line == "CONFIG_PVH=y") {
        return Ok(env.kernel.clone());
    }
    let script = env.source.join("scripts/extract-vmlinux");
    let output = run(Command::new("sh").arg(script).arg(&env.kernel))
        .with_context(|| format!("unpacking {}", env.kernel.display()))?;
    let path = dir.join("vmlinux");
    fs::write(&path, output.stdout)?;
    Ok(path)
}

/// Copies a program or a module without its debug information, which is most of it.
fn copy_stripped(env: &Env, from: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new(env.arch.tool("strip"));
    strip.arg("--strip-debug").arg("-o").arg(to).arg(from);
    run(&mut strip).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// Puts the modules of this project beside the stock modules and makes the index again, so that
/// `modprobe` finds them by name and by alias.
fn add_modules(env: &Env, base: &Path) -> Result<()> {
    let modules = base.join("usr/lib/modules").join(&env.release);
    ensure!(
        modules.exists(),
        "the base image has no {}",
        modules.display()
    );
    let decompress = "find . -name '*.ko.xz' -exec xz -d {} +";
    run(Command::new("sh")
        .current_dir(&modules)
        .args(["-ec", decompress]))
    .context("decompressing modules")?;
    let objcopy = env.arch.tool("objcopy");
    let remove = format!("find kernel/fs -name '*.ko' | xargs -n 1 {objcopy} {SLOW_SECTIONS}");
    run(Command::new("sh")
        .current_dir(&modules)
        .args(["-ec", &remove]))
    .context("removing sections of file systems")?;
    if env.module.exists() {
        let updates = modules.join("updates");
        fs::create_dir_all(&updates)?;
        let ours = [
            (Some(&env.module), "pmem_rs.ko"),
            (Some(&env.window), "window.ko"),
            (Some(&env.injector), "injector.ko"),
            (Some(&env.lessee), "lessee.ko"),
            (env.planted.as_ref(), "planted.ko"),
        ];
        for (module, name) in ours {
            if let Some(module) = module {
                copy_stripped(env, module, &updates.join(name))?;
            }
        }
    }
    run(Command::new("depmod")
        .arg("-b")
        .arg(base.join("usr"))
        .arg(&env.release))?;
    Ok(())
}

/// Selects one of the two drivers, which match the same devices. `blacklist` prevents that a module
/// is loaded by alias. It can still be loaded by name.
fn add_rule(driver: Driver, base: &Path) -> Result<()> {
    let dir = base.join("etc/modprobe.d");
    fs::create_dir_all(&dir)?;
    Ok(fs::write(
        dir.join("pmem-rs.conf"),
        format!("blacklist {}\n", driver.other().name()),
    )?)
}

/// Copies the test program, and those of its libraries that the base image lacks. The image for
/// another architecture has them.
fn add_program(env: &Env, base: &Path) -> Result<()> {
    let here = std::env::current_exe()?;
    let here = here.parent().context("the runner has no folder")?;
    let program = here.join(env.arch.programs()).join("guest");
    fs::create_dir_all(base.join("pmem-rs"))?;
    copy_stripped(env, &program, &base.join("pmem-rs/guest"))
        .with_context(|| format!("{} is built together with the runner", program.display()))?;
    if env.arch != Arch::Amd64 {
        return Ok(());
    }
    let output = run(Command::new("ldd").arg(&program))?;
    let text = String::from_utf8(output.stdout)?;
    for library in text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new)
    {
        // In some places the folders of libraries are symlinks that lead out of the image.
        let parent = library.parent().context("a library without a directory")?;
        let parent = fs::canonicalize(parent)?;
        let name = library.file_name().context("a library without a name")?;
        let inside = base.join(parent.strip_prefix("/")?).join(name);
        if !inside.exists() {
            fs::create_dir_all(inside.parent().unwrap_or(base))?;
            fs::copy(library, &inside)?;
        }
    }
    Ok(())
}
