// SPDX-License-Identifier: GPL-2.0

//! File systems: mkfs, mount and fsck.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};

use crate::command::run;
use crate::mapping::{PAGE, PMD};

/// A file system that supports DAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    /// The name that `mount -t` takes.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    /// Makes the file system, with blocks of a page and with files aligned so that a PMD can map
    /// them.
    pub fn make(self, node: &str) -> Result<()> {
        self.make_with(node, &[])
    }

    /// As [`FileSystem::make`], with more arguments.
    pub fn make_with(self, node: &str, more: &[&str]) -> Result<()> {
        self.make_of_blocks(PAGE, node, more)
    }

    /// As [`FileSystem::make_with`], with blocks of this size.
    pub fn make_of_blocks(self, block: usize, node: &str, more: &[&str]) -> Result<()> {
        let stride = PMD / block;
        let stripes = format!("stride={stride},stripe_width={stride},lazy_itable_init=0");
        let block = match self {
            FileSystem::Ext4 => block.to_string(),
            FileSystem::Xfs => format!("size={block}"),
        };
        let (program, layout): (_, &[&str]) = match self {
            FileSystem::Ext4 => ("mkfs.ext4", &["-q", "-F", "-E", &stripes]),
            // With more allocation groups the log would not fit into one of them.
            FileSystem::Xfs => {
                let layout = "su=2m,sw=1,agcount=2";
                ("mkfs.xfs", &["-q", "-f", "-d", layout, "-l", "size=64m"])
            }
        };
        run(program, &[layout, &["-b", &block], more, &[node]].concat()).map(drop)
    }

    /// Mounts the file system under `/mnt`, in a directory named after the disk.
    pub fn mount(self, node: &str, options: &str) -> Result<Mount> {
        Mount::new(self.name(), node, options)
    }

    /// Checks an unmounted file system, without changing it.
    pub fn check(self, node: &str) -> Result<()> {
        match self {
            FileSystem::Ext4 => run("e2fsck", &["-f", "-n", node]),
            FileSystem::Xfs => run("xfs_repair", &["-n", node]),
        }
        .with_context(|| format!("the {} on {node} is not clean", self.name()))
        .map(drop)
    }
}

/// Where a file system is mounted.
pub fn mount_point(node: &str) -> PathBuf {
    Path::new("/mnt").join(node.trim_start_matches("/dev/"))
}

/// A mounted file system, unmounted when it is dropped.
#[derive(Debug)]
pub struct Mount {
    node: String,
    point: PathBuf,
}

impl Mount {
    /// Mounts a file system of any kind under `/mnt`, in a directory named after the disk.
    pub fn new(kind: &str, node: &str, options: &str) -> Result<Mount> {
        let point = mount_point(node);
        fs::create_dir_all(&point)?;
        let target = point.to_string_lossy().into_owned();
        run("mount", &["-t", kind, "-o", options, node, &target])?;
        Ok(Mount {
            node: node.to_owned(),
            point,
        })
    }

    /// A file system that an earlier step has mounted and left mounted.
    pub fn of(node: &str) -> Mount {
        Mount {
            node: node.to_owned(),
            point: mount_point(node),
        }
    }

    /// As [`Mount::of`], but finds the mount by its file system type: its disk may be gone.
    pub fn of_kind(kind: &str) -> Result<Mount> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let node = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (node, found) = (words.next()?, words.nth(1)?);
            (found == kind).then_some(node)
        });
        Ok(Mount::of(
            node.with_context(|| format!("no {kind} is mounted"))?,
        ))
    }

    /// Leaves the file system mounted for a later step.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The device.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// A path in the file system.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The options in effect.
    pub fn options(&self) -> Result<Vec<String>> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let line = mounts
            .lines()
            .find(|line| {
                line.split(' ')
                    .nth(1)
                    .is_some_and(|point| Path::new(point) == self.point)
            })
            .with_context(|| format!("{} is not in /proc/mounts", self.point.display()))?;
        let options = line.split(' ').nth(3).unwrap_or_default();
        Ok(options.split(',').map(str::to_owned).collect())
    }

    /// Checks that the mount has an option in effect.
    pub fn expect_option(&self, option: &str) -> Result<()> {
        let options = self.options()?;
        ensure!(
            options.iter().any(|found| found == option),
            "mounted with {options:?}, no {option}"
        );
        Ok(())
    }

    /// Unmounts. Unlike `drop`, this reports a failure.
    pub fn unmount(self) -> Result<()> {
        umount2(&self.point, MntFlags::empty())
            .with_context(|| format!("unmounting {} ({})", self.point.display(), self.node))?;
        self.leave();
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A failed test may leave its mount behind. If it cannot be unmounted, the cleanup after
        // the test reports that.
        let _ = umount2(&self.point, MntFlags::empty());
    }
}
