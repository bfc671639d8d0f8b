// SPDX-License-Identifier: GPL-2.0

//! Rewrites Rust files of `src/` for the kernel's tree.

use std::collections::BTreeMap;

use crate::{
    imports::{
        self,
        Import, //
    },
    paths::Paths, //
};

/// Where a file goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The kernel crate.
    Kernel,
    /// The crate of the driver, which uses the kernel crate.
    Driver,
}

/// Rewrites the paths in a file.
pub fn rewrite(text: &str, paths: &Paths, target: Target) -> String {
    let mut out = String::new();
    let mut items: Vec<String> = Vec::new();
    let mut lines = text.lines();
    let mut after_attribute = false;

    while let Some(line) = lines.next() {
        let code = line.trim_start();
        if is_use(code) {
            let mut item = line.to_owned();
            while !item.trim_end().ends_with(';') {
                let Some(next) = lines.next() else { break };
                item.push('\n');
                item.push_str(next);
            }
            if after_attribute {
                flush(&mut items, paths, target, &mut out);
                out.push_str(&rewrite_uses(&[item], paths, target));
                after_attribute = false;
            } else {
                items.push(item);
            }
            continue;
        }
        flush(&mut items, paths, target, &mut out);
        after_attribute = code.starts_with("#[");
        out.push_str(&rewrite_line(line, paths, target));
        out.push('\n');
    }
    flush(&mut items, paths, target, &mut out);
    out
}

fn is_use(code: &str) -> bool {
    code.starts_with("use ")
        || (code.starts_with("pub")
            && code.split_once("use ").is_some_and(|(start, _)| {
                matches!(start.trim(), "pub" | "pub(crate)" | "pub(super)")
                    || start.trim() == "pub(in crate::abstractions)"
            }))
}

fn flush(items: &mut Vec<String>, paths: &Paths, target: Target, out: &mut String) {
    if !items.is_empty() {
        out.push_str(&rewrite_uses(items, paths, target));
        items.clear();
    }
}

/// Rewrites `use` items that follow one another.
fn rewrite_uses(items: &[String], paths: &Paths, target: Target) -> String {
    let mut changed = false;
    // By visibility, root and the path of a `pub use`, so that these are not joined.
    let mut groups: BTreeMap<(String, u8, String), Vec<Import>> = BTreeMap::new();
    let indent = items
        .first()
        .map_or("", |item| &item[..item.len() - item.trim_start().len()]);

    for item in items {
        let item = item.trim();
        let (visibility, tree) = item.split_once("use ").unwrap_or(("", item));
        let tree = tree.trim_end_matches(';');
        for (path, alias) in imports::parse(tree) {
            // The kernel has the field that this function returns.
            if target == Target::Kernel && path.ends_with(&["bvec_iter_offset".to_owned()]) {
                changed = true;
                continue;
            }
            let new = map_import(&path, paths, target);
            changed |= new != path;
            let root = new.first().cloned().unwrap_or_default();
            let order = match root.as_str() {
                "core" => 0,
                "crate" => 2,
                "self" | "super" => 3,
                _ => 1,
            };
            groups
                .entry((visibility_in(visibility, target).to_owned(), order, root))
                .or_default()
                .push((new, alias));
        }
    }
    if !changed {
        return items
            .iter()
            .flat_map(|item| [item.as_str(), "\n"])
            .collect();
    }
    let separator = if target == Target::Kernel { "\n" } else { "" };
    groups
        .iter()
        .map(|((visibility, ..), imports)| imports::write(imports, indent, visibility))
        .collect::<Vec<_>>()
        .join(separator)
}

/// Maps a path of a `use` item.
fn map_import(path: &[String], paths: &Paths, target: Target) -> Vec<String> {
    let root = if target == Target::Kernel {
        "crate"
    } else {
        "kernel"
    };
    let below = match path {
        [first, rest @ ..] if first == "abstractions" => Some(rest),
        [first, second, rest @ ..] if first == "crate" && second == "abstractions" => Some(rest),
        [first, second, rest @ ..] if first == "pmem_rs" && second == "abstractions" => Some(rest),
        _ => None,
    };

    if let Some(below) = below {
        // The driver has its own bindings.
        if target == Target::Kernel || below.first().is_some_and(|first| first != "bindings") {
            if let Some(new) = paths.in_kernel(below) {
                return std::iter::once(root.to_owned()).chain(new).collect();
            }
            if below.len() >= 2 && below[0] == "compat" && below[1] == "pin_init" {
                return std::iter::once("pin_init".to_owned())
                    .chain(below[2..].to_vec())
                    .collect();
            }
        }
    } else if target == Target::Kernel && path.first().is_some_and(|first| first == "kernel") {
        return std::iter::once(root.to_owned())
            .chain(path[1..].to_vec())
            .collect();
    }
    path.to_vec()
}

/// Rewrites a line that is no `use` item.
fn rewrite_line(line: &str, paths: &Paths, target: Target) -> String {
    let is_comment = line.trim_start().starts_with("//");
    let mut text = String::new();
    let mut rest = line;

    while let Some((start, root)) = next_path(rest) {
        text.push_str(&rest[..start]);
        let after = &rest[start + root.len()..];
        let end = after
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
            .unwrap_or(after.len());
        let path = after[..end].trim_end_matches(':');
        let below: Vec<String> = path.split("::").map(str::to_owned).collect();
        let own = target == Target::Driver && below[0] == "bindings";
        match paths.in_kernel(&below).filter(|_| !own) {
            Some(new) => {
                // Examples in comments are code outside of the kernel crate.
                let inside = target == Target::Kernel && !root.starts_with("pmem_rs");
                text.push_str(if inside { "crate::" } else { "kernel::" });
                text.push_str(&new.join("::"));
            }
            None => {
                text.push_str(root);
                text.push_str(path);
            }
        }
        rest = &after[path.len()..];
    }
    text.push_str(rest);
    if target == Target::Driver {
        return text;
    }
    if !is_comment {
        text = inside_crate(&text);
    }
    text.replace("pub(in crate::abstractions)", "pub(crate)")
        .replace("kunit_tests(pmem_rs_", "kunit_tests(rust_")
        .replace("\"pmem_rs::", "\"kernel::")
        .replace("\"pmem_rs_", "\"rust_")
}

/// Finds the next path below the abstractions, and returns its start and its root.
fn next_path(text: &str) -> Option<(usize, &'static str)> {
    ["crate::abstractions::", "pmem_rs::abstractions::"]
        .into_iter()
        .filter_map(|root| text.find(root).map(|start| (start, root)))
        .min()
}

/// Replaces the name of the kernel crate by `crate`, in code.
fn inside_crate(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;

    while let Some(start) = rest.find("kernel::") {
        let before = rest[..start].chars().next_back();
        text.push_str(&rest[..start]);
        let is_root = before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':' | '"'));
        text.push_str(if is_root { "crate::" } else { "kernel::" });
        rest = &rest[start + "kernel::".len()..];
    }
    text + rest
}

fn visibility_in(visibility: &str, target: Target) -> &str {
    match visibility {
        "pub(in crate::abstractions) " if target == Target::Kernel => "pub(crate) ",
        other => other,
    }
}

/// Makes items with these names public.
pub fn publish(text: &str, names: &[&str]) -> String {
    let mut out = String::new();

    for line in text.lines() {
        let is_named = line.trim_start().starts_with("pub(crate)")
            && line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| names.contains(&word));
        if is_named {
            out.push_str(&line.replacen("pub(crate)", "pub", 1));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// Returns the items of a file behind its imports.
pub fn items(text: &str) -> Option<&str> {
    let imports = text.find("\nuse ")?;
    let end = imports + text[imports..].find(";\n\n")? + 3;

    Some(&text[end..])
}

/// Returns the methods with these names of the `impl` block of a type, with their comments.
pub fn methods(text: &str, of: &str, names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut current = String::new();
    let mut name = None;

    for line in text
        .lines()
        .skip_while(|line| *line != format!("impl {of} {{"))
        .skip(1)
        .take_while(|line| *line != "}")
    {
        if line.is_empty() && name.is_none() {
            current.clear();
            continue;
        }
        current.push_str(line);
        current.push('\n');
        // With or without a path after `pub`.
        let signature = line.strip_prefix("    pub");
        if let Some((_, rest)) = signature.and_then(|line| line.split_once(" fn ")) {
            name = rest.split(['(', '<']).next();
        }
        if line == "    }" {
            if name.is_some_and(|name| names.contains(&name)) {
                found.push(std::mem::take(&mut current));
            }
            current.clear();
            name = None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: &str = "use crate::abstractions::bindings;\nuse crate::abstractions::kernel::\
        wait::WaitQueue;\nuse kernel::prelude::*;\n\n/// use pmem_rs::abstractions::kernel::wait;\n\
        pub(in crate::abstractions) fn f() {\n    kernel::current!();\n}\n";

    fn paths() -> Paths {
        Paths::of(&[("kernel::wait", "wait"), ("bindings", "bindings")])
    }

    #[test]
    fn paths_of_the_kernel_crate_begin_with_crate() {
        let expected = "use crate::{\n    bindings,\n    prelude::*,\n    wait::WaitQueue, //\n};\n\n\
            /// use kernel::wait;\npub(crate) fn f() {\n    crate::current!();\n}\n";

        assert_eq!(rewrite(WAIT, &paths(), Target::Kernel), expected);
    }

    #[test]
    fn the_driver_keeps_its_bindings() {
        let expected = "use crate::abstractions::bindings;\nuse kernel::{\n    prelude::*,\n    \
            wait::WaitQueue, //\n};\n\n/// use kernel::wait;\npub(in crate::abstractions) fn f() \
            {\n    kernel::current!();\n}\n";

        let mut lines: Vec<_> = rewrite(WAIT, &paths(), Target::Driver)
            .lines()
            .map(str::to_owned)
            .collect();
        // rustfmt orders the items.
        if lines[0].starts_with("use kernel") {
            let last = lines
                .iter()
                .position(|line| line.contains("bindings"))
                .unwrap_or(0);
            let bindings = lines.remove(last);
            lines.insert(0, bindings);
        }
        assert_eq!(lines.join("\n") + "\n", expected);
    }

    #[test]
    fn methods_are_found_with_their_comments() {
        let text = "impl A {\n    /// One.\n    pub fn one(&self) {\n        x();\n    }\n\n    \
            /// Two.\n    pub(super) fn two(&self) {\n\n        y();\n    }\n}\n";

        assert_eq!(
            methods(text, "A", &["two"]),
            ["    /// Two.\n    pub(super) fn two(&self) {\n\n        y();\n    }\n"]
        );
    }
}
