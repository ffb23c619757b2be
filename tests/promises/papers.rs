//! The papers say what the program says: causes and faults; links and both languages are there.

use crate::prelude::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn code(source: &str) -> Vec<String> {
    let text = read(source);
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect()
}

/// String literals: the odd ones when split at the quotes.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2)
}

fn fixed_parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(['{', '}']).step_by(2).map(str::trim).filter(|part| part.len() > 5)
}

/// Every cause of a failed connection, and every fault of the way to the API, stands in backticks
/// in both halves of the paper.
#[test]
fn the_trouble_table_knows_every_cause_and_fault() {
    let paper = read("scripts/docs/trouble.md");
    let (english, chinese) = paper.split_once("\n## 中文\n").expect("two languages");
    // `("fragment", "cause", "hint")` in the table, "cause；hint" elsewhere.
    let (rows, others): (Vec<_>, Vec<_>) =
        code("src/cause.rs").into_iter().partition(|line| line.trim_start().starts_with("(\""));
    let (others, api) = (others.join("\n"), code("src/api.rs").join("\n"));
    let mut causes: Vec<&str> = rows.iter().filter_map(|row| literals(row).nth(1)).collect();
    assert!(causes.len() > 20, "no table found in src/cause.rs: {causes:?}");
    causes.extend(literals(&others).filter_map(|text| Some(text.split_once('；')?.0)));
    let parts = causes.into_iter().flat_map(fixed_parts);
    let faults = literals(&api).filter(|text| text.contains("API") && !text.contains("📡"));
    for part in parts.chain(faults.filter_map(|text| fixed_parts(text).next())) {
        for (language, text) in [("English", english), ("中文", chinese)] {
            let mut cells = text.split('`').skip(1).step_by(2);
            let part = part.trim_end_matches(':');
            assert!(cells.any(|cell| cell.contains(part)), "trouble.md, {language}: no `{part}`");
        }
    }
}

fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn links_lead_somewhere_and_both_languages_are_there() {
    let papers = fs::read_dir(Path::new(ROOT).join("scripts/docs")).expect("folder");
    let papers: Vec<_> = papers.map(|entry| entry.expect("entry").path()).collect();
    assert!(papers.len() >= 5, "{papers:?}");
    for paper in papers.into_iter().chain([Path::new(ROOT).join("README.md")]) {
        let text = read(&paper);
        let name = paper.display();
        assert!(text.contains("\n## 中文"), "{name} has no part in Chinese");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { paper.clone() } else { paper.with_file_name(file) };
            assert!(target.exists(), "{name}: {link} leads nowhere");
            let has = |heading: &str| {
                read(&target).lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            assert!(heading.is_empty() || has(heading), "{name}: no heading for {link}");
        }
    }
}
