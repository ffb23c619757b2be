//! The papers say what the program says: flags, causes, reasons, links, both languages.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Run;

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

/// The Chinese string literals of a source file outside its tests, cut at what is filled in.
fn texts(source: &str) -> Vec<String> {
    let code = read(source);
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    let literals = code.split('"').skip(1).step_by(2);
    let is_chinese = |text: &&str| text.chars().any(|c| ('\u{4e00}'..'\u{a000}').contains(&c));
    literals.filter(is_chinese).map(str::to_owned).collect()
}

#[test]
fn the_readme_repeats_the_help_text() {
    let help = Run::bare().arg("--help").go().expect(0).stdout;
    assert!(read("README.md").contains(&format!("```text\n{help}```\n")), "not in README.md:\n{help}");
}

/// Every cause of a failed connection stands in backticks in both halves of the table.
#[test]
fn the_trouble_table_knows_every_cause() {
    let paper = read("scripts/docs/trouble.md");
    let (english, chinese) = paper.split_once("\n## 中文\n").expect("two languages");
    let causes = texts("src/cause.rs");
    assert!(causes.len() >= 10, "no causes found in src/cause.rs: {causes:?}");
    for cause in causes {
        // What stands before the hint, cut where something is filled in.
        let cause = cause.split('；').next().unwrap_or_default();
        for part in cause.split(['{', '}']).step_by(2).map(str::trim).filter(|part| part.len() > 5) {
            for (half, text) in [("English", english), ("中文", chinese)] {
                let cells = text.split('`').skip(1).step_by(2);
                assert!(cells.into_iter().any(|cell| cell.contains(part)), "{half}: no `{part}`");
            }
        }
    }
}

/// So does every fault of the way to the API.
#[test]
fn the_trouble_table_knows_every_fault_of_the_api() {
    let paper = read("scripts/docs/trouble.md");
    for text in texts("src/api.rs").iter().filter(|text| text.contains("API")) {
        let start = text.split([':', '{']).next().unwrap_or_default().trim();
        if !start.starts_with("📡") && start.len() > 5 {
            assert!(paper.matches(start).count() >= 2, "trouble.md lacks `{start}`");
        }
    }
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
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
            assert!(heading.is_empty() || anchors(&target).contains(heading), "{paper}: no heading for {link}");
        }
    }
}
