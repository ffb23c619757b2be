//! Program or server goes away while the program works: killed, frozen, stepped down. What can be
//! waited for costs nothing; what cannot, deletes nothing, and the next run completes it. A
//! connection that is lost at each single command is a test of `steps`.

use std::thread;
use std::time::{Duration, Instant};

use mongodb::bson::doc;

use super::support::{Mongod, ReplicaSet, Run, Signal, Stub, TestDb, Total, await_true, count};
use super::{Trial, assert_report, assert_whole, come, each, gated, talkative, with_option};

/// What happens to a server, and what brings it back.
type Harm = (&'static str, fn(&Mongod), fn(&Mongod));

const KILL: Harm = ("SIGKILL", Mongod::kill, Mongod::restart);
const FREEZE: Harm = ("SIGSTOP", Mongod::freeze, Mongod::thaw);
const LOCK: Harm = ("locked for a backup, so that writes wait", Mongod::lock, Mongod::unlock);

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// The server is back after so many seconds.
    Back(u64),
    /// The run gives up before it is.
    Lost,
    /// A signal comes when a write waits.
    Stopped,
}
use Then::{Back, Lost, Stopped};

/// Three that go and three that stay; the last one is written after all others are judged.
const LABELS: [&str; 6] = ["invalid", "valid", "invalid", "valid", "invalid", "valid"];
const DONE: &str = "x+x+x+";

/// While the API is asked which question (six, then the second ones) what happens, and what becomes
/// of each token.
const OUTAGES: [(usize, Harm, Then, &str); 15] = [
    (2, FREEZE, Lost, "w!----"),
    (8, FREEZE, Lost, "x+w+w+"),
    (2, LOCK, Lost, "w!----"),
    (2, LOCK, Stopped, "w!----"),
    (2, KILL, Lost, "w!----"),
    (6, KILL, Lost, "w+w+w!"),
    (7, KILL, Lost, "w+w+w+"),
    (9, KILL, Lost, "x+x+w+"),
    (2, KILL, Back(14), DONE),
    (8, KILL, Back(12), DONE),
    (4, FREEZE, Back(8), DONE),
    (6, KILL, Back(3), DONE),
    (1, KILL, Back(2), DONE),
    (7, KILL, Back(2), DONE),
    (9, FREEZE, Back(3), DONE),
];

#[test]
fn a_server_that_goes_away_in_mid_run() {
    each(&OUTAGES, |&(question, (harm, strike, heal), then, ends)| {
        let server = Mongod::start();
        let trial = Trial::new(server.fresh_db(), &LABELS);
        server.admin(doc! { "fsync": 1 });
        let (api, moment) = gated(question);
        // What does not come back is not waited for half a minute.
        let limit = if then == Lost { "timeoutMS=3000" } else { "" };
        let run = talkative(&trial.db, &api).env("MONGODB_URI", with_option(&trial.db.uri, limit));
        let live = run.start();
        let held = come(&moment);
        strike(&server);
        drop(held);
        let start = Instant::now();
        match then {
            Back(seconds) => {
                thread::sleep(Duration::from_secs(seconds));
                heal(&server);
            }
            Lost => {}
            Stopped => {
                await_true("a write that waits", || is_waiting(&server, &trial.db.name));
                live.signal(Signal::TERM);
            }
        }
        let outcome = live.wait();
        // A lock: 3 s, or 2 s after a signal; the rest is for a busy machine.
        let limit = Duration::from_secs(if harm == LOCK.0 { 12 } else { 40 });
        assert!(start.elapsed() < limit, "{:?}", start.elapsed());
        let code = match then {
            Back(_) => 0,
            Lost => 1,
            Stopped => 143,
        };
        assert_report(&outcome, &trial.report(code, ends));
        if code != 0 {
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
        let (api, moment) = gated(if in_delete_step { 45 } else { 6 });
        let live = talkative(&trial.db, &api).args(["--max-delete", "100%"]).start();
        let held = come(&moment);
        let primary = set.primary();
        if dies {
            primary.kill();
        } else {
            set.step_down();
        }
        drop(held);
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
    let admin = set.client().database("admin");
    await_true("the cluster's defaults", || admin.run_command(defaults.clone()).run().is_ok());
    let stall = |mode: &str| {
        count(Total::FAULTS, 1);
        for node in set.nodes.iter().filter(|node| node.host() != primary.host()) {
            node.admin(doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode });
        }
    };
    for (question, ends, trial) in cases {
        let (api, moment) = gated(question);
        let live = limited(&trial.db, &api).start();
        let held = come(&moment);
        stall("alwaysOn");
        drop(held);
        let outcome = live.wait();
        assert_report(&outcome, &trial.report(1, ends));
        // Until then a read of a majority, the default now, waits for ever.
        stall("off");
        assert!(assert_whole(&trial.db, &trial.before).is_empty());
        await_true("the secondaries to follow", || limited(&trial.db, &api).go().code == Some(0));
        trial.assert_ends(DONE);
    }
}
