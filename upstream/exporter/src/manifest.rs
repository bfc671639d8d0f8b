// SPDX-License-Identifier: GPL-2.0

//! The instructions of a patch, one on a line:
//!
//! | instruction | what it does |
//! |---|---|
//! | `file FILE [DEST]` | adds a file of `src/abstractions`, by default at its path in `rust/kernel` |
//! | `module FILE DECLARATION` | adds a `pub mod` declaration to a file of the kernel |
//! | `methods FILE DEST TYPE NAME…` | adds methods of a file to the `impl` of a type of the kernel |
//! | `remove FILE TYPE NAME…` | removes methods of a type from an exported file |
//! | `append FILE DEST` | adds the items of a file to one of the kernel |
//! | `use DEST PATH` | adds an import to a file of the kernel |
//! | `path OLD NEW` | maps a path of `crate::abstractions` to one of the kernel crate |
//! | `public NAME…` | items that are private to the abstractions, and are public in the kernel |
//! | `replace FILE OLD => NEW` | replaces text of an exported file |
//! | `helpers DEST HEADER NAME…` | adds C helpers; the header is the one that they need |
//! | `header NAME` | adds a header to the bindings |
//! | `constant TYPE NAME [VALUE]` | adds a constant to the bindings that bindgen cannot evaluate |
//! | `bindgen LINE` | adds a line to the parameters of bindgen |
//! | `maintain SECTION` | puts the new files into this section of MAINTAINERS |
//! | `driver PATH…` | adds files of the checkout below `drivers/nvdimm/pmem_rs` |
//! | `documents NAME…` | adds documents of `docs`, in which links to other documents become text |
//! | `skip FILE` | a file of `src/abstractions` that the kernel needs in no form |
//! | `copy FILE DEST` | adds a file of the checkout as it is |
//! | `cut FILE TEXT` | removes the end of a file, from a text on |
//! | `insert FILE TEXT \| LINES` | adds lines to a file of the kernel, before a text |

use std::{
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

use anyhow::{
    Context,
    Result, //
};

/// One patch.
pub struct Manifest {
    pub series: PathBuf,
    /// The name of the file without its extension.
    pub name: String,
    /// Subject and message.
    pub message: String,
    pub instructions: Vec<(String, String)>,
}

impl Manifest {
    /// Returns the arguments of all instructions with this verb.
    pub fn all<'a>(&'a self, verb: &'a str) -> impl Iterator<Item = &'a str> {
        self.instructions
            .iter()
            .filter(move |(name, _)| name == verb)
            .map(|(_, arguments)| arguments.as_str())
    }
}

/// Reads the patches of a series, in their order.
pub fn read(project: &Path, series: &Path) -> Result<Vec<Manifest>> {
    let mut files: Vec<_> = fs::read_dir(project.join("upstream").join(series))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "export"));
    files.sort();

    files.iter().map(|file| parse(series, file)).collect()
}

fn parse(series: &Path, file: &Path) -> Result<Manifest> {
    let text = fs::read_to_string(file)?;
    let (message, instructions) = text
        .split_once("\n---\n")
        .with_context(|| format!("{} has no line ---", file.display()))?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();

    Ok(Manifest {
        series: series.to_owned(),
        name: name.into_owned(),
        message: format!("{message}\n---\n"),
        instructions: instructions
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let (verb, arguments) = line.split_once(' ').unwrap_or((line, ""));
                (verb.to_owned(), arguments.to_owned())
            })
            .collect(),
    })
}
