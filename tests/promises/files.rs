//! The files that the program reads and writes: the legacy file of `--import-json`, the log and the
//! metrics. Bad ones are one clear line and the right code, never a hang and never a token's change.

use crate::support::compare::{assert_text, date, id, timeless};
use crate::support::{
    Mongod, Outcome, Reply, Run, Seed, Stub, TestDb, Total, count, dead, file, scratch_dir, unique_token,
    wall_clock,
};
use mongodb::bson::{DateTime, doc};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What every mistake must be over in.
const PROMPT: Duration = Duration::from_secs(15);

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o777
}

fn fifo() -> PathBuf {
    let path = scratch_dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
    path
}

// ------------------------------------------------------------------------------- import

/// A legacy file with these keys and values, in their order; its tokens are kept secret.
fn legacy_file(db: &TestDb, entries: &[(String, String)]) -> PathBuf {
    let entries: Vec<String> = entries
        .iter()
        .map(|(key, value)| format!("{}: {value}", serde_json::to_string(key).expect("JSON")))
        .collect();
    db.add_secret("legac");
    file("baoming_tokens.json", format!("{{{}}}", entries.join(",\n")), 0o644)
}

const IMPORT: &str = "\
NOW [INFO] 📥 导入 FILE...
NOW [WARNING]   ❌ [1/10] 失败: 名片 000000000000000000000005，数据不完整: 缺少 access_token
NOW [INFO]   ✅ [2/10] 成功: 名片 '整数'
NOW [INFO]   ✅ [3/10] 成功: 名片 '小数'
NOW [WARNING]   ⏭️ [4/10] 跳过: 名片 '已有' 已有 Token
NOW [WARNING]   ⏭️ [5/10] 跳过: 名片 '已有 DBRef' 已有 Token
NOW [INFO]   ✅ [6/10] 成功: 名片 '少字段'
NOW [WARNING]   ⏭️ [7/10] 跳过: 名片 '少字段' 已有 Token
NOW [WARNING]   ⏭️ [8/10] 跳过: 名片 000000000000000000000007 不存在
NOW [WARNING]   ⏭️ [9/10] 跳过: 无法识别的键 'user…'
NOW [WARNING]   ⏭️ [10/10] 跳过: 无法识别的键 'card_\\u{1b}[2Jxyz'
NOW [INFO] 📊 导入统计:
NOW [INFO]   📝 总计: 10 个
NOW [INFO]   ✅ 成功: 3 个
NOW [INFO]   ❌ 失败: 1 个
NOW [INFO]   🗑️ 删除: 0 个
NOW [INFO]   ⏭️ 跳过: 6 个
NOW [INFO]   ❗ 原因: 数据不完整: 缺少 access_token × 1
";

/// The log from the line after the connection.
fn shown(outcome: &Outcome) -> String {
    let log = timeless(&outcome.stdout);
    log.split_inclusive('\n').skip_while(|line| !line.contains("📥")).collect()
}

#[test]
fn import_adds_tokens_of_cards_that_have_none() {
    let db = Mongod::shared().fresh_db();
    for (n, name) in [(1, "整数"), (2, "小数"), (3, "已有"), (4, "已有 DBRef"), (5, "残缺"), (6, "少字段")]
    {
        db.add_card_as(id(n), name);
    }
    db.add(Seed::new(&unique_token("here")).card(id(3)));
    db.add(Seed::new(&unique_token("here")).card_dbref(id(4)));
    let key = |n: u32| format!("card_{}", id(n));
    let whole = |save_time: &str| {
        format!(
            r#"{{"access_token": "legacy-token", "uname": "李四", "pic": "https://example.invalid/p.png",
                "unionid": "o6_legacy", "_save_time": {save_time}}}"#
        )
    };
    let bare = r#"{"access_token": "legacy-token", "uname": null}"#.to_owned();
    let file = legacy_file(
        &db,
        &[
            (key(5), r#"{"access_token": " ", "uname": "王五", "_save_time": 1}"#.to_owned()),
            (key(1), whole("1700000000")),
            (key(2), whole("1700000000.5")),
            (key(3), whole("1")),
            (key(4), whole("1")),
            (key(6), bare.clone()),
            (key(6), bare),
            (key(7), whole("1")),
            ("user_000000000000000000000001".to_owned(), whole("1")),
            ("card_\u{1b}[2Jxyz".to_owned(), "null".to_owned()),
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
        "access_token": "legacy-token",
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
    let bare = imported(6);
    assert!(
        ["uname", "pic", "unionid"].iter().all(|field| bare.get_str(field).is_ok_and(str::is_empty)),
        "{bare}"
    );

    let after = db.snapshot();
    assert_eq!((after.tokens.len(), after.bin.len()), (before.tokens.len() + 3, 0));
    assert_eq!(after.cards, before.cards);
    assert!(before.tokens.iter().all(|token| after.tokens.contains(token)));
    let again = import(&["--json"]).expect(3).json();
    assert_eq!((again["success"].as_u64(), again["skipped"].as_u64()), (Some(0), Some(9)));
    assert_eq!((db.snapshot(), api.requests()), (after, 0));
}

#[test]
fn import_takes_every_time_that_the_old_tool_wrote() {
    let db = Mongod::shared().fresh_db();
    let api = Stub::always(Reply::valid());
    let then = Some("2025-02-10 14:20:38");
    // `_save_time`, `created_at` in Shanghai; `None` is now.
    let table = [
        ("1739168438.123", then),
        ("\"1739168438\"", then),
        ("1739168438123", then),
        ("\"2025-02-10T14:20:38\"", then),
        ("null", None),
        ("\"yesterday\"", None),
    ];
    let entries = (1_u32..).zip(table).map(|(n, (time, _))| {
        db.add_card_as(id(n), "甲");
        let value = format!(r#"{{"access_token": "legacy-{n}", "pic": "", "_save_time": {time}}}"#);
        (format!("card_{}", id(n)), value)
    });
    let path = legacy_file(&db, &entries.collect::<Vec<_>>());
    let with_bom = file("bom.json", format!("\u{feff}{}", fs::read_to_string(path).expect("file")), 0o644);
    let start = wall_clock();
    Run::new(&db, &api).arg("--import-json").arg(with_bom).go().expect(0);
    for (n, (time, expected)) in (1_u32..).zip(table) {
        let token = db.tokens().find_one(doc! { "card": id(n) }).run().expect("find").expect("imported");
        let created = token.get_datetime("created_at").expect("a date").timestamp_millis();
        if let Some(expected) = expected {
            assert_eq!(created / 1000, date(expected).timestamp_millis() / 1000, "{time}");
        } else {
            let now = start.timestamp_millis()..=wall_clock().timestamp_millis();
            assert!(now.contains(&created), "{time}");
        }
    }
}

#[test]
fn an_import_file_that_is_broken_is_one_line_and_imports_nothing() {
    let db = Mongod::shared().fresh_db();
    let card = db.add_card("1111");
    let good = format!(r#""card_{card}": {{"access_token": "topSecretToken", "_save_time": 1}}"#);
    db.add_secret("topSe");
    let api = Stub::always(Reply::valid());
    let path = scratch_dir().join("broken.json");
    // Content, what the line says.
    let table = [
        (Some(format!("{{\n  {good},\n  \"card_1\": topSecretToken\n}}")), "第 3 行第 14 列"),
        (Some(format!("{{\n  {good}\n")), "第 3 行第 0 列"),
        (Some(format!("{{{good}}}\n}}")), "第 2 行第 1 列"),
        (Some(r#"{"topSecretToken": {"access_token": "a"}}"#.to_owned()), "card_"),
        (Some("{}".to_owned()), "card_"),
        (Some("[]".to_owned()), "第 1 行第 0 列"),
        (Some(String::new()), "第 1 行第 0 列"),
        (None, "系统错误 2 (os error 2)"),
    ];
    for (content, said) in table {
        count(Total::Faults, 1);
        let what = format!("{content:?}");
        match content {
            Some(content) => fs::write(&path, content).expect("file"),
            None => fs::remove_file(&path).expect("no file"),
        }
        let outcome = Run::new(&db, &api).arg("--import-json").arg(&path).go().expect(1);
        let log = outcome.log();
        let line = log.lines().find(|line| line.contains("[ERROR] ❌ 无法导入")).unwrap_or_default();
        assert!(line.contains(said) && line.contains("broken.json"), "{what}: {log}");
        assert!(line.ends_with("；未写入任何数据") && log.matches("[ERROR]").count() == 1, "{what}: {log}");
        assert!(!log.contains("正在连接"), "read before anything is connected: {log}");
        assert_eq!(db.snapshot().tokens, [], "{what}");
    }
}

// -------------------------------------------------------------------------- the log file

#[test]
fn log_file_gets_the_log_in_private_and_appended() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let log = scratch_dir().join("made/for/it/run.log");
    let run = |flag: &str| Run::new(&db, &api).arg(flag).arg("--log-file").arg(&log).go().expect(0);
    let mut expected = run("-v").stdout;
    assert_eq!(mode(&log), 0o600);
    assert_eq!(mode(log.parent().expect("folder")) & 0o022, 0, "nobody else may put files there");
    // A wider one of ours is narrowed.
    fs::set_permissions(&log, fs::Permissions::from_mode(0o644)).expect("mode");
    expected += &run("--json").stderr;
    assert_eq!(mode(&log), 0o600);
    run("-q");
    assert_text(&fs::read_to_string(&log).expect("log"), &expected);
}

#[test]
fn log_file_is_followed_when_it_is_renamed_or_vanishes() {
    let db = Mongod::shared().fresh_db();
    db.add_tokens("valid", 4);
    let log = scratch_dir().join("folder/run.log");
    let (path, renamed, vanished) = (log.clone(), log.with_extension("1"), log.with_extension("2"));
    let keep = vanished.with_file_name("../kept");
    let kept = keep.clone();
    let api = Stub::start(move |request| {
        match request.number {
            2 => fs::rename(&path, &renamed).expect("renamed"),
            3 => {
                let folder = path.parent().expect("folder");
                let both = [&renamed, &path].map(|file| fs::read_to_string(file).expect("log"));
                fs::write(&kept, both.concat()).expect("kept");
                fs::remove_dir_all(folder).expect("removed");
            }
            _ => {}
        }
        Reply::valid()
    });
    let outcome = Run::new(&db, &api).arg("--log-file").arg(&log).go().expect(0);
    let files = [&keep, &log].map(|file| fs::read_to_string(file).expect("log"));
    assert_text(&files.concat(), &outcome.stdout);
    assert!(files.iter().all(|text| text.contains("✅ Token 有效")));
    assert_eq!(mode(&log), 0o600);
}

#[test]
fn a_log_file_that_cannot_be_opened_stops_the_run_before_it_starts() {
    let db = Mongod::shared().fresh_db();
    db.add_token("invalid");
    let before = db.snapshot();
    let api = Stub::always(Reply::invalid());
    for (path, said) in [
        (scratch_dir(), "系统错误 21 (os error 21)"),
        (file("plain", "", 0o600).join("log"), "系统错误"),
        (fifo(), "系统错误"),
    ] {
        count(Total::Faults, 1);
        let run = Run::new(&db, &api).args(["--json", "--log-file"]).arg(&path);
        let outcome = run.limit(PROMPT).go().expect(1);
        let line = outcome.stderr.strip_prefix("refresh_baoming_tokens: ").unwrap_or_default();
        assert!(
            line.contains("--log-file") && line.contains(said) && line.lines().count() == 1,
            "{outcome:?}"
        );
        assert_eq!(outcome.json()["exit_code"], 1);
    }
    assert_eq!((api.requests(), db.snapshot()), (0, before));
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
            assert!(series.contains("schedule=\"active\""), "{line}");
            let series = series.replace(",schedule=\"active\"", "").replace("{schedule=\"active\"}", "");
            assert_eq!(samples.insert(series, value.parse().expect(line)), None, "{line}");
        }
    }
    samples
}

const LAST_COMPLETION: &str = "baoming_refresh_last_completion_timestamp_seconds";
const LAST_SUCCESS: &str = "baoming_refresh_last_success_timestamp_seconds";
const AGED: f64 = 1_700_000_000.0;

fn unix_time() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64()
}

#[test]
fn metrics_tell_the_last_run_and_the_last_good_one() {
    const RESULTS: [&str; 7] =
        ["success", "failed", "deleted", "skipped", "withheld", "unprocessed", "cleaned"];
    const NOW: f64 = f64::NAN;
    let api = Stub::start(|request| Reply::by_label(request.token()));
    let folder = scratch_dir();
    let path = folder.join("active.prom");
    let age_last_success = || {
        let text = fs::read_to_string(&path).expect("metrics");
        let line = text.lines().find(|line| line.starts_with(LAST_SUCCESS)).expect("the sample");
        fs::write(&path, text.replace(line, &format!("{LAST_SUCCESS} {AGED}"))).expect("metrics");
    };
    // Tokens, flags, exit code, samples in the order of RESULTS, last success if it is not now.
    let table: [(&str, &str, i32, [u64; 7], f64); 6] = [
        ("busy valid", "", 3, [1, 1, 0, 0, 0, 0, 0], 0.0),
        ("slow invalid", "", 0, [1, 0, 1, 0, 0, 0, 0], NOW),
        ("valid busy", "--cleanup-days=1", 3, [1, 1, 0, 0, 0, 0, 1], AGED),
        ("invalid", "--max-delete=0", 25, [0, 0, 0, 0, 1, 0, 0], AGED),
        ("down down down down down down valid", "", 5, [0, 6, 0, 0, 0, 1, 0], AGED),
        ("no database", "", 1, [0; 7], AGED),
    ];
    for (tokens, flags, code, counts, last_success) in table {
        let db = Mongod::shared().fresh_db();
        let api = if code == 5 { &Stub::always(Reply::json(503, "")) } else { &api };
        for (label, days) in tokens.split(' ').zip((2_u32..10).rev()) {
            db.add(Seed::new(&unique_token(label)).last_used_days_ago(days.into()));
        }
        let mut run = Run::new(&db, api).arg("--retries=0").args(flags.split_whitespace());
        if tokens == "no database" {
            run = run.env("MONGODB_URI", format!("mongodb://{}/", dead()));
        }
        let start = unix_time();
        run.arg("--metrics-file").arg(&path).go().expect(code);
        assert_eq!(mode(&path), 0o644);
        let is_now = |time: f64| (start - 1.0..=unix_time()).contains(&time);
        let mut found = samples(&path);
        let mut take = |name: &str| found.remove(name).unwrap_or_else(|| panic!("no {name}"));
        let results = RESULTS.map(|result| take(&format!("baoming_refresh_tokens{{result=\"{result}\"}}")));
        assert_eq!(results.map(|count| count.to_string()), counts.map(|count| count.to_string()), "{tokens}");
        assert!(is_now(take(LAST_COMPLETION)), "{tokens}");
        let success = take(LAST_SUCCESS);
        let is_same = success.to_string() == last_success.to_string();
        assert!(if last_success.is_nan() { is_now(success) } else { is_same }, "{tokens}: {success}");
        let duration = take("baoming_refresh_duration_seconds");
        let least = if tokens.starts_with("slow") { 1.0 } else { 0.0 };
        assert!((least..=unix_time() - start).contains(&duration), "{tokens}: {duration}");
        assert_eq!(take("baoming_refresh_exit_code").to_string(), code.to_string());
        assert_eq!(found, BTreeMap::new());
        age_last_success();
    }
    let names: Vec<_> =
        fs::read_dir(&folder).expect("folder").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names, ["active.prom"]);
}

#[test]
fn metrics_are_replaced_at_once_and_can_always_be_collected() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let path = scratch_dir().join("active.prom");
    let run = || Run::new(&db, &api).arg("--metrics-file").arg(&path);
    run().go().expect(0);
    let before = fs::read_to_string(&path).expect("metrics");
    // A reader in the middle of the old file still gets all of it.
    let mut reader = fs::File::open(&path).expect("metrics");
    db.add_token("valid");
    let mut under = Run::bare().program("sh").args(["-c", "umask 077; exec \"$0\" \"$@\""]);
    under = under.arg(crate::support::binary()).args(["--delay-ms", "0", "--metrics-file"]).arg(&path);
    under = under.env("MONGODB_URI", &db.uri).env("MONGODB_DB_NAME", &db.name).env("TZ", "Asia/Shanghai");
    under.env("BAOMING_API_BASE", api.base()).go().expect(0);
    assert_eq!(mode(&path), 0o644, "also under umask 077");
    let mut read = String::new();
    std::io::Read::read_to_string(&mut reader, &mut read).expect("old metrics");
    assert_text(&read, &before);
    assert_ne!(fs::read_to_string(&path).expect("metrics"), before);
    // A dry run refreshed nothing.
    let before = fs::read_to_string(&path).expect("metrics");
    run().arg("--dry-run").go().expect(0);
    assert_text(&fs::read_to_string(&path).expect("metrics"), &before);
}

#[test]
fn a_metrics_file_or_log_that_is_none_is_refused_before_anything_is_done() {
    let db = Mongod::shared().fresh_db();
    db.add_token("invalid");
    let before = db.snapshot();
    let api = Stub::always(Reply::invalid());
    let folder = scratch_dir();
    let target = file("target", "mine", 0o644);
    let symbolic = folder.join("link.prom");
    symlink(&target, &symbolic).expect("link");
    let name = |path: &Path| path.display().to_string();
    let both = name(&folder.join("both"));
    let table: [Vec<String>; 6] = [
        vec!["--metrics-file".into(), name(&folder)],
        vec!["--metrics-file".into(), name(&symbolic)],
        vec!["--metrics-file".into(), name(&fifo())],
        vec!["--metrics-file".into(), "/dev/full".into()],
        vec!["--metrics-file".into(), both.clone(), "--log-file".into(), both.clone()],
        vec!["--metrics-file".into(), both.clone(), "--log-file".into(), name(&folder.join("./both"))],
    ];
    for flags in table {
        count(Total::Faults, 1);
        let outcome = Run::new(&db, &api).args(&flags).limit(PROMPT).go().expect(2);
        let line = outcome.stderr.strip_prefix("refresh_baoming_tokens: ").unwrap_or_default();
        assert!(line.contains("--metrics-file") && line.lines().count() == 1, "{flags:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "{flags:?}");
    }
    assert_eq!(fs::read_to_string(&target).expect("target"), "mine");
    assert!(!folder.join("both").exists());
    assert_eq!((api.requests(), db.snapshot()), (0, before));
}

#[test]
fn metrics_that_cannot_be_written_are_told_after_the_run_is_done() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let folder = scratch_dir().join("gone");
    fs::create_dir(&folder).expect("folder");
    let doomed = folder.clone();
    // The folder vanishes while the run goes on.
    let api = Stub::start(move |_| {
        fs::remove_dir_all(&doomed).expect("removed");
        Reply::valid()
    });
    count(Total::Faults, 1);
    // With -q the statistics are due all the same, since the exit code is not 0.
    let run = Run::new(&db, &api).args(["-q", "--metrics-file"]).arg(folder.join("active.prom"));
    let outcome = run.limit(PROMPT).go().expect(1);
    assert_eq!(outcome.stat("成功"), 1);
    assert!(
        outcome.stderr.contains("--metrics-file") && outcome.stderr.contains("os error 2"),
        "{outcome:?}"
    );
}
