// SPDX-License-Identifier: GPL-2.0

//! The guest image: the base image with tools and stock modules, and on top of it a small archive
//! with the test program, the module under test, and the rule that says who gets the devices.
//!
//! The kernel unpacks concatenated archives one after the other, so the base is used as it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Driver;
use crate::env::Env;
use crate::tool::run;

/// Archives start at a multiple of this in the concatenation.
const ALIGNMENT: u64 = 512;

/// Makes the image for one driver in `dir` and returns its path.
pub fn build(env: &Env, driver: Driver, dir: &Path) -> Result<PathBuf> {
    ensure!(
        driver != Driver::PmemRs || env.module.exists(),
        "{} is not there: build the module first",
        env.module.display()
    );
    let base = dir.join("base");
    let overlay = dir.join("overlay");
    for tree in [&base, &overlay] {
        if tree.exists() {
            fs::remove_dir_all(tree)?;
        }
        fs::create_dir_all(tree)?;
    }
    run(Command::new("unmkinitramfs").arg(&env.image).arg(&base))
        .context("unpacking the base image")?;
    // An image with an early part, for microcode, unpacks into several trees.
    let main = if base.join("main").exists() {
        base.join("main")
    } else {
        base.clone()
    };

    add_module(env, &main, &overlay)?;
    add_rule(driver, &overlay)?;
    add_program(&main, &overlay)?;

    let archive = fs::canonicalize(dir)?.join("overlay.cpio");
    let pack = "find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 > \"$0\"";
    let mut shell = Command::new("sh");
    run(shell
        .current_dir(&overlay)
        .args(["-ec", pack])
        .arg(&archive))
    .context("packing the archive")?;
    let image = dir.join("initrd.img");
    concatenate(&[&env.image, &archive], &image)?;
    fs::remove_dir_all(&base)?;
    Ok(image)
}

/// Puts the module under test beside the stock modules and makes their index anew, so that
/// `modprobe` finds it by name and by alias.
fn add_module(env: &Env, base: &Path, overlay: &Path) -> Result<()> {
    let modules = Path::new("usr/lib/modules").join(&env.release);
    let index = base.join(&modules);
    ensure!(
        index.exists(),
        "the base image has no {}",
        modules.display()
    );
    if env.module.exists() {
        for tree in [base, overlay] {
            let updates = tree.join(&modules).join("updates");
            fs::create_dir_all(&updates)?;
            fs::copy(&env.module, updates.join("pmem_rs.ko"))?;
            fs::copy(&env.window, updates.join("window.ko"))?;
            fs::copy(&env.injector, updates.join("injector.ko"))?;
            if let Some(planted) = &env.planted {
                fs::copy(planted, updates.join("planted.ko"))?;
            }
        }
    }
    run(Command::new("depmod")
        .arg("-b")
        .arg(base.join("usr"))
        .arg(&env.release))?;
    fs::create_dir_all(overlay.join(&modules))?;
    for entry in fs::read_dir(&index)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("modules.") {
            fs::copy(entry.path(), overlay.join(&modules).join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Both drivers match the same devices. `blacklist` keeps a module from being loaded by alias; by
/// name it still can be.
fn add_rule(driver: Driver, overlay: &Path) -> Result<()> {
    let dir = overlay.join("etc/modprobe.d");
    fs::create_dir_all(&dir)?;
    Ok(fs::write(
        dir.join("pmem-rs.conf"),
        format!("blacklist {}\n", driver.other().name()),
    )?)
}

/// The test program lies beside this one. It comes with those of its libraries that the base image
/// lacks.
fn add_program(base: &Path, overlay: &Path) -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("guest");
    fs::create_dir_all(overlay.join("pmem-rs"))?;
    fs::copy(&program, overlay.join("pmem-rs/guest"))
        .with_context(|| format!("{} is built together with the runner", program.display()))?;
    let output = run(Command::new("ldd").arg(&program))?;
    let text = String::from_utf8(output.stdout)?;
    for library in text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new)
    {
        // The directories of libraries are symlinks in some places; the archive needs real ones.
        let parent = library.parent().context("a library without a directory")?;
        let parent = fs::canonicalize(parent)?;
        let name = library.file_name().context("a library without a name")?;
        let inside = parent.strip_prefix("/")?.join(name);
        if !base.join(&inside).exists() {
            fs::create_dir_all(overlay.join(&inside).parent().unwrap_or(overlay))?;
            fs::copy(library, overlay.join(&inside))?;
        }
    }
    Ok(())
}

fn concatenate(archives: &[&Path], image: &Path) -> Result<()> {
    let mut out = File::create(image)?;
    for archive in archives {
        let mut from =
            File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
        let len = io::copy(&mut from, &mut out)?;
        let padding = len.next_multiple_of(ALIGNMENT) - len;
        out.write_all(&vec![0; padding as usize])?;
    }
    Ok(())
}
