// SPDX-License-Identifier: GPL-2.0

//! The files of the kernel that patches change, before and after each.

use std::{
    collections::{
        BTreeMap,
        BTreeSet, //
    },
    fs,
    path::{
        Path,
        PathBuf, //
    },
};

use anyhow::{
    Context,
    Result, //
    bail,
};

use crate::{
    c,
    document,
    manifest::Manifest,
    paths::{
        Paths, //
        destination,
    },
    rust::{
        self,
        Target, //
    }, //
};

/// The folder of the driver.
const DRIVER: &str = "drivers/nvdimm/pmem_rs/";

/// The state of the files after the patches so far.
pub struct Tree<'a> {
    project: &'a Path,
    kernel: &'a Path,
    paths: Paths,
    helpers: String,
    /// Files of the abstractions that are in the kernel crate, and the helpers there.
    exported: BTreeSet<String>,
    exported_helpers: Vec<String>,
    now: BTreeMap<String, String>,
    before: BTreeMap<String, Option<String>>,
    formatted: BTreeSet<String>,
}

impl<'a> Tree<'a> {
    pub fn new(project: &'a Path, kernel: &'a Path, manifests: &[Manifest]) -> Result<Self> {
        let all = |verb: &'static str| {
            manifests
                .iter()
                .flat_map(move |manifest| manifest.all(verb))
        };

        Ok(Self {
            project,
            kernel,
            paths: Paths::new(&[]),
            helpers: fs::read_to_string(project.join("rust-bindings/helpers.c"))?,
            exported: ["file", "append", "methods", "skip"]
                .into_iter()
                .flat_map(all)
                .map(|arguments| destination(arguments).0)
                .collect(),
            exported_helpers: all("helpers")
                .flat_map(|arguments| arguments.split(' ').skip(2).map(str::to_owned))
                .collect(),
            now: BTreeMap::new(),
            before: BTreeMap::new(),
            formatted: BTreeSet::new(),
        })
    }

    /// Forgets the patches so far: each series applies by itself.
    pub fn begin_series(&mut self) {
        self.now.clear();
    }

    /// Applies the instructions of a patch, which is the last of `patches`. It can only use what
    /// these export.
    pub fn apply(&mut self, manifest: &Manifest, patches: &[Manifest]) -> Result<()> {
        self.paths = Paths::new(patches);
        self.before.clear();
        self.formatted.clear();
        for (verb, arguments) in &manifest.instructions {
            self.follow(verb, arguments)
                .with_context(|| format!("{}: {verb} {arguments}", manifest.name))?;
        }
        let public: Vec<&str> = manifest
            .all("public")
            .flat_map(|names| names.split(' '))
            .collect();
        for file in self.formatted.clone() {
            let text = self.get(&file)?;
            if file.starts_with("rust/kernel/") {
                self.set(&file, rust::publish(&text, &public))?;
            }
        }
        for arguments in manifest.all("replace") {
            self.replace(arguments)
                .with_context(|| format!("{}: replace {arguments}", manifest.name))?;
        }
        for file in &self.formatted {
            let text = &self.now[file];
            let left = text
                .lines()
                .find(|line| line.contains("abstractions::") || line.contains("pmem_rs"));
            if let Some(left) = left.filter(|_| file.starts_with("rust/kernel/")) {
                bail!(
                    "{}: {file} names what is not exported: {left}",
                    manifest.name
                );
            }
        }
        Ok(())
    }

    fn follow(&mut self, verb: &str, arguments: &str) -> Result<()> {
        let words: Vec<&str> = arguments.split(' ').collect();

        match (verb, words.as_slice()) {
            ("file", _) => {
                let (file, dest) = destination(arguments);
                let text = self.source(&format!("src/abstractions/{file}"))?;
                let text = rust::rewrite(&text, &self.paths, Target::Kernel);
                self.formatted.insert(dest.clone());
                self.set(&dest, text)
            }
            ("module", [file, declaration @ ..]) => self.module(file, &declaration.join(" ")),
            ("methods", [file, dest, of, names @ ..]) => {
                let text = self.source(&format!("src/abstractions/{file}"))?;
                let text = rust::rewrite(&text, &self.paths, Target::Kernel);
                self.methods(&text, dest, of, names)
            }
            ("remove", [file, of, names @ ..]) => {
                let mut text = self.get(file)?;
                for method in found(&text, of, names)? {
                    text = text.replace(&format!("{method}\n"), "");
                }
                self.set(file, text)
            }
            ("append", [file, dest]) => {
                let text = self.source(&format!("src/abstractions/{file}"))?;
                let text = rust::rewrite(&text, &self.paths, Target::Kernel);
                let items = rust::items(&text).context("no items")?;
                let old = self.get(dest)?;
                self.set(dest, format!("{old}\n{items}"))
            }
            ("helpers", [dest, header, names @ ..]) => self.helpers(dest, header, names),
            ("header", [header]) => self.header(header),
            ("constant", [of, name, value @ ..]) => {
                let value = if value.is_empty() {
                    (*name).to_owned()
                } else {
                    value.join(" ")
                };
                let line = format!("const {of} RUST_CONST_HELPER_{name} = {value};");
                let text = self.get("rust/bindings/bindings_helper.h")?;
                let at = text.find("\nconst xa_mark_t").context("no constants")?;
                let text = format!("{}{line}\n{}", &text[..at], &text[at..]);
                self.set("rust/bindings/bindings_helper.h", text)
            }
            ("bindgen", _) => {
                let text = self.get("rust/bindgen_parameters")?;
                self.set("rust/bindgen_parameters", format!("{text}{arguments}\n"))
            }
            ("insert", [file, ..]) => {
                let rest = &arguments[file.len() + 1..];
                let (before, line) = rest.split_once(" | ").context("no ` | `")?;
                let text = self.get(file)?;
                let at = text
                    .find(before)
                    .with_context(|| format!("{file} has no {before}"))?;
                let line = line.replace("\\n", "\n").replace("\\t", "\t");
                self.set(file, format!("{}{line}\n{}", &text[..at], &text[at..]))
            }
            ("copy", [file, dest]) => {
                let text = self.source(file)?;
                self.set(dest, text)
            }
            ("cut", [file, ..]) => {
                let text = self.get(file)?;
                let from = &arguments[file.len() + 1..];
                let at = text.find(from).context("no such text")?;
                self.set(file, format!("{}\n", text[..at].trim_end()))
            }
            ("driver", _) => words.iter().try_for_each(|path| self.driver(path)),
            ("documents", _) => words.iter().try_for_each(|name| {
                let path = format!("docs/{name}");
                let text = document::without_links(&self.source(&path)?, &words);
                self.set(&format!("{DRIVER}{path}"), text)
            }),
            ("use", [file, path]) => self.import(file, path),
            ("maintain", [..]) => self.maintain(arguments),
            ("path" | "public" | "replace" | "skip", _) => Ok(()),
            _ => bail!("not an instruction"),
        }
    }

    fn source(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.project.join(file)).with_context(|| format!("cannot read {file}"))
    }

    fn get(&self, file: &str) -> Result<String> {
        match self.now.get(file) {
            Some(text) => Ok(text.clone()),
            None => fs::read_to_string(self.kernel.join(file))
                .with_context(|| format!("cannot read {file} of the kernel")),
        }
    }

    fn set(&mut self, file: &str, text: String) -> Result<()> {
        if !self.before.contains_key(file) {
            self.before.insert(file.to_owned(), self.get(file).ok());
        }
        self.now.insert(file.to_owned(), text);
        Ok(())
    }

    fn replace(&mut self, arguments: &str) -> Result<()> {
        let (file, rest) = arguments.split_once(' ').context("no file")?;
        let (old, new) = rest
            .split_once(" => ")
            .or_else(|| Some((rest.strip_suffix(" =>")?, "")))
            .context("no ` => `")?;
        let (old, new) = (old.replace("\\n", "\n"), new.replace("\\n", "\n"));
        let text = self.get(file)?;
        if !text.contains(&old) {
            bail!("{file} does not have this text");
        }
        self.set(file, text.replace(&old, &new))
    }

    /// Inserts a declaration before the first one with a larger name.
    fn module(&mut self, file: &str, declaration: &str) -> Result<()> {
        let text = self.get(file)?;
        let lines: Vec<&str> = text.lines().collect();
        let name = declaration.rsplit(' ').next().unwrap_or_default();
        let is_declaration = |line: &str| {
            line.ends_with(';') && (line.starts_with("pub mod ") || line.starts_with("mod "))
        };
        let larger = lines.iter().position(|line| {
            is_declaration(line) && line.rsplit(' ').next().is_some_and(|other| other > name)
        });
        let mut at = match larger {
            Some(at) => at,
            None => {
                1 + lines
                    .iter()
                    .rposition(|line| is_declaration(line))
                    .context("no modules")?
            }
        };
        // Attributes belong to the declaration that they precede.
        while larger.is_some() && at > 0 && lines[at - 1].starts_with("#[") {
            at -= 1;
        }
        self.insert_line(file, &lines, at, &declaration.replace("] ", "]\n"))
    }

    fn insert_line(&mut self, file: &str, lines: &[&str], at: usize, line: &str) -> Result<()> {
        let (before, after) = lines.split_at(at);
        let text: Vec<&str> = before
            .iter()
            .copied()
            .chain([line])
            .chain(after.iter().copied())
            .collect();

        self.set(file, text.join("\n") + "\n")
    }

    fn methods(&mut self, text: &str, dest: &str, of: &str, names: &[&str]) -> Result<()> {
        let found = found(text, of, names)?;
        let text = self.get(dest)?;
        let start = text
            .find(&format!("\nimpl {of} {{"))
            .context("no such type")?;
        let end = start + text[start..].find("\n}\n").context("no end")? + 1;
        let added: String = found
            .iter()
            .flat_map(|method| ["\n", method.as_str()])
            .collect();
        self.set(dest, format!("{}{added}{}", &text[..end], &text[end..]))
    }

    /// Adds a path to the first `use` item with the root `crate`.
    fn import(&mut self, file: &str, path: &str) -> Result<()> {
        let text = self.get(file)?;
        let start = text.find("\nuse crate::").context("no imports")? + 1;
        let end = start + text[start..].find(';').context("no end")? + 2;
        let mut imports = crate::imports::parse(&text[start + 4..end - 2]);
        imports.extend(crate::imports::parse(path));
        let item = crate::imports::write(&imports, "", "");
        self.set(file, format!("{}{item}{}", &text[..start], &text[end..]))
    }

    fn helpers(&mut self, dest: &str, headers: &str, names: &[&str]) -> Result<()> {
        let mut text = match self.get(dest) {
            Ok(text) => text,
            Err(_) => {
                let file = dest.rsplit('/').next().unwrap_or_default();
                self.sorted(
                    "rust/helpers/helpers.c",
                    &format!("#include \"{file}\""),
                    "#include \"",
                )?;
                "// SPDX-License-Identifier: GPL-2.0\n\n".to_owned()
            }
        };
        for header in headers.split(',') {
            let include = format!("#include <{header}>");
            if text.contains(&include) {
                continue;
            }
            let at = text
                .lines()
                .position(|line| line.starts_with("#include") && line > include.as_str());
            let lines: Vec<&str> = text.lines().collect();
            let at = at.unwrap_or_else(|| {
                lines
                    .iter()
                    .rposition(|line| line.starts_with("#include"))
                    .map_or(2, |last| last + 1)
            });
            let (before, after) = lines.split_at(at);
            text = [before, &[include.as_str()], after].concat().join("\n") + "\n";
        }
        for name in names {
            let helper =
                c::helper(&self.helpers, name).with_context(|| format!("no helper {name}"))?;
            text = format!("{}\n\n{}", text.trim_end(), helper);
        }
        self.set(dest, text)
    }

    fn header(&mut self, header: &str) -> Result<()> {
        self.sorted(
            "rust/bindings/bindings_helper.h",
            &format!("#include <{header}>"),
            "#include <linux/",
        )
    }

    /// Inserts a line before the first larger one with a prefix. Lines before `kunit/test.h` have
    /// an order of their own.
    fn sorted(&mut self, file: &str, line: &str, prefix: &str) -> Result<()> {
        let text = self.get(file)?;
        let lines: Vec<&str> = text.lines().collect();
        let first = lines
            .iter()
            .position(|line| line.contains("<kunit/test.h>"))
            .unwrap_or(0);
        let larger = lines
            .iter()
            .enumerate()
            .skip(first)
            .find(|(_, other)| other.starts_with(prefix) && **other > line)
            .map(|(at, _)| at);
        let last = lines.iter().rposition(|other| other.starts_with(prefix));
        let at = larger.or(last.map(|at| at + 1)).context("no such lines")?;
        self.insert_line(file, &lines, at, line)
    }

    /// Adds the new files of the patch to a section of MAINTAINERS.
    fn maintain(&mut self, section: &str) -> Result<()> {
        let text = self.get("MAINTAINERS")?;
        let start = text
            .find(&format!("\n{section}\n"))
            .context("no such section")?
            + 1;
        let end = start + text[start..].find("\n\n").context("no end")? + 1;
        let entry = &text[start..end];
        let new: Vec<String> = self
            .before
            .iter()
            .filter(|(_, old)| old.is_none())
            .map(|(file, _)| {
                let folder = file.strip_prefix(DRIVER).map(|_| DRIVER.to_owned());
                format!("F:\t{}", folder.unwrap_or_else(|| file.clone()))
            })
            .collect();
        let mut files: BTreeSet<String> = entry
            .lines()
            .filter(|line| line.starts_with("F:"))
            .map(str::to_owned)
            .collect();
        files.extend(new);
        let head: String = entry
            .lines()
            .filter(|line| !line.starts_with("F:"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let files: String = files
            .iter()
            .flat_map(|file| [file.as_str(), "\n"])
            .collect();
        self.set(
            "MAINTAINERS",
            format!("{}{head}{files}{}", &text[..start], &text[end..]),
        )
    }

    /// Adds a file or a folder of the checkout to the driver, without what is in the kernel crate.
    fn driver(&mut self, path: &str) -> Result<()> {
        let full = self.project.join(path);
        if full.is_dir() {
            let mut entries: Vec<PathBuf> = fs::read_dir(&full)?
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_>>()?;
            entries.sort();
            return entries.iter().try_for_each(|entry| {
                let entry = entry
                    .strip_prefix(self.project)?
                    .to_string_lossy()
                    .into_owned();
                self.driver(&entry)
            });
        }
        let inner = path.strip_prefix("src/abstractions/").unwrap_or_default();
        if self.exported.contains(inner) {
            return Ok(());
        }
        let dest = format!("{DRIVER}{path}");
        let mut text = self.source(path)?;
        if path == "rust-bindings/helpers.c" {
            text = c::without(&text, &self.exported_helpers);
        }
        if path.ends_with(".rs") {
            text = rust::rewrite(&text, &self.paths, Target::Driver);
            text = self.without_exported_modules(path, &text);
            self.formatted.insert(dest.clone());
        }
        self.set(&dest, text)
    }

    /// Removes declarations of modules that are in the kernel crate.
    fn without_exported_modules(&self, path: &str, text: &str) -> String {
        let Some(inner) = path.strip_prefix("src/abstractions/") else {
            return text.to_owned();
        };
        let folder = match inner.strip_suffix("mod.rs") {
            Some(folder) => folder.to_owned(),
            None => format!("{}/", inner.trim_end_matches(".rs")),
        };
        text.lines()
            .filter(|line| {
                let module = line
                    .trim_end_matches(';')
                    .rsplit("mod ")
                    .next()
                    .unwrap_or_default();
                !(line.ends_with(';')
                    && line.contains("mod ")
                    && self.exported.contains(&format!("{folder}{module}.rs")))
            })
            .flat_map(|line| [line, "\n"])
            .collect()
    }

    /// Writes the files that the last patch has changed, before and after it.
    pub fn write(&self, out: &Path, manifest: &Manifest) -> Result<()> {
        let put = |path: PathBuf, text: &str| -> Result<()> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };

        fs::create_dir_all(out.join("a"))?;
        for (file, old) in &self.before {
            if let Some(old) = old {
                put(out.join("a").join(file), old)?;
            }
            put(out.join("b").join(file), &self.now[file])?;
        }
        let formatted: String = self
            .formatted
            .iter()
            .flat_map(|file| [file.as_str(), "\n"])
            .collect();
        put(out.join("formatted"), &formatted)?;
        put(out.join("message"), &manifest.message)
    }
}

/// Returns the texts of these public methods, all of which have to be there.
fn found(text: &str, of: &str, names: &[&str]) -> Result<Vec<String>> {
    let found = rust::methods(text, of, names);

    if found.len() != names.len() {
        bail!("found {} of {} methods", found.len(), names.len());
    }
    Ok(found)
}
