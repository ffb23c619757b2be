//! Dead and long unused tokens go to the recycle bin: the cleanup, the dry run, the purge. The second
//! question, the delete limit, the early stop and the races are tests of `faults`.

use crate::prelude::*;

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

fn cleanup_of(outcome: &Outcome) -> String {
    let log = timeless(&outcome.stdout);
    log[log.find("NOW [INFO] 🎉").expect("the end of the run")..].to_owned()
}

#[test]
fn cleanup_moves_what_was_not_used_for_days_to_the_bin() {
    let db = Mongod::shared().fresh_db();
    // None of these goes: a refresh keeps what was long unused, an age that is not known is none.
    db.add_used("valid", 60.0);
    db.add_used("29 days and 23 hours", 29.96);
    db.add(Seed::new(&unique_token("busy")).without("last_used"));
    db.add(Seed::new(&unique_token("busy")).set("last_used", 0_i64));
    // This one is asked about and valid, only its login is another one then.
    let renewed = db.add_used("valid-renewed", 55.0);
    db.disown(renewed);
    let (tokens, login) = (db.tokens(), unique_token("valid"));
    db.add_secret(&login);
    let api = Stub::start(move |request| {
        if request.token().contains("-renewed-") {
            let change = doc! { "$set": { "access_token": &login } };
            tokens.update_one(doc! { "_id": renewed }, change).run().expect("new login");
        }
        if request.token().contains("-valid-") { Reply::valid() } else { Reply::refusal("data not found") }
    });
    let outcome = Run::new(&db, &api).arg("--cleanup-days=30").go().expect(3);
    assert_eq!(outcome.stat("跳过"), 1);
    let (head, _) = CLEANUP.split_once("NOW [INFO]   发现").expect("the list");
    assert_text(&cleanup_of(&outcome), &(head.to_owned() + "NOW [INFO]   ✅ 没有需要清理的 Token\n"));

    let ids = [("1111", 41.1), ("2222", 30.04)].map(|(name, days)| db.add_used(name, days));
    let orphan = db.add(Seed::new(&unique_token("orphan")).last_used_days_ago(50.0));
    let (before, asked) = (db.snapshot(), api.requests());
    let outcome = Run::new(&db, &api).args(["--cleanup-days", "30"]).go().expect(3);
    let after = db.snapshot();
    assert_text(&cleanup_of(&outcome), CLEANUP);
    for (entry, (id, days)) in after.bin.iter().zip([(orphan, 50), (ids[0], 41), (ids[1], 30)]) {
        let document =
            before.tokens.iter().find(|document| document.get_object_id("_id").is_ok_and(|it| it == id));
        assert_bin_entry(entry, document.expect("document"));
        assert_eq!(entry.get_str("reason").expect("a text"), format!("{days} 天未使用"));
    }
    assert_eq!((after.bin.len(), after.tokens.len()), (3, before.tokens.len() - 3));
    assert_eq!((after.cards, api.requests() - asked), (before.cards, 8), "the cleanup asks nothing");
    db.assert_none_lost();
}

#[test]
fn a_dry_run_tells_what_the_run_then_does_and_writes_nothing() {
    // Flags, exit code; counts: success, failed, deleted, withheld, cleaned.
    let table = [
        ("", 3, [2, 3, 2, 0, 0]),
        ("--cleanup-days=30", 3, [2, 3, 2, 0, 2]),
        ("--cleanup-days=30 --max-delete=1", 25, [2, 3, 0, 2, 0]),
        ("--cleanup-days=30 --max-age-days=7", 25, [1, 1, 1, 0, 0]),
        ("--cleanup-days=30 --max-age-days=7 --max-delete=4", 3, [1, 1, 1, 0, 4]),
    ];
    for (flags, code, counts) in table {
        let (db, api) = world();
        // What was long unused is cleaned up only if the run itself neither refreshes nor deletes it.
        for label in ["valid", "invalid", "busy"] {
            db.add_used(label, 2.0);
            db.add_used(label, 40.0);
        }
        db.add_used("busy", 40.0);
        db.add_to_bin(doc! {}, "too old", 30.0 * 24.0 + 1.0);
        db.add_to_bin(doc! {}, "not yet", 30.0 * 24.0 - 1.0);
        let before = db.snapshot();
        let metrics = scratch_dir().join("metrics.prom");
        let run = || {
            let run = Run::new(&db, &api).args(["--json", "--retries=0", "--metrics-file"]).arg(&metrics);
            run.args(flags.split_whitespace())
        };
        let names = ["success", "failed", "deleted", "withheld", "cleaned"];
        let counts: Vec<_> = names.into_iter().zip(counts).collect();
        let expected = report(&db, code, (code == 25).then_some("delete_limit"), &counts);
        let would = run().arg("--dry-run").go();
        assert_report(&would, &dry(expected.clone()));
        assert!(would.stderr.contains("试运行"), "{}", would.stderr);
        assert_eq!((db.snapshot(), metrics.exists()), (before, false), "{flags}");
        assert_report(&run().go(), &expected);
        assert!(metrics.exists());
        let in_bin = |reason| db.bin().count_documents(doc! { "reason": reason }).run().expect("count");
        let is_complete = code != 25;
        assert_eq!([in_bin("too old"), in_bin("not yet")], [u64::from(!is_complete), 1], "purge: {flags}");
        db.assert_none_lost();
    }
}

/// No filter can be made of the one, so it could not be told whether the copy is the token; the other leaves no room
/// for an entry of the bin. No copy is left behind, and the rest goes on.
#[test]
fn a_document_that_cannot_be_copied_is_kept() {
    let odd = |access_token: &str, uname: String| {
        doc! { "_id": ObjectId::new(), "access_token": access_token, "uname": uname }.to_vec().expect("BSON")
    };
    let [broken, huge] = ["invalid", "invalid"].map(unique_token);
    let mut not_text = odd(&broken, "\u{1}AAAA".to_owned());
    let name = not_text.windows(5).position(|window| window == b"\x01AAAA").expect("the name");
    not_text[name] = 0xff;
    for (access_token, bytes) in [(&broken, not_text), (&huge, odd(&huge, "x".repeat((16 << 20) - 150)))] {
        let db = Mongod::shared().fresh_db();
        db.add_secret(access_token);
        let document = RawDocumentBuf::from_bytes(bytes).expect("BSON");
        db.db.collection::<RawDocumentBuf>("baoming_tokens").insert_one(&document).run().expect("token");
        db.add_token("invalid");
        for deleted in [1, 0] {
            let outcome = Run::new(&db, &Stub::always(Reply::invalid())).go().expect(3);
            assert_eq!((outcome.stat("失败"), outcome.stat("删除")), (1, deleted));
        }
        let after = db.snapshot();
        assert_eq!((after.tokens, after.bin.len()), (vec![document], 1));
    }
}

/// A bin that drops or hides documents is none; a collation cannot tell whether a token is the one that was copied.
#[test]
fn nothing_is_deleted_where_the_collections_cannot_be_relied_on() {
    let collation = doc! { "collation": { "locale": "en", "strength": 2 } };
    for (name, options) in [
        ("baoming_tokens_deleted", doc! { "capped": true, "size": 4096 }),
        ("baoming_tokens_deleted", doc! { "viewOn": "cards", "pipeline": [] }),
        ("baoming_tokens", collation),
    ] {
        let (db, api) = world();
        let mut create = doc! { "create": name };
        create.extend(options.clone());
        db.db.run_command(create).run().expect("a collection");
        db.add_token("invalid");
        let before = db.snapshot();
        for flags in [&["--dry-run"][..], &[]] {
            let outcome = Run::new(&db, &api).args(flags).go().expect(1);
            assert!(
                outcome.log().contains(&format!("不删除任何 Token: {name} 是")),
                "{options}: {outcome:?}"
            );
            assert_eq!((outcome.stat("保留"), outcome.stat("删除")), (1, 0), "{options}");
        }
        assert_eq!(db.snapshot(), before, "{options}");
    }
}
