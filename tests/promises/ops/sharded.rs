//! `refresh_sharded.sh`: several processes that look like one run.

use super::support::{
    PATIENCE, Reply, Run, Seed, Signal, Stub, TestDb, free_port, scratch_dir, unique_token,
};
use super::{run_script, script, world};
use mongodb::bson::doc;
use rustix::process::{Pid, kill_process, kill_process_group};
use std::collections::BTreeMap;
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
    let metrics = scratch_dir().join("refresh.prom");
    let to_metrics = format!("--metrics-file={}", metrics.display());
    let outcome = sharded(&db, &api, &tmp, &["4", &to_metrics, "--max-delete", "100%"]).go().expect(3);
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

    // What watches a single run's metrics understands these.
    let text = fs::read_to_string(&metrics).expect("metrics");
    assert!(text.contains("{result=\"failed\",schedule=\"refresh\"} 5\n"), "{text}");
    let monitor = run_script("monitor_refresh.sh", &db, &api).arg(&metrics).go().expect(1);
    assert!(monitor.stdout.contains("成功 20, 失败 5, 删除 3"), "{monitor:?}");
    // Of the same form as the program's own, and the last success stays.
    fs::write(
        &metrics,
        text.replace(
            "_success_timestamp_seconds{schedule=\"refresh\"} 0",
            "_success_timestamp_seconds{schedule=\"refresh\"} 77",
        ),
    )
    .expect("metrics");
    sharded(&db, &api, &tmp, &["2", &to_metrics]).go().expect(3);
    let single = metrics.with_file_name("single.prom");
    run_script("-", &db, &api)
        .program(super::support::binary())
        .args(["--delay-ms", "0", "--metrics-file"])
        .arg(&single)
        .go()
        .expect(3);
    let shape = |file: &Path| {
        let text = fs::read_to_string(file).expect("metrics").replace("single", "refresh");
        text.lines()
            .map(|line| {
                if line.starts_with('#') { line } else { line.rsplit_once(' ').expect("a sample").0 }
                    .to_owned()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(shape(&metrics), shape(&single));
    assert!(
        fs::read_to_string(&metrics)
            .expect("metrics")
            .contains("_success_timestamp_seconds{schedule=\"refresh\"} 77\n")
    );
}

#[test]
fn its_json_is_that_of_one_run() {
    let (db, api) = world();
    db.add_tokens("good", 20);
    db.add(Seed::new(&unique_token("busy")).last_used_days_ago(41.0));
    let tmp = scratch_dir();
    let args = ["--cleanup-days", "30", "--dry-run", "--json"];
    let single = run_script("-", &db, &api).program(super::support::binary()).args(args);
    let single = single.args(["--delay-ms", "0"]).go().expect(3).json();
    let outcome = sharded(&db, &api, &tmp, &["3"]).args(args).go().expect(3);
    let combined = outcome.json();
    let fields = |json: &serde_json::Value| {
        let timeless = json.as_object().expect("an object").iter();
        let timeless =
            timeless.filter(|(key, _)| !["started_at", "duration_seconds"].contains(&key.as_str()));
        timeless.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(fields(&combined), fields(&single));
    for key in ["started_at", "duration_seconds"] {
        assert_eq!(combined[key].is_string(), single[key].is_string(), "{combined}");
    }
    assert!(outcome.stderr.contains("📊 刷新统计:"));
    assert_eq!(sharded(&db, &api, &tmp, &["3", "-q", "--dry-run"]).go().code, Some(3));
    db.tokens().delete_many(doc! { "access_token": { "$regex": "busy" } }).run().expect("removal");
    assert_eq!(sharded(&db, &api, &tmp, &["3", "-q", "--dry-run"]).go().expect(0).log(), "");
    assert_empty(&tmp);
}

#[test]
fn the_gravest_exit_code_counts() {
    let nobody = || format!("127.0.0.1:{}", free_port());
    for (labels, args, env, code, stopped) in [
        (&["good"; 4][..], &[][..], None, 0, None),
        // So many that no process has only the one without an answer, which would be a dead API.
        (&[&["good"; 15][..], &["busy"]].concat(), &[], None, 3, None),
        (&["busy", "busy", "invalid", "good"], &["--max-delete", "0"], None, 25, Some("delete_limit")),
        (
            &["good"; 4],
            &["--retries", "0"],
            Some(("BAOMING_API_BASE", "http", "/xcx")),
            5,
            Some("api_unreachable"),
        ),
        (&[], &[], Some(("MONGODB_URI", "mongodb", "/")), 1, Some("database")),
    ] {
        let (db, api) = world();
        for label in labels {
            db.add_token(label);
        }
        let tmp = scratch_dir();
        let mut run = sharded(&db, &api, &tmp, &["2", "--json"]).args(args);
        if let Some((name, scheme, path)) = env {
            run = run.env(name, format!("{scheme}://{}{path}", nobody()));
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
        (&["0"][..], "refresh_sharded.sh: 需要进程数"),
        (&["x"], "refresh_sharded.sh: 需要进程数"),
        (&["1000"], "refresh_sharded.sh: 需要进程数"),
        (&["2", "--shard", "1/2"], "refresh_sharded.sh: --shard 不能用于多个进程"),
        (&["2", "--scheduler"], "refresh_sharded.sh: --scheduler 不能用于多个进程"),
        (&["2", "--log-file=x"], "refresh_sharded.sh: --log-file 不能用于多个进程"),
        (&["2", "--json", "--json"], "refresh_sharded.sh: --json 重复"),
        (&["2", "--dry-runn"], "refresh_baoming_tokens: "),
        (&["2", "--self-test"], "refresh_baoming_tokens: "),
        (&["2", "--version"], "refresh_baoming_tokens: "),
    ] {
        let outcome = sharded(&db, &api, &tmp, args).go().expect(2);
        assert!(outcome.stderr.starts_with(line) && outcome.stderr.lines().count() == 1, "{outcome:?}");
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    // What only a process itself can tell is the same for all.
    let outcome = sharded(&db, &api, &tmp, &["3", "--json"]).env_remove("MONGODB_URI").go().expect(2);
    let complaints =
        outcome.stderr.lines().filter(|line| line.starts_with("refresh_baoming_tokens: ")).count();
    assert_eq!((outcome.stdout.as_str(), complaints), ("", 1), "{outcome:?}");
    assert_eq!(api.requests(), 0);
    assert_empty(&tmp);
}

/// An API that answers nobody before it is told to.
fn gated() -> (Stub, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let api = Stub::start(move |_| {
        // Open for good, once the sender is gone.
        let _ = gate.lock().expect("lock").recv_timeout(PATIENCE);
        Reply::valid()
    });
    (api, open)
}

#[test]
fn a_signal_stops_all_and_waits_for_them() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 143)] {
        let (db, _) = world();
        db.add_tokens("good", 30);
        let (api, gate) = gated();
        let tmp = scratch_dir();
        let run = sharded(&db, &api, &tmp, &["3", "--json"]).start();
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
        assert_eq!(json["stopped"], "signal", "{json}");
        assert_eq!(
            (json["total"].as_i64(), json["exit_code"].as_i64()),
            (Some(30), Some(code.into())),
            "{json}"
        );
        assert_eq!(json["success"].as_u64(), Some(api.requests() as u64), "{json}");
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
    let (api, gate) = gated();
    let tmp = scratch_dir();
    let run = sharded(&db, &api, &tmp, &["3", "--json"]).start();
    api.await_request(3);
    // The one with this flag among the children of the script.
    let victim = fs::read_dir("/proc").expect("/proc").find_map(|entry| {
        let dir = entry.ok()?.path();
        let command = fs::read_to_string(dir.join("cmdline")).ok()?;
        let environment = fs::read_to_string(dir.join("environ")).ok()?;
        let ours = environment.contains(&format!("TMPDIR={}\0", tmp.display()));
        let is_second = ours && command.contains("\0--shard\x002/3\0");
        is_second.then(|| dir.file_name()?.to_str()?.parse().ok())?
    });
    let victim = Pid::from_raw(victim.expect("the second process")).expect("a process id");
    kill_process(victim, Signal::KILL).expect("signal");
    drop(gate);
    let outcome = run.wait().expect(1);
    assert!(outcome.stderr.contains("[ERROR] ❌ 进程 2/3 没有报告结果 (退出码 137)"), "{outcome:?}");
    assert!(outcome.stderr.contains("⏹️ 刷新提前结束"), "{outcome:?}");
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
