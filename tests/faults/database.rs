//! The database goes away while the program works: killed, frozen, stepped down, or a single
//! command or answer is lost. What can be waited for costs nothing; what cannot, deletes nothing.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mongodb::bson::doc;

use super::Fate::{Recycled, Refreshed};
use super::crash::assert_whole;
use super::support::{Mongod, PATIENCE, ReplicaSet, Reply, Signal, Stub};
use super::wire::Wire;
use super::{Gate, add_tokens, assert_fates, assert_report, each, fates_by_id, report, talkative};

/// Three that go and three that stay; the last one is written after all others are judged.
const LABELS: [&str; 6] = ["invalid", "valid", "invalid", "valid", "invalid", "valid"];

fn api(on_check: impl Fn(usize) + Send + Sync + 'static) -> Stub {
    Stub::start(move |request| {
        on_check(request.number);
        if request.token().contains("-invalid-") { Reply::invalid() } else { Reply::valid() }
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
use When::{Answer, Check, Command};

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    /// SIGKILL, and a restart after so many seconds.
    Down(u64),
    /// SIGSTOP, and SIGCONT after so many seconds.
    Frozen(u64),
    /// SIGKILL for good.
    Dead,
    /// SIGSTOP for good.
    Stuck,
}
use Harm::{Dead, Down, Frozen, Stuck};

const BIN: &str = "insert baoming_tokens_deleted";
const DELETE: &str = "delete baoming_tokens";
const FIND: &str = "find baoming_tokens";
const UPDATE: &str = "update baoming_tokens";

#[test]
fn a_server_that_goes_away_in_mid_run() {
    // The counts of a run that cannot be finished: success, failed, deleted, withheld, unprocessed.
    const DONE: [usize; 5] = [3, 0, 3, 0, 0];
    let rows: Vec<(When, Harm, [usize; 5])> = vec![
        (Check(2), Stuck, [0, 1, 0, 1, 4]),
        (Command(DELETE, 2), Stuck, [3, 1, 1, 1, 0]),
        (Command(FIND, 3), Stuck, [0, 0, 0, 0, 6]),
        (Check(1), Dead, [0, 1, 0, 1, 4]),
        (Check(2), Dead, [0, 1, 0, 1, 4]),
        (Check(6), Dead, [2, 1, 0, 3, 0]),
        (Command(FIND, 2), Dead, [0, 0, 0, 0, 0]),
        (Command(FIND, 3), Dead, [0, 0, 0, 0, 6]),
        (Command(UPDATE, 2), Dead, [1, 1, 0, 2, 2]),
        (Command(FIND, 4), Dead, [3, 1, 0, 2, 0]),
        (Command(BIN, 1), Dead, [3, 1, 0, 2, 0]),
        (Answer(BIN, 2), Dead, [3, 1, 1, 1, 0]),
        (Command(DELETE, 2), Dead, [3, 1, 1, 1, 0]),
        (Answer(DELETE, 2), Dead, [3, 1, 1, 1, 0]),
        (Check(2), Down(14), DONE),
        (Command(DELETE, 2), Down(12), DONE),
        (Check(4), Frozen(8), DONE),
        (Check(1), Down(1), DONE),
        (Check(6), Down(3), DONE),
        (Command(FIND, 2), Down(2), DONE),
        (Answer(UPDATE, 1), Down(2), DONE),
        (Command(BIN, 2), Down(2), DONE),
        (Answer(BIN, 2), Down(2), DONE),
        (Command(DELETE, 1), Down(2), DONE),
        (Answer(DELETE, 1), Down(2), DONE),
        (Command(BIN, 2), Frozen(3), DONE),
    ];
    each(
        &rows,
        |(when, harm, _)| format!("{when:?} {harm:?}"),
        |&(when, harm, counts)| {
            let server = Mongod::start();
            let db = server.fresh_db();
            let ids = add_tokens(&db, &LABELS);
            server.admin(doc! { "fsync": 1 });
            let before = db.snapshot();
            let (gate, reached, go) = Gate::new();
            let at_check = Arc::clone(&gate);
            let api = api(move |number| {
                if matches!(when, Check(n) if n == number) {
                    at_check.wait();
                }
            });
            let seen = Mutex::new(0);
            let wire = Wire::to(server.host(), move |command| {
                let (Command(what, n) | Answer(what, n)) = when else { return true };
                if command.what != what || command.answered != matches!(when, Answer(..)) {
                    return true;
                }
                let nth = {
                    let mut seen = seen.lock().expect("count");
                    *seen += 1;
                    *seen
                };
                if nth == n {
                    gate.wait();
                }
                nth != n || !command.answered
            });
            // Past the wire when it is not needed: a closed port is not the same as a closed connection.
            let uri = if let Check(_) = when { db.uri.clone() } else { wire.uri() };
            let live = talkative(&db, &api).env("MONGODB_URI", uri).start();
            reached.recv_timeout(PATIENCE).expect("the moment");
            match harm {
                Down(_) | Dead => server.kill(),
                Frozen(_) | Stuck => server.freeze(),
            }
            drop(go);
            match harm {
                Down(seconds) => {
                    thread::sleep(Duration::from_secs(seconds));
                    server.restart();
                }
                Frozen(seconds) => {
                    thread::sleep(Duration::from_secs(seconds));
                    server.thaw();
                }
                Dead | Stuck => {}
            }
            let outcome = live.wait();
            let (code, stopped) = if counts == DONE { (0, None) } else { (1, Some("database")) };
            let total = if let (Command(FIND, 2), Dead) = (when, harm) { 0 } else { LABELS.len() };
            let [success, failed, deleted, withheld, unprocessed] = counts;
            let counts = [
                ("total", total),
                ("success", success),
                ("failed", failed),
                ("deleted", deleted),
                ("withheld", withheld),
                ("unprocessed", unprocessed),
            ];
            assert_report(&outcome, &report(&db, code, stopped, &counts));
            assert!(outcome.elapsed < Duration::from_secs(40), "{:?}", outcome.elapsed);

            match harm {
                Dead => server.restart(),
                Stuck => server.thaw(),
                Down(_) | Frozen(_) => {}
            }
            assert_whole(&db, &before);
            if let Frozen(_) = harm {
                // A killed server may forget what it had not yet written to its disk, this one not.
                assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(3)));
            }
            if deleted == 0 {
                assert_eq!(db.tokens().count_documents(doc! {}).run().expect("count"), 6);
            }
            // The next run completes what this one began.
            let completed = talkative(&db, &api).go();
            assert_eq!(completed.code, Some(0), "{}", completed.stderr);
            assert_whole(&db, &before);
        },
    );
}

#[test]
fn a_lost_command_or_answer_costs_nothing() {
    let run = |lost: &[(usize, bool)]| {
        let db = Mongod::shared().fresh_db();
        let ids = add_tokens(&db, &LABELS);
        let before = db.snapshot();
        let api = api(|_| {});
        let lost = lost.to_vec();
        let wire = Wire::to(Mongod::shared().host(), move |command| {
            !lost.contains(&(command.number, command.answered))
        });
        let outcome = talkative(&db, &api).env("MONGODB_URI", wire.uri()).go();
        let counts = [("total", 6), ("success", 3), ("deleted", 3)];
        assert_report(&outcome, &report(&db, 0, None, &counts));
        assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(3)));
        wire.commands()
    };
    let commands = run(&[]);
    let mut rows = Vec::new();
    for n in 1..=commands {
        rows.extend([vec![(n, false)], vec![(n, true)]]);
        // The driver's own retry of a read is lost, too; connecting is tried no more than that.
        if n > 1 {
            rows.extend([vec![(n, false), (n + 1, true)], vec![(n, true), (n + 1, false), (n + 2, true)]]);
        }
    }
    each(&rows, |row| format!("{row:?}"), |row| assert!(run(row) > commands));
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
    let labels = ["invalid", "valid"].repeat(8);
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
        assert_report(&outcome, &report(&db, 0, None, &[("total", 16), ("success", 8), ("deleted", 8)]));
        if let Fall::Dies = fall {
            primary.restart();
        }
        set.await_healthy();
        assert_fates(&db, &before, fates_by_id(&ids, [Recycled, Refreshed].repeat(8)));
    }
}
