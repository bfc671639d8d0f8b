// SPDX-License-Identifier: GPL-2.0

//! Exports abstractions and the driver as patches for the kernel.
//!
//! ```text
//! exporter PROJECT KERNEL-SOURCE OUT SERIES…
//! ```
//!
//! Each file `NNNN-TITLE.export` of a series is one patch: subject and message, `---`, and
//! instructions (`manifest.rs`). `OUT/SERIES` gets a folder for each, with `message`, the files
//! that the patch changes as they are before (`a/`) and after it (`b/`), and `formatted`, the list
//! of files that rustfmt has to format. `upstream/generate` makes diffs of them.

mod c;
mod document;
mod imports;
mod manifest;
mod paths;
mod rust;
mod tree;

use std::{
    env,
    path::PathBuf, //
};

use anyhow::{
    Result, //
    bail,
};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [project, kernel, out, series @ ..] = arguments.as_slice() else {
        bail!("usage: exporter PROJECT KERNEL-SOURCE OUT SERIES…");
    };
    let mut all = Vec::new();
    for name in series {
        all.extend(manifest::read(project, name)?);
    }
    let mut tree = tree::Tree::new(project, kernel, &all)?;
    let mut current = None;

    for (last, manifest) in all.iter().enumerate() {
        if current != Some(&manifest.series) {
            current = Some(&manifest.series);
            tree.begin_series();
        }
        tree.apply(manifest, &all[..=last])?;
        tree.write(&out.join(&manifest.series).join(&manifest.name), manifest)?;
    }
    Ok(())
}
