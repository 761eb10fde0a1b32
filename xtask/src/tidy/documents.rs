//! Rules about what is written for people: documents, comments, the table of claims.

use super::{Finding, Tree};

const CLAIMS: &str = "crates/host/src/lib.rs";
const SECURITY: &str = "SECURITY.md";

/// Every variant of `Claim` has a row in SECURITY.md that begins with its name, and every such row its variant.
pub(super) fn claims(tree: &Tree) -> Vec<Finding> {
    let source = tree.text(CLAIMS).unwrap_or_default();
    let variants = variants(source);
    if variants.is_empty() {
        return vec![Finding {
            path: CLAIMS.into(),
            line: 1,
            what: "has no `pub enum Claim` to be read".into(),
        }];
    }
    let security = tree.text(SECURITY).unwrap_or_default();
    let unexplained = variants.into_iter().filter(|(_, name)| {
        let row = format!("| `{name}`");
        !security.lines().any(|line| line.starts_with(&row))
    });
    unexplained
        .map(|(line, name)| Finding {
            path: CLAIMS.into(),
            line,
            what: format!("the claim {name} has no row in {SECURITY}'s table of claims (a line that begins with | `{name}`)"),
        })
        .collect()
}

/// The variants of `pub enum Claim`, with their lines. rustfmt sees to it that each begins a line, four blanks in.
fn variants(source: &str) -> Vec<(usize, &str)> {
    let inside = (1..)
        .zip(source.lines())
        .skip_while(|(_, line)| !line.starts_with("pub enum Claim {"))
        .skip(1)
        .take_while(|(_, line)| *line != "}");
    inside
        .filter_map(|(number, line)| {
            let rest = line.strip_prefix("    ")?;
            let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
            rest.starts_with(|c: char| c.is_ascii_uppercase()).then(|| (number, &rest[..end]))
        })
        .collect()
}

/// Links from one document to another file of the repository: `[text](path)`, from the document's folder.
pub(super) fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".md") {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut in_block = false;
        for (line, content) in (1..).zip(text.lines()) {
            if content.trim_start().starts_with("```") {
                in_block = !in_block;
            }
            for target in targets(content).filter(|_| !in_block) {
                if !is_there(tree, folder, target) {
                    findings.push(Finding {
                        path: path.into(),
                        line,
                        what: format!("the link to {target} leads nowhere"),
                    });
                }
            }
        }
    }
    findings
}

/// What `](…)` holds, without what is elsewhere in the world or in the same document.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(begin, _)| {
        let rest = &line[begin + 2..];
        let target = &rest[..rest.find(')')?];
        let is_ours =
            !target.contains("://") && !target.starts_with("mailto:") && !target.starts_with('#');
        is_ours.then(|| target.split('#').next().unwrap_or(target))
    })
}

fn is_there(tree: &Tree, folder: &str, target: &str) -> bool {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return false;
                }
            }
            name => parts.push(name),
        }
    }
    let path = parts.join("/");
    let as_folder = format!("{path}/");
    tree.all().any(|(file, _)| file == path || file.starts_with(&as_folder))
}

/// What is left to do says why it was left: `TODO(why)`.
pub(super) fn todos(tree: &Tree) -> Vec<Finding> {
    const WORDS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut findings = Vec::new();
    for (path, text) in tree.all() {
        for (line, content) in (1..).zip(text.lines()) {
            let bare = WORDS
                .iter()
                .any(|word| content.match_indices(word).any(|(at, _)| is_bare(content, at, word)));
            if bare {
                findings.push(Finding {
                    path: path.into(),
                    line,
                    what: "something is left to do, but not why: write the word with (why)".into(),
                });
            }
        }
    }
    findings
}

/// A whole word that no reason follows.
fn is_bare(line: &str, at: usize, word: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    let rest = &line[at + word.len()..];
    if line[..at].ends_with(part_of_a_word) || rest.starts_with(part_of_a_word) {
        return false;
    }
    let reason = rest.strip_prefix('(').and_then(|rest| rest.split(')').next());
    reason.is_none_or(|reason| reason.trim().is_empty())
}

/// Paths that exist on one machine only. `me`, `dev` and `alice` are the people of our examples.
pub(super) fn private_paths(tree: &Tree) -> Vec<Finding> {
    const PRIVATE: [&str; 3] =
        [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("../", "shared")];
    const EXAMPLES: [&str; 4] = [
        concat!("/ho", "me/me"),
        concat!("/ho", "me/dev"),
        concat!("/ho", "me/alice"),
        // Whoever it is about, in a format.
        concat!("/ho", "me/{"),
    ];
    let mut findings = Vec::new();
    for (path, text) in tree.all() {
        for (line, content) in (1..).zip(text.lines()) {
            let content =
                EXAMPLES.iter().fold(content.to_owned(), |text, example| text.replace(example, ""));
            let private = PRIVATE.iter().find(|private| begins_a_path(&content, private));
            findings.extend(private.map(|private| Finding {
                path: path.into(),
                line,
                what: format!("names {private}…, which is somebody's machine"),
            }));
        }
    }
    findings
}

/// Whether `path` stands there at the beginning of a path, not in the midst of a longer one.
fn begins_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-*}~".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{places, tree};

    const ENUM: &str = "//! x\npub enum Claim {\n    /// A tap.\n    Tap(Tap),\n    Folder { mark: Mark },\n}\npub enum Other {\n    No,\n}\n";

    #[test]
    fn a_claim_without_a_row_is_found() {
        let both = tree(&[(CLAIMS, ENUM), (SECURITY, "| `Tap` | x |\n| `Folder` | y |\n")]);
        assert_eq!(claims(&both), []);
        let one = tree(&[
            (CLAIMS, ENUM),
            (SECURITY, "| `Tap` | x |\nThe `Folder` is explained elsewhere.\n"),
        ]);
        assert_eq!(places(&claims(&one)), [format!("{CLAIMS}:5")]);
    }

    #[test]
    fn an_enum_that_cannot_be_read_is_found_rather_than_taken_for_empty() {
        assert_eq!(
            places(&claims(&tree(&[(CLAIMS, "//! x\npub struct Claim;\n")]))),
            [format!("{CLAIMS}:1")]
        );
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let tree = tree(&[
            (
                "README.md",
                "[a](docs/adr/) [b](docs/adr/0001.md#why) [c](#here) [d](https://example.org/x)\n[e](gone.md)\n",
            ),
            (
                "docs/adr/0001.md",
                "[up](../../README.md) [out](../../../README.md)\n```\n[x](in-a-block)\n```\n",
            ),
        ]);
        assert_eq!(places(&links(&tree)), ["README.md:2", "docs/adr/0001.md:1"]);
    }

    #[test]
    fn what_is_left_to_do_without_a_reason_is_found() {
        let text = concat!(
            "// TO",
            "DO: later\n",
            "// TO",
            "DO(needs Linux 6.9): later\n",
            "// FIX",
            "ME()\n",
            "let METHO",
            "DO = 1; let TO",
            "DOS = 2;\n",
        );
        assert_eq!(places(&todos(&tree(&[("a.rs", text)]))), ["a.rs:1", "a.rs:3"]);
    }

    #[test]
    fn a_path_of_somebodys_machine_is_found() {
        let text = concat!(
            "see /wo",
            "rk/main/x\n",
            "see /ho",
            "me/me/x and crates/wo",
            "rk/ and $HOME/x\n",
            "in /ho",
            "me/anna/x\n",
            "see ../",
            "shared/DESIGN.md\n",
        );
        assert_eq!(
            places(&private_paths(&tree(&[("a.md", text)]))),
            ["a.md:1", "a.md:3", "a.md:4"]
        );
    }
}
