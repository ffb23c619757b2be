//! `refresh_sharded.sh`: several processes that look like one run.

use super::support::{
    PATIENCE, Reply, Run, Seed, Signal, Stub, TestDb, binary, dead, scratch_dir, unique_token,
};
use super::{assert_one_line, run_script, script, world};
use mongodb::bson::doc;
use rustix::process::{Pid, kill_process, kill_process_group};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, mpsc};

/// Without pauses between tokens, and with a folder of its own for what is temporary.
fn sharded(db: &TestDb, api: &Stub, tmp: &Path, args: &[&str]) -> Run {
    let run = run_script("refresh_sharded.sh", db, api).env("TMPDIR", tmp);
    run.args(args).args(["--delay-ms", "0"])
}

#[track_caller]
fn assert_empty(tmp: &Path) {
    let left: Vec<_> = fs::read_dir(tmp).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn it_looks_like_one_run() {
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
    assert_empty(&tmp);
    db.assert_none_lost();
}

#[test]
fn its_json_is_that_of_one_run() {
    let (db, api) = world();
    db.add_tokens("good", 20);
    db.add(Seed::new(&unique_token("busy")).last_used_days_ago(41.0));
    let tmp = scratch_dir();
    let args = ["--cleanup-days", "30", "--dry-run", "--json"];
    let single = run_script("-", &db, &api).program(binary()).args(args).args(["--delay-ms", "0"]).go();
    let outcome = sharded(&db, &api, &tmp, &["3"]).args(args).go().expect(3);
    let [single, combined] = [single.expect(3).json(), outcome.json()].map(|mut json| {
        assert!(json["started_at"].is_string() && json["duration_seconds"].is_f64(), "{json}");
        json["started_at"].take();
        json["duration_seconds"].take();
        json
    });
    assert_eq!(combined, single);
    assert!(outcome.stderr.contains("📊 刷新统计:"));
    assert_eq!(sharded(&db, &api, &tmp, &["3", "-q", "--dry-run"]).go().code, Some(3));
    db.tokens().delete_many(doc! { "access_token": { "$regex": "busy" } }).run().expect("removal");
    assert_eq!(sharded(&db, &api, &tmp, &["3", "-q", "--dry-run"]).go().expect(0).log(), "");
    assert_empty(&tmp);
}

#[test]
fn the_gravest_exit_code_counts() {
    let no_api = ("BAOMING_API_BASE", format!("http://{}/xcx", dead()));
    let no_database = ("MONGODB_URI", format!("mongodb://{}/", dead()));
    for (labels, args, env, code, stopped) in [
        ("good good good good".to_owned(), "", None, 0, None),
        // So many that no process has only the one without an answer, which would be a dead API.
        ("good ".repeat(15) + "busy", "", None, 3, None),
        ("busy busy invalid good".to_owned(), "--max-delete 0", None, 25, Some("delete_limit")),
        ("good good good good".to_owned(), "--retries 0", Some(no_api), 5, Some("api_unreachable")),
        (String::new(), "", Some(no_database), 1, Some("database")),
    ] {
        let (db, api) = world();
        for label in labels.split_whitespace() {
            db.add_token(label);
        }
        let tmp = scratch_dir();
        let mut run = sharded(&db, &api, &tmp, &["2", "--json"]).args(args.split_whitespace());
        if let Some((name, value)) = env {
            run = run.env(name, value);
        }
        let json = run.go().expect(code).json();
        assert_eq!((json["exit_code"].as_i64(), json["stopped"].as_str()), (Some(code.into()), stopped));
        assert_empty(&tmp);
    }
}

#[test]
fn usage_errors_are_said_once() {
    let (db, api) = world();
    let tmp = scratch_dir();
    for (args, line) in [
        ("0", "refresh_sharded.sh: 需要进程数"),
        ("x", "refresh_sharded.sh: 需要进程数"),
        ("1000", "refresh_sharded.sh: 需要进程数"),
        ("2 --scheduler", "refresh_sharded.sh: --scheduler、--card、"),
        ("2 --log-file=x", "refresh_sharded.sh: --scheduler、--card、"),
        ("2 --metrics-file x", "refresh_sharded.sh: --scheduler、--card、"),
        ("2 --card x", "refresh_sharded.sh: --scheduler、--card、"),
        ("2 --shard 1/2", "refresh_baoming_tokens: --shard 重复"),
        ("2 --json --json", "refresh_baoming_tokens: --json 重复"),
        ("2 --dry-runn", "refresh_baoming_tokens: "),
        ("2 --self-test", "refresh_baoming_tokens: "),
        ("2 --version", "refresh_baoming_tokens: "),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let outcome = sharded(&db, &api, &tmp, &args).go().expect(2);
        assert_one_line(&outcome.stderr, line);
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    // What only a process itself can tell is the same for all.
    let outcome = sharded(&db, &api, &tmp, &["3", "--json"]).env_remove("MONGODB_URI").go().expect(2);
    assert_eq!(outcome.stderr.matches("refresh_baoming_tokens: ").count(), 1, "{outcome:?}");
    assert_eq!((outcome.stdout.as_str(), api.requests()), ("", 0), "{outcome:?}");
    assert_empty(&tmp);
}

/// Thirty tokens, and an API that answers nobody before it is told to.
fn gated() -> (TestDb, Stub, mpsc::Sender<()>) {
    let (db, _) = world();
    db.add_tokens("good", 30);
    let (open, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let api = Stub::start(move |_| {
        // Open for good, once the sender is gone.
        let _ = gate.lock().expect("lock").recv_timeout(PATIENCE);
        Reply::valid()
    });
    (db, api, open)
}

#[test]
fn a_signal_stops_all_and_waits_for_them() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 143)] {
        let (db, api, gate) = gated();
        let tmp = scratch_dir();
        // A pause after each token, in which the signal finds its way through the script.
        let run = run_script("refresh_sharded.sh", &db, &api).env("TMPDIR", &tmp);
        let run = run.args(["3", "--json", "--delay-ms", "5000"]).start();
        api.await_request(3);
        if signal == Signal::INT {
            // As Ctrl-C does: to all of the terminal's foreground.
            kill_process_group(run.pid(), signal).expect("signal");
        } else {
            run.signal(signal);
        }
        drop(gate);
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
    let (db, api, gate) = gated();
    let tmp = scratch_dir();
    let run = sharded(&db, &api, &tmp, &["3", "--json"]).start();
    api.await_request(3);
    // The one with this flag among the children of the script.
    let victim = fs::read_dir("/proc").expect("/proc").find_map(|entry| {
        let dir = entry.ok()?.path();
        let is_second = fs::read_to_string(dir.join("cmdline")).ok()?.contains("\0--shard\x002/3\0");
        let environment = fs::read_to_string(dir.join("environ")).ok()?;
        let is_ours = environment.contains(&format!("TMPDIR={}\0", tmp.display()));
        (is_second && is_ours).then(|| dir.file_name()?.to_str()?.parse().ok())?
    });
    let victim = Pid::from_raw(victim.expect("the second process")).expect("a process id");
    kill_process(victim, Signal::KILL).expect("signal");
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
