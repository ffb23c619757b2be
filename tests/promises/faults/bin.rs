//! The recycle bin: what the account may not do, and a restore that is disturbed.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};

use super::Fate::{self, Kept, Recycled, Refreshed};
use super::crash::kill_at;
use super::support::{Mongod, Reply, Seed, Snapshot, Stub, TestDb, unique_token};
use super::wire::Wire;
use super::{add_tokens, as_labelled, assert_fates, assert_report, each, fates_by_id, report, talkative};

/// What an account may do in one database, and what becomes of a valid token, an invalid one, and
/// one that the cleanup would take.
struct Account {
    name: &'static str,
    tokens: &'static [&'static str],
    bin: &'static [&'static str],
    fates: [Fate; 3],
    code: i32,
    counts: &'static [(&'static str, usize)],
    /// What the warning names.
    missing: Option<&'static str>,
}

const ACCOUNTS: [Account; 6] = [
    Account {
        name: "all",
        tokens: &["find", "update", "remove"],
        bin: &["find", "insert", "remove"],
        fates: [Refreshed, Recycled, Recycled],
        code: 0,
        counts: &[("success", 1), ("deleted", 1), ("cleaned", 1)],
        missing: None,
    },
    Account {
        name: "no-bin",
        tokens: &["find", "update", "remove"],
        bin: &["collStats"],
        fates: [Refreshed, Kept, Kept],
        code: 3,
        counts: &[("success", 1), ("failed", 1)],
        missing: Some("baoming_tokens_deleted"),
    },
    Account {
        name: "read-bin",
        tokens: &["find", "update", "remove"],
        bin: &["find", "remove"],
        fates: [Refreshed, Kept, Kept],
        code: 3,
        counts: &[("success", 1), ("failed", 1)],
        missing: Some("baoming_tokens_deleted"),
    },
    Account {
        name: "no-purge",
        tokens: &["find", "update", "remove"],
        bin: &["insert"],
        fates: [Refreshed, Recycled, Recycled],
        code: 0,
        counts: &[("success", 1), ("deleted", 1), ("cleaned", 1)],
        missing: Some("baoming_tokens_deleted"),
    },
    Account {
        name: "no-remove",
        tokens: &["find", "update"],
        bin: &["find", "insert", "remove"],
        fates: [Refreshed, Kept, Kept],
        code: 3,
        counts: &[("success", 1), ("failed", 1)],
        missing: Some("拒绝"),
    },
    Account {
        name: "read-only",
        tokens: &["find"],
        bin: &["find"],
        fates: [Kept, Kept, Kept],
        code: 1,
        counts: &[("failed", 1), ("withheld", 1)],
        missing: Some("拒绝"),
    },
];

#[test]
fn an_account_that_may_not_do_all_loses_nothing() {
    let server = Mongod::start_with_auth();
    each(
        &ACCOUNTS,
        |account| account.name.to_owned(),
        |account| {
            let db = server.fresh_db();
            let uri = server.add_user(
                account.name,
                &db.name,
                &[
                    ("baoming_tokens", account.tokens),
                    ("cards", &["find"]),
                    ("baoming_tokens_deleted", account.bin),
                ],
            );
            let mut ids = add_tokens(&db, &["invalid", "valid"]);
            ids.reverse();
            ids.push(db.add(Seed::new(&unique_token("busy")).last_used_days_ago(41.0)));
            let before = db.snapshot();
            // The collection is there, and an entry that is due for the purge.
            let old = DateTime::from_millis(DateTime::now().timestamp_millis() - 31 * 86_400_000);
            db.bin()
                .insert_one(doc! { "token": {}, "reason": "old", "deleted_at": old })
                .run()
                .expect("entry");
            let api = Stub::start(as_labelled);
            let run = talkative(&db, &api).args(["--cleanup-days", "30", "--max-age-days", "7"]);
            let outcome = run.env("MONGODB_URI", uri).go();
            let stopped = (account.code == 1).then_some("database");
            let counts: Vec<_> = account.counts.iter().copied().chain([("total", 2)]).collect();
            assert_report(&outcome, &report(&db, account.code, stopped, &counts));
            let mut warnings = outcome.stderr.lines().filter(|line| line.contains("[WARNING]"));
            if let Some(missing) = account.missing {
                assert!(warnings.any(|line| line.contains(missing)), "{}", outcome.stderr);
            }
            let is_purged = db.bin().count_documents(doc! { "reason": "old" }).run().expect("count") == 0;
            assert_eq!(is_purged, account.code != 1 && account.bin.contains(&"remove"));
            db.bin().delete_one(doc! { "reason": "old" }).run().expect("delete");
            assert_fates(&db, &before, fates_by_id(&ids, account.fates.to_vec()));
        },
    );
}

/// Fills the bin with tokens that were deleted a while ago, the last one first; gives what they were.
fn fill_bin(db: &TestDb) -> Snapshot {
    add_tokens(db, &["first", "second", "third"]);
    let deleted = db.snapshot();
    for (token, hours) in deleted.tokens.iter().zip(1..) {
        let deleted_at = DateTime::from_millis(DateTime::now().timestamp_millis() - hours * 3_600_000);
        let token = Document::try_from(token.clone()).expect("a document");
        let entry = doc! { "_id": ObjectId::new(), "token": token, "reason": "x", "deleted_at": deleted_at };
        db.bin().insert_one(entry).run().expect("entry");
    }
    db.tokens().delete_many(doc! {}).run().expect("delete");
    deleted
}

const RESTORE: [&str; 2] = ["--restore-hours", "24"];

#[test]
fn a_restore_that_is_disturbed_at_every_command() {
    let api = Stub::always(Reply::valid());
    let restore = |lost: Option<(usize, bool)>| {
        let db = Mongod::shared().fresh_db();
        let deleted = fill_bin(&db);
        let wire = Wire::to(Mongod::shared().host(), move |command| {
            lost != Some((command.number, command.answered))
        });
        let outcome = talkative(&db, &api).args(RESTORE).env("MONGODB_URI", wire.uri()).go();
        assert_report(&outcome, &report(&db, 0, None, &[("total", 3), ("success", 3)]));
        assert_eq!(db.snapshot(), deleted);
        wire.commands()
    };
    let commands = restore(None);
    assert!(commands > 12, "{commands} commands");
    let rows: Vec<_> = (1..=commands)
        .flat_map(|n| [(n, false), (n, true)])
        .flat_map(|at| [(at, false), (at, true)])
        .collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&((n, answered), killed)| {
            if !killed {
                restore(Some((n, answered)));
                return;
            }
            let db = Mongod::shared().fresh_db();
            let deleted = fill_bin(&db);
            let full = db.snapshot();
            kill_at(&db, &api, &RESTORE, n, answered);
            db.assert_none_lost();
            assert!(db.snapshot().tokens.iter().all(|token| deleted.tokens.contains(token)));
            let again = talkative(&db, &api).args(RESTORE).go();
            assert_eq!(again.code, Some(0), "{}", again.stderr);
            let after = db.snapshot();
            assert_eq!((after.tokens, after.cards), (deleted.tokens, deleted.cards));
            // An entry whose token was back already stays there, for the purge.
            assert!(after.bin.len() <= 1 && after.bin.iter().all(|entry| full.bin.contains(entry)));
        },
    );
}

#[test]
fn a_restore_does_not_overwrite_what_comes_back_at_that_moment() {
    let db = Mongod::shared().fresh_db();
    let deleted = fill_bin(&db);
    let full = db.snapshot();
    let api = Stub::always(Reply::valid());
    let id = super::id_of(&deleted.tokens[0]);
    let newer = Seed::new(&unique_token("newer")).set("_id", id);
    let (tokens, theirs) = (db.tokens(), newer.0.clone());
    let wire = Wire::to(Mongod::shared().host(), move |command| {
        if command.what == "insert baoming_tokens" && !command.answered {
            // Whichever is first; a second time it is there.
            let _ = tokens.insert_one(&theirs).run();
        }
        true
    });
    let outcome = talkative(&db, &api).args(RESTORE).env("MONGODB_URI", wire.uri()).go();
    assert_report(&outcome, &report(&db, 0, None, &[("total", 3), ("success", 2), ("skipped", 1)]));
    assert_eq!(db.token(id), Some(newer.0));
    let after = db.snapshot();
    assert_eq!(after.tokens[1..], deleted.tokens[1..]);
    assert_eq!(after.bin.len(), 1);
    assert!(full.bin.contains(&after.bin[0]));
    db.assert_none_lost();
}
