//! `refresh_sharded.sh`: several processes that look like one run.

use super::{run_script, script, tool};
use crate::prelude::*;
use rustix::process::{Pid, kill_process, kill_process_group};

/// Without pauses between tokens, and with a folder of its own for what is temporary.
fn sharded(db: &TestDb, api: &Stub, tmp: &Path, args: &[&str]) -> Run {
    run_script("refresh_sharded.sh", db, api).env("TMPDIR", tmp).args(args).args(["--delay-ms", "0"])
}

#[track_caller]
fn assert_empty(tmp: &Path) {
    let left: Vec<_> = fs::read_dir(tmp).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn its_log_is_that_of_one_run() {
    let (db, api) = world();
    db.add_tokens("good", 20);
    db.add_tokens("busy", 5);
    db.add_tokens("invalid", 3);
    let tmp = scratch_dir();
    let outcome = sharded(&db, &api, &tmp, &["4", "--max-delete", "100%"]).go().expect(3);
    for (name, count) in [("总计", 28), ("成功", 20), ("失败", 5), ("删除", 3)] {
        // The last block is that of all.
        let line = outcome.stdout.lines().rfind(|line| line.contains(name)).expect(name);
        assert!(line.ends_with(&format!("{name}: {count} 个")), "{line}");
    }
    assert_eq!(outcome.stderr, "");
    for k in 1..=4 {
        assert!(outcome.stdout.contains(&format!("[INFO] ({k}/4) 🎉 刷新完成\n")), "{}", outcome.stdout);
    }
    assert!(outcome.stdout.lines().all(|line| line.starts_with("20") && line[19..].starts_with(" [")));
    let quiet = || sharded(&db, &api, &tmp, &["3", "-q", "--dry-run"]).go();
    quiet().expect(3);
    db.tokens().delete_many(doc! { "access_token": { "$regex": "busy" } }).run().expect("removal");
    assert_eq!(quiet().expect(0).log(), "");
    assert_empty(&tmp);
}

#[test]
fn its_json_is_that_of_one_run_and_the_gravest_exit_code_counts() {
    let no_api = ("BAOMING_API_BASE", format!("http://{}/xcx", dead()));
    let no_database = ("MONGODB_URI", format!("mongodb://{}/", dead()));
    // Tokens, flags, a variable, exit code, why it stopped; success, failed, withheld, cleaned. In a dry run nothing
    // but `dry_run` differs.
    let rows = [
        ("good ".repeat(4), "2", None, 0, None, [4, 0, 0, 0]),
        // So many that no process has only the one without an answer, which would be a dead API.
        ("good ".repeat(20) + "busy-unused", "3 --cleanup-days 30", None, 3, None, [20, 1, 0, 1]),
        (
            "busy busy invalid good".to_owned(),
            "2 --max-delete 0",
            None,
            25,
            Some("delete_limit"),
            [1, 2, 1, 0],
        ),
        ("good ".repeat(4), "2 --retries 0", Some(no_api), 5, Some("api_unreachable"), [0, 4, 0, 0]),
        (String::new(), "2", Some(no_database), 1, Some("database"), [0; 4]),
    ];
    for (labels, args, env, code, stopped, counts) in rows {
        let (db, api) = world();
        for label in labels.split_whitespace() {
            db.add_used(label, if label.contains("unused") { 41.0 } else { 1.0 });
        }
        let counts: Vec<_> = ["success", "failed", "withheld", "cleaned"].into_iter().zip(counts).collect();
        let tmp = scratch_dir();
        for mode in [Some("--dry-run"), None] {
            let args: Vec<&str> = args.split(' ').chain(mode).chain(["--json"]).collect();
            let outcome = sharded(&db, &api, &tmp, &args).envs(env.clone()).go();
            let expected = report(&db, code, stopped, &counts);
            assert_report(&outcome, &if mode.is_some() { dry(expected) } else { expected });
            let reason = &outcome.json()["failure_reason"];
            assert!(code != 3 || reason == "系统繁忙，请稍后再试", "{reason}");
            assert!(outcome.stderr.contains("📊 刷新统计:"), "{outcome:?}");
        }
        assert_empty(&tmp);
        db.assert_none_lost();
    }
}

#[test]
fn a_signal_stops_all_and_waits_for_them() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 143)] {
        let (db, api) = world();
        db.add_tokens("good", 30);
        let tmp = scratch_dir();
        // After its first token each process waits a minute for the next.
        let run = run_script("refresh_sharded.sh", &db, &api).env("TMPDIR", &tmp);
        let run = run.args(["3", "--json", "--delay-ms", "60000"]).start();
        api.await_request(3);
        if signal == Signal::INT {
            // As Ctrl-C does: to all of the terminal's foreground.
            kill_process_group(run.pid(), signal).expect("signal");
        } else {
            run.signal(signal);
        }
        let outcome = run.wait().expect(code);
        let json = outcome.json();
        let told = ["total", "exit_code", "success"].map(|key| json[key].as_i64().expect("a number"));
        assert_eq!(told, [30, code.into(), i64::try_from(api.requests()).expect("few")], "{json}");
        assert_eq!(json["stopped"], "signal", "{json}");
        assert!(outcome.stderr.contains("⏹️ 刷新提前结束: 收到停止信号，"), "{outcome:?}");
        api.await_all_closed();
        assert_empty(&tmp);
        db.assert_none_lost();
    }
}

#[test]
fn a_process_that_dies_is_not_passed_over() {
    let (db, _) = world();
    db.add_tokens("good", 30);
    let (gate, closed) = mpsc::channel::<()>();
    let closed = Mutex::new(closed);
    let api = Stub::start(move |_| {
        // Nobody is answered before the sender is gone.
        let _ = closed.lock().expect("lock").recv_timeout(PATIENCE);
        Reply::valid()
    });
    let tmp = scratch_dir();
    let run = sharded(&db, &api, &tmp, &["3", "--json"]).start();
    api.await_request(3);
    let second = ["-P", &run.pid().to_string(), "-f", "--", "--shard 2/3"];
    let victim = tool("pgrep").args(second).go().expect(0).log().trim().parse().expect("the second process");
    kill_process(Pid::from_raw(victim).expect("a process id"), Signal::KILL).expect("signal");
    drop(gate);
    let outcome = run.wait().expect(1);
    for line in ["[ERROR] ❌ 进程 2/3 没有报告结果 (退出码 137)", "⏹️ 刷新提前结束"] {
        assert!(outcome.stderr.contains(line), "{outcome:?}");
    }
    assert_eq!(outcome.json()["exit_code"], 1);
    assert_empty(&tmp);
    db.assert_none_lost();
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let (db, api) = world();
    db.add_tokens("good", 10);
    let pipe = format!("'{}' 2 --delay-ms 0 | head -n 1", script("refresh_sharded.sh").display());
    sharded(&db, &api, &scratch_dir(), &[]).program("sh").no_args().args(["-c", &pipe]).go().expect(0);
    api.await_request(10);
    api.await_all_closed();
}
