// SPDX-License-Identifier: GPL-2.0

//! C helpers: functions that Rust calls in place of inline functions.

/// The prefix of the helpers of this project.
const PREFIX: &str = "pmem_rs_helper_";
/// The width of the kernel's lines.
const MAX_COLUMNS: usize = 100;

/// Returns the definition of a helper in the kernel's style.
pub fn helper(helpers: &str, name: &str) -> Option<String> {
    let block = helpers.split("\n\n").find(|block| is_named(block, name))?;
    // The first line is a prototype, which the kernel's helpers do not have.
    let (_, definition) = block.split_once('\n')?;

    let text = format!(
        "__rust_helper {}\n",
        definition.replace(PREFIX, "rust_helper_")
    );
    let line = text.lines().next().unwrap_or_default();
    let at = line
        .rfind("rust_helper_")
        .filter(|_| line.len() > MAX_COLUMNS);
    match at {
        // The type has a line of its own then.
        Some(at) => Some(format!("{}\n{}", text[..at].trim_end(), &text[at..])),
        None => Some(text),
    }
}

fn is_named(block: &str, name: &str) -> bool {
    block.contains(&format!("{PREFIX}{name}("))
}

/// Returns the helpers without those with these names.
pub fn without(helpers: &str, names: &[String]) -> String {
    helpers
        .split("\n\n")
        .filter(|block| !names.iter().any(|name| is_named(block, name)))
        .collect::<Vec<_>>()
        .join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELPERS: &str = "#include <linux/io.h>\n\nint pmem_rs_helper_a(int x);\nint \
        pmem_rs_helper_a(int x)\n{\n\treturn a(x);\n}\n\nint pmem_rs_helper_b(void);\nint \
        pmem_rs_helper_b(void)\n{\n\treturn b();\n}\n";

    #[test]
    fn a_helper_loses_its_prototype_and_prefix() {
        let expected = "__rust_helper int rust_helper_a(int x)\n{\n\treturn a(x);\n}\n";

        assert_eq!(helper(HELPERS, "a").as_deref(), Some(expected));
        assert!(helper(HELPERS, "c").is_none());
    }

    #[test]
    fn exported_helpers_are_removed() {
        let rest = without(HELPERS, &["a".to_owned()]);

        assert!(!rest.contains("helper_a") && rest.contains("helper_b") && rest.contains("io.h"));
    }

    #[test]
    fn a_long_line_is_broken() {
        let name = "n".repeat(80);
        let line = format!("void *pmem_rs_helper_{name}(void)");
        let text = helper(&format!("{line};\n{line}\n{{\n}}"), &name);

        assert!(text.is_some_and(|text| text.starts_with("__rust_helper void *\nrust_helper_n")));
    }
}
