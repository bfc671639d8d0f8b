// SPDX-License-Identifier: GPL-2.0

//! The graph of the files that use each other.

use std::collections::BTreeMap;

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;

use crate::source::{Module, ModulePath};

type Modules = BTreeMap<ModulePath, Module>;

fn graph(modules: &Modules) -> DiGraph<&ModulePath, ()> {
    let mut graph = DiGraph::new();
    let nodes: BTreeMap<&ModulePath, _> = modules
        .keys()
        .map(|path| (path, graph.add_node(path)))
        .collect();
    for (path, module) in modules {
        for used in &module.uses {
            graph.add_edge(nodes[path], nodes[used], ());
        }
    }
    graph
}

/// The uses that are part of a cycle.
pub fn cycles(modules: &Modules) -> Vec<String> {
    let graph = graph(modules);
    let mut found = Vec::new();
    for component in tarjan_scc(&graph) {
        if component.len() < 2 {
            continue;
        }
        found.push(format!(
            "{} files use each other in a cycle:",
            component.len()
        ));
        for edge in graph.edge_indices() {
            let Some((from, to)) = graph.edge_endpoints(edge) else {
                continue;
            };
            if component.contains(&from) && component.contains(&to) {
                let [from, to] = [from, to].map(|node| modules[graph[node]].file.display());
                found.push(format!("    {from} uses {to}"));
            }
        }
    }
    found
}

/// The graph in the language of Graphviz.
pub fn dot(modules: &Modules) -> String {
    let mut text = String::from("digraph {\n");
    for module in modules.values() {
        for used in &module.uses {
            let [from, to] = [&module.file, &modules[used].file].map(|file| file.display());
            text += &format!("    \"{from}\" -> \"{to}\";\n");
        }
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(uses: &[(&str, &[&str])]) -> Modules {
        let path = |name: &str| vec![name.to_owned()];
        uses.iter()
            .map(|(name, used)| {
                let module = Module {
                    file: name.into(),
                    uses: used.iter().map(|name| path(name)).collect(),
                    lines: 1,
                };
                (path(name), module)
            })
            .collect()
    }

    #[test]
    fn a_cycle_of_three_is_found_and_what_leads_to_it_is_not_part_of_it() {
        let modules = modules(&[
            ("first", &["b"]),
            ("b", &["c"]),
            ("c", &["d"]),
            ("d", &["b"]),
        ]);
        let found = cycles(&modules);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|line| !line.contains("first")));
    }

    #[test]
    fn a_diamond_is_no_cycle() {
        let modules = modules(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])]);
        assert!(cycles(&modules).is_empty());
        assert_eq!(dot(&modules).lines().count(), 6);
    }
}
