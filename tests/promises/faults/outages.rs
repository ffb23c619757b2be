//! Program or server goes away while the program works: killed, frozen, stepped down. What can be
//! waited for costs nothing; what cannot, deletes nothing, and the next run completes it. A
//! connection that is lost at each single command is a test of `steps`.

use std::thread;
use std::time::Duration;

use mongodb::bson::doc;

use super::Fate::{Recycled, Refreshed};
use super::support::{Mongod, ReplicaSet, Stub};
use super::{
    assert_fates, assert_report, assert_whole, each, gated, of_tokens, report, talkative, with_option,
};

/// What happens to a server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    /// SIGKILL; a restart brings it back.
    Kill,
    /// SIGSTOP; SIGCONT brings it back.
    Freeze,
}
use Harm::{Freeze, Kill};

/// Three that go and three that stay; the last one is written after all others are judged.
const LABELS: [&str; 6] = ["invalid", "valid", "invalid", "valid", "invalid", "valid"];

/// While the API is asked which question (six, then the second ones) what happens, after how many
/// seconds the server is back if at all, and the counts that follow: success, failed, deleted,
/// withheld, unprocessed.
type Row = (usize, Harm, Option<u64>, [usize; 5]);

const DONE: [usize; 5] = [3, 0, 3, 0, 0];
const OUTAGES: [Row; 13] = [
    (2, Freeze, None, [0, 1, 0, 1, 4]),
    (8, Freeze, None, [3, 0, 1, 2, 0]),
    (2, Kill, None, [0, 1, 0, 1, 4]),
    (6, Kill, None, [2, 1, 0, 3, 0]),
    (7, Kill, None, [3, 0, 0, 3, 0]),
    (9, Kill, None, [3, 0, 2, 1, 0]),
    (2, Kill, Some(14), DONE),
    (8, Kill, Some(12), DONE),
    (4, Freeze, Some(8), DONE),
    (6, Kill, Some(3), DONE),
    (1, Kill, Some(2), DONE),
    (7, Kill, Some(2), DONE),
    (9, Freeze, Some(3), DONE),
];

#[test]
fn a_server_that_goes_away_in_mid_run() {
    each(&OUTAGES, |&(question, harm, back_after, counts)| {
        let server = Mongod::start();
        let db = server.fresh_db();
        let ids = db.add_labelled(&LABELS);
        server.admin(doc! { "fsync": 1 });
        let before = db.snapshot();
        let bring_back = || match harm {
            Kill => server.restart(),
            Freeze => server.thaw(),
        };
        let (api, moment) = gated(question);
        // What does not come back is not waited for half a minute.
        let limit = if back_after.is_none() { "timeoutMS=3000" } else { "" };
        let live = talkative(&db, &api).env("MONGODB_URI", with_option(&db.uri, limit)).start();
        moment.come();
        match harm {
            Kill => server.kill(),
            Freeze => server.freeze(),
        }
        drop(moment);
        if let Some(seconds) = back_after {
            thread::sleep(Duration::from_secs(seconds));
            bring_back();
        }
        let outcome = live.wait();
        if back_after.is_none() {
            bring_back();
        }
        let (code, stopped) = if back_after.is_some() { (0, None) } else { (1, Some("database")) };
        assert_report(&outcome, &report(&db, code, stopped, &of_tokens(counts)));
        assert!(outcome.elapsed < Duration::from_secs(40), "{:?}", outcome.elapsed);
        assert_whole(&db, &before);
        if (harm, back_after.is_some()) == (Freeze, true) {
            // A killed server may forget what it had not yet written to its disk, this one not.
            assert_fates(&db, &before, &ids, &[Recycled, Refreshed].repeat(3));
        }
        if outcome.stat("删除") == 0 {
            assert_eq!(db.snapshot().tokens.len(), LABELS.len());
        }
        // The next run completes what this one began.
        talkative(&db, &Stub::by_label()).go().expect(0);
        assert_whole(&db, &before);
    });
}

#[test]
fn a_replica_set_that_changes_its_primary_in_mid_run() {
    let set = ReplicaSet::start_of(3, false, 1000);
    let labels = ["invalid", "valid"].repeat(20);
    // In this order: who stepped down is not elected again for half a minute.
    for (dies, in_delete_step) in [(true, false), (true, true), (false, false), (false, true)] {
        eprintln!("dies: {dies}, in the delete step: {in_delete_step}");
        let db = set.fresh_db(&format!("{dies}-{in_delete_step}"));
        let ids = db.add_labelled(&labels);
        let before = db.snapshot();
        let (api, moment) = gated(if in_delete_step { 45 } else { 6 });
        let live = talkative(&db, &api).args(["--max-delete", "100%"]).start();
        moment.come();
        let primary = set.primary();
        if dies {
            primary.kill();
        } else {
            set.step_down();
        }
        drop(moment);
        let outcome = live.wait();
        assert_report(&outcome, &report(&db, 0, None, &[("success", 20), ("deleted", 20)]));
        if dies {
            primary.restart();
        }
        set.await_healthy();
        assert_fates(&db, &before, &ids, &[Recycled, Refreshed].repeat(20));
    }
}
