// SPDX-License-Identifier: GPL-2.0

//! fio: workloads with verification.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::filesystem::FileSystem;
use crate::lab::{Lab, Prepared};
use crate::ndctl::Mode;
use crate::sectors::Model;

pub const SUITE: Suite = Suite {
    name: "fio",
    tests: &[
        Test::new("psync_raw", |lab| on_disk(lab, Mode::Raw, "psync", 1)).within(120),
        Test::new("psync_fsdax", |lab| {
            on_disk(lab, Mode::FsdaxMem, "psync", 1)
        })
        .within(120),
        Test::new("libaio_fsdax", |lab| {
            on_disk(lab, Mode::FsdaxMem, "libaio", 16)
        })
        .within(120),
        Test::new("io_uring_fsdax", |lab| {
            on_disk(lab, Mode::FsdaxMem, "io_uring", 16)
        })
        .within(120),
        Test::new("psync_sector", |lab| on_sectors(lab, "psync", 1)).within(120),
        Test::new("libaio_sector", |lab| on_sectors(lab, "libaio", 16)).within(120),
        Test::new("mmap_on_dax_file", mmap_on_dax_file).within(120),
    ],
};

/// The size of the area that fio uses.
const SIZE: usize = 8 << 20;

fn on_disk(lab: &mut Lab, mode: Mode, engine: &str, depth: u32) -> Result<()> {
    let disk = lab.prepare(mode)?.disk;
    let sizes = ["--bsrange=512-64k", "--blockalign=512"];
    verify_direct(&disk, engine, depth, &sizes)
}

/// Verifies a btt, which writes each sector to another block every time. Verifies again after the
/// device was unbound and bound.
fn on_sectors(lab: &mut Lab, engine: &str, depth: u32) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::Sector)?;
    let sizes = ["--bsrange=4k-64k", "--blockalign=4k"];
    verify_direct(&disk, engine, depth, &sizes)?;
    let before = Model::of(&disk.open(Access::Buffered)?, 0, SIZE)?;
    bound.unbind()?;
    bound.bind(lab.driver)?;
    before.check_all(&disk.open(Access::Buffered)?)
}

fn verify_direct(disk: &Disk, engine: &str, depth: u32, sizes: &[&str]) -> Result<()> {
    let depth = format!("--iodepth={depth}");
    let more = [&["--direct=1", &depth], sizes].concat();
    verify(&disk.node(), engine, &more)
}

fn mmap_on_dax_file(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    FileSystem::Ext4.make(&disk.node_str())?;
    let mount = FileSystem::Ext4.mount(&disk.node_str(), "dax=always")?;
    verify(&mount.path("file"), "mmap", &["--bs=4k"])?;
    mount.unmount()?;
    FileSystem::Ext4.check(&disk.node_str())
}

/// Writes at random offsets, reads everything back and compares checksums; fio fails if one
/// differs.
fn verify(file: &Path, engine: &str, more: &[&str]) -> Result<()> {
    let size = format!("--size={SIZE}");
    let file = format!("--filename={}", file.display());
    let engine = format!("--ioengine={engine}");
    let common = [
        "--name=verify",
        "--rw=randwrite",
        "--verify=crc32c",
        "--do_verify=1",
        &size,
    ];
    let report = ["--verify_fatal=1", "--output-format=json", &file, &engine];
    let text = run("fio", &[&common[..], &report[..], more].concat())?;
    // fio may print warnings before its report.
    let json = text
        .find('{')
        .map(|start| &text[start..])
        .context("fio reported nothing")?;
    let result: Value = serde_json::from_str(json).with_context(|| format!("fio said: {text}"))?;
    let job = &result["jobs"][0];
    ensure!(job["error"] == 0, "fio's job failed: {}", job["error"]);
    for direction in ["read", "write"] {
        let bytes = job[direction]["io_bytes"].as_u64();
        ensure!(bytes >= Some(SIZE as u64), "{direction}: {bytes:?} bytes");
    }
    Ok(())
}
