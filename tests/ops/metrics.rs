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
