// SPDX-License-Identifier: GPL-2.0

//! The modules of a crate, and the modules that each of them uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree};

/// The most lines that a file may have without its tests.
const MOST_LINES: usize = 500;

/// The type that the `module!` macro of the kernel makes in the root of the crate. The kernel's own
/// macros refer to it by this name, in every file of a module.
const MADE_BY_MODULE_MACRO: &str = "LocalModule";

/// The path of a module in its crate. The root has none.
pub type ModulePath = Vec<String>;

/// A file of the crate.
pub struct Module {
    pub file: PathBuf,
    /// The paths that the code uses, resolved from the root of the crate.
    pub uses: BTreeSet<ModulePath>,
    /// The number of lines that are not of test modules.
    pub lines: usize,
}

/// Reads all files below a folder. The file that lies directly in it is the root of the crate.
pub fn modules(folder: &Path) -> Result<BTreeMap<ModulePath, Module>> {
    let files = rust_files(folder)?;
    let paths: BTreeMap<ModulePath, PathBuf> = files
        .into_iter()
        .map(|file| (module_path(folder, &file), file))
        .collect();
    let known: BTreeSet<ModulePath> = paths.keys().cloned().collect();
    paths
        .into_iter()
        .map(|(path, file)| {
            let text = fs::read_to_string(&file)?;
            let module = read(&path, file.clone(), &text, &known)
                .with_context(|| format!("reading {}", file.display()))?;
            Ok((path, module))
        })
        .collect()
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
        let path = entry?.into_path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn module_path(folder: &Path, file: &Path) -> ModulePath {
    let relative = file.strip_prefix(folder).unwrap_or(file).with_extension("");
    let mut path: ModulePath = relative
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if path.len() == 1 || path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

fn read(
    path: &[String],
    file: PathBuf,
    text: &str,
    known: &BTreeSet<ModulePath>,
) -> Result<Module> {
    let syntax = syn::parse_file(text)?;
    let mut collector = Collector {
        module: path,
        inside: Vec::new(),
        known,
        uses: BTreeSet::new(),
        test_lines: 0,
    };
    collector.visit_file(&syntax);
    Ok(Module {
        file,
        uses: collector.uses,
        lines: text.lines().count() - collector.test_lines,
    })
}

/// Collects what a file uses.
struct Collector<'a> {
    module: &'a [String],
    /// The inline modules around the current code.
    inside: Vec<String>,
    known: &'a BTreeSet<ModulePath>,
    uses: BTreeSet<ModulePath>,
    test_lines: usize,
}

impl Collector<'_> {
    /// Adds a path as it stands in the code.
    fn add(&mut self, path: &[String]) {
        let here = || self.module.iter().chain(&self.inside).cloned();
        let depth = self.module.len() + self.inside.len();
        let supers = path.iter().take_while(|part| *part == "super").count();
        let mut resolved: ModulePath = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("self") => here().chain(path[1..].iter().cloned()).collect(),
            Some("super") => here()
                .take(depth.saturating_sub(supers))
                .chain(path[supers..].iter().cloned())
                .collect(),
            Some(first) => {
                let child: ModulePath = here().chain([first.to_owned()]).collect();
                if !self.known.contains(&child) {
                    return;
                }
                here().chain(path.iter().cloned()).collect()
            }
            None => return,
        };
        if resolved
            .first()
            .is_some_and(|first| first == MADE_BY_MODULE_MACRO)
        {
            return;
        }
        while !self.known.contains(&resolved) {
            if resolved.pop().is_none() {
                return;
            }
        }
        if resolved != self.module {
            self.uses.insert(resolved);
        }
    }

    fn add_tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_tree(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(prefix, tree);
                }
            }
            UseTree::Name(name) if name.ident == "self" => self.add(prefix),
            UseTree::Rename(name) if name.ident == "self" => self.add(prefix),
            UseTree::Name(name) => self.add_leaf(prefix, name.ident.to_string()),
            UseTree::Rename(name) => self.add_leaf(prefix, name.ident.to_string()),
            UseTree::Glob(_) => self.add(prefix),
        }
    }

    fn add_leaf(&mut self, prefix: &[String], leaf: String) {
        let path: Vec<String> = prefix.iter().cloned().chain([leaf]).collect();
        self.add(&path);
    }

    /// Adds the paths in the tokens of a macro, which has no syntax of its own here.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut index = 0;
        while let Some(token) = tokens.get(index) {
            match token {
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                TokenTree::Ident(ident)
                    if ["crate", "self", "super"].iter().any(|word| ident == word) =>
                {
                    let mut path = vec![ident.to_string()];
                    while let Some(part) = next_part(&tokens[index + 1..]) {
                        path.push(part);
                        index += 3;
                    }
                    if path.len() > 1 {
                        self.add(&path);
                    }
                }
                _ => {}
            }
            index += 1;
        }
    }
}

/// Returns the identifier after `::` at the beginning of the tokens.
fn next_part(tokens: &[TokenTree]) -> Option<String> {
    let [
        TokenTree::Punct(first),
        TokenTree::Punct(second),
        TokenTree::Ident(part),
        ..,
    ] = tokens
    else {
        return None;
    };
    (first.as_char() == ':' && second.as_char() == ':').then(|| part.to_string())
}

/// Whether an attribute marks a module of tests.
fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("kunit_tests")
        || (attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test") || path.is_ident("CONFIG_KUNIT")))
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let Some((_, items)) = &item.content else {
            return;
        };
        if item.attrs.iter().any(is_for_tests) {
            self.test_lines += item.span().end().line + 1 - item.span().start().line;
            return;
        }
        self.inside.push(item.ident.to_string());
        for item in items {
            self.visit_item(item);
        }
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if parts.len() > 1 {
            self.add(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.add_tokens(item.tokens.clone());
    }
}

/// Files with more lines than they may have.
pub fn large_files(modules: &BTreeMap<ModulePath, Module>) -> Vec<String> {
    modules
        .values()
        .filter(|module| module.lines > MOST_LINES)
        .map(|module| {
            format!(
                "{}: {} lines without its tests, {MOST_LINES} are allowed",
                module.file.display(),
                module.lines
            )
        })
        .collect()
}

/// Returns file names that are used in both folders of src/.
pub fn shared_names(modules: &BTreeMap<ModulePath, Module>) -> Vec<String> {
    let on = |folder: &str| -> BTreeMap<&str, &Path> {
        modules
            .iter()
            .filter(|(path, _)| path.len() > 1 && path[0] == folder)
            .filter_map(|(path, module)| Some((path.last()?.as_str(), module.file.as_path())))
            .collect()
    };
    let below = on("abstractions");
    on("driver")
        .into_iter()
        .filter_map(|(name, file)| {
            let other = below.get(name)?;
            Some(format!(
                "{}: {} has the same name",
                file.display(),
                other.display()
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(path: &[&str], text: &str, known: &[&[&str]]) -> Vec<String> {
        let own = |path: &[&str]| path.iter().map(|part| (*part).to_owned()).collect();
        let known: BTreeSet<ModulePath> = known.iter().map(|path| own(path)).collect();
        let path: ModulePath = own(path);
        let module = read(&path, PathBuf::from("file.rs"), text, &known).unwrap();
        module.uses.iter().map(|path| path.join("/")).collect()
    }

    #[test]
    fn trees_supers_paths_and_macros_are_uses() {
        let known: &[&[&str]] = &[&[], &["a"], &["a", "b"], &["a", "c"], &["d"], &["d", "e"]];
        let text = "use super::c::{self, X}; use crate::d::{e::{Y, Z}};
            fn f() { crate::d::g(); m!(x: super::c::X, [crate::a::Thing]); }";
        assert_eq!(uses(&["a", "b"], text, known), ["a", "a/c", "d", "d/e"]);
    }

    #[test]
    fn children_count_and_other_crates_do_not() {
        let known: &[&[&str]] = &[&[], &["a"], &["a", "b"]];
        assert_eq!(
            uses(&["a"], "mod b; pub use b::X; use core::mem;", known),
            ["a/b"]
        );
        assert!(uses(&["a"], "mod b; use core::mem;", known).is_empty());
    }

    #[test]
    fn tests_and_the_type_of_the_module_macro_do_not_count() {
        let known: &[&[&str]] = &[&[], &["a"], &["b"]];
        let text = "#[kunit_tests(x)]\nmod tests { use crate::b; }
            #[cfg(test)]\nmod more { use crate::b; }
            type T = crate::LocalModule;";
        assert!(uses(&["a"], text, known).is_empty());
    }

    #[test]
    fn inline_modules_resolve_from_where_they_are() {
        let known: &[&[&str]] = &[&[], &["a"], &["b"]];
        assert_eq!(
            uses(&["a"], "mod inner { use super::super::b::X; }", known),
            ["b"]
        );
        assert!(uses(&["a"], "mod inner { use super::X; }", known).is_empty());
    }

    #[test]
    fn lines_of_tests_are_not_counted() {
        let text = "fn f() {}\n#[kunit_tests(x)]\nmod tests {\n    fn g() {}\n}\n";
        let module = read(&[], PathBuf::from("file.rs"), text, &BTreeSet::new()).unwrap();
        assert_eq!(module.lines, 1);
    }
}
