//! Program or server goes away while the program works: killed, frozen, stepped down. What can be
//! waited for costs nothing; what cannot, deletes nothing, and the next run completes it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mongodb::bson::doc;

use super::Fate::{Recycled, Refreshed};
use super::support::{Mongod, Outcome, PATIENCE, ReplicaSet, Signal, Stub, TestDb, Wire};
use super::{
    Gate, add_tokens, as_labelled, assert_fates, assert_report, assert_whole, each, fates_by_id, report,
    talkative,
};

/// Three that go and three that stay; the last one is written after all others are judged.
const LABELS: [&str; 6] = ["invalid", "valid", "invalid", "valid", "invalid", "valid"];

fn api(on_check: impl Fn(usize) + Send + Sync + 'static) -> Stub {
    Stub::start(move |request| {
        on_check(request.number);
        as_labelled(request)
    })
}

/// When the database goes away.
#[derive(Clone, Copy, Debug)]
enum When {
    /// While the API is asked about the n-th token.
    Check(usize),
    /// At the n-th command of this kind, before the server has seen it.
    Command(&'static str, usize),
    /// The same, once the server has carried it out: the answer is lost.
    Answer(&'static str, usize),
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    /// SIGKILL; a restart brings it back.
    Kill,
    /// SIGSTOP; SIGCONT brings it back.
    Freeze,
}

/// When, what, after how many seconds it is back if at all, and the counts that follow: success,
/// failed, deleted, withheld, unprocessed.
type Row = (When, Harm, Option<u64>, [usize; 5]);

#[rustfmt::skip]
fn outages() -> Vec<Row> {
    use Harm::{Freeze, Kill};
    use When::{Answer, Check, Command};
    const FIND: &str = "find baoming_tokens";
    const UPDATE: &str = "update baoming_tokens";
    const BIN: &str = "insert baoming_tokens_deleted";
    const DELETE: &str = "delete baoming_tokens";
    const DONE: [usize; 5] = [3, 0, 3, 0, 0];
    vec![
        (Check(2), Freeze, None, [0, 1, 0, 1, 4]),
        (Command(DELETE, 2), Freeze, None, [3, 1, 1, 1, 0]),
        (Check(2), Kill, None, [0, 1, 0, 1, 4]),
        (Check(6), Kill, None, [2, 1, 0, 3, 0]),
        (Command(FIND, 2), Kill, None, [0; 5]),
        (Command(UPDATE, 2), Kill, None, [1, 1, 0, 2, 2]),
        (Command(BIN, 1), Kill, None, [3, 0, 0, 3, 0]),
        (Answer(BIN, 2), Kill, None, [3, 0, 1, 2, 0]),
        (Command(DELETE, 2), Kill, None, [3, 1, 1, 1, 0]),
        (Answer(DELETE, 2), Kill, None, [3, 1, 1, 1, 0]),
        (Check(2), Kill, Some(14), DONE),
        (Command(DELETE, 2), Kill, Some(12), DONE),
        (Check(4), Freeze, Some(8), DONE),
        (Check(6), Kill, Some(3), DONE),
        (Answer(UPDATE, 1), Kill, Some(2), DONE),
        (Command(BIN, 2), Kill, Some(2), DONE),
        (Answer(BIN, 2), Kill, Some(2), DONE),
        (Command(DELETE, 1), Kill, Some(2), DONE),
        (Answer(DELETE, 1), Kill, Some(2), DONE),
        (Command(BIN, 2), Freeze, Some(3), DONE),
    ]
}

/// A run during which the server goes away, and maybe comes back.
fn disturbed_run(server: &Mongod, db: &TestDb, &(when, harm, back_after, _): &Row) -> Outcome {
    let bring_back = || match harm {
        Harm::Kill => server.restart(),
        Harm::Freeze => server.thaw(),
    };
    let (gate, reached, go) = Gate::new();
    let at_check = Arc::clone(&gate);
    let api = api(move |number| {
        if matches!(when, When::Check(n) if n == number) {
            at_check.wait();
        }
    });
    let wire = Wire::to(server.host(), move |command| {
        let moment = match when {
            When::Check(_) => return true,
            When::Command(what, n) => (what, n, false),
            When::Answer(what, n) => (what, n, true),
        };
        let is_now = (command.what.as_str(), command.nth, command.answered) == moment;
        if is_now {
            gate.wait();
        }
        !(is_now && command.answered)
    });
    // Past the wire when it is not needed: a closed port is not the same as a closed connection.
    let uri = if let When::Check(_) = when { db.uri.clone() } else { wire.uri() };
    // What does not come back is not waited for half a minute.
    let join = if uri.contains('?') { '&' } else { '?' };
    let uri = if back_after.is_none() { format!("{uri}{join}timeoutMS=3000") } else { uri };
    let live = talkative(db, &api).env("MONGODB_URI", uri).start();
    reached.recv_timeout(PATIENCE).expect("the moment");
    match harm {
        Harm::Kill => server.kill(),
        Harm::Freeze => server.freeze(),
    }
    drop(go);
    if let Some(seconds) = back_after {
        thread::sleep(Duration::from_secs(seconds));
        bring_back();
        return live.wait();
    }
    let outcome = live.wait();
    bring_back();
    outcome
}

#[test]
fn a_server_that_goes_away_in_mid_run() {
    let name = |(when, harm, back_after, _): &Row| format!("{when:?} {harm:?} {back_after:?}");
    each(&outages(), name, |row| {
        let server = Mongod::start();
        let db = server.fresh_db();
        let ids = add_tokens(&db, &LABELS);
        server.admin(doc! { "fsync": 1 });
        let before = db.snapshot();
        let outcome = disturbed_run(&server, &db, row);

        let &(_, harm, back_after, counts) = row;
        let (code, stopped) = if back_after.is_some() { (0, None) } else { (1, Some("database")) };
        let fields = ["success", "failed", "deleted", "withheld", "unprocessed"];
        let mut counts: Vec<_> = fields.into_iter().zip(counts).collect();
        counts.push(("total", counts.iter().map(|(_, count)| count).sum()));
        assert_report(&outcome, &report(&db, code, stopped, &counts));
        assert!(outcome.elapsed < Duration::from_secs(40), "{:?}", outcome.elapsed);
        assert_whole(&db, &before);
        if (harm, back_after.is_some()) == (Harm::Freeze, true) {
            // A killed server may forget what it had not yet written to its disk, this one not.
            assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(3)));
        }
        if outcome.stat("删除") == 0 {
            assert_eq!(db.snapshot().tokens.len(), LABELS.len());
        }
        // The next run completes what this one began.
        let completed = talkative(&db, &api(|_| {})).go();
        assert_eq!(completed.code, Some(0), "{}", completed.stderr);
        assert_whole(&db, &before);
    });
}

/// What happens to the primary of a replica set.
#[derive(Clone, Copy, Debug)]
enum Fall {
    StepsDown,
    Dies,
}

#[test]
fn a_replica_set_that_changes_its_primary_in_mid_run() {
    let set = ReplicaSet::start();
    let labels = ["invalid", "valid"].repeat(20);
    // In this order: who stepped down is not elected again for half a minute.
    let falls = [Fall::Dies, Fall::StepsDown];
    for (fall, in_delete_step) in falls.into_iter().flat_map(|fall| [(fall, false), (fall, true)]) {
        eprintln!("{fall:?}, in the delete step: {in_delete_step}");
        let db = set.fresh_db(&format!("{fall:?}-{in_delete_step}"));
        let ids = add_tokens(&db, &labels);
        let before = db.snapshot();
        let (gate, reached, go) = Gate::new();
        let api = api(move |number| {
            if number == 6 && !in_delete_step {
                gate.wait();
            }
        });
        let live = talkative(&db, &api).args(["--max-delete", "100%"]).start();
        if in_delete_step {
            // The program stands still in it until the primary is another one.
            live.await_line("已删除失效 Token");
            live.signal(Signal::STOP);
        } else {
            reached.recv_timeout(PATIENCE).expect("the moment");
        }
        let primary = set.primary();
        match fall {
            Fall::StepsDown => set.step_down(),
            Fall::Dies => primary.kill(),
        }
        drop(go);
        if in_delete_step {
            live.signal(Signal::CONT);
        }
        let outcome = live.wait();
        assert_report(&outcome, &report(&db, 0, None, &[("total", 40), ("success", 20), ("deleted", 20)]));
        if let Fall::Dies = fall {
            primary.restart();
        }
        set.await_healthy();
        assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(20)));
    }
}
