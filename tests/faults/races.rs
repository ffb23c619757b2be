//! Somebody else changes a token while the program decides on it: not likely but certain, by the
//! API before it replies and by the wire before a command gets through. What they left stays.

use std::sync::{Arc, Mutex};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use mongodb::sync::Collection;
use serde_json::Value;

use super::support::{Mongod, Reply, Run, Seed, Stub, TestDb, unique_token, wall_clock_days_ago};
use super::wire::Wire;
use super::{add_tokens, assert_report, each, id_of, report, talkative};

/// What somebody else does to a token.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// A new login of the same document.
    Renews,
    /// The desktop application uses it.
    Uses,
    Deletes,
    /// A new document for the same card.
    Replaces,
}

const CHANGES: [Change; 4] = [Change::Renews, Change::Uses, Change::Deletes, Change::Replaces];

impl Change {
    fn make(self, tokens: &Collection<Document>, id: ObjectId) {
        let used = wall_clock_days_ago(0.01);
        let this = doc! { "_id": id };
        let set = |fields: Document| {
            tokens.update_one(this.clone(), doc! { "$set": fields }).run().expect("update")
        };
        match self {
            Self::Renews => {
                let token = unique_token("renewed");
                set(doc! { "access_token": token, "uname": "李四", "updated_at": used, "last_used": used });
            }
            Self::Uses => drop(set(doc! { "last_used": used, "updated_at": used })),
            Self::Deletes => drop(tokens.delete_one(this).run().expect("delete")),
            Self::Replaces => {
                let old = tokens.find_one_and_delete(this).run().expect("delete").expect("a token");
                let new = Seed::new(&unique_token("new")).card(old.get_object_id("card").expect("a card"));
                tokens.insert_one(new.0).run().expect("insert");
            }
        }
    }
}

/// When they do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// While the API is asked about the token.
    Check,
    /// Before the n-th command to the database.
    Command(usize),
}

/// Why the program is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Valid,
    Invalid,
    Cleanup,
}

impl Cause {
    /// A token that is decided on, due before one that is simply valid.
    fn seed(self, db: &TestDb) -> ObjectId {
        match self {
            Self::Cleanup => {
                let seed =
                    Seed::new(&unique_token("unused")).card(db.add_card("unused")).last_used_days_ago(41.0);
                add_tokens(db, &["valid"]);
                db.add(seed)
            }
            Self::Valid => add_tokens(db, &["subject-valid", "valid"])[0],
            Self::Invalid => add_tokens(db, &["subject-invalid", "valid"])[0],
        }
    }

    fn run(self, db: &TestDb, api: &Stub, wire: &Wire) -> Run {
        let run = talkative(db, api).env("MONGODB_URI", wire.uri());
        match self {
            Self::Cleanup => run.args(["--max-age-days", "7", "--cleanup-days", "30"]),
            _ => run,
        }
    }

    /// What is told when nobody interferes, or when somebody does.
    fn report(self, db: &TestDb, disturbed: bool) -> Value {
        let counts = match (self, disturbed) {
            (Self::Cleanup, false) => [("total", 1), ("success", 1), ("cleaned", 1)],
            (Self::Cleanup, true) => [("total", 1), ("success", 1), ("cleaned", 0)],
            (Self::Valid, false) => [("total", 2), ("success", 2), ("deleted", 0)],
            (Self::Invalid, false) => [("total", 2), ("success", 1), ("deleted", 1)],
            (_, true) => [("total", 2), ("success", 1), ("skipped", 1)],
        };
        report(db, 0, None, &counts)
    }

    /// The moments from the decision until it is carried out, by the commands of an undisturbed run.
    fn moments(self) -> Vec<Moment> {
        let db = Mongod::shared().fresh_db();
        self.seed(&db);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let commands = Arc::clone(&seen);
        let wire = Wire::to(Mongod::shared().host(), move |command| {
            if !command.answered {
                commands.lock().expect("commands").push(command.what.clone());
            }
            true
        });
        let outcome = self.run(&db, &api(|_| {}), &wire).go();
        assert_report(&outcome, &self.report(&db, false));
        let commands = seen.lock().expect("commands").clone();
        let nth = |what| 1 + commands.iter().position(|seen| seen == what).expect("such a command");
        let (update, delete) = ("update baoming_tokens", "delete baoming_tokens");
        let (first, last) = match self {
            Self::Valid => (nth(update), nth(update)),
            // All that comes after the tokens and their cards are read, the other token's update too.
            Self::Invalid => (nth("find cards") + 1, nth(delete)),
            Self::Cleanup => (nth(update) + 1, nth(delete)),
        };
        let check = (self != Self::Cleanup).then_some(Moment::Check);
        check.into_iter().chain((first..=last).map(Moment::Command)).collect()
    }
}

fn api(on_check: impl Fn(&str) + Send + Sync + 'static) -> Stub {
    Stub::start(move |request| {
        on_check(request.token());
        if request.token().contains("-invalid-") { Reply::invalid() } else { Reply::valid() }
    })
}

#[test]
fn what_somebody_else_did_meanwhile_stays() {
    let mut rows = Vec::new();
    for cause in [Cause::Valid, Cause::Invalid, Cause::Cleanup] {
        for moment in cause.moments() {
            rows.extend(CHANGES.map(|change| (cause, moment, change)));
        }
    }
    assert!(rows.len() > 40, "{rows:?}");
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(cause, moment, change)| {
            let db = Mongod::shared().fresh_db();
            let id = cause.seed(&db);
            let change = {
                let (tokens, all, left) = (db.tokens(), db.db.clone(), Arc::new(Mutex::new(None)));
                let result = Arc::clone(&left);
                let change = move || {
                    change.make(&tokens, id);
                    let found = all.collection("baoming_tokens").find(doc! {}).run().expect("tokens");
                    let found: Vec<_> = found.map(|token| token.expect("a token")).collect();
                    *left.lock().expect("left") = Some(found);
                };
                (change, result)
            };
            let (change, left) = (Arc::new(change.0), change.1);
            let at_check = Arc::clone(&change);
            let api = api(move |token| {
                if moment == Moment::Check && token.contains("-subject-") {
                    at_check();
                }
            });
            let wire = Wire::to(Mongod::shared().host(), move |command| {
                if !command.answered && moment == Moment::Command(command.number) {
                    change();
                }
                true
            });
            let before = db.snapshot();
            let outcome = cause.run(&db, &api, &wire).go();
            assert_report(&outcome, &cause.report(&db, true));
            let after = db.snapshot();
            assert_eq!((&after.bin, &after.cards), (&Vec::new(), &before.cards));
            let left: Vec<mongodb::bson::RawDocumentBuf> =
                left.lock().expect("left").take().expect("the change was made");
            assert_eq!(after.tokens.len(), left.len(), "nothing is brought back");
            for token in left {
                let is_other = token.get_str("access_token").expect("text").contains("Z-valid-");
                let now = after.tokens.iter().find(|now| id_of(now) == id_of(&token)).expect("still there");
                assert!(is_other || *now == token, "{now:?}");
            }
        },
    );
}
