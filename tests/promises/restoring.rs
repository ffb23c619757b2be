//! The recycle bin gives back what was taken, and never overwrites.

use crate::prelude::*;

#[test]
fn what_a_run_deleted_is_restored_byte_for_byte() {
    let (db, api) = world();
    let (one, old) = (db.add_card("失效"), db.add_card("旧文档"));
    let invalid = || Seed::new(&unique_token("invalid"));
    db.add(invalid().card(one).set("extra", doc! { "b": [1_i64, 2.5, Bson::Null] }));
    db.add(invalid().card_dbref(old).set("last_used", Bson::Null).without("uname"));
    db.add(invalid().set("card", "no id").set("pic", 7));
    // The server takes no filter with this type, and one odd document never stops the rest.
    db.add(invalid().set("last_used", Bson::Undefined));
    db.add_used("error", 40.0);
    let valid = db.add_token("valid");
    let before = db.snapshot();
    Run::new(&db, &api).args(["--cleanup-days=30", "--retries=0", "--max-delete=4"]).go().expect(3);
    let deleted = db.snapshot();
    assert_eq!((deleted.tokens.len(), deleted.bin.len()), (1, 5));
    let asked = api.requests();

    let restore = |flags: &[&str]| Run::new(&db, &api).arg("--restore-hours=1").args(flags).go().expect(0);
    let outcome = restore(&["--dry-run", "--json"]);
    let json = outcome.json();
    assert_eq!((json["total"].as_u64(), json["success"].as_u64()), (Some(5), Some(5)));
    // Who it would be, why it went and when.
    for says in ["将恢复: 名片 '失效'", "原因: invalid access_token", "原因: 40 天未使用", "删除于 NOW"]
    {
        assert!(timeless(&outcome.stderr).contains(says), "{}", outcome.stderr);
    }
    assert_eq!(db.snapshot(), deleted);
    // One colleague's token, then all others.
    let outcome = restore(&["--card", "失效"]);
    assert!(outcome.stdout.contains("  ✅ 成功: 1 个\n"), "{}", outcome.stdout);
    assert_eq!(db.snapshot().bin.len(), 4);
    let outcome = restore(&["--card", &old.to_hex(), "--dry-run"]);
    assert!(outcome.stdout.contains("  ✅ 将恢复: 名片"), "{}", outcome.stdout);
    assert!(restore(&[]).stdout.contains("  ✅ 成功: 4 个\n"));
    let after = db.snapshot();
    for (before, after) in before.tokens.iter().zip(&after.tokens) {
        assert!(before == after || before.get_object_id("_id").ok() == Some(valid));
    }
    assert_eq!((after.tokens.len(), after.bin.len()), (6, 0));
    assert_eq!(restore(&["--json"]).json()["total"], 0);
    assert_eq!((db.snapshot(), api.requests()), (after, asked));
    db.assert_none_lost();
}

const RESTORE: &str = "\
NOW [INFO] ♻️ 恢复最近 2 小时内删除的 Token...
NOW [WARNING]   ⚠️ 回收站记录 ID 不含 Token，未恢复
NOW [WARNING]   ⚠️ 回收站记录 ID 不含 Token，未恢复
NOW [INFO]   ✅ 已恢复: 名片 '两次删除' (删除于 THEN，原因: test)
NOW [WARNING]   ⏭️ 未恢复: 名片 '两次删除' (删除于 THEN，原因: test)，该名片已有新的 Token
NOW [WARNING]   ⏭️ 未恢复: 名片 '重新登录 DBRef' (删除于 THEN，原因: test)，该名片已有新的 Token
NOW [WARNING]   ⏭️ 未恢复: 名片 '重新登录' (删除于 THEN，原因: test)，该名片已有新的 Token
NOW [WARNING]   ⏭️ 未恢复: 名片 '同一文档' (删除于 THEN，原因: test)，该 Token 已存在
NOW [INFO]   ✅ 已恢复: 名片 '119 分钟前' (删除于 THEN，原因: test)
NOW [INFO] 📊 恢复统计:
NOW [INFO]   📝 总计: 8 个
NOW [INFO]   ✅ 成功: 2 个
NOW [INFO]   ❌ 失败: 2 个
NOW [INFO]   🗑️ 删除: 0 个
NOW [INFO]   ⏭️ 跳过: 4 个
NOW [INFO]   ❗ 原因: 回收站记录不含 Token × 2
";

#[test]
fn restore_never_overwrites_and_says_what_stays() {
    let (db, api) = world();
    let mut card = 0;
    let mut add_entry = |name: &str, minutes: f64, token: Seed| {
        card += 1;
        db.add_card_as(id(card), name);
        let token = token.card(id(card)).0;
        db.add_secret(&token.get_str("access_token").expect("token")[..5]);
        db.add_to_bin(&token, "test", minutes / 60.0);
        token
    };
    let token = || Seed::new(&unique_token("old"));
    add_entry("两小时前", 121.0, token());
    add_entry("119 分钟前", 119.0, token());
    let same = add_entry("同一文档", 50.0, token());
    db.add(Seed(same).set("access_token", unique_token("new")));
    let renewed = add_entry("重新登录", 40.0, token());
    db.add(Seed::new(&unique_token("new")).card(renewed.get_object_id("card").expect("card")));
    let renewed = add_entry("重新登录 DBRef", 30.0, token());
    db.add(Seed::new(&unique_token("new")).card_dbref(renewed.get_object_id("card").expect("card")));
    // Two deletions of one card: the later one counts.
    let earlier = add_entry("两次删除", 20.0, token());
    let later = Seed(earlier).set("_id", ObjectId::new()).set("access_token", unique_token("later")).0;
    for odd in [Bson::from(&later), Bson::Null, doc! { "no": "_id" }.into()] {
        db.add_to_bin(odd, "test", 1.0 / 60.0);
    }

    let before = db.snapshot();
    let outcome = Run::new(&db, &api).args(["--restore-hours", "2"]).go().expect(3);
    let after = db.snapshot();
    let mut log = outcome.log();
    for entry in &before.bin {
        // By the wall clock of TZ, eight hours ahead.
        let then = entry.get_datetime("deleted_at").expect("a date").timestamp_millis() + 8 * 3_600_000;
        let then = DateTime::from_millis(then).try_to_rfc3339_string().expect("a date");
        log = log.replace(&then[..19].replace('T', " "), "THEN");
        log = log.replace(&entry.get_object_id("_id").expect("id").to_hex(), "ID");
    }
    let log = timeless(&log);
    let (_, log) = log.split_once("NOW [INFO] ✅ 数据库连接成功\n").expect("a connection");
    assert_text(log, RESTORE);
    let all_there = before.tokens.iter().all(|token| after.tokens.contains(token));
    assert!(all_there && after.tokens.len() == before.tokens.len() + 2);
    assert!(after.tokens.contains(&(&later).try_into().expect("BSON")));
    assert_eq!((after.bin.len(), after.cards), (before.bin.len() - 2, before.cards));
}
