//! Real servers that stall, refuse or have ideas of their own, and clocks that are wrong.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mongodb::bson::doc;

use super::Fate::{self, Kept, Recycled, Refreshed};
use super::support::{
    Mongod, Outcome, ReplicaSet, Reply, Run, Seed, Signal, Stub, TestDb, Total, await_true, count, file,
    scratch_dir, unique_token,
};
use super::{
    assert_fates, assert_report, assert_whole, each, fresh_db, gated, of_tokens, report, single, talkative,
    with_option,
};

/// Two that go and two that stay, the last one when all others are judged.
const LABELS: [&str; 4] = ["invalid", "valid", "invalid", "valid"];

/// A short limit on every operation, so that what is waited for in vain costs little.
fn limited(db: &TestDb, api: &Stub) -> Run {
    talkative(db, api).env("MONGODB_URI", with_option(&db.uri, "timeoutMS=4000"))
}

/// The run took no token away and says that the database takes no writes.
#[track_caller]
fn assert_withheld(db: &TestDb, outcome: &Outcome, success: usize) {
    let counts = [("success", success), ("withheld", 2), ("unprocessed", 2 - success)];
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
    let ids = db.add_labelled(&LABELS);
    let before = db.snapshot();
    secondary.kill();
    let api = Stub::by_label();
    // Once with its own limits, and then again and again.
    assert_withheld(&db, &talkative(&db, &api).go(), 2);
    for _ in 0..3 {
        assert_withheld(&db, &limited(&db, &api).go(), 2);
    }
    assert_whole(&db, &before);
    secondary.restart();
    set.await_healthy();
    talkative(&db, &api).go().expect(0);
    assert_fates(&db, &before, &ids, &[Recycled, Refreshed].repeat(2));
}

#[test]
fn secondaries_that_stall_and_defaults_of_the_cluster() {
    let set = ReplicaSet::start_of(3, false, 5000);
    let primary = set.primary();
    let cases = [false, true].map(|in_delete_step| {
        let db = set.fresh_db(&format!("stall-{in_delete_step}"));
        let ids = db.add_labelled(&LABELS);
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
        count(Total::FAULTS, 1);
        for node in set.nodes.iter().filter(|node| node.host() != primary.host()) {
            node.admin(doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode });
        }
    };
    for (in_delete_step, db, ids) in cases {
        let before = db.snapshot();
        // The last check, or the second question about the second token.
        let (api, moment) = gated(if in_delete_step { 6 } else { 4 });
        let live = limited(&db, &api).start();
        moment.come();
        stall("alwaysOn");
        drop(moment);
        let outcome = live.wait();
        let (deleted, withheld) = if in_delete_step { (1, 1) } else { (0, 2) };
        let counts = [("success", 2), ("deleted", deleted), ("withheld", withheld)];
        assert_report(&outcome, &report(&db, 1, Some("database"), &counts));
        // Until then a read of a majority, the default now, waits for ever.
        stall("off");
        assert!(assert_whole(&db, &before).is_empty());
        await_true("the secondaries to follow", || limited(&db, &api).go().code == Some(0));
        assert_fates(&db, &before, &ids, &[Recycled, Refreshed].repeat(2));
    }
}

#[test]
fn errors_of_the_server_itself() {
    let server = &single().nodes[0];
    // The command, the code, how often, and exit code and counts: success, failed, deleted, withheld.
    let rows = [
        ("update", 11_600, 2, 0, [3, 0, 2, 0]),
        // The first token is valid: that it stays the oldest does not make it one for the cleanup.
        ("update", 121, 1, 3, [2, 1, 2, 0]),
        ("insert", 91, 2, 0, [3, 0, 2, 0]),
        ("delete", 189, 2, 0, [3, 0, 2, 0]),
        ("find", 13_436, 2, 0, [3, 0, 2, 0]),
        ("delete", 262, 1, 0, [3, 0, 2, 0]),
        ("delete", 50, 1, 0, [3, 0, 2, 0]),
        ("insert", 8_000, 1, 1, [3, 0, 0, 2]),
        ("insert", 13, 1, 1, [3, 0, 0, 2]),
        ("delete", 13, 1, 1, [3, 0, 0, 2]),
    ];
    for (command, code, times, exit, counts) in rows {
        eprintln!("{command} {code}");
        let db = fresh_db();
        let unused = db.add_used("valid", 41.0);
        db.add_labelled(&LABELS);
        let before = db.snapshot();
        let (api, moment) = gated(1);
        let uri = with_option(&db.uri, &format!("appName={}", db.name));
        let run = talkative(&db, &api).args(["--cleanup-days", "30", "--max-delete", "3"]);
        let live = run.env("MONGODB_URI", uri).start();
        moment.come();
        count(Total::FAULTS, 1);
        let data = doc! { "failCommands": [command], "errorCode": code, "appName": &db.name };
        server.admin(doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data });
        drop(moment);
        let outcome = live.wait();
        server.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" });
        let [success, failed, deleted, withheld] = counts;
        let counts = of_tokens([success, failed, deleted, withheld, 0]);
        assert_report(&outcome, &report(&db, exit, (exit == 1).then_some("database"), &counts));
        assert!(assert_whole(&db, &before).is_empty() && db.token(unused).is_some());
        talkative(&db, &Stub::by_label()).go().expect(0);
        assert_whole(&db, &before);
    }
}

#[test]
fn a_server_that_is_locked_for_a_backup_or_never_answers() {
    each(&[false, true], |&by_signal| {
        let set = ReplicaSet::start_of(1, false, 5000);
        let server = &set.nodes[0];
        let db = set.fresh_db("locked");
        let ids = db.add_labelled(&LABELS);
        let before = db.snapshot();
        let (api, moment) = gated(2);
        let live = if by_signal { talkative(&db, &api) } else { limited(&db, &api) }.start();
        moment.come();
        count(Total::FAULTS, 1);
        server.admin(doc! { "fsync": 1, "lock": true });
        drop(moment);
        let start = Instant::now();
        if by_signal {
            await_true("a write that waits", || is_waiting(server, &db.name));
            live.signal(Signal::TERM);
        }
        let outcome = live.wait();
        // 4 s, or 2 s after a signal; the rest is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
        let (code, stopped) = if by_signal { (143, "signal") } else { (1, "database") };
        let counts = [("failed", 1), ("withheld", 1), ("unprocessed", 2)];
        assert_report(&outcome, &report(&db, code, Some(stopped), &counts));
        server.admin(doc! { "fsyncUnlock": 1 });
        assert!(assert_whole(&db, &before).is_empty());
        talkative(&db, &api).go().expect(0);
        assert_fates(&db, &before, &ids, &[Recycled, Refreshed].repeat(2));
    });
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

/// A library that moves the wall clock by `SHIFT_SECONDS`, and all other clocks a minute on once
/// there is the file `A_MINUTE_LATER`.
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
                const char *shift = getenv(\"SHIFT_SECONDS\"), *later = getenv(\"A_MINUTE_LATER\");
                if (clock == CLOCK_REALTIME && shift) now->tv_sec += atol(shift);
                if (clock != CLOCK_REALTIME && later && access(later, F_OK) == 0) now->tv_sec += 60;
                return result;
            }";
        let (source, library) = (file("shift.c", SOURCE, 0o600), scratch_dir().join("shift.so"));
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
    let wrong = hours.into_iter().map(|hours| (hours * HOUR, 1));
    let rows: Vec<_> = wrong.chain([(HOUR / 2, 0), (-HOUR / 2, 0)]).collect();
    each(&rows, |&(shift, code)| {
        count(Total::FAULTS, 1);
        let db = fresh_db();
        db.add_labelled(&["invalid", "valid", "valid"]);
        db.add_used("valid", 20.0);
        db.add_to_bin(Seed::new(&unique_token("old")).0, "x", 0.0);
        let before = db.snapshot();
        let api = Stub::by_label();
        let run = talkative(&db, &api).args(["--cleanup-days", "30"]);
        let run = run.env("LD_PRELOAD", shifting_library()).env("SHIFT_SECONDS", shift.to_string());
        let outcome = run.go();
        if code == 1 {
            assert_report(&outcome, &report(&db, 1, Some("database"), &[]));
            assert_eq!((db.snapshot(), api.requests()), (before, 0));
            let is_told = |line: &str| line.contains("[ERROR]") && line.contains("时钟");
            assert!(outcome.stderr.lines().any(is_told), "{}", outcome.stderr);
        } else {
            assert_report(&outcome, &report(&db, 0, None, &[("success", 3), ("deleted", 1)]));
            assert_eq!(db.snapshot().bin.len(), 2);
        }
    });
}

#[test]
fn a_long_run_tells_its_progress_once_a_minute() {
    let db = fresh_db();
    db.add_labelled(&["valid", "valid", "valid", "valid"]);
    let told = "[INFO] ⏳ 进度: 2/4，成功 2，失败 0，大约还需 ";
    for (flags, expected) in [(&[][..], Some(told)), (&["-q"], None)] {
        let later = scratch_dir().join("later");
        let minute = later.clone();
        let api = Stub::start(move |request| {
            if request.number == 2 {
                std::fs::write(&minute, "").expect("file");
            }
            Reply::valid()
        });
        let run = Run::new(&db, &api).args(["--timeout-secs", "600"]).args(flags);
        let log = run.env("LD_PRELOAD", shifting_library()).env("A_MINUTE_LATER", later).go().expect(0).log();
        // How much longer it takes depends on the seconds.
        let told = log
            .lines()
            .filter(|line| line.contains("⏳"))
            .map(|line| line[20..].split_inclusive("还需 ").next());
        assert_eq!(told.flatten().collect::<Vec<_>>(), expected.into_iter().collect::<Vec<_>>());
    }
}

/// What an account may do with tokens and bin; what becomes of a valid token, an invalid one, and
/// one that the cleanup would take; what a warning names.
type Account = (&'static str, &'static str, &'static str, [Fate; 3], Option<&'static str>);

const BIN: Option<&str> = Some("baoming_tokens_deleted");
const ACCOUNTS: [Account; 6] = [
    ("all", "find update remove", "find insert remove", [Refreshed, Recycled, Recycled], None),
    ("no-bin", "find update remove", "collStats", [Refreshed, Kept, Kept], BIN),
    ("read-bin", "find update remove", "find remove", [Refreshed, Kept, Kept], BIN),
    ("no-purge", "find update remove", "insert", [Refreshed, Recycled, Recycled], BIN),
    ("no-remove", "find update", "find insert remove", [Refreshed, Kept, Kept], Some("没有权限")),
    ("read-only", "find", "find", [Kept; 3], Some("没有权限")),
];

#[test]
fn an_account_that_may_not_do_all_loses_nothing() {
    let server = Mongod::start_with_auth();
    each(&ACCOUNTS, |&(name, tokens, bin, fates, missing)| {
        count(Total::FAULTS, 1);
        let db = server.fresh_db();
        let [tokens, bin] = [tokens, bin].map(|actions| actions.split(' ').collect::<Vec<_>>());
        let privileges: [(&str, &[&str]); 3] =
            [("baoming_tokens", &tokens), ("cards", &["find"]), ("baoming_tokens_deleted", &bin)];
        let uri = server.add_user(name, &db.name, &privileges);
        let mut ids = db.add_labelled(&["invalid", "valid"]);
        ids.reverse();
        ids.push(db.add_used("unclear", 41.0));
        let before = db.snapshot();
        // The collection is there, and an entry that is due for the purge.
        db.add_to_bin(doc! {}, "old", 31.0 * 24.0);
        let api = Stub::by_label();
        let run = talkative(&db, &api).args(["--cleanup-days", "30", "--max-age-days", "7"]);
        let outcome = run.env("MONGODB_URI", uri).go();
        let [is_refreshed, is_done] = [fates[0] == Refreshed, fates[1] == Recycled];
        let (code, stopped) = if is_done { (0, None) } else { (1, Some("database")) };
        let counts = [
            (if is_refreshed { "success" } else { "failed" }, 1),
            (if is_done { "deleted" } else { "withheld" }, 1),
            ("cleaned", usize::from(is_done)),
        ];
        assert_report(&outcome, &report(&db, code, stopped, &counts));
        let is_loud = |line: &&str| line.contains("[WARNING]") || line.contains("[ERROR]");
        let mut warnings = outcome.stderr.lines().filter(is_loud);
        assert!(missing.is_none_or(|it| warnings.any(|line| line.contains(it))), "{}", outcome.stderr);
        let old = db.bin().delete_one(doc! { "reason": "old" }).run().expect("delete").deleted_count;
        assert_eq!(old == 0, is_done && bin.contains(&"remove"), "purged");
        assert_fates(&db, &before, &ids, &fates);
    });
}
