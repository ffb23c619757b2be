//! kill -9 of the program at any moment: each token is as it was, refreshed, or whole in the bin,
//! and the next run completes what this one began.

use std::thread;
use std::time::Duration;

use mongodb::bson::doc;

use super::support::{Mongod, PATIENCE, Seed, Snapshot, Stub, TestDb, await_true, unique_token};
use super::wire::Wire;
use super::{
    Fate, Gate, add_tokens, as_labelled, assert_fates, assert_report, each, id_of, refreshed, report,
    talkative,
};

/// A token that was killed for is never between two states.
#[track_caller]
pub fn assert_whole(db: &TestDb, before: &Snapshot) {
    db.assert_none_lost();
    let after = db.snapshot();
    assert_eq!(after.cards, before.cards);
    let binned: Vec<_> =
        after.bin.iter().map(|entry| entry.get_document("token").expect("a token").as_bytes()).collect();
    assert!(binned.iter().all(|token| before.tokens.iter().any(|old| old.as_bytes() == *token)));
    for old in &before.tokens {
        let id = id_of(old);
        match after.tokens.iter().find(|token| id_of(token) == id) {
            Some(same) if same == old => {}
            Some(new) => assert_eq!(*new, refreshed(old, &db.token(id).expect("the token"))),
            None => assert!(binned.contains(&old.as_bytes()), "{old:?}"),
        }
    }
}

/// What the next run, undisturbed, must leave behind.
#[track_caller]
fn assert_completed(db: &TestDb, before: &Snapshot, api: &Stub) {
    let again = db.snapshot();
    let outcome = talkative(db, api).args(["--max-delete", "100%", "--cleanup-days", "30"]).go();
    assert!([Some(0), Some(3)].contains(&outcome.code), "{}", outcome.stderr);
    assert_whole(db, before);
    let label = |id| {
        let token = again.tokens.iter().find(|token| id_of(token) == id);
        token.expect("a token").get_str("access_token").expect("text").to_owned()
    };
    assert_fates(db, &again, |id| match label(id) {
        token if token.contains("-unused-") => Fate::Recycled,
        token if token.contains("-busy-") => Fate::Kept,
        token if token.contains("-valid-") => Fate::Refreshed,
        _ => Fate::Recycled,
    });
}

/// Waits until the server has done all that it was told by a client of this name.
fn await_gone(name: &str) {
    await_true("the end of its connections", || {
        let pipeline = [
            doc! { "$currentOp": { "idleConnections": true } },
            doc! { "$match": { "clientMetadata.application.name": name } },
        ];
        let admin = Mongod::shared().client().database("admin");
        admin.aggregate(pipeline).run().expect("current operations").next().is_none()
    });
}

/// Kills the program at the n-th command to the database: before the server has seen it, or once
/// it was carried out and not yet answered.
pub fn kill_at(db: &TestDb, api: &Stub, args: &[&str], n: usize, answered: bool) {
    let (gate, reached, dead) = Gate::new();
    let wire = Wire::to(Mongod::shared().host(), move |command| {
        if (command.number, command.answered) == (n, answered) {
            gate.wait();
            return false;
        }
        true
    });
    let run = talkative(db, api).args(args).env("MONGODB_URI", wire.uri());
    let live = run.start();
    reached.recv_timeout(PATIENCE).expect("the command");
    assert_eq!(live.kill().signal, Some(9));
    drop(dead);
}

#[test]
fn killed_at_every_command_to_the_database() {
    const CLEANUP: [&str; 2] = ["--cleanup-days", "30"];
    let seed = |db: &TestDb| {
        // The cleanup takes this one: its API is busy, and nobody used it for long.
        db.add(Seed::new(&unique_token("unused-busy")).last_used_days_ago(41.0));
        add_tokens(db, &["invalid", "valid", "busy", "invalid", "valid", "invalid"]);
    };
    // As many commands as an undisturbed run has.
    let api = Stub::start(as_labelled);
    let db = Mongod::shared().fresh_db();
    seed(&db);
    let wire = Wire::to(Mongod::shared().host(), |_| true);
    let undisturbed = talkative(&db, &api).args(CLEANUP).env("MONGODB_URI", wire.uri()).go();
    let counts = [("total", 7), ("success", 2), ("failed", 2), ("deleted", 3), ("cleaned", 1)];
    assert_report(&undisturbed, &report(&db, 3, None, &counts));
    let commands = wire.commands();
    assert!(commands > 20, "{commands} commands");

    let moments: Vec<_> = (1..=commands).flat_map(|n| [(n, false), (n, true)]).collect();
    each(
        &moments,
        |(n, answered)| format!("command {n}, answered: {answered}"),
        |&(n, answered)| {
            let db = Mongod::shared().fresh_db();
            seed(&db);
            let before = db.snapshot();
            kill_at(&db, &api, &CLEANUP, n, answered);
            assert_whole(&db, &before);
            assert_completed(&db, &before, &api);
        },
    );
}

#[test]
fn killed_at_any_time() {
    const TOKENS: u64 = 60;
    // A network so slow that judging and deletion outlast every delay below.
    const SLOW: Duration = Duration::from_millis(2);
    let labels: Vec<_> = ["invalid", "valid", "invalid"].into_iter().cycle().take(60).collect();
    // xorshift: the same moments every time, for all that a test can do about it.
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    // Every other one while tokens are judged, the rest in the delete step, which follows the last request.
    let moments: Vec<_> = (0..36)
        .map(|i| if i % 2 == 0 { (below(TOKENS) + 1, below(10)) } else { (TOKENS, below(200)) })
        .collect();
    let name = |&(request, delay_ms): &(u64, u64)| format!("{delay_ms} ms after request {request}");
    each(&moments, name, |&(request, delay_ms)| {
        let db = Mongod::shared().fresh_db();
        add_tokens(&db, &labels);
        let before = db.snapshot();
        let api = Stub::start(as_labelled);
        let wire = Wire::to(Mongod::shared().host(), |_| {
            thread::sleep(SLOW);
            true
        });
        let uri = format!("{}?appName={}&serverMonitoringMode=poll", wire.uri(), db.name);
        let live = talkative(&db, &api).args(["--max-delete", "100%"]).env("MONGODB_URI", uri).start();
        api.await_request(usize::try_from(request).expect("a small number"));
        thread::sleep(Duration::from_millis(delay_ms));
        assert_eq!(live.kill().signal, Some(9));
        await_gone(&db.name);
        assert_whole(&db, &before);
        assert_completed(&db, &before, &api);
    });
}
