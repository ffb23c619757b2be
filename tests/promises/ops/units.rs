//! What systemd and Prometheus themselves say of the units, timers and alert rules.

use super::install::installed;
use super::{checker, must_pass, script};
use crate::prelude::*;

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let Some(mut verify) = checker("systemd-analyze") else { return };
    let units = installed().0.join("etc/systemd/system");
    let files = fs::read_dir(units).expect("folder").map(|entry| entry.expect("entry").path());
    let files: Vec<PathBuf> = files.collect();
    for file in &files {
        let unit = fs::read_to_string(file).expect("unit");
        let here = script("baoming").display().to_string();
        fs::write(file, unit.replace("/usr/local/bin/baoming", &here)).expect("unit");
    }
    assert_eq!(must_pass(verify.arg("verify").args(files)), "");
    let mut security = checker("systemd-analyze").expect("as above");
    security.args(["security", "--offline=true", "--threshold=20"]);
    must_pass(security.arg(script("systemd/refresh_baoming_tokens@.service")));
}

#[test]
fn timers_follow_the_zone_of_the_settings_and_cron_lines_mean_the_same_times() {
    let cron = fs::read_to_string(script("cron/refresh_baoming_tokens")).expect("cron file");
    let cron = cron.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let cron: Vec<String> = cron.collect();
    let units = installed().0.join("etc/systemd/system");
    for (schedule, due, on_calendar) in [
        ("active", "#0 */6 * * *", "*-*-* 00/6:00:00"),
        ("all", "#0 2 * * *", "*-*-* 02:00:00"),
        ("cleanup", "#0 3 * * 0", "Sun *-*-* 03:00:00"),
    ] {
        assert!(cron.contains(&format!("{due} root baoming run {schedule}")), "{cron:#?}");
        let timer = units.join(format!("refresh_baoming_tokens@{schedule}.timer"));
        let timer = fs::read_to_string(timer).expect("timer");
        let on_calendar = format!("\nOnCalendar={on_calendar} Asia/Shanghai\n");
        for line in [&on_calendar, "\nPersistent=true\n", "\nRandomizedDelaySec="] {
            assert!(timer.contains(line), "no {line:?} in {timer}");
        }
    }
}

#[test]
fn the_alert_rules_fire_when_they_should() {
    for (what, file) in [("check", "rules.yml"), ("test", "test.yml")] {
        let Some(mut promtool) = checker("promtool") else { return };
        let file = script("prometheus").join(format!("refresh_baoming_tokens.{file}"));
        must_pass(promtool.args([what, "rules"]).arg(file));
    }
}
