//! What systemd, Prometheus and logrotate themselves make of the units, the alert rules and the log of a scheduler.

use super::install::installed;
use super::{checker, script, tool};
use crate::prelude::*;
use std::os::unix::fs::{MetadataExt, chown};

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let Some(verify) = checker("systemd-analyze") else { return };
    let units = installed().0.join("etc/systemd/system");
    let files = fs::read_dir(units).expect("folder").map(|entry| entry.expect("entry").path());
    let files: Vec<PathBuf> = files.collect();
    for file in &files {
        let unit = fs::read_to_string(file).expect("unit");
        let here = script("baoming").display().to_string();
        fs::write(file, unit.replace("/usr/local/bin/baoming", &here)).expect("unit");
    }
    assert_eq!(verify.arg("verify").args(files).go().expect(0).log(), "");
    let security = tool("systemd-analyze").args(["security", "--offline=true", "--threshold=20"]);
    security.arg(script("systemd/refresh_baoming_tokens@.service")).go().expect(0);
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
        let Some(promtool) = checker("promtool") else { return };
        let file = script("prometheus").join(format!("refresh_baoming_tokens.{file}"));
        promtool.args([what, "rules"]).arg(file).go().expect(0);
    }
}

#[test]
fn logrotate_loses_no_line_of_a_live_scheduler() {
    const ROTATIONS: usize = 5;
    const TOKENS: u32 = 600;
    let Some(_) = checker("logrotate") else { return };
    let (db, _) = world();
    let (root, _) = installed();
    db.add_tokens("good", TOKENS);
    // A rotation begins here and there in the run, which goes on meanwhile.
    let (due, rotations) = mpsc::channel();
    let due = Mutex::new(due);
    let api = Stub::start(move |request| {
        if request.number % (TOKENS as usize / (ROTATIONS + 1)) == 0 {
            let _ = due.lock().expect("lock").send(());
        }
        Reply::valid().after(Duration::from_millis(1))
    });
    let folder = root.join("var/log/refresh_baoming_tokens");
    let log = folder.join("refresh.log");
    let shipped = fs::read_to_string(root.join("etc/logrotate.d/refresh_baoming_tokens")).expect("file");
    let shipped = shipped.replace("/var/", &format!("{}/var/", root.display()));
    // A server's own defaults do not get in the way.
    let config = file("logrotate.conf", format!("create\ndateext\ncompress\n{shipped}"), 0o644);

    // What root makes belongs to whom the folder belongs.
    let _ = chown(&folder, Some(65_534), Some(65_534));
    let owner = fs::metadata(&folder).expect("folder").uid();

    let scheduler = Run::new(&db, &api).args(["--scheduler", "--run-immediately", "--interval", "6"]);
    let scheduler = scheduler.arg("--log-file").arg(&log).start();
    for _ in 0..ROTATIONS {
        rotations.recv_timeout(PATIENCE).expect("requests");
        let logrotate = tool("logrotate").args(["--force", "--state"]).arg(root.join("logrotate.state"));
        logrotate.arg(&config).go().expect(0);
    }
    scheduler.await_line("🎉 刷新完成");
    scheduler.signal(Signal::TERM);
    let outcome = scheduler.wait().expect(0);

    assert_eq!(fs::read_dir(&folder).expect("logs").count(), ROTATIONS + 1);
    let older = (1..=ROTATIONS).rev().map(|n| match n {
        1 => log.with_extension("log.1"),
        _ => log.with_extension(format!("log.{n}.gz")),
    });
    let texts =
        older.chain([log.clone()]).map(|file| tool("gzip").arg("-dcf").arg(file).go().expect(0).log());
    let texts: Vec<String> = texts.collect();
    assert!(texts.iter().all(|text| !text.is_empty()), "a rotation found nothing new");
    // Standard output carries the same lines and is never rotated.
    assert!(texts.concat() == outcome.stdout, "lines were lost, doubled or moved by the rotation");
    assert_eq!((mode(&log), fs::metadata(&log).expect("log").uid()), (0o600, owner));
}
