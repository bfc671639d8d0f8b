// SPDX-License-Identifier: GPL-2.0

//! Namespaces as `ndctl` makes and shows them.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::{has_module, run};
use crate::lab::Skip;
use crate::nd::Device;

/// The mode of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A disk of the whole namespace, without struct pages.
    Raw,
    /// A disk whose file systems support DAX, with struct pages in RAM.
    FsdaxMem,
    /// A disk whose file systems support DAX, with struct pages on the medium.
    FsdaxDev,
    /// A disk with atomic sectors (btt).
    Sector,
    /// A character device that processes map without a file system.
    Devdax,
}

impl Mode {
    /// Whether the kernel has the driver for it. A kernel without transparent huge pages, such as a
    /// real-time one, has no device_dax.
    pub fn is_supported(self) -> bool {
        self != Mode::Devdax || has_module("device_dax")
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Mode::Raw => &["-m", "raw"],
            Mode::FsdaxMem => &["-m", "fsdax", "-M", "mem"],
            Mode::FsdaxDev => &["-m", "fsdax", "-M", "dev"],
            Mode::Sector => &["-m", "sector"],
            Mode::Devdax => &["-m", "devdax"],
        }
    }
}

/// A namespace as `ndctl list` describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Namespace {
    /// The namespace device.
    pub dev: String,
    /// `raw`, `fsdax`, `sector` or `devdax`.
    pub mode: String,
    /// Where an fsdax or devdax namespace keeps its struct pages: `mem` or `dev`.
    pub map: Option<String>,
    /// The usable size in bytes.
    pub size: u64,
    /// The logical block size.
    pub sector_size: Option<u64>,
    /// The alignment of an fsdax or devdax namespace.
    pub align: Option<u64>,
    /// The disk, while the namespace is enabled.
    pub blockdev: Option<String>,
    /// `disabled` if no driver is bound to the namespace.
    pub state: Option<String>,
}

/// A namespace as `ndctl create-namespace` describes it: sizes are in human-readable form, and not
/// used.
#[derive(Clone, Debug, Deserialize)]
pub struct Created {
    /// The namespace device.
    pub dev: String,
    /// `raw`, `fsdax`, `sector` or `devdax`.
    pub mode: String,
    /// The disk.
    pub blockdev: Option<String>,
}

impl Created {
    /// Lists the namespace.
    pub fn show(&self) -> Result<Namespace> {
        show(&Device::named(&self.dev))
    }
}

/// Reconfigures a namespace to the given mode. Its data are lost.
pub fn reconfigure(namespace: &Device, mode: Mode) -> Result<Created> {
    // Without a size, the sector size stays as in the former mode. A namespace without a label
    // cannot change it, and lacks the attribute.
    let choice = mode != Mode::Sector && namespace.path("sector_size").exists();
    reconfigure_with(namespace, mode, if choice { &["-l", "512"] } else { &[] })
}

/// As [`reconfigure`], with more arguments for `ndctl create-namespace`.
pub fn reconfigure_with(namespace: &Device, mode: Mode, more: &[&str]) -> Result<Created> {
    create_namespace(&["-f", "-e", namespace.name()], mode, more)
}

/// Creates another namespace in a region with free capacity.
pub fn create(region: &Device, mode: Mode, more: &[&str]) -> Result<Created> {
    create_namespace(&["-r", region.name()], mode, more)
}

fn create_namespace(of: &[&str], mode: Mode, more: &[&str]) -> Result<Created> {
    if !mode.is_supported() {
        return Err(Skip("the kernel has no device_dax").into());
    }
    let args = [&["create-namespace"], of, mode.arguments(), more].concat();
    let text = run("ndctl", &args)?;
    serde_json::from_str(&text).with_context(|| format!("ndctl said: {text}"))
}

/// The number of the kernel for a region whose namespaces are described by labels.
pub const LABELLED: &str = "5";

/// Makes one raw namespace in each region that does not have exactly one. This is the state at the
/// beginning of a boot.
pub fn make_whole() -> Result<()> {
    for region in Device::all_of("region")? {
        let prefix = format!("{}.", region.name().replace("region", "namespace"));
        let mut namespaces = Device::all_of(&prefix)?;
        namespaces.retain(|namespace| namespace.get("size").is_ok_and(|size| size != "0"));
        // Without labels there is always just one.
        if region.get("nstype")? != LABELLED {
            continue;
        }
        let room = region.get("available_size").is_ok_and(|size| size != "0");
        if namespaces.len() == 1 && !room {
            continue;
        }
        for namespace in &namespaces {
            run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
        }
        create(&region, Mode::Raw, &[])?;
    }
    Ok(())
}

/// Looks at one namespace, enabled or not.
pub fn show(namespace: &Device) -> Result<Namespace> {
    list(&["-n", namespace.name()])?
        .into_iter()
        .next()
        .with_context(|| format!("ndctl does not list {namespace}"))
}

/// Lists all namespaces that have a size.
pub fn list_all() -> Result<Vec<Namespace>> {
    list(&[])
}

fn list(more: &[&str]) -> Result<Vec<Namespace>> {
    let mut args = vec!["list", "-N", "-i"];
    args.extend(more);
    let text = run("ndctl", &args)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).with_context(|| format!("ndctl said: {text}"))
}
