//! `monitor_refresh.sh` on metrics files, with every kind of awk and shell it may meet.

use super::support::{Outcome, Run, scratch_dir};
use super::{checker, path, script};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::SystemTime;

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
    run.env("PATH", &userland.path).go()
}

/// A metrics file of a run that ended some hours ago.
fn metrics(exit_code: i32, counts: &[(&str, u32)], hours_ago: f64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64();
    let counts: Vec<String> = counts
        .iter()
        .map(|(result, n)| format!("baoming_refresh_tokens{{result=\"{result}\",schedule=\"all\"}} {n}\n"))
        .collect();
    let counts = counts.concat();
    format!(
        "# HELP baoming_refresh_tokens Tokens.\n{counts}\
         baoming_refresh_last_completion_timestamp_seconds{{schedule=\"all\"}} {:.0}\n\
         baoming_refresh_exit_code{{schedule=\"all\"}} {exit_code}\n",
        now - hours_ago * 3600.0
    )
}

#[test]
fn each_state_has_its_own_word_and_code() {
    let counts = [("success", 8), ("failed", 1), ("deleted", 2)];
    let cases = [
        ("fine", Some(metrics(0, &counts, 1.0)), 0, "OK 正常: all 1.0 小时前: 成功 8, 失败 1, 删除 2,"),
        ("a file that a run is replacing", Some(metrics(0, &counts, 47.9)), 0, "OK 正常: "),
        ("stale", Some(metrics(0, &counts, 48.1)), 2, "CRITICAL 严重: all 过期: "),
        ("some failed", Some(metrics(3, &counts, 1.0)), 1, "WARNING 警告: all 部分失败 "),
        (
            "all failed",
            Some(metrics(3, &[("success", 0), ("failed", 4)], 1.0)),
            2,
            "CRITICAL 严重: all 全部失败 ",
        ),
        ("held back", Some(metrics(25, &counts, 1.0)), 1, "WARNING 警告: all 删除被保留"),
        ("stopped", Some(metrics(143, &counts, 1.0)), 1, "WARNING 警告: all 被信号停止 "),
        ("no database", Some(metrics(1, &[], 1.0)), 2, "CRITICAL 严重: all 失败: 退出码 1 "),
        ("no API", Some(metrics(5, &counts, 1.0)), 2, "CRITICAL 严重: all 失败: 退出码 5 "),
        ("another clock", Some(metrics(0, &counts, -8.0)), 3, "UNKNOWN 未知: all 指标来自未来"),
        ("missing", None, 3, "UNKNOWN 未知: all 指标文件 "),
        ("empty", Some(String::new()), 3, "UNKNOWN 未知: all "),
        ("something else", Some("hello \u{1b} 3\n".to_owned()), 3, "UNKNOWN 未知: all "),
    ];
    for userland in userlands() {
        for (name, content, code, line) in &cases {
            let file = scratch_dir().join("all.prom");
            if let Some(content) = content {
                fs::write(&file, content).expect("metrics");
            }
            let outcome = monitor(&userland, &[file.to_str().expect("UTF-8")]);
            let context = format!("{name} with {}: {outcome:?}", userland.name);
            assert_eq!(outcome.code, Some(*code), "{context}");
            assert!(outcome.stdout.starts_with(line) && outcome.stdout.lines().count() == 1, "{context}");
            assert_eq!(outcome.stderr, "", "{context}");
        }
    }
    // Unreadable is not missing. Root reads everything; a folder nobody can read as a file.
    let folder = scratch_dir().join("all.prom");
    fs::create_dir(&folder).expect("folder");
    let outcome = monitor(&userlands()[0], &[folder.to_str().expect("UTF-8")]).expect(3);
    assert!(outcome.stdout.contains("(unreadable)"), "{outcome:?}");
}

#[test]
fn a_question_that_makes_no_sense_is_unknown() {
    let file = scratch_dir().join("all.prom");
    fs::write(&file, metrics(0, &[], 20.0)).expect("metrics");
    let file = file.to_str().expect("UTF-8");
    for userland in userlands() {
        for limit in ["0", "0.0", "-1", "1.2.3", ".", "8h", ""] {
            let outcome = monitor(&userland, &[file, limit]).expect(3);
            assert!(
                outcome.stdout.starts_with("UNKNOWN 未知: ") && outcome.stdout.lines().count() == 1,
                "{outcome:?}"
            );
        }
        monitor(&userland, &[""]).expect(3);
        monitor(&userland, &[file, "8", "9"]).expect(3);
        // The limit is heard of.
        for (limit, code) in [("19.5", 2), ("20.5", 0), ("200", 0)] {
            monitor(&userland, &[file, limit]).expect(code);
        }
    }
}
