//! `monitor_refresh.sh` on logs of real runs, with every kind of awk and shell it may meet.

use super::support::{Outcome, Run, free_port, scratch_dir, wall_clock};
use super::{checker, path, run_script, script, world};
use mongodb::bson::DateTime;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Shell and search path of a system.
struct Userland {
    name: &'static str,
    shell: PathBuf,
    path: OsString,
}

/// GNU/Linux, the BSDs (by the awk they have) and Alpine (nothing but busybox).
fn userlands() -> Vec<Userland> {
    let mut found = vec![Userland { name: "default", shell: "sh".into(), path: path() }];
    for awk in ["mawk", "gawk", "original-awk", "busybox"] {
        let Some(tool) = checker(awk) else { continue };
        let dir = scratch_dir();
        let own = path();
        let program =
            std::env::split_paths(&own).map(|dir| dir.join(tool.get_program())).find(|p| p.is_file());
        let program = program.expect("the checker's path");
        if awk == "busybox" {
            for applet in ["sh", "awk", "cat", "date"] {
                symlink(&program, dir.join(applet)).expect("applet");
            }
            found.push(Userland { name: awk, shell: dir.join("sh"), path: dir.into() });
        } else {
            symlink(program, dir.join("awk")).expect("awk");
            let mut path = dir.into_os_string();
            path.push(":");
            path.push(&own);
            found.push(Userland { name: awk, shell: "dash".into(), path });
        }
    }
    found
}

fn monitor(userland: &Userland, args: &[&str]) -> Outcome {
    let run = Run::bare().program(&userland.shell).arg(script("monitor_refresh.sh")).args(args);
    run.env("PATH", &userland.path).env("TZ", "Asia/Shanghai").go()
}

/// The log as if it had been written some hours ago.
fn aged(log: &str, hours: f64) -> String {
    let ago = Duration::from_secs_f64(hours.abs() * 3600.0);
    let now = wall_clock().to_system_time();
    let then = if hours < 0.0 { now + ago } else { now - ago };
    let then = DateTime::from_system_time(then).try_to_rfc3339_string().expect("a date").replace('T', " ");
    log.split_inclusive('\n').flat_map(|line| [&then[..19], &line[19..]]).collect()
}

/// Everything up to the line with this text.
fn until(log: &str, text: &str) -> String {
    log.lines().take_while(|line| !line.contains(text)).flat_map(|line| [line, "\n"]).collect()
}

/// The log file of a run on tokens with these labels.
fn log_of(labels: &[&str], args: &[&str], code: i32, change: impl Fn(Run) -> Run) -> String {
    let (db, api) = world();
    for label in labels {
        db.add_token(label);
    }
    let file = scratch_dir().join("refresh.log");
    let run = run_script("-", &db, &api).program(super::support::binary()).args(["--delay-ms", "0"]);
    change(run.arg("--log-file").arg(&file).args(args)).go().expect(code);
    fs::read_to_string(file).expect("log")
}

fn plain(run: Run) -> Run {
    run
}

#[test]
fn it_tells_how_the_last_run_went() {
    // A name cannot pass for the end of a run.
    let good = log_of(&["🎉 刷新完成"], &[], 0, plain);
    let failing = log_of(&["good", "busy"], &[], 3, plain);
    let held = log_of(&["invalid"], &["--max-delete", "0"], 25, plain);
    // Nobody used it for a day; busy, it is not refreshed before the cleanup.
    let held_in_cleanup = log_of(&["busy"], &["--cleanup-days", "1", "--max-delete", "0"], 25, plain);
    let nothing = log_of(&[], &[], 0, plain);
    let dry = log_of(&["good"], &["--dry-run"], 0, plain);
    let nobody = || format!("127.0.0.1:{}", free_port());
    let no_database = log_of(&[], &[], 1, |run| run.env("MONGODB_URI", format!("mongodb://{}/", nobody())));
    let no_api = log_of(&["good"], &["--retries", "0"], 5, |run| {
        run.env("BAOMING_API_BASE", format!("http://{}/xcx", nobody()))
    });
    let begun = until(&good, "刷新统计");

    let cases = [
        ("good", None, Some(aged(&good, 1.0)), 0, "OK: 1 tokens, 1 refreshed, 0 failed"),
        ("no tokens", None, Some(aged(&nothing, 1.0)), 0, "OK: 0 tokens"),
        ("just not stale", None, Some(aged(&good, 7.9)), 0, "OK: "),
        ("stale", None, Some(aged(&good, 8.1)), 2, "CRITICAL: no run finished in the last 8 h"),
        ("failing", None, Some(aged(&failing, 1.0)), 1, "WARNING: 2 tokens, 1 refreshed, 1 failed"),
        (
            "held back",
            None,
            Some(aged(&held, 1.0)),
            1,
            "WARNING: 1 tokens, 0 refreshed, 0 failed, 0 deleted, 1 held",
        ),
        ("held back in the cleanup", None, Some(aged(&held_in_cleanup, 1.0)), 1, "WARNING: 1 tokens"),
        ("failing, then good", None, Some(aged(&failing, 7.0) + &aged(&good, 1.0)), 0, "OK: 1 tokens"),
        ("held, then failing", None, Some(aged(&held, 7.0) + &aged(&failing, 1.0)), 1, "WARNING: 2 tokens"),
        (
            "no database",
            None,
            Some(aged(&good, 7.0) + &aged(&no_database, 1.0)),
            2,
            "CRITICAL: the last run ended",
        ),
        ("no API", None, Some(aged(&good, 7.0) + &aged(&no_api, 1.0)), 2, "CRITICAL: the last run ended"),
        ("recovered", None, Some(aged(&no_database, 7.0) + &aged(&good, 1.0)), 0, "OK: "),
        ("in progress", None, Some(aged(&good, 6.0) + &aged(&begun, 0.01)), 0, "OK: 1 tokens"),
        ("long run in progress", None, Some(aged(&good, 9.0) + &aged(&begun, 0.01)), 0, "OK: 1 tokens"),
        (
            "in progress after a bad one",
            None,
            Some(aged(&failing, 6.0) + &aged(&begun, 0.01)),
            1,
            "WARNING: 2",
        ),
        ("first in progress", None, Some(aged(&begun, 0.01)), 0, "OK: the first run is in progress"),
        ("died, not in progress", None, Some(aged(&good, 9.0) + &aged(&begun, 0.5)), 2, "CRITICAL: no run"),
        ("first one died", None, Some(aged(&begun, 0.5)), 2, "CRITICAL: no finished run"),
        (
            "a dry run refreshes nothing",
            None,
            Some(aged(&good, 9.0) + &aged(&dry, 1.0)),
            2,
            "CRITICAL: no run",
        ),
        ("empty", None, Some(String::new()), 2, "CRITICAL: no finished run in the log"),
        (
            "no log of ours",
            None,
            Some("hello\n\u{0}\n".to_owned()),
            2,
            "CRITICAL: no finished run in the log",
        ),
        ("rotated", Some(aged(&good, 1.0)), None, 0, "OK: 1 tokens"),
        ("rotated in a run", Some(aged(&begun, 1.0)), Some(aged(&good, 0.5)), 0, "OK: 1 tokens"),
        ("missing", None, None, 3, "UNKNOWN: "),
        ("another time zone", None, Some(aged(&good, -8.0)), 3, "UNKNOWN: the log is ahead of this clock"),
    ];
    for userland in userlands() {
        for (name, rotated, log, code, line) in &cases {
            let file = scratch_dir().join("refresh.log");
            for (path, content) in [(file.with_extension("log.1"), rotated), (file.clone(), log)] {
                if let Some(content) = content {
                    fs::write(path, content).expect("log");
                }
            }
            let outcome = monitor(&userland, &[file.to_str().expect("UTF-8")]);
            let context = format!("{name} with {}: {outcome:?}", userland.name);
            assert_eq!(outcome.code, Some(*code), "{context}");
            assert!(outcome.stdout.starts_with(line) && outcome.stdout.lines().count() == 1, "{context}");
            assert_eq!(outcome.stderr, "", "{context}");
        }
    }
}

#[test]
fn a_question_that_makes_no_sense_is_unknown() {
    let file = scratch_dir().join("refresh.log");
    fs::write(&file, "").expect("log");
    let log = file.to_str().expect("UTF-8");
    let folder = file.parent().and_then(Path::to_str).expect("UTF-8");
    for userland in userlands() {
        for args in [
            &[][..],
            &[""],
            &[log, "8", "9"],
            &[log, "0"],
            &[log, "0.0"],
            &[log, "-1"],
            &[log, "1.2.3"],
            &[log, "."],
            &[log, "8h"],
            &[log, ""],
            &[folder],
        ] {
            let outcome = monitor(&userland, args).expect(3);
            assert!(
                outcome.stdout.starts_with("UNKNOWN: ") && outcome.stdout.lines().count() == 1,
                "{outcome:?}"
            );
        }
        // The limit is heard of: a log without a run in it is judged, not refused.
        for limit in ["1", "0.5", "24"] {
            monitor(&userland, &[log, limit]).expect(2);
        }
    }
}

#[test]
fn ages_are_right_over_the_ends_of_days_months_and_years() {
    let dir = scratch_dir();
    let clock = dir.join("date");
    fs::write(&clock, "#!/bin/sh\necho \"$NOW\"\n").expect("clock");
    fs::set_permissions(&clock, fs::Permissions::from_mode(0o755)).expect("mode");
    let mut path = dir.clone().into_os_string();
    path.push(":");
    path.push(self::path());
    for (finished, now, hours) in [
        ("2026-02-12 18:50:13", "2026-02-12 19:50:13", 1),
        ("2026-02-12 23:00:00", "2026-02-13 01:00:00", 2),
        ("2027-02-28 22:00:00", "2027-03-01 01:00:00", 3),
        ("2028-02-28 22:00:00", "2028-03-01 01:00:00", 27),
        ("2028-02-29 22:00:00", "2028-03-01 01:00:00", 3),
        ("2100-02-28 22:00:00", "2100-03-01 01:00:00", 3),
        ("2026-12-31 23:00:00", "2027-01-01 00:00:00", 1),
        ("2026-04-30 23:00:00", "2026-05-01 00:00:00", 1),
        ("2026-07-31 23:00:00", "2026-08-01 00:00:00", 1),
        ("2026-01-31 08:00:00", "2026-02-01 07:00:00", 23),
    ] {
        let file = dir.join("refresh.log");
        fs::write(&file, format!("{finished} [INFO] 🎉 刷新完成\n")).expect("log");
        for (limit, code) in [(format!("{hours}"), 0), (format!("{}.99", hours - 1), 2)] {
            let run = Run::bare().program(script("monitor_refresh.sh")).arg(&file).arg(limit);
            let outcome = run.env("PATH", &path).env("NOW", now).go();
            assert_eq!(outcome.code, Some(code), "{finished} at {now}: {outcome:?}");
        }
    }
}
