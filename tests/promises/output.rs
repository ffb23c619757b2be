//! What is printed: the log line by line, the JSON object, what `-q` and `-v` leave of it, and that
//! a line that is read alone says whom it concerns.

use crate::papers;
use crate::prelude::*;

/// The log as the operator knows it: times shown as `NOW`, default database and API.
fn shown(outcome: &Outcome, db: &TestDb, api: &Stub) -> String {
    let log = outcome.log().replace(&format!("数据库: {}\n", db.name), "数据库: auto-form-db\n");
    timeless(&log.replace(&api.base(), "https://api-xcx-qunsou.weiyoubot.cn/xcx"))
}

const ONE_VALID: &str = "\
NOW [INFO] ⚙️ 选项: --delay-ms 0 --verbose
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
    let (db, api) = world();
    let none = |is_missing: bool| {
        let log = Run::new(&db, &api).go().expect(0).stdout;
        for line in ["✅ 没有需要刷新的 Token\n", "  📝 总计: 0 个\n", "🎉 刷新完成\n"] {
            assert!(log.contains(&format!("[INFO] {line}")), "{log}");
        }
        let question = log.lines().find(|line| line.contains("[WARNING]"));
        assert_eq!(question.is_some_and(|line| line.contains("MONGODB_DB_NAME")), is_missing, "{log}");
    };
    none(true);
    let gone = db.add_token("valid");
    db.tokens().delete_one(doc! { "_id": gone }).run().expect("delete");
    none(false);

    let card: ObjectId = "698dae7058e10bc3f764fdbf".parse().expect("an id");
    db.add_card_as(card, "1111");
    let used = date("2026-02-12 18:50:05");
    db.add(Seed::new(&unique_token("valid")).card(card).set("uname", "。").set("last_used", used));
    let outcome = Run::new(&db, &api).arg("-v").go().expect(0);
    let log = shown(&outcome, &db, &api);
    // What else DEBUG lines tell is nobody's habit.
    let known = |line: &&str| !line.contains("[DEBUG]") || line.contains("📡");
    let log: String = log.split_inclusive('\n').filter(known).collect();
    assert_text(&log, ONE_VALID);
    assert_eq!(outcome.stderr, "");
}

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
        ("valid", Some("缺字段"), doc! { "last_used": &absent, "uname": &absent }, Refreshed),
        ("valid", Some("没有更新时间"), doc! { "updated_at": &absent }, Refreshed),
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

/// The lines of the n-th token of [`kinds`], of 23 in the run.
fn lines_of(n: u32, label: &str, card: Option<&str>, special: &Document, fate: Fate) -> String {
    let name = card.unwrap_or("已删除的名片");
    let has = |field: &str| !special.contains_key(field);
    let user = if has("uname") { "张三" } else { "未知" };
    let last = if has("last_used") { format!("2026-01-{n:02} 12:00:00") } else { "从未".to_owned() };
    let is_id = |card: &Bson| card.as_document().is_some_and(|dbref| dbref.get_object_id("$id").is_ok());
    let card_id = if special.get("card").is_none_or(is_id) { id(n).to_hex() } else { "-".to_owned() };
    let warning = |fault: &str| format!("WARNING]   ⚠️ [{n}/23] 名片 '{name}' {fault}");
    let outcome = match (fate, label) {
        (Refreshed, _) => "INFO]   ✅ Token 有效，已更新使用时间".to_owned(),
        (Renewed, "valid-renewed") => "INFO]   ⏭️ 跳过: Token 已被其他程序更改".to_owned(),
        (Renewed | Deleted, _) => warning("Token 已失效: invalid access_token"),
        (Untouched, "busy") => warning("刷新失败: 系统繁忙，请稍后再试"),
        (Untouched, _) => warning("刷新失败: 没有可用的 access_token"),
    };
    format!(
        "NOW [INFO] [{n}/23] 名片: {name}\nNOW [INFO]   用户: {user}\nNOW [INFO]   最后使用: {last}\n\
         NOW [INFO] 🔄 刷新 Token: 名片 '{name}' (ID: {card_id})\nNOW [{outcome}\n"
    )
}

const END_OF_EVERY_KIND: &str = "\
NOW [INFO]   🗑️ 已删除失效 Token: [7/23] 名片 '失效'
NOW [INFO]   ⏭️ [20/23] 名片 '失效，重新登录' 跳过: Token 已被其他程序更改
NOW [INFO] ------------------------------------------------------------
NOW [INFO] 📊 刷新统计:
NOW [INFO]   📝 总计: 23 个
NOW [INFO]   ✅ 成功: 12 个
NOW [INFO]   ❌ 失败: 8 个
NOW [INFO]   🗑️ 删除: 1 个
NOW [INFO]   ⏭️ 跳过: 2 个
NOW [INFO]   ❗ 原因: 没有可用的 access_token × 4
NOW [INFO]   ❗ 原因: _id 不是 ObjectId × 3
NOW [INFO]   ❗ 原因: 系统繁忙，请稍后再试 × 1
NOW [INFO] ============================================================
NOW [INFO] 🎉 刷新完成
NOW [INFO] ============================================================
";

#[test]
fn golden_run_of_every_kind() {
    let db = Mongod::shared().fresh_db();
    let head = ONE_VALID.split_inclusive('\n').take(10).collect::<String>();
    let mut expected = head.replace("--verbose", "--retries 0").replace("找到 1 个", "找到 23 个");
    let odd_one = "NOW [WARNING]   ⚠️ baoming_tokens 中的一个文档 刷新失败: _id 不是 ObjectId\n";
    expected += &odd_one.repeat(3);
    for (n, (label, card, special, fate)) in (1..).zip(kinds()) {
        if let Some(name) = card {
            db.add_card_as(id(n), name);
        }
        expected += &lines_of(n, label, card, &special, fate);
        let used = date(&format!("2026-01-{n:02} 12:00:00"));
        let seed = Seed::new(&unique_token(label)).set("_id", id(100 + n)).card(id(n)).set("last_used", used);
        db.add(special.into_iter().fold(seed, |seed, (field, value)| match value {
            Bson::Undefined => seed.without(&field),
            value => seed.set(&field, value),
        }));
    }
    expected += END_OF_EVERY_KIND;
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
            let old = doc! { "access_token": request.token() };
            tokens.update_one(old, change.clone()).run().expect("update");
        }
        Reply::by_label(request.token())
    });

    let before = db.snapshot();
    let outcome = Run::new(&db, &api).arg("--retries=0").go().expect(3);
    let after = db.snapshot();
    assert_text(&shown(&outcome, &db, &api), &expected);

    assert_eq!(after.cards, before.cards);
    let (odd_before, documents) = before.tokens.split_at(odd.len());
    let (odd_after, left) = after.tokens.split_at(odd.len());
    assert_eq!(odd_after, odd_before);
    let [entry] = &after.bin[..] else { panic!("{} entries in the bin", after.bin.len()) };
    let mut left = left.iter();
    for (document, (.., fate)) in documents.iter().zip(kinds()) {
        match fate {
            Refreshed => assert_refreshed(document, left.next().expect("a token")),
            Untouched => assert_eq!(left.next(), Some(document)),
            Renewed => {
                let mut renewed = Document::try_from(document.clone()).expect("a document");
                renewed.extend(renewal.clone());
                assert_eq!(left.next(), Some(&RawDocumentBuf::try_from(&renewed).expect("BSON")));
            }
            Deleted => assert_bin_entry(entry, document),
        }
    }
    assert_eq!(entry.get_str("reason").expect("a text"), "invalid access_token");
    assert_eq!(left.next(), None);
}

fn levels(outcome: &Outcome) -> BTreeSet<String> {
    let level = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    outcome.log().lines().filter_map(level).collect()
}

#[test]
fn quiet_says_nothing_of_a_clean_run_and_all_that_matters_of_another() {
    let (db, api) = world();
    db.add_tokens("valid", 9);
    let run = |flags: &[&str]| Run::new(&db, &api).arg("--retries=0").args(flags).go();
    for quiet in ["-q", "--quiet"] {
        assert_eq!(run(&[quiet]).expect(0).log(), "");
    }
    for verbose in ["-v", "--verbose"] {
        assert_eq!(levels(&run(&[verbose]).expect(0)), ["DEBUG", "INFO"].map(String::from).into());
    }
    assert_eq!(levels(&run(&[]).expect(0)), ["INFO".to_owned()].into());
    // What a run that did not end with 0 says, and about which card.
    for (label, flags, code, says) in [
        ("busy", "", 3, "[1/10] 名片 'busy' 刷新失败: 系统繁忙"),
        ("invalid", "--max-delete=0", 25, "[1/10] 名片 'invalid' Token 已失效: invalid access_token"),
    ] {
        let id = db.add_token(label);
        let flags: Vec<&str> = flags.split_whitespace().chain(["-q"]).collect();
        let outcome = run(&flags).expect(code);
        assert_eq!(levels(&outcome), ["WARNING".to_owned()].into());
        let log = outcome.stdout.as_str();
        assert!(log.lines().next().is_some_and(|line| line.contains(says)), "{log}");
        let about = |line: &&str| line.contains("失效") || line.contains("失败: ") && !line.contains("个");
        assert!(log.lines().filter(about).all(|line| line.contains(&format!("名片 '{label}'"))), "{log}");
        assert_eq!((outcome.stat("总计"), outcome.stat("成功")), (10, 9));
        db.tokens().delete_one(doc! { "_id": id }).run().expect("delete");
    }
}

#[test]
fn when_nothing_worked_the_last_line_says_what_to_check() {
    for (reply, code, says, what) in [
        (Reply::refusal("data not found"), 3, "⚠️ 刷新完成，但没有一个 Token 刷新成功", "--eid"),
        (Reply::http(404, &[], "not found"), 5, "⏹️ 刷新提前结束", "BAOMING_API_BASE"),
        (Reply::http(200, &[], "<html>"), 5, "⏹️ 刷新提前结束", "防火墙"),
        (Reply::close(), 5, "⏹️ 刷新提前结束", "DNS"),
    ] {
        let (db, _) = valid_tokens(2);
        let outcome = Run::new(&db, &Stub::always(reply)).arg("--retries=0").go().expect(code);
        let line = outcome.stdout.lines().rev().nth(1).expect("a last line but one");
        assert!(line.contains(says) && line.contains(what), "{line}");
        assert!(["WARNING", "ERROR"].iter().any(|level| line.contains(level)), "{line}");
        assert!(!outcome.stdout.contains("🎉"), "{}", outcome.stdout);
    }
}

#[test]
fn help_and_version_need_nothing_and_the_readme_repeats_the_help() {
    let version = format!("refresh_baoming_tokens {} (", env!("CARGO_PKG_VERSION"));
    for (short, long, says) in [("-h", "--help", "--max-age-days N"), ("-V", "--version", &*version)] {
        let outcome = Run::bare().arg(long).go().expect(0);
        assert!(outcome.stdout.contains(says) && outcome.stdout.ends_with('\n'), "{outcome:?}");
        assert_eq!(Run::bare().arg(short).go().expect(0).log(), outcome.stdout);
    }
    let help = Run::bare().arg("--help").go().expect(0).stdout;
    assert!(papers::read("README.md").contains(&help), "README.md does not hold the text of --help:\n{help}");
}
