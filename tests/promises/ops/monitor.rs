//! `monitor_refresh.sh` on metrics files, with every kind of awk and shell it may meet.

use super::{assert_one_line, checker, find, path, script, tools};
use crate::prelude::*;

/// The shell and search path of GNU/Linux, of the BSDs (by the awk they have), and of Alpine
/// (nothing but busybox).
fn userlands() -> Vec<(PathBuf, OsString)> {
    let mut found = vec![("sh".into(), path())];
    let others = ["mawk", "gawk", "original-awk", "busybox"];
    for name in others.into_iter().filter(|name| checker(name).is_some()) {
        let dir = tools(&[]);
        let applets: &[&str] = if name == "busybox" { &["sh", "awk", "date"] } else { &["awk"] };
        for applet in applets {
            symlink(find(name).expect("as above"), dir.join(applet)).expect("applet");
        }
        if name == "busybox" {
            found.push((dir.join("sh"), dir.into()));
        } else {
            let mut path = dir.into_os_string();
            path.push(":");
            path.push(self::path());
            found.push(("dash".into(), path));
        }
    }
    found
}

fn monitor((shell, path): &(PathBuf, OsString), file: &Path, limit: &str) -> Outcome {
    let run = Run::bare().program(shell).env("PATH", path).arg(script("monitor_refresh.sh"));
    run.arg(file).args(limit.split_whitespace()).go()
}

/// A metrics file of a run with this exit code and these counts that ended some hours ago.
fn metrics(exit_code: i32, counts: &[(&str, u32)], hours_ago: f64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64();
    let sample = |name: &str, value| format!("baoming_refresh_{name}schedule=\"all\"}} {value:.0}\n");
    let tokens = |(result, n): &(&str, u32)| sample(&format!("tokens{{result=\"{result}\","), (*n).into());
    let mut text = "# HELP baoming_refresh_tokens Tokens.\n".to_owned();
    text.extend(counts.iter().map(tokens));
    text += &sample("last_completion_timestamp_seconds{", now - hours_ago * 3600.0);
    text + &sample("exit_code{", exit_code.into())
}

#[test]
fn each_state_has_its_own_word_and_code() {
    let counts = [("success", 8), ("failed", 1), ("deleted", 2)];
    let none = [("success", 0), ("failed", 4)];
    let condemned = [("failed", 3), ("deleted", 3)];
    for userland in userlands() {
        for (content, code, line) in [
            (metrics(0, &counts, 1.0), 0, "OK 正常: all 1.0 小时前: 成功 8, 失败 1, 删除 2,"),
            (metrics(0, &counts, 47.9), 0, "OK 正常: "),
            (metrics(0, &counts, 48.1), 2, "CRITICAL 严重: all 过期: "),
            (metrics(3, &counts, 1.0), 1, "WARNING 警告: all 部分失败 "),
            (metrics(3, &none, 1.0), 2, "CRITICAL 严重: all 全部失败 "),
            (metrics(3, &condemned, 1.0), 1, "WARNING 警告: all 部分失败 "),
            (metrics(25, &counts, 1.0), 1, "WARNING 警告: all 删除被保留"),
            (metrics(143, &counts, 1.0), 1, "WARNING 警告: all 被信号停止 "),
            (metrics(1, &[], 1.0), 2, "CRITICAL 严重: all 失败: 退出码 1 "),
            (metrics(5, &counts, 1.0), 2, "CRITICAL 严重: all 失败: 退出码 5 "),
            (metrics(0, &counts, -8.0), 3, "UNKNOWN 未知: all 指标来自未来"),
            (String::new(), 3, "UNKNOWN 未知: all "),
            ("hello \u{1b} 3\n".to_owned(), 3, "UNKNOWN 未知: all "),
        ] {
            let file = file("all.prom", content, 0o644);
            let outcome = monitor(&userland, &file, "").expect(code);
            assert_one_line(&outcome.stdout, line);
            assert_eq!(outcome.stderr, "", "{userland:?}");
        }
        // Unreadable is not missing. Root reads everything; a folder nobody can read as a file.
        let folder = scratch_dir().join("all.prom");
        for word in ["(missing)", "(unreadable)"] {
            let outcome = monitor(&userland, &folder, "").expect(3);
            assert_one_line(&outcome.stdout, "UNKNOWN 未知: all ");
            assert!(outcome.stdout.contains(word), "{outcome:?}");
            let _ = fs::create_dir(&folder);
        }
        // A limit of one's own, if it makes sense.
        let file = file("all.prom", metrics(0, &[], 20.0), 0o644);
        for (limits, code) in [("0 0.0 -1 1.2.3 . 8h", 3), ("19.5 7", 2), ("20.5 200", 0)] {
            for limit in limits.split(' ') {
                let outcome = monitor(&userland, &file, limit).expect(code);
                assert_eq!(outcome.stdout.lines().count(), 1, "{limit}: {outcome:?}");
            }
        }
    }
}
