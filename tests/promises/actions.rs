//! What the program does instead of one run, or beside it: scheduler, self-test, restore, import,
//! metrics; and how it stops when it is told to.

use crate::support::compare::{assert_refreshed, assert_text, date, id, timeless};
use crate::support::{
    Mongod, Outcome, Reply, Run, Seed, Signal, Stub, TestDb, await_true, free_port, scratch_dir,
    unique_token, wall_clock,
};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, doc};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

/// The log without what every action begins with.
fn shown(outcome: &Outcome) -> String {
    let log = timeless(&outcome.log());
    let (_, rest) = log.split_once("NOW [INFO] ✅ 数据库连接成功\n").expect("a connection");
    rest.to_owned()
}

fn add_card(db: &TestDb, id: ObjectId, name: &str) -> ObjectId {
    db.cards().insert_one(doc! { "_id": id, "name": name }).run().expect("card");
    id
}

fn dead_uri() -> String {
    format!("mongodb://127.0.0.1:{}/", free_port())
}

// ------------------------------------------------------------------------------ signals

#[test]
fn a_signal_lets_the_current_token_finish_and_nothing_be_deleted() {
    // Flags, signal, exit code.
    let table: [(&[&str], Signal, i32); 4] = [
        (&["--json"], Signal::INT, 130),
        (&["--json"], Signal::TERM, 143),
        (&["--scheduler", "--run-immediately"], Signal::TERM, 0),
        (&["--scheduler", "--run-immediately"], Signal::INT, 0),
    ];
    for (flags, signal, code) in table {
        let db = Mongod::shared().fresh_db();
        for (label, days) in [("invalid", 9.0), ("valid", 8.0), ("valid", 7.0), ("invalid", 6.0)] {
            db.add(Seed::new(&unique_token(label)).last_used_days_ago(days));
        }
        let (answer, wait) = mpsc::channel();
        let wait = Mutex::new(wait);
        let api = Stub::start(move |request| {
            if request.number == 2 {
                wait.lock().expect("receiver").recv().expect("word to go on");
            }
            Reply::by_label(request.token())
        });
        let before = db.snapshot();
        // All four would be cleaned up.
        let run = Run::new(&db, &api).args(["--cleanup-days=1", "--max-delete=100%"]).args(flags);
        let live = run.start();
        api.await_request(2);
        live.signal(signal);
        answer.send(()).expect("the stub waits");
        let outcome = live.wait().expect(code);
        let after = db.snapshot();

        assert_refreshed(&before.tokens[1], &after.tokens[1]);
        for untouched in [0, 2, 3] {
            assert_eq!(after.tokens[untouched], before.tokens[untouched]);
        }
        assert_eq!((api.requests(), after.bin.len()), (2, 0));
        let counts = ["总计", "成功", "失败", "删除", "保留", "未处理"].map(|name| outcome.stat(name));
        assert_eq!(counts, [4, 1, 0, 0, 1, 2]);
        let log = outcome.log();
        assert!(log.contains("[WARNING] ⏹️ 刷新提前结束") && !log.contains("🎉"), "{log}");
        if code > 0 {
            let json = outcome.json();
            assert_eq!(
                (json["stopped"].as_str(), json["exit_code"].as_i64()),
                (Some("signal"), Some(code.into()))
            );
        }
    }
}

#[test]
fn a_signal_ends_a_pause_within_a_second() {
    let db = Mongod::shared().fresh_db();
    db.add_tokens("valid", 2);
    let api = Stub::always(Reply::valid());
    // Flags, the line after which the program does nothing but wait, exit code, requests by then.
    let table: [(&[&str], &str, i32, usize); 3] = [
        (&["--delay-ms=60000"], "✅ Token 有效", 143, 1),
        (&["--scheduler", "--delay-ms=0"], "✅ 定时任务已启动", 0, 0),
        (&["--scheduler", "--delay-ms=0", "--run-immediately"], "🎉", 0, 2),
    ];
    let mut requests = 0;
    for (flags, line, code, more) in table {
        let live = Run::new(&db, &api).no_args().args(flags).start();
        live.await_line(line);
        let start = Instant::now();
        live.signal(Signal::TERM);
        live.wait().expect(code);
        assert!(start.elapsed() < Duration::from_secs(1), "{flags:?}: {:?}", start.elapsed());
        requests += more;
        assert_eq!(api.requests(), requests, "{flags:?}");
    }
}

// ---------------------------------------------------------------------------- scheduler

#[test]
fn the_scheduler_says_what_it_will_do() {
    let db = Mongod::shared().fresh_db();
    let api = Stub::always(Reply::valid());
    for (flags, every, immediately) in [
        (&[][..], "每 6 小时", "否"),
        (&["--interval", "2"], "每 2 小时", "否"),
        (&["--interval-minutes=10"], "每 10 分钟", "否"),
        (&["--interval-minutes=90", "--interval=3", "--run-immediately"], "每 90 分钟", "是"),
    ] {
        let live = Run::new(&db, &api).arg("--scheduler").args(flags).start();
        live.await_line("✅ 定时任务已启动");
        live.signal(Signal::TERM);
        let outcome = live.wait().expect(0);
        let head = format!(
            "NOW [INFO] 🕐 定时任务模式\n\
             NOW [INFO]    刷新间隔: {every}\n\
             NOW [INFO]    立即执行: {immediately}\n\
             NOW [INFO] ✅ 定时任务已启动，{every}执行一次\n"
        );
        let log = timeless(&outcome.stdout);
        assert_text(log.get(..head.len()).unwrap_or(&log), &head);
    }
}

#[test]
fn the_scheduler_goes_on_after_a_job_that_failed() {
    let server = Mongod::start();
    let db = server.fresh_db();
    db.add_token("valid");
    server.admin(doc! { "fsync": 1 });
    server.kill();
    let api = Stub::always(Reply::valid());
    let metrics = scratch_dir().join("metrics.prom");
    let run = Run::new(&db, &api).args(["--scheduler", "--interval-minutes=1", "--run-immediately"]);
    let live = run.arg("--metrics-file").arg(&metrics).limit(Duration::from_secs(150)).start();
    live.await_line("[ERROR] ❌");
    let failed = Instant::now();
    server.restart();
    live.await_lines("🔧 正在连接数据库", 2);
    let pause = failed.elapsed();
    assert!((59..75).contains(&pause.as_secs()), "{pause:?}");
    let exit_code = || samples(&metrics).remove("baoming_refresh_exit_code");
    assert_eq!(exit_code(), Some(1.0));
    await_true("the end of the second job", || exit_code() == Some(0.0));
    live.signal(Signal::TERM);
    assert_eq!(live.wait().expect(0).stat("成功"), 1);
}

// ---------------------------------------------------------------------------- self-test

const SELF_TEST: &str = "\
NOW [INFO] 📊 数据库中有 5 个 Token
NOW [INFO] 最近的 Token:
NOW [INFO]   - 名片: 3333
NOW [INFO]     用户: 未知
NOW [INFO]     最后使用: 2026-01-02 12:00:00
NOW [INFO]   - 名片: 已删除的名片
NOW [INFO]     用户: 张三
NOW [INFO]     最后使用: 从未
NOW [INFO]   - 名片: 1111
NOW [INFO]     用户: 张三
NOW [INFO]     最后使用: 2026-01-05 12:00:00
NOW [INFO] 测试 Token: 名片 '3333'
NOW [INFO] 旧的最后使用时间: 2026-01-02 12:00:00
NOW [INFO] 新的最后使用时间: NOW
NOW [INFO] ✅ 刷新成功
NOW [INFO] 📊 发现 3 个 30 天未使用的 Token
NOW [INFO] ✅ 通过 - 数据库连接
NOW [INFO] ✅ 通过 - Token 存在性
NOW [INFO] ✅ 通过 - 单个 Token 刷新
NOW [INFO] ✅ 通过 - 清理功能
NOW [INFO] 总计: 4/4 个测试通过
";

#[test]
fn golden_self_test_refreshes_the_most_recently_updated_token() {
    let db = Mongod::shared().fresh_db();
    let seed = |n, used: &str, updated: &str| {
        let seed = Seed::new(&unique_token("valid")).set("_id", id(100 + n)).card(id(n));
        seed.set("last_used", date(used)).set("updated_at", date(updated))
    };
    for (n, name) in [(1, "1111"), (2, "2222"), (3, "3333")] {
        add_card(&db, id(n), name);
    }
    db.add(seed(1, "2026-01-05 12:00:00", "2026-01-05 12:00:00"));
    db.add(seed(2, "2026-01-04 12:00:00", "2026-01-04 12:00:00"));
    db.add(seed(3, "2026-01-02 12:00:00", "2026-01-07 12:00:00").without("uname"));
    db.add(seed(4, "2026-01-03 12:00:00", "2026-01-06 12:00:00").without("last_used"));
    db.add(seed(5, "2026-01-01 12:00:00", "2026-01-01 12:00:00").without("updated_at"));
    let api = Stub::start(|request| Reply::by_label(request.token()));
    let before = db.snapshot();
    let outcome = Run::new(&db, &api).arg("--self-test").go().expect(0);
    let after = db.snapshot();
    assert_text(&shown(&outcome), SELF_TEST);
    assert_refreshed(&before.tokens[2], &after.tokens[2]);
    for untouched in [0, 1, 3, 4] {
        assert_eq!(after.tokens[untouched], before.tokens[untouched]);
    }
    assert_eq!((api.requests(), after.bin.len()), (1, 0));
}

#[test]
fn self_test_reports_each_failure_and_deletes_nothing() {
    const FOUR: [&str; 4] = ["数据库连接", "Token 存在性", "单个 Token 刷新", "清理功能"];
    let api = Stub::start(|request| Reply::by_label(request.token()));
    // The token's label, flags, which checks pass, another line.
    let table = [
        ("invalid", "", [true, true, false, true], "[WARNING] ⚠️ Token 已失效: invalid access_token"),
        ("busy", "", [true, true, false, true], "[WARNING] ⚠️ 刷新失败: 系统繁忙"),
        ("down", "--retries=0", [true, true, false, true], "[WARNING] ⚠️ 刷新失败: "),
        ("valid", "--dry-run", [true; 4], "试运行"),
        ("invalid", "--cleanup-days=39", [true, true, false, true], "📊 发现 1 个 39 天未使用的 Token"),
        ("", "", [true, false, false, true], "📊 数据库中有 0 个 Token"),
        ("no database", "", [false; 4], "[ERROR] ❌ "),
    ];
    for (label, flags, passes, line) in table {
        let db = Mongod::shared().fresh_db();
        if !label.is_empty() {
            db.add(Seed::new(&unique_token(label)).last_used_days_ago(40.0));
        }
        let before = db.snapshot();
        let mut run = Run::new(&db, &api).arg("--self-test").args(flags.split_whitespace());
        if label == "no database" {
            run = run.env("MONGODB_URI", dead_uri());
        }
        let log = run.go().expect(i32::from(passes != [true; 4])).log();
        assert!(log.contains(line), "{label} {flags:?}: {log}");
        let lines = FOUR.iter().zip(passes).map(|(name, passes)| {
            if passes {
                format!("[INFO] ✅ 通过 - {name}\n")
            } else {
                format!("[ERROR] ❌ 失败 - {name}\n")
            }
        });
        assert!(lines.into_iter().all(|line| log.contains(&line)), "{label} {flags:?}: {log}");
        let passed = passes.iter().filter(|&&passes| passes).count();
        assert!(log.ends_with(&format!("总计: {passed}/4 个测试通过\n")), "{log}");
        assert_eq!(db.snapshot(), before, "{label} {flags:?}");
    }
}

// ------------------------------------------------------------------------------ restore

#[test]
fn what_a_run_deleted_is_restored_byte_for_byte() {
    let db = Mongod::shared().fresh_db();
    let (one, old) = (db.add_card("失效"), db.add_card("旧文档"));
    db.add(
        Seed::new(&unique_token("invalid")).card(one).set("extra", doc! { "b": [1_i64, 2.5, Bson::Null] }),
    );
    db.add(Seed::new(&unique_token("invalid")).card_dbref(old).set("last_used", Bson::Null).without("uname"));
    db.add(Seed::new(&unique_token("invalid")).set("card", "no id").set("pic", 7));
    db.add(Seed::new(&unique_token("busy")).last_used_days_ago(40.0));
    let api = Stub::start(|request| Reply::by_label(request.token()));
    let before = db.snapshot();
    Run::new(&db, &api).arg("--cleanup-days=30").go().expect(3);
    let deleted = db.snapshot();
    assert_eq!((deleted.tokens.len(), deleted.bin.len()), (0, 4));

    let restore = |flags: &[&str]| Run::new(&db, &api).arg("--restore-hours=1").args(flags).go().expect(0);
    let json = restore(&["--dry-run", "--json"]).json();
    assert_eq!((json["total"].as_u64(), json["success"].as_u64()), (Some(4), Some(4)));
    assert_eq!(db.snapshot(), deleted);
    let outcome = restore(&[]);
    assert!(outcome.stdout.contains("  ✅ 已恢复: 4 个\n"), "{}", outcome.stdout);
    assert_eq!(db.snapshot(), before);
    let again = restore(&["--json"]).json();
    assert_eq!(again["total"], 0);
    assert_eq!((db.snapshot(), api.requests()), (before, 4));
}

const RESTORE: &str = "\
NOW [INFO] ♻️ 恢复最近 2 小时内删除的 Token...
NOW [WARNING]   ⚠️ 回收站记录 ID 不含 Token，未恢复
NOW [WARNING]   ⚠️ 回收站记录 ID 不含 Token，未恢复
NOW [INFO]   ✅ 已恢复: 名片 '两次删除'
NOW [WARNING]   ⏭️ 未恢复: 名片 '两次删除'，该名片已有新的 Token
NOW [WARNING]   ⏭️ 未恢复: 名片 '重新登录 DBRef'，该名片已有新的 Token
NOW [WARNING]   ⏭️ 未恢复: 名片 '重新登录'，该名片已有新的 Token
NOW [WARNING]   ⏭️ 未恢复: 名片 '同一文档'，该 Token 已存在
NOW [INFO]   ✅ 已恢复: 名片 '119 分钟前'
NOW [INFO] 📊 恢复统计:
NOW [INFO]   📝 总计: 8 个
NOW [INFO]   ✅ 已恢复: 2 个
NOW [INFO]   ⏭️ 未恢复: 6 个
";

#[test]
fn restore_never_overwrites_and_says_what_stays() {
    let db = Mongod::shared().fresh_db();
    let mut card = 0;
    let mut add_entry = |name: &str, minutes: u64, token: Seed| {
        card += 1;
        let token = token.card(add_card(&db, id(card), name)).0;
        db.add_secret(&token.get_str("access_token").expect("token")[..5]);
        let deleted_at = DateTime::from_system_time(SystemTime::now() - Duration::from_secs(minutes * 60));
        let entry = doc! { "token": &token, "reason": "test", "deleted_at": deleted_at };
        db.bin().insert_one(entry).run().expect("bin entry");
        token
    };
    let token = || Seed::new(&unique_token("old"));
    add_entry("两小时前", 121, token());
    add_entry("119 分钟前", 119, token());
    let same = add_entry("同一文档", 50, token());
    db.add(Seed(same).set("access_token", unique_token("new")));
    let renewed = add_entry("重新登录", 40, token());
    db.add(Seed::new(&unique_token("new")).card(renewed.get_object_id("card").expect("card")));
    let renewed = add_entry("重新登录 DBRef", 30, token());
    db.add(Seed::new(&unique_token("new")).card_dbref(renewed.get_object_id("card").expect("card")));
    // Two deletions of one card: the later one counts.
    let earlier = add_entry("两次删除", 20, token());
    let later = Seed(earlier).set("_id", ObjectId::new()).set("access_token", unique_token("later")).0;
    let minute_ago = DateTime::from_system_time(SystemTime::now() - Duration::from_secs(60));
    for odd in [Bson::from(&later), Bson::Null, doc! { "no": "_id" }.into()] {
        let entry = doc! { "_id": ObjectId::new(), "token": odd, "reason": "test", "deleted_at": minute_ago };
        db.bin().insert_one(entry).run().expect("bin entry");
    }

    let before = db.snapshot();
    let outcome = Run::new(&db, &Stub::always(Reply::valid())).args(["--restore-hours", "2"]).go().expect(3);
    let after = db.snapshot();
    let mut log = shown(&outcome);
    for entry in &after.bin {
        log = log.replace(&entry.get_object_id("_id").expect("id").to_hex(), "ID");
    }
    assert_text(&log, RESTORE);
    let all_there = before.tokens.iter().all(|token| after.tokens.contains(token));
    assert!(all_there && after.tokens.len() == before.tokens.len() + 2);
    assert!(after.tokens.contains(&(&later).try_into().expect("BSON")));
    assert_eq!((after.bin.len(), after.cards), (before.bin.len() - 2, before.cards));
}

// ------------------------------------------------------------------------------- import

/// Writes the legacy file, and keeps its tokens secret.
fn legacy_file(db: &TestDb, entries: &[(&str, serde_json::Value)]) -> PathBuf {
    let map: serde_json::Map<_, _> =
        entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    for token in map.values().filter_map(|value| value["access_token"].as_str()).filter(|it| it.len() > 4) {
        db.add_secret(&token[..5]);
    }
    let path = scratch_dir().join("baoming_tokens.json");
    fs::write(&path, serde_json::to_vec_pretty(&map).expect("JSON")).expect("file");
    path
}

fn legacy(save_time: impl Into<serde_json::Value>) -> serde_json::Value {
    serde_json::json!({
        "access_token": unique_token("legacy"), "uname": "李四", "pic": "https://example.invalid/p.png",
        "unionid": "o6_legacy", "_save_time": save_time.into(),
    })
}

const IMPORT: &str = "\
NOW [INFO] 📥 导入 FILE...
NOW [WARNING]   ⏭️ 跳过: 无法识别的键 ''
NOW [WARNING]   ⏭️ 跳过: 无法识别的键 'card_\\u{1b}[2Jxyz'
NOW [INFO]   ✅ 成功: 名片 '整数'
NOW [INFO]   ✅ 成功: 名片 '小数'
NOW [INFO]   ⏭️ 跳过: 名片 '已有' 已有 Token
NOW [INFO]   ⏭️ 跳过: 名片 '已有 DBRef' 已有 Token
NOW [WARNING]   ❌ 失败: 名片 000000000000000000000005 的数据不完整
NOW [INFO]   ✅ 成功: 名片 '少字段'
NOW [WARNING]   ⏭️ 跳过: 名片 000000000000000000000007 不存在
NOW [WARNING]   ⏭️ 跳过: 无法识别的键 'user…'
NOW [INFO] ============================================================
NOW [INFO]   ✅ 成功: 3 个
NOW [INFO]   ⏭️ 跳过: 6 个
NOW [INFO]   ❌ 失败: 1 个
NOW [INFO]   📝 总计: 10 个
";

#[test]
fn import_adds_tokens_of_cards_that_have_none() {
    let db = Mongod::shared().fresh_db();
    for (n, name) in [(1, "整数"), (2, "小数"), (3, "已有"), (4, "已有 DBRef"), (5, "残缺"), (6, "少字段")]
    {
        add_card(&db, id(n), name);
    }
    db.add(Seed::new(&unique_token("here")).card(id(3)));
    db.add(Seed::new(&unique_token("here")).card_dbref(id(4)));
    let key = |n: u32| format!("card_{}", id(n));
    let without = |field: &str| {
        let mut value = legacy(1_700_000_000);
        value.as_object_mut().expect("an object").remove(field);
        value
    };
    let whole = legacy(1_700_000_000);
    let file = legacy_file(
        &db,
        &[
            (&key(1), whole.clone()),
            (&key(2), legacy(1_700_000_000.5)),
            (&key(3), legacy(1)),
            (&key(4), legacy(1)),
            (&key(5), without("access_token")),
            (&key(6), without("pic")),
            (&key(7), legacy(1)),
            ("card_\u{1b}[2Jxyz", legacy(1)),
            ("user_000000000000000000000001", legacy(1)),
            ("", serde_json::Value::Null),
        ],
    );
    let api = Stub::always(Reply::valid());
    let import = |flags: &[&str]| Run::new(&db, &api).arg("--import-json").arg(&file).args(flags).go();
    let before = db.snapshot();
    let json = import(&["--dry-run", "--json"]).expect(3).json();
    let counts = ["total", "success", "skipped", "failed"].map(|name| json[name].as_u64().expect("a number"));
    assert_eq!((counts, json["dry_run"].as_bool()), ([10, 3, 6, 1], Some(true)));
    assert_eq!(db.snapshot(), before);

    let start = wall_clock();
    let outcome = import(&[]).expect(3);
    let end = wall_clock();
    assert_text(&shown(&outcome).replace(&file.display().to_string(), "FILE"), IMPORT);
    let imported = |n| db.tokens().find_one(doc! { "card": id(n) }).run().expect("find").expect("imported");
    let token = imported(1);
    let now = token.get_datetime("last_used").copied().expect("a date");
    assert!((start..=end).contains(&now), "{now}");
    let expected = doc! {
        "_id": token.get_object_id("_id").expect("an ObjectId"),
        "card": id(1),
        "access_token": whole["access_token"].as_str(),
        "uname": "李四",
        "pic": "https://example.invalid/p.png",
        "unionid": "o6_legacy",
        // 1,700,000,000 is 22:13:20 in UTC.
        "created_at": date("2023-11-15 06:13:20"),
        "updated_at": now,
        "last_used": now,
    };
    assert_eq!(token, expected);
    let half_a_second = date("2023-11-15 06:13:20").timestamp_millis() + 500;
    assert_eq!(imported(2).get("created_at"), Some(&DateTime::from_millis(half_a_second).into()));
    assert_eq!(imported(6).get("pic"), Some(&"".into()));

    let after = db.snapshot();
    assert_eq!(
        (after.tokens.len(), &after.cards, after.bin.len()),
        (before.tokens.len() + 3, &before.cards, 0)
    );
    assert!(before.tokens.iter().all(|token| after.tokens.contains(token)));
    let again = import(&["--json"]).expect(3).json();
    assert_eq!((again["success"].as_u64(), again["skipped"].as_u64()), (Some(0), Some(9)));
    assert_eq!((db.snapshot(), api.requests()), (after, 0));
}

#[test]
fn an_import_file_that_is_broken_is_one_line_and_imports_nothing() {
    let db = Mongod::shared().fresh_db();
    let card = db.add_card("1111");
    let good = format!(r#""card_{card}": {{"access_token": "topSecretToken", "_save_time": 1}}"#);
    db.add_secret("topSe");
    let api = Stub::always(Reply::valid());
    let file = scratch_dir().join("broken.json");
    // Content, what the line says.
    let table = [
        (Some(format!("{{\n  {good},\n  \"card_1\": topSecretToken\n}}")), "第 3 行第 14 列"),
        (Some(format!("{{\n  {good}\n")), "第 3 行第 0 列"),
        (Some(format!("{{{good}}}\n}}")), "第 2 行第 1 列"),
        (Some("[]".to_owned()), "第 1 行第 0 列"),
        (Some(String::new()), "第 1 行第 0 列"),
        (None, "无法读取文件"),
    ];
    for (content, said) in table {
        let what = format!("{content:?}");
        match content {
            Some(content) => fs::write(&file, content).expect("file"),
            None => fs::remove_file(&file).expect("no file"),
        }
        let outcome = Run::new(&db, &api).arg("--import-json").arg(&file).go().expect(1);
        let log = outcome.log();
        assert!(
            log.lines().count() == 1 && log.contains("[ERROR] ❌") && log.contains(said),
            "{what}: {log}"
        );
        assert!(log.contains("broken.json"), "{log}");
        assert_eq!(db.snapshot().tokens, [], "{what}");
    }
}

// ------------------------------------------------------------------------------ metrics

/// The samples of a Prometheus text file, by name and labels. Strict: every metric has help and
/// type once, before its samples, and no sample has a time.
fn samples(path: &Path) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(path).expect("metrics file");
    assert!(text.ends_with('\n'), "{text}");
    let mut samples = BTreeMap::new();
    let mut seen = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(line);
        assert!(!help.is_empty() && !seen.contains(&name), "{line}");
        seen.push(name);
        assert_eq!(lines.next(), Some(&*format!("# TYPE {name} gauge")));
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = line.split_once(' ').expect(line);
            assert_eq!(series.split('{').next(), Some(name), "{line}");
            let previous = samples.insert(series.to_owned(), value.parse().expect(line));
            assert_eq!(previous, None, "{line}");
        }
    }
    samples
}

const LAST_COMPLETION: &str = "baoming_refresh_last_completion_timestamp_seconds";
const LAST_SUCCESS: &str = "baoming_refresh_last_success_timestamp_seconds";

fn unix_time() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64()
}

#[test]
fn metrics_tell_the_last_run_and_the_last_good_one() {
    const RESULTS: [&str; 7] =
        ["success", "failed", "deleted", "skipped", "withheld", "unprocessed", "cleaned"];
    const NOW: f64 = f64::NAN;
    const AGED: f64 = 1_700_000_000.0;
    let api = Stub::start(|request| Reply::by_label(request.token()));
    let folder = scratch_dir();
    let path = folder.join("metrics.prom");
    let age_last_success = || {
        let text = fs::read_to_string(&path).expect("metrics");
        let line = text.lines().find(|line| line.starts_with(LAST_SUCCESS)).expect("the sample");
        fs::write(&path, text.replace(line, &format!("{LAST_SUCCESS} {AGED}"))).expect("metrics");
    };
    // Tokens, flags, exit code, samples in the order of RESULTS, last success if it is not now.
    let table: [(&str, &str, i32, [u64; 7], f64); 6] = [
        ("busy", "", 3, [0, 1, 0, 0, 0, 0, 0], 0.0),
        ("slow invalid", "", 0, [1, 0, 1, 0, 0, 0, 0], NOW),
        ("valid busy", "--cleanup-days=1", 3, [1, 1, 0, 0, 0, 0, 1], AGED),
        ("invalid", "--max-delete=0", 25, [0, 0, 0, 0, 1, 0, 0], AGED),
        ("down down down down down valid", "", 5, [0, 5, 0, 0, 0, 1, 0], AGED),
        ("no database", "", 1, [0; 7], AGED),
    ];
    for (tokens, flags, code, counts, last_success) in table {
        let db = Mongod::shared().fresh_db();
        for (label, days) in tokens.split(' ').zip((2_u32..10).rev()) {
            db.add(Seed::new(&unique_token(label)).last_used_days_ago(days.into()));
        }
        let mut run = Run::new(&db, &api).arg("--retries=0").args(flags.split_whitespace());
        if tokens == "no database" {
            run = run.env("MONGODB_URI", dead_uri());
        }
        let start = unix_time();
        run.arg("--metrics-file").arg(&path).go().expect(code);
        let is_now = |time: f64| (start - 1.0..=unix_time()).contains(&time);
        let mut found = samples(&path);
        let mut take = |name: &str| found.remove(name).unwrap_or_else(|| panic!("no {name}"));
        let results = RESULTS.map(|result| take(&format!("baoming_refresh_tokens{{result=\"{result}\"}}")));
        assert_eq!(results.map(|count| count.to_string()), counts.map(|count| count.to_string()), "{tokens}");
        assert!(is_now(take(LAST_COMPLETION)), "{tokens}");
        let success = take(LAST_SUCCESS);
        let fits = if last_success.is_nan() {
            is_now(success)
        } else {
            success.to_string() == last_success.to_string()
        };
        assert!(fits, "{tokens}: {success}");
        let duration = take("baoming_refresh_duration_seconds");
        let least = if tokens.starts_with("slow") { 1.0 } else { 0.0 };
        assert!((least..=unix_time() - start).contains(&duration), "{tokens}: {duration}");
        assert_eq!(take("baoming_refresh_exit_code").to_string(), code.to_string());
        assert_eq!(found, BTreeMap::new());
        age_last_success();
    }
    let names: Vec<_> =
        fs::read_dir(&folder).expect("folder").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names, ["metrics.prom"]);
}

#[test]
fn metrics_are_replaced_at_once_and_never_stop_a_run() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let path = scratch_dir().join("metrics.prom");
    let run = |path: &Path| Run::new(&db, &api).arg("--metrics-file").arg(path).go().expect(0);
    run(&path);
    let before = fs::read_to_string(&path).expect("metrics");
    // A reader in the middle of the old file still gets all of it.
    let mut reader = fs::File::open(&path).expect("metrics");
    db.add_token("valid");
    run(&path);
    let mut read = String::new();
    reader.read_to_string(&mut read).expect("old metrics");
    assert_text(&read, &before);
    assert_ne!(fs::read_to_string(&path).expect("metrics"), before);

    let folder = scratch_dir();
    let outcome = run(&folder);
    let log = &outcome.stdout;
    assert!(
        log.contains("[WARNING]") && log.contains("--metrics-file") && outcome.stat("成功") == 2,
        "{log}"
    );
    assert_eq!(
        fs::read_dir(folder.parent().expect("parent"))
            .expect("folder")
            .filter(|entry| {
                entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("tmp"))
            })
            .count(),
        0
    );
}
