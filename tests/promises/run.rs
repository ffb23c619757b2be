//! One run on a real database: what it prints and what it does to the documents.

use crate::support::compare::{assert_refreshed, assert_text, date, id, timeless};
use crate::support::{
    Mongod, Outcome, Reply, Run, Seed, Stub, TestDb, scratch_dir, unique_token, wall_clock,
};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// The log as the operator knows it: times shown as `NOW`, default database and API.
fn shown(outcome: &Outcome, db: &TestDb, api: &Stub) -> String {
    let log = outcome.log().replace(&format!("数据库: {}\n", db.name), "数据库: auto-form-db\n");
    timeless(&log.replace(&api.base(), "https://api-xcx-qunsou.weiyoubot.cn/xcx"))
}

fn add_card(db: &TestDb, id: ObjectId, name: &str) {
    db.cards().insert_one(doc! { "_id": id, "name": name }).run().expect("card");
}

const ONE_VALID: &str = "\
NOW [INFO] 🔧 正在连接数据库...
NOW [INFO] ✅ MongoDB 连接成功！数据库: auto-form-db
NOW [INFO] ✅ 数据库连接成功
NOW [INFO] ⏰ 运行时间: NOW
NOW [INFO] ============================================================
NOW [INFO] 🚀 开始刷新报名工具 Token
NOW [INFO] ============================================================
NOW [INFO] 📊 找到 1 个 Token 需要刷新
NOW [INFO] ------------------------------------------------------------
NOW [INFO] [1/1] 名片: 1111
NOW [INFO]   用户: 。
NOW [INFO]   最后使用: 2026-02-12 18:50:05
NOW [INFO] 🔄 刷新 Token: 名片 '1111' (ID: 698dae7058e10bc3f764fdbf)
NOW [DEBUG]   📡 [API] GET https://api-xcx-qunsou.weiyoubot.cn/xcx/enroll/v3/detail
NOW [DEBUG]   📡 [API] 响应状态码: 200
NOW [DEBUG]   📡 [API] 获取报名详情成功, info_id=698add7c7068f814935d6804
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] ------------------------------------------------------------
NOW [INFO] 📊 刷新统计:
NOW [INFO]   📝 总计: 1 个
NOW [INFO]   ✅ 成功: 1 个
NOW [INFO]   ❌ 失败: 0 个
NOW [INFO]   🗑️ 删除: 0 个
NOW [INFO] ============================================================
NOW [INFO] 🎉 刷新完成
NOW [INFO] ============================================================
";

#[test]
fn golden_run_of_one_token_and_a_run_of_none() {
    let db = Mongod::shared().fresh_db();
    let api = Stub::always(Reply::valid());
    let none = Run::new(&db, &api).go().expect(0);
    for line in ["[INFO] ✅ 没有需要刷新的 Token\n", "[INFO]   📝 总计: 0 个\n", "[INFO] 🎉 刷新完成\n"]
    {
        assert!(none.stdout.contains(line), "{}", none.stdout);
    }

    let card: ObjectId = "698dae7058e10bc3f764fdbf".parse().expect("an id");
    add_card(&db, card, "1111");
    let used = date("2026-02-12 18:50:05");
    db.add(Seed::new(&unique_token("valid")).card(card).set("uname", "。").set("last_used", used));
    let outcome = Run::new(&db, &api).arg("-v").go().expect(0);
    assert_text(&shown(&outcome, &db, &api), ONE_VALID);
    assert_eq!(outcome.stderr, "");
}

/// What a run does to a document.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Refreshed,
    Untouched,
    Deleted,
    /// The desktop application changes it while it is checked: it stays as that left it.
    Renewed,
}
use Fate::{Deleted, Refreshed, Renewed, Untouched};

/// Label for the stub, name of the card if there is one, what is special about the document (a
/// field that is undefined is left out), its fate. In the order of the run: those that have no
/// usable `last_used` come first.
fn kinds() -> Vec<(&'static str, Option<&'static str>, Document, Fate)> {
    let absent = Bson::Undefined;
    vec![
        ("valid", Some("从未使用"), doc! { "last_used": &absent }, Refreshed),
        ("valid", Some("空值"), doc! { "last_used": null, "uname": null, "pic": null }, Refreshed),
        ("valid", Some("别的类型"), doc! { "last_used": "2026-02-12", "uname": 7 }, Refreshed),
        (
            "valid",
            Some("缺字段"),
            doc! { "last_used": &absent, "updated_at": &absent, "uname": &absent },
            Refreshed,
        ),
        ("valid", Some("有效"), doc! {}, Refreshed),
        ("never_enrolled", Some("从未报名"), doc! {}, Refreshed),
        ("invalid", Some("失效"), doc! {}, Deleted),
        ("busy", Some("繁忙"), doc! {}, Untouched),
        ("valid", None, doc! {}, Refreshed),
        ("valid", Some("旧文档"), doc! { "card": { "$ref": "cards", "$id": id(10) } }, Refreshed),
        ("valid", None, doc! { "card": { "$ref": "cards", "$id": ["no", "id"] } }, Refreshed),
        ("valid", None, doc! { "card": &absent }, Refreshed),
        ("valid", None, doc! { "card": null }, Refreshed),
        ("valid", Some("多余字段"), doc! { "extra": { "a": [{ "b": 1 }] }, "uname": ["列表"] }, Refreshed),
        ("", Some("没有 token"), doc! { "access_token": &absent }, Untouched),
        ("", Some("空 token"), doc! { "access_token": null }, Untouched),
        ("", Some("数字 token"), doc! { "access_token": 12_345 }, Untouched),
        ("", Some("空白 token"), doc! { "access_token": " \t" }, Untouched),
        ("valid-renewed", Some("有效，重新登录"), doc! {}, Renewed),
        ("invalid-renewed", Some("失效，重新登录"), doc! {}, Renewed),
    ]
}

const EVERY_KIND: &str = "\
NOW [INFO] 🔧 正在连接数据库...
NOW [INFO] ✅ MongoDB 连接成功！数据库: auto-form-db
NOW [INFO] ✅ 数据库连接成功
NOW [INFO] ⏰ 运行时间: NOW
NOW [INFO] ============================================================
NOW [INFO] 🚀 开始刷新报名工具 Token
NOW [INFO] ============================================================
NOW [INFO] 📊 找到 23 个 Token 需要刷新
NOW [INFO] ------------------------------------------------------------
NOW [WARNING]   ⚠️ 刷新失败: 3 个文档的 _id 不是 ObjectId
NOW [INFO] [1/23] 名片: 从未使用
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 从未
NOW [INFO] 🔄 刷新 Token: 名片 '从未使用' (ID: 000000000000000000000001)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [2/23] 名片: 空值
NOW [INFO]   用户: 未知
NOW [INFO]   最后使用: 从未
NOW [INFO] 🔄 刷新 Token: 名片 '空值' (ID: 000000000000000000000002)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [3/23] 名片: 别的类型
NOW [INFO]   用户: 未知
NOW [INFO]   最后使用: 从未
NOW [INFO] 🔄 刷新 Token: 名片 '别的类型' (ID: 000000000000000000000003)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [4/23] 名片: 缺字段
NOW [INFO]   用户: 未知
NOW [INFO]   最后使用: 从未
NOW [INFO] 🔄 刷新 Token: 名片 '缺字段' (ID: 000000000000000000000004)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [5/23] 名片: 有效
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-05 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '有效' (ID: 000000000000000000000005)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [6/23] 名片: 从未报名
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-06 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '从未报名' (ID: 000000000000000000000006)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [7/23] 名片: 失效
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-07 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '失效' (ID: 000000000000000000000007)
NOW [WARNING]   ⚠️ Token 已失效: invalid access_token
NOW [INFO] [8/23] 名片: 繁忙
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-08 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '繁忙' (ID: 000000000000000000000008)
NOW [WARNING]   ⚠️ 刷新失败: 系统繁忙，请稍后再试
NOW [INFO] [9/23] 名片: 已删除的名片
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-09 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '已删除的名片' (ID: 000000000000000000000009)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [10/23] 名片: 旧文档
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-10 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '旧文档' (ID: 000000000000000000000010)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [11/23] 名片: 已删除的名片
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-11 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '已删除的名片' (ID: -)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [12/23] 名片: 已删除的名片
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-12 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '已删除的名片' (ID: -)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [13/23] 名片: 已删除的名片
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-13 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '已删除的名片' (ID: -)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [14/23] 名片: 多余字段
NOW [INFO]   用户: 未知
NOW [INFO]   最后使用: 2026-01-14 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '多余字段' (ID: 000000000000000000000014)
NOW [INFO]   ✅ Token 有效，已更新使用时间
NOW [INFO] [15/23] 名片: 没有 token
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-15 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '没有 token' (ID: 000000000000000000000015)
NOW [WARNING]   ⚠️ 刷新失败: 没有可用的 access_token
NOW [INFO] [16/23] 名片: 空 token
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-16 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '空 token' (ID: 000000000000000000000016)
NOW [WARNING]   ⚠️ 刷新失败: 没有可用的 access_token
NOW [INFO] [17/23] 名片: 数字 token
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-17 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '数字 token' (ID: 000000000000000000000017)
NOW [WARNING]   ⚠️ 刷新失败: 没有可用的 access_token
NOW [INFO] [18/23] 名片: 空白 token
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-18 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '空白 token' (ID: 000000000000000000000018)
NOW [WARNING]   ⚠️ 刷新失败: 没有可用的 access_token
NOW [INFO] [19/23] 名片: 有效，重新登录
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-19 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '有效，重新登录' (ID: 000000000000000000000019)
NOW [INFO]   ⏭️ 跳过: Token 已被其他程序更改
NOW [INFO] [20/23] 名片: 失效，重新登录
NOW [INFO]   用户: 张三
NOW [INFO]   最后使用: 2026-01-20 12:00:00
NOW [INFO] 🔄 刷新 Token: 名片 '失效，重新登录' (ID: 000000000000000000000020)
NOW [WARNING]   ⚠️ Token 已失效: invalid access_token
NOW [INFO]   🗑️ 已删除失效 Token: 名片 '失效'
NOW [INFO]   ⏭️ 跳过: 名片 '失效，重新登录' 的 Token 已被其他程序更改
NOW [INFO] ------------------------------------------------------------
NOW [INFO] 📊 刷新统计:
NOW [INFO]   📝 总计: 23 个
NOW [INFO]   ✅ 成功: 12 个
NOW [INFO]   ❌ 失败: 8 个
NOW [INFO]   🗑️ 删除: 1 个
NOW [INFO]   ⏭️ 跳过: 2 个
NOW [INFO] ============================================================
NOW [INFO] 🎉 刷新完成
NOW [INFO] ============================================================
";

#[test]
fn golden_run_of_every_kind() {
    let db = Mongod::shared().fresh_db();
    for (n, (label, card, special, _)) in (1..).zip(kinds()) {
        if let Some(name) = card {
            add_card(&db, id(n), name);
        }
        let used = date(&format!("2026-01-{n:02} 12:00:00"));
        let seed = Seed::new(&unique_token(label)).set("_id", id(100 + n)).card(id(n)).set("last_used", used);
        db.add(special.into_iter().fold(seed, |seed, (field, value)| match value {
            Bson::Undefined => seed.without(&field),
            value => seed.set(&field, value),
        }));
    }
    // No `_id` that the application makes; they sort before the ObjectIds.
    let odd = [Bson::from(7), "text".into(), doc! { "a": 1 }.into()];
    for odd in &odd {
        let access_token = unique_token("valid");
        db.add_secret(&access_token[..5]);
        db.tokens().insert_one(doc! { "_id": odd, "access_token": access_token }).run().expect("odd one");
    }
    let renewal = doc! { "access_token": "renewed", "unionid": "renewed" };
    let (tokens, change) = (db.tokens(), doc! { "$set": &renewal });
    let api = Stub::start(move |request| {
        if request.token().contains("-renewed-") {
            tokens
                .update_one(doc! { "access_token": request.token() }, change.clone())
                .run()
                .expect("update");
        }
        Reply::by_label(request.token())
    });

    let (before, start) = (db.snapshot(), wall_clock());
    let outcome = Run::new(&db, &api).go().expect(3);
    let (after, end) = (db.snapshot(), wall_clock());
    assert_text(&shown(&outcome, &db, &api), EVERY_KIND);

    assert_eq!(after.cards, before.cards);
    assert_eq!(after.tokens[..odd.len()], before.tokens[..odd.len()]);
    let mut left = after.tokens[odd.len()..].iter();
    for (document, (label, card, _, fate)) in before.tokens[odd.len()..].iter().zip(kinds()) {
        let what = format!("{label} {card:?}");
        match fate {
            Refreshed => {
                let used = assert_refreshed(document, left.next().expect(&what));
                assert!((start..=end).contains(&used), "{what}: {used}");
            }
            Untouched => assert_eq!(left.next(), Some(document), "{what}"),
            Renewed => {
                let mut renewed = Document::try_from(document.clone()).expect("a document");
                renewed.extend(renewal.clone());
                assert_eq!(left.next(), Some(&RawDocumentBuf::try_from(&renewed).expect("BSON")), "{what}");
            }
            Deleted => {
                let [entry] = &after.bin[..] else { panic!("{} entries in the bin", after.bin.len()) };
                assert_bin_entry(entry, document, "invalid access_token");
            }
        }
    }
    assert_eq!(left.next(), None);
}

/// Holds the document as it was, byte for byte, and nothing but what a restore needs.
fn assert_bin_entry(entry: &RawDocumentBuf, document: &RawDocumentBuf, reason: &str) {
    let names: Vec<&str> = entry.iter().map(|field| field.expect("a field").0.as_str()).collect();
    assert_eq!(names, ["_id", "token", "reason", "deleted_at"]);
    entry.get_object_id("_id").expect("an ObjectId");
    assert_eq!(entry.get_document("token").expect("a document").as_bytes(), document.as_bytes());
    assert_eq!(entry.get_str("reason").expect("a text"), reason);
    let age =
        SystemTime::now().duration_since(entry.get_datetime("deleted_at").expect("a date").to_system_time());
    assert!(age.expect("the past, in UTC") < Duration::from_secs(60));
}

/// The wall clock by the system's own `date`, to the second. It is given the rule rather than a
/// name: that works without zone files, too.
fn clock_by_date(posix_rule: &str) -> DateTime {
    let output = Command::new("date").env("TZ", posix_rule).arg("+%Y-%m-%d %H:%M:%S").output().expect("date");
    date(String::from_utf8(output.stdout).expect("a date").trim_end())
}

#[test]
fn the_wall_clock_of_tz_is_shown_and_stored() {
    let db = Mongod::shared().fresh_db();
    let id = db.add_token("valid");
    let api = Stub::always(Reply::valid());
    for (zone, rule) in [
        ("Asia/Shanghai", "CST-8"),
        ("UTC", "UTC0"),
        ("America/New_York", "EST5EDT,M3.2.0,M11.1.0"),
        ("<+0545>-5:45", "XXX-5:45"),
    ] {
        let start = clock_by_date(rule);
        let outcome = Run::new(&db, &api).env("TZ", zone).go().expect(0);
        let end = clock_by_date(rule);
        let is_now = |at| (start..=end).contains(&at);
        let token = db.token(id).expect("token");
        let used = token.get_datetime("last_used").expect("a date");
        assert_eq!(token.get_datetime("updated_at").expect("a date"), used, "{zone}");
        let to_the_second = DateTime::from_millis(used.timestamp_millis() / 1000 * 1000);
        assert!(is_now(to_the_second), "{zone}: {used} stored, not {start} to {end}");
        for line in outcome.stdout.lines() {
            assert!(is_now(date(&line[..19])), "{zone}: {line}");
        }
        let shown = outcome.stdout.split_once("⏰ 运行时间: ").expect("the line").1;
        assert!(is_now(date(&shown[..19])), "{zone}: {shown}");
    }
}

/// The numbers of the commands that a server has had.
fn commands(server: &Mongod) -> impl Fn(&str) -> i64 {
    let status = server.admin(doc! { "serverStatus": 1 });
    let metrics = status.get_document("metrics").and_then(|metrics| metrics.get_document("commands"));
    let commands = metrics.expect("counters").clone();
    move |name| commands.get_document(name).map_or(0, |command| command.get_i64("total").expect("a number"))
}

#[test]
fn least_recently_used_first_on_one_connection_with_one_write_each() {
    const N: u32 = 450;
    let server = Mongod::start();
    let db = server.fresh_db();
    let minutes_ago = |n: u32| Seed::new(&unique_token("valid")).last_used_days_ago(f64::from(n) / 1440.0);
    let seeds: Vec<Seed> = (1..=N).map(minutes_ago).collect();
    let mut expected: Vec<String> =
        seeds.iter().rev().map(|seed| seed.0.get_str("access_token").expect("token").to_owned()).collect();
    db.add_all(seeds);
    // Its user logs in anew while the first tokens are checked: the run must ask with the new token.
    let (renewed, last) = (unique_token("valid"), expected[N as usize - 1].clone());
    db.add_secret(&renewed[..5]);
    expected[N as usize - 1].clone_from(&renewed);
    let tokens = db.tokens();
    let api = Stub::start(move |request| {
        if request.number == 1 {
            let change = doc! { "$set": { "access_token": &renewed } };
            tokens.update_one(doc! { "access_token": &last }, change).run().expect("new login");
        }
        Reply::valid()
    });

    let before = commands(&server);
    let outcome = Run::new(&db, &api).go().expect(0);
    let after = commands(&server);
    let sent = |names: &[&str]| names.iter().map(|name| after(name) - before(name)).sum::<i64>();
    assert_eq!(outcome.stat("成功"), u64::from(N));
    let asked: Vec<String> = api.recorded().iter().map(|request| request.token().to_owned()).collect();
    assert_eq!(asked, expected);
    assert_eq!(api.connections(), 1);
    // One of them is the new login.
    assert_eq!(sent(&["update", "findAndModify", "insert"]), i64::from(N) + 1);
    let reads = sent(&["find", "getMore", "aggregate", "count", "distinct"]);
    assert!(reads <= i64::from(N) / 100 + 20, "{reads} reads");
}

/// Adds tokens that were last used so many days ago; gives their `_id`s.
fn add_used(db: &TestDb, label: &str, n: usize, days: f64) -> Vec<ObjectId> {
    let card = db.add_card(label);
    (0..n).map(|_| db.add(Seed::new(&unique_token(label)).card(card).last_used_days_ago(days))).collect()
}

#[test]
fn max_age_days_selects_by_the_wall_clock() {
    const HOUR: f64 = 1.0 / 24.0;
    let db = Mongod::shared().fresh_db();
    // Between UTC and Shanghai lie eight hours: an hour this or that side tells them apart.
    for (label, days) in [("inside", 7.0 - HOUR), ("outside", 7.0 + HOUR), ("recent", 0.0)] {
        add_used(&db, label, 1, days);
    }
    db.add(Seed::new(&unique_token("never")).without("last_used"));
    db.add(Seed::new(&unique_token("odd")).set("last_used", "yesterday"));
    let api = Stub::always(Reply::valid());
    let outcome = Run::new(&db, &api).arg("--max-age-days=7").go().expect(0);
    let head = "[INFO] 📊 只刷新 7 天内使用过的 Token\n";
    assert!(outcome.stdout.contains(head), "{}", outcome.stdout);
    let asked = api.recorded();
    let asked: Vec<&str> = asked.iter().filter_map(|request| request.token().split('-').nth(1)).collect();
    assert_eq!((asked, outcome.stat("总计")), (vec!["inside", "recent"], 2));
    let all = Run::new(&db, &api).go().expect(0);
    assert_eq!(all.stat("总计"), 5);
    assert!(!all.stdout.contains("只刷新"), "{}", all.stdout);
}

#[test]
fn max_delete_lets_a_step_delete_all_it_would_or_none() {
    // Limit, tokens to delete, other tokens, whether the first are deleted.
    let table = [
        (None, 10, 0, true),
        (None, 11, 0, false),
        (None, 11, 44, true),
        (None, 11, 43, false),
        (Some("0"), 1, 1, false),
        (Some("10"), 11, 0, false),
        (Some("11"), 11, 0, true),
        (Some("49%"), 11, 11, false),
        (Some("50%"), 11, 11, true),
        (Some("100%"), 11, 0, true),
    ];
    // Label and age of the tokens to delete. The cleanup's are not in the run, nor are the others:
    // its limit counts the collection.
    let steps = [("invalid", 1.0, ""), ("expired", 31.0, "--cleanup-days=30 --max-age-days=1")];
    let api = Stub::start(|request| Reply::by_label(request.token()));
    for ((limit, doomed, others, deleted), (label, days, flags)) in
        table.iter().flat_map(|row| steps.iter().map(move |step| (*row, *step)))
    {
        let row = format!("{limit:?}, {doomed} {label} of {}", doomed + others);
        let db = Mongod::shared().fresh_db();
        add_used(&db, label, doomed, days);
        add_used(&db, "valid", others, 2.0);
        let limit = limit.map(|limit| format!("--max-delete={limit}"));
        let run = Run::new(&db, &api).arg("--json").args(flags.split_whitespace()).args(limit);
        let outcome = run.go().expect(if deleted { 0 } else { 25 });
        let [all, others] = [doomed, others].map(|n| n as u64);
        let (gone, kept) = if deleted { (all, 0) } else { (0, all) };
        let json = outcome.json();
        let counts = ["deleted", "withheld", "cleaned"].map(|name| json[name].as_u64().expect("a number"));
        assert_eq!(counts, if label == "invalid" { [gone, kept, 0] } else { [0, 0, gone] }, "{row}");
        let there = [db.bin(), db.tokens()].map(|there| there.count_documents(doc! {}).run().expect("count"));
        assert_eq!(there, [gone, kept + others], "{row}");
        let warning = format!("[WARNING]   🛑 {all} 个 Token");
        assert_eq!(outcome.stderr.contains(&warning), !deleted, "{row}\n{}", outcome.stderr);
        db.assert_none_lost();
    }
}

const CLEANUP: &str = "\
NOW [INFO] 🎉 刷新完成
NOW [INFO] ============================================================
NOW [INFO] 🧹 清理 30 天未使用的 Token...
NOW [INFO]   发现 3 个过期 Token:
NOW [INFO]     - 已删除的名片: 最后使用 50 天前
NOW [INFO]     - 1111: 最后使用 41 天前
NOW [INFO]     - 2222: 最后使用 30 天前
NOW [INFO]   ✅ 已清理 3 个过期 Token
";

const NO_CLEANUP: &str = "\
NOW [INFO] 🎉 刷新完成
NOW [INFO] ============================================================
NOW [INFO] 🧹 清理 30 天未使用的 Token...
NOW [INFO]   ✅ 没有需要清理的 Token
";

fn from_the_end_of_the_run(outcome: &Outcome) -> String {
    let log = timeless(&outcome.stdout);
    log[log.find("NOW [INFO] 🎉").expect("the end of the run")..].to_owned()
}

#[test]
fn cleanup_moves_what_was_not_used_for_days_to_the_bin() {
    let db = Mongod::shared().fresh_db();
    // None of these goes: a refresh keeps what was long unused, an age that is not known is none.
    add_used(&db, "valid", 1, 60.0);
    add_used(&db, "29 days and 23 hours", 1, 29.96);
    db.add(Seed::new(&unique_token("busy")).without("last_used"));
    db.add(Seed::new(&unique_token("busy")).set("last_used", 0_i64));
    let api = Stub::start(
        |request| {
            if request.token().contains("-valid-") { Reply::valid() } else { Reply::busy() }
        },
    );
    let outcome = Run::new(&db, &api).arg("--cleanup-days=30").go().expect(3);
    assert_text(&from_the_end_of_the_run(&outcome), NO_CLEANUP);

    let ids = [("1111", 41.1), ("2222", 30.04)].map(|(name, days)| add_used(&db, name, 1, days)[0]);
    let orphan = db.add(Seed::new(&unique_token("orphan")).last_used_days_ago(50.0));
    let before = db.snapshot();
    let outcome = Run::new(&db, &api).args(["--cleanup-days", "30"]).go().expect(3);
    let after = db.snapshot();
    assert_text(&from_the_end_of_the_run(&outcome), CLEANUP);
    for (entry, (id, days)) in after.bin.iter().zip([(orphan, 50), (ids[0], 41), (ids[1], 30)]) {
        let document =
            before.tokens.iter().find(|document| document.get_object_id("_id").is_ok_and(|it| it == id));
        assert_bin_entry(entry, document.expect("document"), &format!("unused for {days} days"));
    }
    assert_eq!((after.bin.len(), after.tokens.len()), (3, before.tokens.len() - 3));
    assert_eq!(after.cards, before.cards);
    db.assert_none_lost();
}

#[test]
fn cleanup_spares_what_was_used_or_deleted_since_it_was_listed() {
    let db = Mongod::shared().fresh_db();
    let api = Stub::always(Reply::valid());
    // So long a list that the pipe is full before its end: the program stands still there, with
    // everything decided and nothing deleted.
    let card = db.add_card(&"名".repeat(1000));
    let seed = |_| Seed::new(&unique_token("unused")).card(card).last_used_days_ago(40.0);
    let ids = db.add_all((0..500).map(seed));
    let run = Run::new(&db, &api).args(["--max-age-days=1", "--cleanup-days=30", "--max-delete=100%"]);
    let mut child = run.command().stdout(Stdio::piped()).spawn().expect("the program");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    lines.find(|line| line.contains("    - 名")).expect("the list");
    let used = doc! { "$set": { "last_used": wall_clock() } };
    db.tokens().update_one(doc! { "_id": ids[0] }, used).run().expect("used");
    db.tokens().delete_one(doc! { "_id": ids[1] }).run().expect("deleted");
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().expect("end").success());
    let tail = rest[rest.len() - 3..].join("\n");
    assert!(tail.ends_with("  ✅ 已清理 498 个过期 Token"), "{tail}");
    assert_eq!(rest.iter().filter(|line| line.contains("⏭️ 跳过")).count(), 2, "{tail}");
    assert!(db.token(ids[0]).is_some());
    let bin = db.bin().distinct("token._id", doc! {}).run().expect("bin");
    let cleaned: HashSet<ObjectId> = bin.iter().filter_map(Bson::as_object_id).collect();
    assert_eq!(cleaned, ids[2..].iter().copied().collect());
}

#[test]
fn a_dry_run_tells_what_the_run_then_does_and_writes_nothing() {
    let api = Stub::start(|request| Reply::by_label(request.token()));
    // Flags, exit code; counts: success, failed, deleted, withheld, cleaned.
    let table = [
        ("", 3, [2, 3, 2, 0, 0]),
        ("--cleanup-days=30", 3, [2, 3, 2, 0, 2]),
        ("--cleanup-days=30 --max-delete=1", 25, [2, 3, 0, 2, 0]),
        ("--cleanup-days=30 --max-age-days=7", 3, [1, 1, 1, 0, 4]),
    ];
    for (flags, code, counts) in table {
        let db = Mongod::shared().fresh_db();
        // What was long unused is cleaned up only if the run itself neither refreshes nor deletes it.
        for (label, n, days) in [("valid", 1, 2.0), ("invalid", 1, 2.0), ("busy", 1, 2.0)] {
            add_used(&db, label, n, days);
        }
        for (label, n) in [("valid", 1), ("invalid", 1), ("busy", 2)] {
            add_used(&db, label, n, 40.0);
        }
        let entry = doc! { "token": {}, "reason": "too old", "deleted_at": DateTime::from_millis(0) };
        db.bin().insert_one(entry).run().expect("bin entry");
        let before = db.snapshot();
        let metrics = scratch_dir().join("metrics.prom");
        let run = || {
            let run = Run::new(&db, &api).args(flags.split_whitespace()).arg("--json");
            run.arg("--metrics-file").arg(&metrics)
        };
        let dry = run().arg("--dry-run").go().expect(code);
        assert_eq!((db.snapshot(), metrics.exists()), (before, false), "{flags}");
        assert!(dry.stderr.contains("试运行"), "{}", dry.stderr);
        for (outcome, is_dry) in [(dry, true), (run().go().expect(code), false)] {
            let json = outcome.json();
            let told =
                ["success", "failed", "deleted", "withheld", "cleaned"].map(|name| json[name].as_u64());
            assert_eq!(told, counts.map(Some), "{flags}, dry: {is_dry}");
            assert_eq!(json["dry_run"], is_dry);
        }
        assert!(metrics.exists());
    }
}

#[test]
fn a_run_purges_what_lay_in_the_bin_for_30_days() {
    let db = Mongod::shared().fresh_db();
    let add = |name: &str, hours: u64| {
        let age = Duration::from_secs(hours * 60 * 60);
        let deleted_at = DateTime::from_system_time(SystemTime::now() - age);
        let entry = doc! { "token": { "_id": ObjectId::new() }, "reason": name, "deleted_at": deleted_at };
        db.bin().insert_one(entry).run().expect("bin entry");
    };
    add("too old", 30 * 24 + 1);
    add("not yet", 30 * 24 - 1);
    Run::new(&db, &Stub::always(Reply::valid())).go().expect(0);
    let left = db.bin().distinct("reason", doc! {}).run().expect("bin");
    assert_eq!(left, ["not yet".into()]);
}
