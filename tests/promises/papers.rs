//! The papers say what the program says: causes and faults; links and both languages are there.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAPERS: [&str; 6] = [
    "README.md",
    "scripts/docs/trouble.md",
    "scripts/docs/from-python.md",
    "scripts/docs/containers.md",
    "scripts/docs/api.md",
    "scripts/docs/changes.md",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines of a source file outside comments and tests.
fn code(source: &str) -> String {
    let text = read(source);
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// String literals: the odd ones when split at the quotes.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2)
}

/// A literal without what is filled in.
fn fixed_parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(['{', '}']).step_by(2).map(str::trim).filter(|part| part.len() > 5)
}

/// Every cause that `src/cause.rs` can print stands in backticks in both halves of the paper.
#[test]
fn the_trouble_table_knows_every_cause() {
    let paper = read("scripts/docs/trouble.md");
    let (english, chinese) = paper.split_once("\n## 中文\n").expect("two languages");
    let code = code("src/cause.rs");
    // `("fragment", "cause", "hint")` in the table, "cause；hint" elsewhere.
    let (rows, others): (Vec<&str>, Vec<&str>) =
        code.lines().partition(|line| line.trim_start().starts_with("(\""));
    let mut causes: Vec<&str> = rows.iter().filter_map(|row| literals(row).nth(1)).collect();
    assert!(causes.len() > 20, "no table found in src/cause.rs: {causes:?}");
    let others = others.join("\n");
    causes.extend(literals(&others).filter_map(|text| Some(text.split_once('；')?.0)));
    for part in causes.into_iter().flat_map(fixed_parts) {
        for (language, text) in [("English", english), ("中文", chinese)] {
            let mut cells = text.split('`').skip(1).step_by(2);
            assert!(cells.any(|cell| cell.contains(part)), "trouble.md, {language}: no `{part}`");
        }
    }
}

/// So does every fault of the way to the API.
#[test]
fn the_trouble_table_knows_every_fault_of_the_api() {
    let paper = read("scripts/docs/trouble.md");
    let code = code("src/api.rs");
    let faults = literals(&code).filter(|text| text.contains("API") && !text.contains("📡"));
    for fault in faults.filter_map(|text| fixed_parts(text).next()) {
        let fault = fault.trim_end_matches(':');
        assert!(paper.matches(fault).count() >= 2, "trouble.md lacks `{fault}`");
    }
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

fn anchors(path: &Path) -> HashSet<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[test]
fn links_lead_somewhere_and_both_languages_are_there() {
    for paper in PAPERS {
        let text = read(paper);
        let path = root().join(paper);
        assert!(text.contains("\n## 中文"), "{paper} has no part in Chinese");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            assert!(target.exists(), "{paper}: {link} leads nowhere");
            assert!(
                heading.is_empty() || anchors(&target).contains(heading),
                "{paper}: no heading for {link}"
            );
        }
    }
}
