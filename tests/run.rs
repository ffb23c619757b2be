//! One run on a real database: what it prints and what it does to the documents.

#[path = "support/compare.rs"]
mod compare;
mod support;

use compare::{assert_refreshed, assert_text, by_label, date, id, timeless};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use std::time::{Duration, SystemTime};
use support::{Mongod, Outcome, Reply, Run, Seed, Stub, TestDb, unique_token, wall_clock};

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
        ("valid_renewed", Some("有效，重新登录"), doc! {}, Renewed),
        ("invalid_renewed", Some("失效，重新登录"), doc! {}, Renewed),
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
NOW [INFO]   ⏭️ 跳过: Token 已被其他程序更改
NOW [INFO]   🗑️ 已删除失效 Token: 名片 '失效'
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
        if request.token().contains("_renewed-") {
            tokens
                .update_one(doc! { "access_token": request.token() }, change.clone())
                .run()
                .expect("update");
        }
        by_label(request)
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
