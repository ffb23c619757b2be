//! What stays up, and what checks the installation: the scheduler, its pauses and its secret, and
//! the self-test.

use crate::prelude::*;

#[test]
fn the_scheduler_says_what_it_will_do_and_ends_its_pause_at_a_signal() {
    let (db, api) = valid_tokens(2);
    // Flags, what it says of them, the line after which it does nothing but wait, requests by then.
    let table = [
        ("", "每 6 小时", "否", "✅ 定时任务已启动", 0),
        ("--interval 2", "每 2 小时", "否", "✅ 定时任务已启动", 0),
        ("--interval-minutes=10", "每 10 分钟", "否", "✅ 定时任务已启动", 0),
        ("--interval-minutes=90 --interval=3 --run-immediately", "每 90 分钟", "是", "🎉", 2),
    ];
    for (flags, every, immediately, line, requests) in table {
        for signal in [Signal::TERM, Signal::INT] {
            let before = api.requests();
            let live = Run::new(&db, &api).arg("--scheduler").args(flags.split_whitespace()).start();
            live.await_line(line);
            let dumped = fs::read_to_string(format!("/proc/{}/coredump_filter", live.pid().as_raw_nonzero()));
            assert_eq!(dumped.expect("what a core dump would hold"), "00000000\n");
            let start = Instant::now();
            live.signal(signal);
            let outcome = live.wait().expect(0);
            assert!(start.elapsed() < Duration::from_secs(1), "{flags}: {:?}", start.elapsed());
            assert_eq!(api.requests() - before, requests, "{flags}");
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
}

#[test]
fn the_scheduler_reads_its_secret_anew_and_outlives_a_bad_one() {
    let old = Mongod::start_with_auth();
    let moved = old.fresh_db();
    moved.add_token("valid");
    let api = Stub::always(Reply::valid());
    let metrics = scratch_dir().join("active.prom");
    // A pipe: each reading of the secret waits for what the test writes into it.
    let secret = fifo();
    let run = Run::new(&moved, &api).env_remove("MONGODB_URI").env("MONGODB_URI_FILE", &secret);
    let run = run.args(["--scheduler", "--interval-minutes=1", "--run-immediately", "--metrics-file"]);
    let live = run.arg(&metrics).limit(Duration::from_secs(150)).start();
    fs::write(&secret, format!("mongodb://{}/", dead())).expect("the secret at the start");
    live.await_line("✅ 定时任务已启动");
    fs::write(&secret, "\n").expect("a secret gone bad");
    let error = live.await_line("[ERROR]");
    assert!(error.contains("MONGODB_URI_FILE"), "{error}");
    let failed = Instant::now();
    let ended_with = |code| {
        let sample = format!("baoming_refresh_exit_code{{schedule=\"active\"}} {code}\n");
        fs::read_to_string(&metrics).is_ok_and(|text| text.contains(&sample))
    };
    await_true("the metrics of the first job", || ended_with(1));
    fs::write(&secret, &moved.uri).expect("the secret of the new server");
    live.await_line("🔧 正在连接数据库");
    let pause = failed.elapsed();
    assert!((59..75).contains(&pause.as_secs()), "{pause:?}");
    await_true("the end of the second job", || ended_with(0));
    live.signal(Signal::TERM);
    let outcome = live.wait().expect(0);
    let errors = outcome.log().lines().filter(|line| line.contains("[ERROR]")).count();
    assert_eq!((errors, outcome.stat("成功"), api.requests()), (1, 1, 1));
}

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
    let (db, api) = world();
    let seed = |n, used: &str, updated: &str| {
        let seed = Seed::new(&unique_token("valid")).set("_id", id(100 + n)).card(id(n));
        let [used, updated] = [used, updated].map(|day| date(&format!("2026-01-{day} 12:00:00")));
        seed.set("last_used", used).set("updated_at", updated)
    };
    for (n, name) in [(1, "1111"), (2, "2222"), (3, "3333")] {
        db.add_card_as(id(n), name);
    }
    db.add(seed(1, "05", "05"));
    db.add(seed(2, "04", "04"));
    db.add(seed(3, "02", "07").without("uname"));
    db.add(seed(4, "03", "06").without("last_used"));
    db.add(seed(5, "01", "01").without("updated_at"));
    let before = db.snapshot();
    let outcome = Run::new(&db, &api).arg("--self-test").go().expect(0);
    let after = db.snapshot();
    let log = timeless(&outcome.log());
    assert_text(log.split_once("✅ 数据库连接成功\n").map_or(&*log, |(_, rest)| rest), SELF_TEST);
    assert_refreshed(&before.tokens[2], &after.tokens[2]);
    for untouched in [0, 1, 3, 4] {
        assert_eq!(after.tokens[untouched], before.tokens[untouched]);
    }
    assert_eq!((api.requests(), after.bin.len()), (1, 0));
}

#[test]
fn self_test_reports_each_failure_and_deletes_nothing() {
    const FOUR: [&str; 4] = ["数据库连接", "Token 存在性", "单个 Token 刷新", "清理功能"];
    // The token's label, flags, which checks pass, another line.
    let table = [
        ("invalid", "", [true, true, false, true], "'invalid' Token 已失效: invalid access_token"),
        ("busy", "--retries=0", [true, true, false, true], "'busy' 刷新失败: 系统繁忙"),
        ("down", "--retries=0", [true, true, false, true], "'down' 刷新失败: "),
        ("valid", "--dry-run", [true; 4], "试运行"),
        ("invalid", "--cleanup-days=39", [true, true, false, true], "📊 发现 1 个 39 天未使用的 Token"),
        ("", "", [true, false, false, true], "📊 数据库中有 0 个 Token"),
        ("no database", "", [false; 4], "[ERROR] ❌ "),
    ];
    for (label, flags, passes, line) in table {
        let (db, api) = world();
        if !label.is_empty() {
            db.add_used(label, 40.0);
        }
        let before = db.snapshot();
        let gone = (label == "no database").then(|| ("MONGODB_URI", format!("mongodb://{}/", dead())));
        let run = Run::new(&db, &api).arg("--self-test").args(flags.split_whitespace()).envs(gone);
        let log = run.go().expect(i32::from(passes != [true; 4])).log();
        assert!(log.contains(line), "{label} {flags:?}: {log}");
        for (name, passes) in FOUR.iter().zip(passes) {
            let result = if passes { "[INFO] ✅ 通过" } else { "[ERROR] ❌ 失败" };
            assert!(log.contains(&format!("{result} - {name}\n")), "{label} {flags:?}: {log}");
        }
        let passed = passes.iter().filter(|&&passes| passes).count();
        assert!(log.ends_with(&format!("总计: {passed}/4 个测试通过\n")), "{log}");
        assert_eq!(db.snapshot(), before, "{label} {flags:?}");
    }
}
