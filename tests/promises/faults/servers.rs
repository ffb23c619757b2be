//! Real servers that refuse or have ideas of their own, and clocks that are wrong.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use mongodb::bson::doc;

use super::support::{Mongod, Reply, Run, Seed, Stub, Total, count, file, scratch_dir, unique_token};
use super::{Trial, assert_report, come, each, gated, report, single, talkative, with_option};

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
        let db = single().fresh_db();
        let unused = db.add_used("valid", 41.0);
        let labelled = db.add_labelled(&["invalid", "valid", "invalid", "valid"]);
        let trial = Trial::of([vec![unused], labelled].concat(), db);
        let (api, moment) = gated(1);
        let name = &trial.db.name;
        let uri = with_option(&trial.db.uri, &format!("appName={name}"));
        let run = talkative(&trial.db, &api).args(["--cleanup-days", "30", "--max-delete", "3"]);
        let live = run.env("MONGODB_URI", uri).start();
        let held = come(&moment);
        count(Total::FAULTS, 1);
        let data = doc! { "failCommands": [command], "errorCode": code, "appName": name };
        server.admin(doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data });
        drop(held);
        let outcome = live.wait();
        server.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" });
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

/// What an account may do with tokens and bin; what becomes of a valid token, an invalid one, and
/// one that the cleanup would take; what a warning names.
type Account = (&'static str, &'static str, &'static str, &'static str, Option<&'static str>);

const BIN: Option<&str> = Some("baoming_tokens_deleted");
const ACCOUNTS: [Account; 6] = [
    ("all", "find update remove", "find insert remove", "+xc", None),
    ("no-bin", "find update remove", "collStats", "+w.", BIN),
    ("read-bin", "find update remove", "find remove", "+w.", BIN),
    ("no-purge", "find update remove", "insert", "+xc", BIN),
    ("no-remove", "find update", "find insert remove", "+w.", Some("没有权限")),
    ("read-only", "find", "find", "!w.", Some("没有权限")),
];

#[test]
fn an_account_that_may_not_do_all_loses_nothing() {
    let server = Mongod::start_with_auth();
    each(&ACCOUNTS, |&(name, tokens, bin, ends, missing)| {
        count(Total::FAULTS, 1);
        let db = server.fresh_db();
        let [tokens, bin] = [tokens, bin].map(|actions| actions.split(' ').collect::<Vec<_>>());
        let privileges: [(&str, &[&str]); 3] =
            [("baoming_tokens", &tokens), ("cards", &["find"]), ("baoming_tokens_deleted", &bin)];
        let uri = server.add_user(name, &db.name, &privileges);
        let mut ids = db.add_labelled(&["invalid", "valid"]);
        ids.reverse();
        ids.push(db.add_used("unclear", 41.0));
        let trial = Trial::of(ids, db);
        // The collection is there, and an entry that is due for the purge.
        trial.db.add_to_bin(doc! {}, "old", 31.0 * 24.0);
        let api = Stub::by_label();
        let run = talkative(&trial.db, &api).args(["--cleanup-days", "30", "--max-age-days", "7"]);
        let outcome = run.env("MONGODB_URI", uri).go();
        let is_done = ends == "+xc";
        assert_report(&outcome, &trial.report(i32::from(!is_done), ends));
        let is_loud = |line: &&str| line.contains("[WARNING]") || line.contains("[ERROR]");
        let mut warnings = outcome.stderr.lines().filter(is_loud);
        assert!(missing.is_none_or(|it| warnings.any(|line| line.contains(it))), "{}", outcome.stderr);
        let old = trial.db.bin().delete_one(doc! { "reason": "old" }).run().expect("delete").deleted_count;
        assert_eq!(old == 0, is_done && bin.contains(&"remove"), "purged");
        trial.assert_ends(ends);
    });
}
