//! The files that the program reads and writes: the legacy file of `--import-json`, the log and the
//! metrics. Bad ones are one clear line and the right code, never a hang and never a token's change.

use crate::connection::PROMPT;
use crate::prelude::*;
use std::os::unix::fs::chown;

const IMPORT: &str = "\
NOW [INFO] 📥 导入 FILE...
NOW [WARNING]   ⏭️ [1/9] 跳过: 无法识别的键 'card_\\u{1b}[2Jxyz'
NOW [INFO]   ✅ [2/9] 成功: 名片 '整数'
NOW [INFO]   ✅ [3/9] 成功: 名片 '小数'
NOW [WARNING]   ⏭️ [4/9] 跳过: 名片 '已有' 已有 Token
NOW [WARNING]   ⏭️ [5/9] 跳过: 名片 '已有 DBRef' 已有 Token
NOW [WARNING]   ❌ [6/9] 失败: 名片 000000000000000000000005，数据不完整: 缺少 access_token
NOW [INFO]   ✅ [7/9] 成功: 名片 '少字段'
NOW [WARNING]   ⏭️ [8/9] 跳过: 名片 000000000000000000000007 不存在
NOW [WARNING]   ⏭️ [9/9] 跳过: 无法识别的键 'user…'
NOW [INFO] 📊 导入统计:
NOW [INFO]   📝 总计: 9 个
NOW [INFO]   ✅ 成功: 3 个
NOW [INFO]   ❌ 失败: 1 个
NOW [INFO]   🗑️ 删除: 0 个
NOW [INFO]   ⏭️ 跳过: 5 个
NOW [INFO]   ❗ 原因: 数据不完整: 缺少 access_token × 1
";

#[test]
fn import_adds_tokens_of_cards_that_have_none() {
    let (db, api) = world();
    for (n, name) in (1..).zip(["整数", "小数", "已有", "已有 DBRef", "残缺", "少字段"]) {
        db.add_card_as(id(n), name);
    }
    db.add(Seed::new(&unique_token("here")).card(id(3)));
    db.add(Seed::new(&unique_token("here")).card_dbref(id(4)));
    db.add_secret("legac");
    let key = |n: u32| format!("card_{}", id(n));
    let whole = |time: &str| {
        format!(
            r#"{{"access_token": "legacy-token", "uname": "李四", "pic": "https://example.invalid/p.png",
                "unionid": "o6_legacy", "_save_time": {time}}}"#
        )
    };
    let bare = r#"{"access_token": "legacy-token", "uname": null}"#;
    // More times are a unit test of src/import.rs.
    let entries = [
        (key(5), r#"{"access_token": " ", "uname": "王五", "_save_time": 1}"#.to_owned()),
        (key(1), whole("1700000000")),
        (key(2), whole("1700000000.5")),
        (key(3), whole("1")),
        (key(4), whole("1")),
        // The last of a key counts, as in Python.
        (key(6), "null".to_owned()),
        (key(6), bare.to_owned()),
        (key(7), whole("1")),
        ("user_000000000000000000000001".to_owned(), whole("1")),
        ("card_\\u001b[2Jxyz".to_owned(), "null".to_owned()),
    ];
    let entries = entries.map(|(key, value)| format!("\"{key}\": {value}")).join(",\n");
    // With a BOM, as editors on Windows write it.
    let file = file("baoming_tokens.json", format!("\u{feff}{{{entries}}}"), 0o644);
    let import = |flags: &[&str]| Run::new(&db, &api).arg("--import-json").arg(&file).args(flags).go();
    let before = db.snapshot();
    let expected = report(&db, 3, None, &[("success", 3), ("skipped", 5), ("failed", 1)]);
    let would = import(&["--dry-run", "--json"]);
    assert_report(&would, &dry(expected));
    assert_eq!(would.stderr.matches("试运行: 将导入: 名片").count(), 3, "{}", would.stderr);
    assert_eq!(db.snapshot(), before);

    let start = wall_clock();
    let outcome = import(&[]).expect(3);
    let log = timeless(&outcome.stdout).replace(&file.display().to_string(), "FILE");
    assert_text(log.split_once("✅ 数据库连接成功\n").map_or(&*log, |(_, rest)| rest), IMPORT);
    let imported = |n| db.tokens().find_one(doc! { "card": id(n) }).run().expect("find").expect("imported");
    let token = imported(1);
    let now = token.get_datetime("last_used").copied().expect("a date");
    assert!((start..=wall_clock()).contains(&now), "{now}");
    // 1,700,000,000 is 22:13:20 in UTC.
    let then = date("2023-11-15 06:13:20");
    let expected = doc! {
        "_id": token.get_object_id("_id").expect("an ObjectId"),
        "card": id(1),
        "access_token": "legacy-token",
        "uname": "李四",
        "pic": "https://example.invalid/p.png",
        "unionid": "o6_legacy",
        "created_at": then,
        "updated_at": now,
        "last_used": now,
    };
    assert_eq!(token, expected);
    let half_a_second_later = DateTime::from_millis(then.timestamp_millis() + 500);
    assert_eq!(imported(2).get("created_at"), Some(&half_a_second_later.into()));
    let bare = imported(6);
    assert!((start..=wall_clock()).contains(bare.get_datetime("created_at").expect("a date")));
    assert!(["uname", "pic", "unionid"].iter().all(|field| bare.get_str(field).is_ok_and(str::is_empty)));

    let after = db.snapshot();
    assert_eq!((after.tokens.len(), after.bin.len()), (before.tokens.len() + 3, 0));
    assert_eq!(after.cards, before.cards);
    assert!(before.tokens.iter().all(|token| after.tokens.contains(token)));
    assert_report(&import(&["--json"]), &report(&db, 3, None, &[("skipped", 8), ("failed", 1)]));
    assert_eq!((db.snapshot(), api.requests()), (after, 0));
}

#[test]
fn an_import_file_that_is_broken_is_one_line_and_imports_nothing() {
    let (db, api) = world();
    let card = db.add_card("1111");
    let good = format!(r#""card_{card}": {{"access_token": "topSecretToken", "_save_time": 1}}"#);
    db.add_secret("topSe");
    // Content, what the line says.
    let table = [
        (format!("{{\n  {good},\n  \"card_1\": topSecretToken\n}}"), "第 3 行第 14 列"),
        (format!("{{\n  {good}\n"), "第 3 行第 0 列"),
        (format!("{{{good}}}\n}}"), "第 2 行第 1 列"),
        (r#"{"topSecretToken": {"access_token": "a"}}"#.to_owned(), "card_"),
        ("{}".to_owned(), "card_"),
        ("[]".to_owned(), "第 1 行第 0 列"),
        (String::new(), "第 1 行第 0 列"),
        ("no file".to_owned(), "系统错误 2 (os error 2)"),
    ];
    for (content, said) in table {
        count(Total::FAULTS, 1);
        let path = file("broken.json", &content, 0o644);
        if content == "no file" {
            fs::remove_file(&path).expect("no file");
        }
        let log = Run::new(&db, &api).arg("--import-json").arg(&path).go().expect(1).log();
        let line = log.lines().find(|line| line.contains("[ERROR] ❌ 无法导入")).unwrap_or_default();
        assert!(line.contains(said) && line.contains("broken.json"), "{content}: {log}");
        assert!(line.ends_with("；未写入任何数据"), "{content}: {log}");
        assert_eq!(log.matches("[ERROR]").count(), 1, "{content}: {log}");
        assert!(!log.contains("正在连接"), "read before anything is connected: {log}");
        assert_eq!(db.snapshot().tokens, [], "{content}");
    }
}

#[test]
fn log_file_gets_the_log_in_private_and_appended() {
    let (db, api) = valid_tokens(1);
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
    let (db, _) = valid_tokens(4);
    let dir = scratch_dir();
    let (log, kept) = (dir.join("folder/run.log"), dir.join("kept"));
    let (path, renamed, keep) = (log.clone(), log.with_extension("1"), kept.clone());
    let api = Stub::start(move |request| {
        match request.number {
            2 => fs::rename(&path, &renamed).expect("renamed"),
            3 => {
                let folder = path.parent().expect("folder");
                let both = [&renamed, &path].map(|file| fs::read_to_string(file).expect("log"));
                fs::write(&keep, both.concat()).expect("kept");
                fs::remove_dir_all(folder).expect("removed");
            }
            _ => {}
        }
        Reply::valid()
    });
    let outcome = Run::new(&db, &api).arg("--log-file").arg(&log).go().expect(0);
    let files = [&kept, &log].map(|file| fs::read_to_string(file).expect("log"));
    assert_text(&files.concat(), &outcome.stdout);
    assert!(files.iter().all(|text| text.contains("✅ Token 有效")));
    assert_eq!(mode(&log), 0o600);
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_anything_is_done() {
    let (db, api) = world();
    db.add_token("invalid");
    let before = db.snapshot();
    let folder = scratch_dir();
    let (target, symbolic) = (file("target", "mine", 0o644), folder.join("link.prom"));
    symlink(&target, &symbolic).expect("link");
    let same = folder.join("both");
    // Somebody else's folder, whose links root does not follow.
    let foreign = scratch_dir();
    symlink(&target, foreign.join("link")).expect("link");
    let is_root = chown(&foreign, Some(65534), None).is_ok();
    let (log, metrics) = ("--log-file", "--metrics-file");
    // Files, exit code, what the line says.
    let table = [
        (vec![(log, scratch_dir())], 1, "系统错误 21 (os error 21)"),
        (vec![(log, file("plain", "", 0o600).join("log"))], 1, log),
        (vec![(log, fifo())], 1, log),
        (vec![(metrics, scratch_dir())], 2, metrics),
        (vec![(metrics, symbolic)], 2, metrics),
        (vec![(metrics, fifo())], 2, metrics),
        (vec![(metrics, "/dev/full".into())], 2, metrics),
        (vec![(log, same.clone()), (metrics, same.clone())], 2, metrics),
        (vec![(log, folder.join("./both")), (metrics, same.clone())], 2, metrics),
    ];
    let theirs = (vec![(log, foreign.join("link"))], 1, "系统错误 40 (os error 40)");
    for (files, code, said) in table.into_iter().chain(is_root.then_some(theirs)) {
        count(Total::FAULTS, 1);
        let what = format!("{files:?}");
        let mut run = Run::new(&db, &api).arg("--json").limit(PROMPT);
        for (flag, path) in files {
            run = run.arg(flag).arg(path);
        }
        let outcome = run.go().expect(code);
        let line = outcome.stderr.strip_prefix("refresh_baoming_tokens: ").unwrap_or_default();
        let flag = if code == 1 { log } else { metrics };
        let names = [said, flag].iter().all(|part| line.contains(part));
        assert!(names && line.lines().count() == 1, "{what}: {outcome:?}");
        if code == 1 {
            assert_eq!(outcome.json()["exit_code"], 1);
        } else {
            assert_eq!(outcome.stdout, "", "{what}");
        }
    }
    assert_eq!(fs::read_to_string(&target).expect("target"), "mine");
    assert!(!same.exists());
    assert_eq!((api.requests(), db.snapshot()), (0, before));
}

/// `NOW` stands for the end of the run, `SECONDS` for its duration.
const METRICS: &str = "\
# HELP baoming_refresh_tokens Tokens of the last run by result.
# TYPE baoming_refresh_tokens gauge
COUNTS# HELP baoming_refresh_last_completion_timestamp_seconds Unix time at which the last run ended.
# TYPE baoming_refresh_last_completion_timestamp_seconds gauge
baoming_refresh_last_completion_timestamp_seconds{schedule=\"active\"} NOW
# HELP baoming_refresh_last_success_timestamp_seconds Unix time of the last run with exit code 0; 0 = never.
# TYPE baoming_refresh_last_success_timestamp_seconds gauge
baoming_refresh_last_success_timestamp_seconds{schedule=\"active\"} SUCCESS
# HELP baoming_refresh_duration_seconds Duration of the last run in seconds.
# TYPE baoming_refresh_duration_seconds gauge
baoming_refresh_duration_seconds{schedule=\"active\"} SECONDS
# HELP baoming_refresh_exit_code Exit code of the last run.
# TYPE baoming_refresh_exit_code gauge
baoming_refresh_exit_code{schedule=\"active\"} CODE
";

#[test]
fn json_and_metrics_tell_the_run_and_metrics_the_last_good_one() {
    const COUNTS: [&str; 7] =
        ["success", "failed", "deleted", "skipped", "withheld", "unprocessed", "cleaned"];
    const AGED: &str = "1700000000";
    let api = Stub::by_label();
    let folder = scratch_dir();
    let path = folder.join("active.prom");
    let (unreachable, busy) = (Some("api_unreachable"), Some("系统繁忙，请稍后再试"));
    let (limit, lost) = (Some("delete_limit"), Some("database"));
    // Tokens in the order of the run, flags, exit code, COUNTS, commonest reason, why it stopped, last
    // success.
    let table = [
        ("valid busy error busy", "", 3, [1, 3, 0, 0, 0, 0, 0], busy, None, "0"),
        ("slow invalid", "", 0, [1, 0, 1, 0, 0, 0, 0], None, None, "NOW"),
        ("", "", 0, [0; 7], None, None, "NOW"),
        ("valid busy", "--cleanup-days=1", 3, [1, 1, 0, 0, 0, 0, 1], busy, None, AGED),
        ("valid invalid busy", "--max-delete=0", 25, [1, 1, 0, 0, 1, 0, 0], busy, limit, AGED),
        (&*"error ".repeat(7), "", 5, [0, 6, 0, 0, 0, 1, 0], Some("HTTP 503"), unreachable, AGED),
        ("no database", "", 1, [0; 7], None, lost, AGED),
    ];
    let mut aged = String::new();
    for (row, umask) in table.into_iter().zip(["022", "077"].into_iter().cycle()) {
        let (tokens, flags, code, counts, reason, stopped, success) = row;
        let db = Mongod::shared().fresh_db();
        for (label, days) in tokens.split_whitespace().zip((2_u32..10).rev()) {
            db.add_used(label, days.into());
        }
        // A reader in the middle of the old file still gets all of it.
        let old = fs::File::open(&path);
        let run = Run::new(&db, &api).no_args().program("sh").args(["-c", "umask $0; exec \"$@\"", umask]);
        let run = run.arg(binary()).args(["--delay-ms=0", "--json", "--retries=0", "--metrics-file"]);
        let run = run.arg(&path).args(flags.split_whitespace());
        let run = run.envs((stopped == lost).then(|| ("MONGODB_URI", format!("mongodb://{}/", dead()))));
        let unix_time = || SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs_f64();
        let start = unix_time();
        let outcome = run.go();
        let end = unix_time();
        let counts: Vec<_> = COUNTS.into_iter().zip(counts).collect();
        assert_report(&outcome, &report(&db, code, stopped, &counts));
        let json = outcome.json();
        let started_at = json["started_at"].as_str().expect("text").replacen('T', " ", 1);
        assert_eq!((timeless(&started_at).as_str(), json["failure_reason"].as_str()), ("NOW+08:00", reason));
        let least = if tokens.starts_with("slow") { 1.0 } else { 0.0 };
        let is_duration = |seconds: f64| (least..=end - start).contains(&seconds);
        assert!(json["duration_seconds"].as_f64().is_some_and(is_duration), "{json}");

        assert_eq!(mode(&path), 0o644, "umask {umask}");
        let text = fs::read_to_string(&path).expect("metrics");
        let shown = |line: &str| {
            let Some((name, value)) = line.rsplit_once("} ") else { return format!("{line}\n") };
            let number: f64 = value.parse().expect("a number");
            let value = match name {
                _ if (start - 1.0..=end).contains(&number) => "NOW",
                name if name.contains("duration") && is_duration(number) => "SECONDS",
                _ => value,
            };
            format!("{name}}} {value}\n")
        };
        let told: String = text.lines().map(shown).collect();
        let counts = counts.into_iter().map(|(result, n)| {
            format!("baoming_refresh_tokens{{result=\"{result}\",schedule=\"active\"}} {n}\n")
        });
        let expected = METRICS.replace("COUNTS", &counts.collect::<String>()).replace("SUCCESS", success);
        assert_text(&told, &expected.replace("CODE", &code.to_string()));
        if let Ok(old) = old {
            assert_text(&std::io::read_to_string(old).expect("old metrics"), &aged);
            assert_ne!(text, aged);
        }
        // A success of long ago.
        let lines = text.lines().map(|line| match line.split_once("} ") {
            Some((name, _)) if name.contains("last_success") => format!("{name}}} {AGED}\n"),
            _ => line.to_owned() + "\n",
        });
        aged = lines.collect();
        fs::write(&path, &aged).expect("metrics");
    }
    assert_eq!(fs::read_dir(&folder).expect("folder").count(), 1, "a temporary file is left");
}

#[test]
fn metrics_that_cannot_be_written_are_told_after_the_run_is_done() {
    let (db, _) = valid_tokens(1);
    let folder = scratch_dir();
    let doomed = folder.clone();
    // The folder vanishes while the run goes on.
    let api = Stub::start(move |_| {
        fs::remove_dir_all(&doomed).expect("removed");
        Reply::valid()
    });
    count(Total::FAULTS, 1);
    // With -q the statistics are due all the same, since the exit code is not 0.
    let run = Run::new(&db, &api).args(["-q", "--metrics-file"]).arg(folder.join("active.prom"));
    let outcome = run.limit(PROMPT).go().expect(1);
    assert_eq!(outcome.stat("成功"), 1);
    let said = outcome.stderr;
    assert!(said.contains("--metrics-file") && said.contains("os error 2"), "{said}");
}
