// SPDX-License-Identifier: GPL-2.0

//! Documents of the driver.

/// Replaces each link to a document that is not one of `documents` by its text.
pub fn without_links(text: &str, documents: &[&str]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let Some((target, behind)) = after.split_once(')') else {
            break;
        };
        let file = target.split('#').next().unwrap_or_default();
        let leads_out =
            file.ends_with(".md") && !file.contains("://") && !documents.contains(&file);
        match before.rsplit_once('[') {
            Some((head, label)) if leads_out => out.extend([head, label]),
            _ => out.extend([before, "](", target, ")"]),
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_are_text() {
        let text = "See [the\nlist](a.md#one), [b](b.md), [this](#here) and [bugs](b.md#x).\n\
                    An array `a[1]` (c.md) stays.\n";
        assert_eq!(
            without_links(text, &["b.md"]),
            "See the\nlist, [b](b.md), [this](#here) and [bugs](b.md#x).\n\
             An array `a[1]` (c.md) stays.\n"
        );
        assert_eq!(without_links("[open](a.md", &[]), "[open](a.md");
    }
}
