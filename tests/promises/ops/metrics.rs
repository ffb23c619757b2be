//! The metrics file as Prometheus itself reads it.

use super::support::scratch_dir;
use super::{checker, must_pass, run_script, world};
use mongodb::bson::doc;
use std::fs;
use std::path::Path;
use std::process::Stdio;

const LAST_SUCCESS: &str = "baoming_refresh_last_success_timestamp_seconds";

fn check(file: &Path) {
    if let Some(mut promtool) = checker("promtool") {
        let metrics = fs::File::open(file).expect("metrics");
        must_pass(promtool.args(["check", "metrics"]).stdin(Stdio::from(metrics)));
    }
}

fn value(file: &Path, sample: &str) -> i64 {
    let text = fs::read_to_string(file).expect("metrics");
    let found = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no {sample} in\n{text}"))
}

#[test]
fn prometheus_reads_the_metrics_and_the_last_success_is_kept() {
    let (db, api) = world();
    db.add_tokens("good", 3);
    let file = scratch_dir().join("refresh.prom");
    let run = |code| {
        let run = run_script("-", &db, &api).program(super::support::binary());
        run.args(["--delay-ms", "0", "--metrics-file"]).arg(&file).go().expect(code);
        check(&file);
    };
    run(0);
    assert_eq!(value(&file, r#"baoming_refresh_tokens{result="success"}"#), 3);
    assert_eq!(value(&file, "baoming_refresh_exit_code"), 0);
    let success = value(&file, LAST_SUCCESS);
    assert_eq!(success, value(&file, "baoming_refresh_last_completion_timestamp_seconds"));

    // As if that had been yesterday.
    let yesterday = success - 86_400;
    let text = fs::read_to_string(&file).expect("metrics");
    fs::write(
        &file,
        text.replace(&format!("{LAST_SUCCESS} {success}"), &format!("{LAST_SUCCESS} {yesterday}")),
    )
    .expect("metrics");
    db.add_token("busy");
    run(3);
    assert_eq!(value(&file, r#"baoming_refresh_tokens{result="failed"}"#), 1);
    assert_eq!(value(&file, "baoming_refresh_exit_code"), 3);
    assert_eq!(value(&file, LAST_SUCCESS), yesterday);
    assert!(value(&file, "baoming_refresh_last_completion_timestamp_seconds") >= success);

    db.tokens().delete_many(doc! {}).run().expect("removal");
    run(0);
    assert!(value(&file, LAST_SUCCESS) >= success);
}

#[test]
fn the_alert_rules_of_the_readme_fire_when_they_should() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).expect("README.md");
    let rules = readme.split("```yaml\n").find_map(|block| {
        let block = block.split("```").next()?;
        block.contains("- alert: ").then_some(block)
    });
    let rules = rules.expect("alert rules in README.md");
    let dir = scratch_dir();
    fs::write(dir.join("rules.yml"), rules).expect("rules");
    if let Some(mut promtool) = checker("promtool") {
        must_pass(promtool.args(["check", "rules"]).arg(dir.join("rules.yml")));
    }

    // The clock of these tests starts at 0: the last success was then, and stays so.
    let success = "baoming_refresh_last_success_timestamp_seconds";
    let withheld = r#"baoming_refresh_tokens{result="withheld"}"#;
    let code = "baoming_refresh_exit_code";
    for (alert, series, at, labels) in [
        ("BaomingNoSuccess", Some((success, 0)), "11h", None),
        ("BaomingNoSuccess", Some((success, 0)), "13h", Some("{}")),
        ("BaomingNoSuccess", None, "1h", Some("{}")),
        ("BaomingHeldBack", Some((withheld, 0)), "1h", None),
        ("BaomingHeldBack", Some((withheld, 30)), "1h", Some("{ result: withheld }")),
        ("BaomingHeldBack", Some((code, 3)), "1h", None),
        ("BaomingHeldBack", Some((code, 25)), "1h", Some("{}")),
    ] {
        let (_, rule) = rules.split_once(&format!("- alert: {alert}\n")).expect(alert);
        let summary = rule.lines().find_map(|line| line.trim().strip_prefix("summary: ")).expect("a summary");
        let input = series.map_or("[]".to_owned(), |(series, value)| {
            format!("[{{ series: '{series}', values: '{value}x1000' }}]")
        });
        let expected = labels.map_or("[]".to_owned(), |labels| {
            format!("[{{ exp_labels: {labels}, exp_annotations: {{ summary: '{summary}' }} }}]")
        });
        let test = format!(
            "rule_files: [rules.yml]\ntests:\n- interval: 1m\n  input_series: {input}\n  alert_rule_test:\n  \
             - {{ eval_time: {at}, alertname: {alert}, exp_alerts: {expected} }}\n"
        );
        fs::write(dir.join("test.yml"), test).expect("test");
        if let Some(mut promtool) = checker("promtool") {
            must_pass(promtool.args(["test", "rules"]).arg(dir.join("test.yml")));
        }
    }
}
