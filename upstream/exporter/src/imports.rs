// SPDX-License-Identifier: GPL-2.0

//! `use` items: they are taken apart, mapped, and written in the kernel's style.

use std::collections::BTreeMap;

/// A path with the name that it is imported as.
pub type Import = (Vec<String>, Option<String>);

/// Takes apart the tree of a `use` item, which is the text between `use` and `;`.
pub fn parse(tree: &str) -> Vec<Import> {
    let text: String = tree
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let mut imports = Vec::new();

    branch(&mut text.trim(), &[], &mut imports);
    imports
}

/// Takes one branch off `rest`.
fn branch(rest: &mut &str, prefix: &[String], imports: &mut Vec<Import>) {
    let mut path = prefix.to_vec();

    loop {
        *rest = rest.trim_start().trim_start_matches("::");
        if let Some(inner) = rest.strip_prefix('{') {
            *rest = inner.trim_start();
            while !rest.starts_with('}') && !rest.is_empty() {
                branch(rest, &path, imports);
                *rest = rest.trim_start().trim_start_matches(',').trim_start();
            }
            *rest = rest.strip_prefix('}').unwrap_or(rest);
            return;
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
            .unwrap_or(rest.len());
        path.push(rest[..end].to_owned());
        *rest = rest[end..].trim_start();
        if !rest.starts_with("::") {
            break;
        }
    }
    let mut alias = None;
    if let Some(name) = rest.strip_prefix("as ") {
        let name = name.trim_start();
        let end = name
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(name.len());
        alias = Some(name[..end].to_owned());
        *rest = &name[end..];
    }
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    imports.push((path, alias));
}

/// A node of a tree of imports: whether it is imported itself, its alias, and what is below it.
#[derive(Default)]
struct Node {
    is_leaf: bool,
    alias: Option<String>,
    children: BTreeMap<(u8, String), Node>,
}

/// The order of rustfmt: modules and functions, types, constants.
fn rank(name: &str) -> u8 {
    if name == "self" {
        0
    } else if name.starts_with(char::is_uppercase) {
        if name.contains(char::is_lowercase) {
            2
        } else {
            3
        }
    } else {
        1
    }
}

/// Writes the imports of one root, as one item.
pub fn write(imports: &[Import], indent: &str, visibility: &str) -> String {
    let mut root = Node::default();

    for (path, alias) in imports {
        let mut node = &mut root;
        for name in path {
            node = node.children.entry((rank(name), name.clone())).or_default();
        }
        node.is_leaf = true;
        node.alias.clone_from(alias);
    }
    let mut text = format!("{indent}{visibility}use ");
    for ((_, name), node) in &root.children {
        show(name, node, indent.len(), &mut text);
    }
    text + ";\n"
}

fn show(name: &str, node: &Node, indent: usize, text: &mut String) {
    text.push_str(name);
    let mut branches: Vec<(&str, &Node)> = Vec::new();
    let own = Node {
        is_leaf: true,
        alias: node.alias.clone(),
        ..Node::default()
    };
    if node.children.is_empty() {
        if let Some(alias) = &node.alias {
            text.push_str(&format!(" as {alias}"));
        }
        return;
    }
    if node.is_leaf {
        branches.push(("self", &own));
    }
    branches.extend(
        node.children
            .iter()
            .map(|((_, name), node)| (name.as_str(), node)),
    );
    text.push_str("::");
    if let [(name, node)] = branches.as_slice() {
        show(name, node, indent, text);
        return;
    }
    text.push_str("{\n");
    let inner = indent + 4;
    for (position, (name, node)) in branches.iter().enumerate() {
        text.push_str(&" ".repeat(inner));
        show(name, node, inner, text);
        // The comment keeps rustfmt from joining the lines.
        text.push_str(if position + 1 == branches.len() {
            ", //\n"
        } else {
            ",\n"
        });
    }
    text.push_str(&" ".repeat(indent));
    text.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_written_as_it_was() {
        let text = "use crate::{\n    bindings,\n    time::{\n        self,\n        msecs,\n        \
                    Msecs as M,\n        MINUTE, //\n    },\n    types::Opaque, //\n};\n";
        let tree = text.trim_start_matches("use ").trim_end_matches(";\n");

        assert_eq!(write(&parse(tree), "", ""), text);
    }

    #[test]
    fn a_single_path_has_no_braces() {
        assert_eq!(
            write(&parse("crate::{a::{b::*}}"), "    ", "pub "),
            "    pub use crate::a::b::*;\n"
        );
    }
}
