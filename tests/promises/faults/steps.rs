//! Each step broken in each way: every command of a run × all that can happen to it × connection
//! strings that ask for other concerns. Then an undisturbed run, and three sums: every token is
//! living or whole in the bin, the counts equal the database, exit code and log say what happened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::sync::Collection;
use serde_json::json;

use super::support::wire::Command;
use super::support::{
    self, Act, Outcome, Seed, Signal, Snapshot, Stub, TestDb, Total, Wire, count, unique_token,
    wall_clock_days_ago,
};
use super::{Trial, assert_report, assert_whole, come, each, id_of, report, single, sum, talkative, wait_at};

/// A kind of run.
#[derive(Debug)]
struct Scenario {
    name: &'static str,
    /// Fills the database; gives the arguments.
    seed: fn(&TestDb) -> String,
    /// What an undisturbed run counts; first the tokens that then live, none of them invalid.
    counts: &'static [(&'static str, usize)],
    /// The commands that it must have, so that none is passed over unseen.
    writes: &'static [&'static str],
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "refresh",
        seed: |db| {
            db.add_labelled(&["invalid", "valid"]);
            String::new()
        },
        counts: &[("success", 1), ("deleted", 1)],
        writes: &["update baoming_tokens", "insert baoming_tokens_deleted", "delete baoming_tokens"],
    },
    Scenario {
        name: "cleanup and purge",
        seed: |db| {
            db.add_token("valid");
            db.add_used("unused-invalid", 41.0);
            db.add_to_bin(Seed::new(&unique_token("purged")).0, "old", 31.0 * 24.0);
            "--cleanup-days 30 --max-age-days 7".to_owned()
        },
        counts: &[("success", 1), ("cleaned", 1)],
        writes: &["insert baoming_tokens_deleted", "delete baoming_tokens", "delete baoming_tokens_deleted"],
    },
    Scenario {
        name: "restore",
        seed: |db| {
            for (id, hours) in db.add_labelled(&["first", "second"]).into_iter().zip([1.0, 2.0]) {
                db.add_to_bin(db.token(id).expect("a token"), "x", hours);
            }
            db.tokens().delete_many(doc! {}).run().expect("delete");
            "--restore-hours 24".to_owned()
        },
        counts: &[("success", 2)],
        writes: &["insert baoming_tokens", "delete baoming_tokens_deleted"],
    },
    Scenario {
        name: "import",
        seed: |db| {
            let mut file = json!({});
            for name in ["first", "second"] {
                let token = unique_token(name);
                db.add_secret(&token);
                let entry = json!({ "access_token": token, "uname": name, "_save_time": 1_770_000_000 });
                file[format!("card_{}", db.add_card(name))] = entry;
            }
            let file = support::file("baoming_tokens.json", file.to_string(), 0o600);
            format!("--import-json {}", file.display())
        },
        counts: &[("success", 2)],
        writes: &["insert baoming_tokens"],
    },
];

/// Options that the program must not take over.
const OPTIONS: [&str; 3] = ["", "&w=5&readConcernLevel=majority", "&w=majority&wtimeoutMS=100"];

/// What somebody else does to a token that is due, or comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// A new login of the same document.
    Renews,
    /// The desktop application uses it.
    Uses,
    Deletes,
    /// A new document for the same card, or for the same `_id` where there is none.
    Replaces,
}

impl Change {
    fn make(self, tokens: &Collection<Document>, old: &Document) {
        let used = wall_clock_days_ago(0.01);
        let this = doc! { "_id": old.get_object_id("_id").expect("_id") };
        let set =
            |fields| drop(tokens.update_one(this.clone(), doc! { "$set": fields }).run().expect("update"));
        match self {
            Self::Renews => {
                let token = unique_token("renewed");
                set(doc! { "access_token": token, "uname": "李四", "updated_at": used, "last_used": used });
            }
            Self::Uses => set(doc! { "last_used": used, "updated_at": used }),
            Self::Deletes => drop(tokens.delete_one(this).run().expect("delete")),
            Self::Replaces => {
                let new = Seed::new(&unique_token("new")).card(old.get_object_id("card").expect("a card"));
                let is_there = tokens.delete_one(this).run().expect("delete").deleted_count == 1;
                let new = if is_there { new } else { new.set("_id", old.get_object_id("_id").expect("_id")) };
                tokens.insert_one(new.0).run().expect("insert");
            }
        }
    }
}

/// What happens at a command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    /// Somebody else changes the token with this place, and what they left stays.
    Change(Change, usize),
    /// Another whole run comes first.
    Rival,
    /// Once, and it must be as if nothing had been.
    Passing(Act),
    /// Once, and what cannot be known or done is not done.
    Once(Act),
    /// This command and all that follow are lost.
    Gone,
    /// SIGKILL at that moment.
    Kill,
    /// SIGTERM, and then this.
    Term(Act),
}

impl Blow {
    /// Whether the program waits for what the test does.
    fn waits(self) -> bool {
        !matches!(self, Self::Passing(_) | Self::Once(_) | Self::Gone)
    }
}

/// All that can happen to a command, each with whether it does so once the server carried it out.
fn blows(is_write: bool) -> Vec<(bool, Blow)> {
    use Act::{Cut, Doubt, Fail, Hold, Pass};
    use Blow::{Gone, Kill, Once, Passing, Rival, Term};
    let changes = [Change::Renews, Change::Uses, Change::Deletes, Change::Replaces];
    let changes = changes.into_iter().flat_map(|change| [0, 1].map(|place| Blow::Change(change, place)));
    let passing = [Passing(Cut), Passing(Fail(16_500)), Once(Hold), Once(Fail(13)), Once(Fail(8_000))];
    let lasting = [Rival, Gone, Kill, Term(Hold), Term(Pass)];
    let first = changes.chain(passing).chain(lasting).map(|blow| (false, blow));
    let then = [Passing(Cut), Passing(Fail(262)), Gone, Kill];
    let of_writes = [Hold, Fail(8_000), Doubt(64), Doubt(79), Doubt(100)].map(Once);
    let of_writes = of_writes.into_iter().chain([Term(Hold)]).filter(|_| is_write);
    first.chain(then.into_iter().chain(of_writes).map(|blow| (true, blow))).collect()
}

/// There is no such command.
const UNDISTURBED: (usize, bool, Blow) = (0, false, Blow::Passing(Act::Pass));

/// A run over a wire on which this happens at the n-th command; what was struck, if any, and what
/// the database held before the run, or once somebody else had changed it.
fn run(db: &TestDb, args: &str, options: &str, (n, answered, blow): (usize, bool, Blow)) -> Run {
    let (gate, moment) = channel();
    let mut before = db.snapshot();
    let strike = move |command: &Command| {
        if (command.number, command.answered) != (n, answered) {
            return if blow == Blow::Gone && command.number > n { Act::Cut } else { Act::Pass };
        }
        if blow.waits() {
            wait_at(&gate);
        }
        match blow {
            Blow::Passing(act) | Blow::Once(act) | Blow::Term(act) => act,
            Blow::Gone | Blow::Kill => Act::Cut,
            Blow::Change(..) | Blow::Rival => Act::Pass,
        }
    };
    let wire = Wire::start(single().nodes[0].host(), strike, |_| {});
    // What is waited for in vain costs no half minute.
    let is_lasting = matches!(blow, Blow::Once(Act::Hold) | Blow::Gone);
    // This one server, whatever set it is in.
    let uri = format!("mongodb://{}/?directConnection=true{options}", wire.address());
    let uri = uri + if is_lasting { "&timeoutMS=1000" } else { "" };
    let api = Stub::by_label();
    let run = talkative(db, &api).args(args.split_whitespace()).env("MONGODB_URI", uri);
    let live = run.limit(Duration::from_secs(20)).start();
    let held = blow.waits().then(|| come(&moment));
    match blow {
        Blow::Term(_) => live.signal(Signal::TERM),
        Blow::Change(change, place) => {
            count(Total::FAULTS, 1);
            let token = before.tokens.iter().chain(&before.binned()).nth(place).expect("a token").clone();
            db.disown(id_of(&token));
            change.make(&db.tokens(), &Document::try_from(token).expect("a document"));
            before = db.snapshot();
        }
        Blow::Rival => drop(talkative(db, &api).args(args.split_whitespace()).go().expect(0)),
        _ => {}
    }
    let signalled = Instant::now();
    let outcome = if blow == Blow::Kill {
        live.kill()
    } else {
        drop(held);
        live.wait()
    };
    // 2 s; the rest is for a busy machine.
    let is_prompt = signalled.elapsed() < Duration::from_secs(6);
    assert!(is_prompt || !matches!(blow, Blow::Term(_)), "{:?}", signalled.elapsed());
    let commands = wire.commands();
    assert!(n <= commands.len(), "nothing struck: {outcome:?}");
    let struck = n.checked_sub(1).map_or(String::new(), |place| commands[place].what.clone());
    Run { before, outcome, struck, commands }
}

/// A run and what was seen of it.
struct Run {
    before: Snapshot,
    outcome: Outcome,
    struck: String,
    commands: Vec<Command>,
}

impl Scenario {
    /// Whether all is done that an undisturbed run does.
    fn is_done(&self, db: &TestDb, before: &Snapshot) -> bool {
        let tokens = db.snapshot().tokens;
        let is_done = |token: &RawDocumentBuf| {
            let is_invalid = token.get_str("access_token").expect("a token").contains("-invalid-");
            !is_invalid && !before.tokens.contains(token)
        };
        tokens.len() == self.counts[0].1 && tokens.iter().all(is_done)
    }

    /// Its own concerns and no transaction number, whatever the connection string says.
    fn assert_concerns(&self, commands: &[Command]) {
        for command in commands {
            let body = &command.body;
            let expected = match &command.what {
                what if what.starts_with("insert ") => Some(doc! { "w": "majority", "wtimeout": 10_000 }),
                _ if command.is_write() => Some(doc! { "w": 1 }),
                _ => None,
            };
            let write = body.get_document("writeConcern").ok().map(|it| it.try_into().expect("a document"));
            assert_eq!(write, expected, "{command:?}");
            let level = body.get_document("readConcern").ok().map(|read| read.get_str("level").ok());
            // A list of collections takes no concern.
            let is_exempt = command.is_write() || command.what == "listCollections";
            assert!(is_exempt || level == Some(Some("local")), "{command:?}");
            assert!(body.get("txnNumber").expect("BSON").is_none(), "{command:?}");
        }
        for write in self.writes {
            assert!(commands.iter().any(|command| command.what == *write), "no {write} in {commands:?}");
        }
    }

    /// The three sums.
    #[track_caller]
    fn assert_sums(&self, db: &TestDb, run: &Run, blow: Blow) {
        let (before, outcome, what) = (&run.before, &run.outcome, run.struck.as_str());
        let both = assert_whole(db, before);
        let is_unclear =
            what.starts_with("delete ") || matches!(blow, Blow::Gone | Blow::Kill | Blow::Term(_));
        let is_put_back = self.name == "restore" && what == "insert baoming_tokens";
        // Or the log says that the copy could not be taken out.
        let is_told = outcome.stderr.contains("副本");
        assert!(both.is_empty() || is_unclear || is_put_back || is_told, "living and in the bin: {both:?}");
        if blow == Blow::Kill {
            assert_eq!(outcome.signal, Some(9));
            return;
        }
        if let Blow::Passing(_) = blow {
            assert_report(outcome, &report(db, 0, None, self.counts));
        }
        let (now, told) = (db.snapshot().tokens, outcome.json());
        let is_there = |old: &&RawDocumentBuf| now.iter().any(|new| id_of(new) == id_of(old));
        let gone = before.tokens.iter().filter(|old| !is_there(old)).count();
        let changed = now.iter().filter(|token| !before.tokens.contains(token)).count();
        let count = |name: &str| usize::try_from(told[name].as_u64().expect("a count")).expect("small");
        assert_eq!(count("total"), usize::try_from(sum(&told)).expect("small"));
        let (deleted, success) = (count("deleted") + count("cleaned"), count("success"));
        let said = |level: &str| outcome.stderr.contains(&format!("[{level}] "));
        let stopped = told["stopped"].as_str();
        let is_true = match outcome.code {
            Some(0) => (count("failed"), count("withheld"), stopped) == (0, 0, None),
            Some(1) => stopped == Some("database") && said("ERROR"),
            Some(3) => stopped.is_none() && (said("WARNING") || said("ERROR")),
            Some(143) => stopped == Some("signal") && matches!(blow, Blow::Term(_)),
            _ => false,
        };
        assert!(is_true, "exit code {:?}: {told}", outcome.code);
        if let Blow::Change(..) | Blow::Rival = blow {
            // Who else wrote is no error, and their counts are not ours.
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            return;
        }
        assert!(deleted <= gone && success <= changed, "{deleted} of {gone}, {success} of {changed}");
        assert!(outcome.code != Some(0) || self.is_done(db, before), "not done");
        if let Some(0 | 3) = outcome.code {
            assert_eq!(deleted, gone, "deleted");
            let is_unsure = ["update baoming_tokens", "insert baoming_tokens"].contains(&what);
            assert!(success == changed || is_unsure, "{success} of {changed}");
        }
    }
}

/// The answer to a delete is lost, and before it is sent again a restore puts the token back and takes the copy out.
#[test]
fn a_token_that_is_restored_before_its_delete_is_repeated_is_copied_again() {
    let trial = Trial::new(single().fresh_db(), &["invalid"]);
    let (api, (gate, moment), is_over) = (Stub::by_label(), channel(), AtomicBool::new(false));
    let strike = move |command: &Command| {
        let is_it = command.what == "delete baoming_tokens" && command.answered;
        if !is_it || is_over.swap(true, Ordering::Relaxed) {
            return Act::Pass;
        }
        wait_at(&gate);
        Act::Cut
    };
    let wire = Wire::start(single().nodes[0].host(), strike, |_| {});
    let uri = format!("mongodb://{}/?directConnection=true", wire.address());
    let live = talkative(&trial.db, &api).env("MONGODB_URI", uri).start();
    let held = come(&moment);
    let restored = talkative(&trial.db, &api).args(["--restore-hours", "1"]).go();
    assert_report(&restored, &trial.report(0, "+"));
    drop(held);
    trial.assert_end(&live.wait(), 0, "x");
}

#[test]
fn every_command_broken_in_every_way() {
    let mut rows = Vec::new();
    for scenario in &SCENARIOS {
        for options in OPTIONS {
            let db = single().fresh_db();
            let run = run(&db, &(scenario.seed)(&db), options, UNDISTURBED);
            scenario.assert_sums(&db, &run, UNDISTURBED.2);
            scenario.assert_concerns(&run.commands);
            for command in run.commands {
                let is_write = command.is_write();
                // What other concerns can change is what becomes of a write that went wrong or was the last.
                let of_this = |(_, blow): &(bool, Blow)| {
                    let can_be = scenario.name != "import" || !matches!(blow, Blow::Change(..) | Blow::Rival);
                    can_be && (options.is_empty() || is_write && matches!(blow, Blow::Once(_) | Blow::Kill))
                };
                let row = |blow| (scenario.name, command.number, blow, options, scenario);
                rows.extend(blows(is_write).into_iter().filter(of_this).map(row));
            }
        }
    }
    count(Total::COMMANDS, rows.len());
    each(&rows, |(_, n, (answered, blow), options, scenario)| {
        let db = single().fresh_db();
        let args = (scenario.seed)(&db);
        let run = run(&db, &args, options, (*n, *answered, *blow));
        scenario.assert_sums(&db, &run, *blow);
        let again = talkative(&db, &Stub::by_label()).args(args.split_whitespace()).go().expect(0);
        let is_theirs = matches!(blow, Blow::Change(..));
        assert!(is_theirs || scenario.is_done(&db, &run.before), "{}", again.stderr);
        assert_whole(&db, &run.before);
    });
}
