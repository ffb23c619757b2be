//! Real servers that stall, refuse or have ideas of their own, and clocks that are wrong.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, doc};

use super::Fate::{self, Kept, Recycled, Refreshed};
use super::support::{
    Mongod, Outcome, PATIENCE, ReplicaSet, Run, Seed, Signal, Stub, TestDb, Total, await_true, count,
    scratch_dir, unique_token,
};
use super::{
    Gate, add_tokens, as_labelled, assert_fates, assert_report, assert_whole, each, fates_by_id, fresh_db,
    report, single, talkative,
};

/// Two that go and two that stay, the last one when all others are judged.
const LABELS: [&str; 4] = ["invalid", "valid", "invalid", "valid"];

/// A short limit on every operation, so that what is waited for in vain costs little.
fn limited(db: &TestDb, api: &Stub) -> Run {
    let join = if db.uri.contains('?') { '&' } else { '?' };
    talkative(db, api).env("MONGODB_URI", format!("{}{join}timeoutMS=4000", db.uri))
}

/// The run took no token away and says that the database takes no writes.
#[track_caller]
fn assert_withheld(db: &TestDb, outcome: &Outcome, success: usize) {
    let counts = [("total", 4), ("success", success), ("withheld", 2), ("unprocessed", 2 - success)];
    assert_report(outcome, &report(db, 1, Some("database"), &counts));
    assert_eq!(db.tokens().count_documents(doc! {}).run().expect("count"), 4);
    assert!(db.snapshot().bin.is_empty(), "a copy is left behind");
}

#[test]
fn no_majority_and_nothing_is_deleted_nor_left_behind() {
    let set = ReplicaSet::start_of(3, true, 5000);
    let primary = set.primary().host();
    let secondary = set.nodes[..2].iter().find(|node| node.host() != primary).expect("a secondary");
    let db = set.fresh_db("no-majority");
    let ids = add_tokens(&db, &LABELS);
    let before = db.snapshot();
    secondary.kill();
    let api = Stub::start(as_labelled);
    // Once with its own limits, and then again and again.
    assert_withheld(&db, &talkative(&db, &api).go(), 2);
    for _ in 0..3 {
        assert_withheld(&db, &limited(&db, &api).go(), 2);
    }
    assert_whole(&db, &before);
    secondary.restart();
    set.await_healthy();
    talkative(&db, &api).go().expect(0);
    assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(2)));
}

#[test]
fn secondaries_that_stall_and_defaults_of_the_cluster() {
    let set = ReplicaSet::start_of(3, false, 5000);
    let primary = set.primary();
    let cases = [false, true].map(|in_delete_step| {
        let db = set.fresh_db(&format!("stall-{in_delete_step}"));
        let ids = add_tokens(&db, &LABELS);
        (in_delete_step, db, ids)
    });
    let defaults = doc! {
        "setDefaultRWConcern": 1,
        "defaultWriteConcern": { "w": "majority", "wtimeout": 100 },
        "defaultReadConcern": { "level": "majority" },
        "writeConcern": { "w": "majority", "wtimeout": 1000 },
    };
    let admin = set.client().database("admin");
    await_true("the cluster's defaults", || admin.run_command(defaults.clone()).run().is_ok());
    let stall = |mode: &str| {
        count(Total::Faults, 1);
        for node in set.nodes.iter().filter(|node| node.host() != primary.host()) {
            node.admin(doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode });
        }
    };
    for (in_delete_step, db, ids) in cases {
        let before = db.snapshot();
        let (gate, reached, go) = Gate::new();
        let api = Stub::start(move |request| {
            // The last check, or the second question about the second token.
            if request.number == if in_delete_step { 6 } else { 4 } {
                gate.wait();
            }
            as_labelled(request)
        });
        let live = limited(&db, &api).start();
        reached.recv_timeout(PATIENCE).expect("the moment");
        stall("alwaysOn");
        drop(go);
        let outcome = live.wait();
        let (deleted, withheld) = if in_delete_step { (1, 1) } else { (0, 2) };
        let counts = [("total", 4), ("success", 2), ("deleted", deleted), ("withheld", withheld)];
        assert_report(&outcome, &report(&db, 1, Some("database"), &counts));
        // Until then a read of a majority, the default now, waits for ever.
        stall("off");
        assert!(assert_whole(&db, &before).is_empty());
        await_true("the secondaries to follow", || limited(&db, &api).go().code == Some(0));
        assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(2)));
    }
}

#[test]
fn errors_of_the_server_itself() {
    let set = single();
    let server = &set.nodes[0];
    // The command, the code, how often, and exit code and counts: success, failed, deleted, withheld.
    let rows: [(&str, i32, i32, i32, [usize; 4]); 9] = [
        ("update", 11_600, 2, 0, [2, 0, 2, 0]),
        ("insert", 91, 2, 0, [2, 0, 2, 0]),
        ("delete", 189, 2, 0, [2, 0, 2, 0]),
        ("find", 13_436, 2, 0, [2, 0, 2, 0]),
        ("delete", 262, 1, 0, [2, 0, 2, 0]),
        ("delete", 50, 1, 0, [2, 0, 2, 0]),
        ("insert", 8_000, 1, 1, [2, 0, 0, 2]),
        ("insert", 13, 1, 1, [2, 0, 0, 2]),
        ("delete", 13, 1, 1, [2, 0, 0, 2]),
    ];
    for (command, code, times, exit, counts) in rows {
        eprintln!("{command} {code}");
        let db = fresh_db();
        add_tokens(&db, &LABELS);
        let before = db.snapshot();
        let (gate, reached, go) = Gate::new();
        let api = Stub::start(move |request| {
            if request.number == 4 {
                gate.wait();
            }
            as_labelled(request)
        });
        let app = db.name.clone();
        let uri = format!("{}&appName={app}", db.uri);
        let live = talkative(&db, &api).env("MONGODB_URI", uri).start();
        reached.recv_timeout(PATIENCE).expect("the moment");
        count(Total::Faults, 1);
        let data = doc! { "failCommands": [command], "errorCode": code, "appName": app };
        server.admin(doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data });
        drop(go);
        let outcome = live.wait();
        server.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" });
        let names = ["success", "failed", "deleted", "withheld"];
        let counts: Vec<_> = names.into_iter().zip(counts).chain([("total", 4)]).collect();
        assert_report(&outcome, &report(&db, exit, (exit == 1).then_some("database"), &counts));
        assert!(assert_whole(&db, &before).is_empty());
        talkative(&db, &Stub::start(as_labelled)).go().expect(0);
        assert_whole(&db, &before);
    }
}

#[test]
fn a_server_that_is_locked_for_a_backup_or_never_answers() {
    each(
        &[false, true],
        |by_signal| format!("by a signal: {by_signal}"),
        |&by_signal| {
            let set = ReplicaSet::start_of(1, false, 5000);
            let server = &set.nodes[0];
            let db = set.fresh_db("locked");
            let ids = add_tokens(&db, &LABELS);
            let before = db.snapshot();
            let (gate, reached, go) = Gate::new();
            let api = Stub::start(move |request| {
                if request.number == 2 {
                    gate.wait();
                }
                as_labelled(request)
            });
            let live = if by_signal { talkative(&db, &api) } else { limited(&db, &api) }.start();
            reached.recv_timeout(PATIENCE).expect("the moment");
            count(Total::Faults, 1);
            server.admin(doc! { "fsync": 1, "lock": true });
            drop(go);
            let start = Instant::now();
            let outcome = if by_signal {
                await_true("a write that waits", || is_waiting(server, &db.name));
                live.signal(Signal::TERM);
                live.wait()
            } else {
                live.wait()
            };
            // 4 s, or 2 s after a signal; the rest is for a busy machine.
            assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
            let (code, stopped) = if by_signal { (143, "signal") } else { (1, "database") };
            let counts = [("total", 4), ("failed", 1), ("withheld", 1), ("unprocessed", 2)];
            assert_report(&outcome, &report(&db, code, Some(stopped), &counts));
            server.admin(doc! { "fsyncUnlock": 1 });
            assert!(assert_whole(&db, &before).is_empty());
            talkative(&db, &api).go().expect(0);
            assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(2)));
        },
    );
}

/// Whether an update on this database waits for a lock.
fn is_waiting(server: &Mongod, db: &str) -> bool {
    let pipeline = [
        doc! { "$currentOp": {} },
        doc! { "$match": { "ns": format!("{db}.baoming_tokens"), "op": { "$in": ["update", "command"] } } },
    ];
    let admin = server.client().database("admin");
    admin.aggregate(pipeline).run().expect("current operations").next().is_some()
}

/// A library that moves the wall clock by `SHIFT_SECONDS`.
fn shifting_library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        const SOURCE: &str = "
            #include <stdlib.h>
            #include <sys/syscall.h>
            #include <time.h>
            #include <unistd.h>
            int clock_gettime(clockid_t clock, struct timespec *now) {
                int result = syscall(SYS_clock_gettime, clock, now);
                const char *shift = getenv(\"SHIFT_SECONDS\");
                if (clock == CLOCK_REALTIME && shift) now->tv_sec += atol(shift);
                return result;
            }";
        let dir = scratch_dir();
        let (source, library) = (dir.join("shift.c"), dir.join("shift.so"));
        std::fs::write(&source, SOURCE).expect("source");
        // Whoever can link a program has it.
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("cc").success());
        library
    })
}

#[test]
fn a_clock_that_is_wrong_changes_nothing() {
    const HOUR: i64 = 3_600;
    let hours = [2, -2, 24 * 31, -24 * 31, 24 * 365 * 20, -24 * 365 * 60, -24 * 365 * 30];
    let rows: Vec<_> =
        hours.into_iter().map(|hours| (hours * HOUR, 1)).chain([(HOUR / 2, 0), (-HOUR / 2, 0)]).collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(shift, code)| {
            count(Total::Faults, 1);
            let db = fresh_db();
            add_tokens(&db, &["invalid", "valid", "valid"]);
            db.add(Seed::new(&unique_token("valid")).last_used_days_ago(20.0));
            let entry = doc! { "token": Seed::new(&unique_token("old")).0, "reason": "x", "deleted_at": DateTime::now() };
            db.bin().insert_one(entry).run().expect("entry");
            let before = db.snapshot();
            let api = Stub::start(as_labelled);
            let run =
                talkative(&db, &api).args(["--cleanup-days", "30"]).env("LD_PRELOAD", shifting_library());
            let outcome = run.env("SHIFT_SECONDS", shift.to_string()).go();
            if code == 1 {
                assert_report(&outcome, &report(&db, 1, Some("database"), &[]));
                assert_eq!((db.snapshot(), api.requests()), (before, 0));
                assert!(
                    outcome.stderr.lines().any(|line| line.contains("[ERROR]") && line.contains("时钟")),
                    "{}",
                    outcome.stderr
                );
            } else {
                let counts = [("total", 4), ("success", 3), ("deleted", 1)];
                assert_report(&outcome, &report(&db, 0, None, &counts));
                assert_eq!(db.bin().count_documents(doc! {}).run().expect("count"), 2);
            }
        },
    );
}

#[test]
fn a_token_that_cannot_be_sent_is_kept_and_stops_nobody() {
    for token in ["x".repeat(70_000), "x".repeat(4_097), String::new()] {
        let db = fresh_db();
        let odd = db.add(Seed::new(&token).last_used_days_ago(3.0));
        let mut ids = vec![odd];
        ids.extend(add_tokens(&db, &["invalid", "valid"]));
        let before = db.snapshot();
        let api = Stub::start(as_labelled);
        let mut expected =
            report(&db, 3, None, &[("total", 3), ("success", 1), ("failed", 1), ("deleted", 1)]);
        assert_report(&talkative(&db, &api).go(), &expected);
        assert_fates(&db, &before, fates_by_id(&ids, vec![Kept, Recycled, Refreshed]));
        assert!(api.recorded().iter().all(|request| request.line.len() < 4_096));
        expected = report(&db, 3, None, &[("total", 2), ("success", 1), ("failed", 1)]);
        expected["dry_run"] = true.into();
        assert_report(&talkative(&db, &api).arg("--dry-run").go(), &expected);
    }
}

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
        code: 1,
        counts: &[("success", 1), ("withheld", 1)],
        missing: Some("baoming_tokens_deleted"),
    },
    Account {
        name: "read-bin",
        tokens: &["find", "update", "remove"],
        bin: &["find", "remove"],
        fates: [Refreshed, Kept, Kept],
        code: 1,
        counts: &[("success", 1), ("withheld", 1)],
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
        code: 1,
        counts: &[("success", 1), ("withheld", 1)],
        missing: Some("没有权限"),
    },
    Account {
        name: "read-only",
        tokens: &["find"],
        bin: &["find"],
        fates: [Kept, Kept, Kept],
        code: 1,
        counts: &[("failed", 1), ("withheld", 1)],
        missing: Some("没有权限"),
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
            ids.push(db.add(Seed::new(&unique_token("unclear")).last_used_days_ago(41.0)));
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
            let is_loud = |line: &&str| line.contains("[WARNING]") || line.contains("[ERROR]");
            let mut warnings = outcome.stderr.lines().filter(is_loud);
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
