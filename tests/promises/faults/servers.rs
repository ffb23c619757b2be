//! Real servers that go away while the program works, that stall, refuse or have ideas of their own,
//! and clocks that are wrong. What can be waited for costs nothing; what cannot, deletes nothing, and
//! the next run completes it. A connection that is lost at each single command is a test of `steps`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, doc};

use super::support::{
    Mongod, ReplicaSet, Reply, Run, Seed, Signal, Stub, TestDb, Total, await_true, count, file, scratch_dir,
    unique_token,
};
use super::{Trial, assert_report, assert_whole, each, single, struck, talkative, with_option};

/// What happens to a server, and what brings it back.
type Harm = (&'static str, fn(&Mongod), fn(&Mongod));

const KILL: Harm = ("SIGKILL", Mongod::kill, Mongod::restart);
const FREEZE: Harm = ("SIGSTOP", Mongod::freeze, Mongod::thaw);
const LOCK: Harm = ("locked for a backup, so that writes wait", Mongod::lock, Mongod::unlock);

/// Three that go and three that stay; the last one is written after all others are judged.
const LABELS: [&str; 6] = ["invalid", "valid", "invalid", "valid", "invalid", "valid"];
const DONE: &str = "x+x+x+";

/// While the API is asked which question (six, then the second ones) what happens, after how many
/// seconds the server is back if the run waits for it, exit code (of a signal: when a write waits),
/// and what becomes of each token.
const OUTAGES: [(usize, Harm, Option<u64>, i32, &str); 15] = [
    (2, FREEZE, None, 1, "w!----"),
    (8, FREEZE, None, 1, "x+w+w+"),
    (2, LOCK, None, 1, "w!----"),
    (2, LOCK, None, 143, "w!----"),
    (2, KILL, None, 1, "w!----"),
    (6, KILL, None, 1, "w+w+w!"),
    (7, KILL, None, 1, "w+w+w+"),
    (9, KILL, None, 1, "x+x+w+"),
    (2, KILL, Some(14), 0, DONE),
    (8, KILL, Some(12), 0, DONE),
    (4, FREEZE, Some(8), 0, DONE),
    (6, KILL, Some(3), 0, DONE),
    (1, KILL, Some(2), 0, DONE),
    (7, KILL, Some(2), 0, DONE),
    (9, FREEZE, Some(3), 0, DONE),
];

#[test]
fn a_server_that_goes_away_in_mid_run() {
    each(&OUTAGES, |&(question, (harm, strike, heal), back_after, code, ends)| {
        let server = Mongod::start();
        let trial = Trial::new(server.fresh_db(), &LABELS);
        server.admin(doc! { "fsync": 1 });
        // What does not come back is not waited for half a minute.
        let uri = with_option(&trial.db.uri, if code == 1 { "timeoutMS=3000" } else { "" });
        let run = |api: &Stub| talkative(&trial.db, api).env("MONGODB_URI", uri);
        let (_api, live) = struck(question, run, || strike(&server));
        let start = Instant::now();
        if let Some(seconds) = back_after {
            thread::sleep(Duration::from_secs(seconds));
            heal(&server);
        } else if code == 143 {
            await_true("a write that waits", || is_waiting(&server, &trial.db.name));
            live.signal(Signal::TERM);
        }
        let outcome = live.wait();
        // A lock: 3 s, or 2 s after a signal; the rest is for a busy machine.
        let limit = Duration::from_secs(if harm == LOCK.0 { 12 } else { 40 });
        assert!(start.elapsed() < limit, "{:?}", start.elapsed());
        assert_report(&outcome, &trial.report(code, ends));
        if back_after.is_none() {
            heal(&server);
        }
        let both = assert_whole(&trial.db, &trial.before);
        assert!(both.is_empty() || harm != LOCK.0, "living and in the bin: {both:?}");
        if outcome.stat("删除") == 0 {
            assert_eq!(trial.db.snapshot().tokens.len(), LABELS.len());
        }
        // A killed server may forget what it had not yet written to its disk, the others not.
        if code == 0 && harm != KILL.0 {
            trial.assert_ends(DONE);
        }
        trial.assert_completed();
        if harm == LOCK.0 {
            trial.assert_ends(DONE);
        }
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

#[test]
fn a_replica_set_that_changes_its_primary_in_mid_run() {
    let set = ReplicaSet::start_of(3, false, 1000);
    let labels = ["invalid", "valid"].repeat(20);
    // In this order: who stepped down is not elected again for half a minute.
    for (dies, in_delete_step) in [(true, false), (true, true), (false, false), (false, true)] {
        eprintln!("dies: {dies}, in the delete step: {in_delete_step}");
        let trial = Trial::new(set.fresh_db(), &labels);
        let primary = set.primary();
        let change = || {
            if !dies {
                return set.step_down();
            }
            // What only the dying one had would be undone, as one confirmation is all that an update asks for.
            let all_before = doc! { "appendOplogNote": 1, "data": {}, "writeConcern": { "w": "majority" } };
            primary.admin(all_before);
            primary.kill();
        };
        let run = |api: &Stub| talkative(&trial.db, api).args(["--max-delete", "100%"]);
        let (_api, live) = struck(if in_delete_step { 45 } else { 6 }, run, change);
        let outcome = live.wait();
        if dies {
            primary.restart();
        }
        set.await_healthy();
        trial.assert_end(&outcome, 0, &"x+".repeat(20));
    }
}

/// A short limit on every operation, so that what is waited for in vain costs little.
fn limited(db: &TestDb, api: &Stub) -> Run {
    talkative(db, api).env("MONGODB_URI", with_option(&db.uri, "timeoutMS=4000"))
}

#[test]
fn no_majority_and_nothing_is_deleted_nor_left_behind() {
    let set = ReplicaSet::start_of(3, true, 5000);
    let primary = set.primary().host();
    let secondary = set.nodes[..2].iter().find(|node| node.host() != primary).expect("a secondary");
    let trial = Trial::new(set.fresh_db(), &LABELS);
    secondary.kill();
    let api = Stub::by_label();
    // Once with its own limits, and then again and again.
    for run in [talkative, limited, limited, limited] {
        // No copy is left behind either.
        trial.assert_end(&run(&trial.db, &api).go(), 1, "w+w+w+");
    }
    secondary.restart();
    set.await_healthy();
    talkative(&trial.db, &api).go().expect(0);
    trial.assert_ends(DONE);
}

#[test]
fn secondaries_that_stall_and_defaults_of_the_cluster() {
    let set = ReplicaSet::start_of(3, false, 5000);
    let primary = set.primary();
    // The last check, or the second question about the second token.
    let cases = [(6, "w+w+w+"), (8, "x+w+w+")]
        .map(|(question, ends)| (question, ends, Trial::new(set.fresh_db(), &LABELS)));
    let defaults = doc! {
        "setDefaultRWConcern": 1,
        "defaultWriteConcern": { "w": "majority", "wtimeout": 100 },
        "defaultReadConcern": { "level": "majority" },
        "writeConcern": { "w": "majority", "wtimeout": 1000 },
    };
    let admin = primary.client().database("admin");
    await_true("the cluster's defaults", || admin.run_command(defaults.clone()).run().is_ok());
    let stall = |mode: &str| {
        count(Total::FAULTS, 1);
        for node in set.nodes.iter().filter(|node| node.host() != primary.host()) {
            node.admin(doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode });
        }
    };
    for (question, ends, trial) in cases {
        let (api, live) = struck(question, |api| limited(&trial.db, api), || stall("alwaysOn"));
        let outcome = live.wait();
        assert_report(&outcome, &trial.report(1, ends));
        // Until then a read of a majority, the default now, waits for ever.
        stall("off");
        assert!(assert_whole(&trial.db, &trial.before).is_empty());
        await_true("the secondaries to follow", || limited(&trial.db, &api).go().code == Some(0));
        trial.assert_ends(DONE);
    }
}

#[test]
fn errors_of_the_server_itself() {
    let server = &single().nodes[0];
    // The command, the code, how often, exit code, and what becomes of each token.
    let rows = [
        ("update", 11_600, 2, 0, "+x+x+"),
        // That it stays the oldest does not make a valid token one for the cleanup.
        ("update", 121, 1, 3, "!x+x+"),
        ("insert", 91, 2, 0, "+x+x+"),
        ("delete", 189, 2, 0, "+x+x+"),
        ("find", 13_436, 2, 0, "+x+x+"),
        ("delete", 262, 1, 0, "+x+x+"),
        ("delete", 50, 1, 0, "+x+x+"),
        ("insert", 8_000, 1, 1, "+w+w+"),
        ("insert", 13, 1, 1, "+w+w+"),
        ("delete", 13, 1, 1, "+w+w+"),
    ];
    for (command, code, times, exit, ends) in rows {
        eprintln!("{command} {code}");
        let labels = ["valid-41d", "invalid", "valid", "invalid", "valid"];
        let trial = Trial::new(single().fresh_db(), &labels);
        let name = &trial.db.name;
        let data = doc! { "failCommands": [command], "errorCode": code, "appName": name };
        let fail = |mode: Bson| {
            drop(server.admin(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": &data }));
        };
        let uri = with_option(&trial.db.uri, &format!("appName={name}"));
        let flags = ["--cleanup-days", "30", "--max-delete", "3"];
        let run = |api: &Stub| talkative(&trial.db, api).args(flags).env("MONGODB_URI", uri);
        count(Total::FAULTS, 1);
        let (_api, live) = struck(1, run, || fail(doc! { "times": times }.into()));
        let outcome = live.wait();
        fail("off".into());
        trial.assert_end(&outcome, exit, ends);
        trial.assert_completed();
    }
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
        let db = single().fresh_db();
        db.add_to_bin(Seed::new(&unique_token("old")).0, "x", 0.0);
        let trial = Trial::new(db, &["invalid", "valid", "valid", "valid-20d"]);
        let api = Stub::by_label();
        let run = talkative(&trial.db, &api).args(["--cleanup-days", "30"]);
        let run = run.env("LD_PRELOAD", shifting_library()).env("SHIFT_SECONDS", shift.to_string());
        let outcome = run.go();
        if code == 1 {
            trial.assert_end(&outcome, 1, "....");
            assert_eq!(api.requests(), 0);
            let is_told = |line: &str| line.contains("[ERROR]") && line.contains("时钟");
            assert!(outcome.stderr.lines().any(is_told), "{}", outcome.stderr);
        } else {
            assert_report(&outcome, &trial.report(0, "x+++"));
            assert_eq!(trial.db.snapshot().bin.len(), 2);
        }
    });
}

#[test]
fn a_long_run_tells_its_progress_once_a_minute() {
    let db = single().fresh_db();
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

/// What an account may do with tokens and bin; what becomes of an invalid token, a valid one, and
/// one that the cleanup would take; what a warning names.
type Account = (&'static str, &'static str, &'static str, &'static str, Option<&'static str>);

const BIN: Option<&str> = Some("baoming_tokens_deleted");
const ACCOUNTS: [Account; 7] = [
    ("all", "find update remove", "find insert remove", "x+c", None),
    ("no-bin", "find update remove", "collStats", "w+.", BIN),
    ("read-bin", "find update remove", "find remove", "w+.", BIN),
    ("no-purge", "find update remove", "insert", "x+c", BIN),
    ("no-remove", "find update", "find insert remove", "w+.", Some("没有权限")),
    // It cannot know whether the bin keeps what it takes.
    ("no-list", "find update remove", "find insert remove", "w+.", Some("listCollections")),
    ("read-only", "find", "find", "w!.", Some("没有权限")),
];

#[test]
fn an_account_that_may_not_do_all_loses_nothing() {
    let server = Mongod::start_with_auth();
    each(&ACCOUNTS, |&(name, tokens, bin, ends, missing)| {
        count(Total::FAULTS, 1);
        let db = server.fresh_db();
        let [tokens, bin] = [tokens, bin].map(|actions| actions.split(' ').collect::<Vec<_>>());
        let list = if name == "no-list" { "collStats" } else { "listCollections" };
        let privileges: [(&str, &[&str]); 4] = [
            ("", &[list]),
            ("baoming_tokens", &tokens),
            ("cards", &["find"]),
            ("baoming_tokens_deleted", &bin),
        ];
        let uri = server.add_user(name, &db.name, &privileges);
        let trial = Trial::new(db, &["invalid", "valid", "unclear-41d"]);
        // The collection is there, and an entry that is due for the purge.
        trial.db.add_to_bin(doc! {}, "old", 31.0 * 24.0);
        let api = Stub::by_label();
        let run = talkative(&trial.db, &api).args(["--cleanup-days", "30", "--max-age-days", "7"]);
        let outcome = run.env("MONGODB_URI", uri).go();
        let is_done = ends == "x+c";
        assert_report(&outcome, &trial.report(i32::from(!is_done), ends));
        let is_loud = |line: &&str| line.contains("[WARNING]") || line.contains("[ERROR]");
        let mut warnings = outcome.stderr.lines().filter(is_loud);
        assert!(missing.is_none_or(|it| warnings.any(|line| line.contains(it))), "{}", outcome.stderr);
        let old = trial.db.bin().delete_one(doc! { "reason": "old" }).run().expect("delete").deleted_count;
        assert_eq!(old == 0, is_done && bin.contains(&"remove"), "purged");
        trial.assert_ends(ends);
    });
}
