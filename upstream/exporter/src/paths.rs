// SPDX-License-Identifier: GPL-2.0

//! Where the items of `crate::abstractions` are in the kernel crate.

use crate::manifest::Manifest;

/// What the kernel crate has under the names of `compat.rs`, and the bindings.
const OF_THE_KERNEL: [(&str, &str); 7] = [
    ("bindings", "bindings"),
    ("compat::error", "error"),
    ("compat::module", "module"),
    ("compat::sync", "sync"),
    ("compat::sync::new_srcu", "new_srcu"),
    ("compat::device_id", "device_id"),
    ("compat::of_device_table", "of_device_table"),
];

/// Paths below `crate::abstractions`, and those below the root of the kernel crate.
pub struct Paths(Vec<(Vec<String>, Vec<String>)>);

fn segments(path: &str) -> Vec<String> {
    path.split("::").map(str::to_owned).collect()
}

/// Returns the module that a file is, such as `kernel::wait`.
fn module_of(file: &str) -> String {
    file.trim_end_matches(".rs").replace('/', "::")
}

/// Returns the place of a file of the abstractions in the kernel's tree.
pub fn destination(arguments: &str) -> (String, String) {
    match arguments.split_once(' ') {
        Some((file, dest)) => (file.to_owned(), dest.to_owned()),
        None => (arguments.to_owned(), format!("rust/{arguments}")),
    }
}

impl Paths {
    /// Paths for a test.
    #[cfg(test)]
    pub fn of(paths: &[(&str, &str)]) -> Self {
        Self(
            paths
                .iter()
                .map(|(old, new)| (segments(old), segments(new)))
                .collect(),
        )
    }

    /// The paths of the patches.
    pub fn new(manifests: &[Manifest]) -> Self {
        let mut paths: Vec<_> = OF_THE_KERNEL
            .iter()
            .map(|(old, new)| (segments(old), segments(new)))
            .collect();

        for manifest in manifests {
            for arguments in manifest.all("file").chain(manifest.all("append")) {
                let (file, dest) = destination(arguments);
                let dest = dest.trim_start_matches("rust/kernel/");
                paths.push((segments(&module_of(&file)), segments(&module_of(dest))));
            }
            for arguments in manifest.all("path") {
                if let Some((old, new)) = arguments.split_once(' ') {
                    paths.push((segments(old), segments(new)));
                }
            }
        }
        // The longest one wins.
        paths.sort_by_key(|(old, _)| std::cmp::Reverse(old.len()));
        Self(paths)
    }

    /// Returns the path below the root of the kernel crate of a path below `crate::abstractions`,
    /// if it is there.
    pub fn in_kernel(&self, path: &[String]) -> Option<Vec<String>> {
        self.0.iter().find_map(|(old, new)| {
            let rest = path.strip_prefix(old.as_slice())?;
            Some(new.iter().chain(rest).cloned().collect())
        })
    }
}
