//! Somebody else changes a token while the program decides on it: not likely but certain, by the
//! API before it replies and by the wire before a command gets through. What they left stays.

use std::sync::{Arc, Mutex};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::sync::Collection;
use serde_json::Value;

use super::support::{
    Mongod, PATIENCE, Run, Seed, Stub, TestDb, Total, count, unique_token, wall_clock_days_ago,
};
use super::wire::Wire;
use super::{Gate, as_labelled, assert_report, each, report, talkative};

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
    /// A token that is decided on, and one due after it that is simply valid.
    fn seed(self, db: &TestDb) -> [ObjectId; 2] {
        let label = if self == Self::Invalid { "subject-invalid" } else { "subject-valid" };
        let days = if self == Self::Cleanup { 41.0 } else { 2.0 };
        [(label, days), ("bystander", 1.0)].map(|(label, days)| {
            db.add(Seed::new(&unique_token(label)).card(db.add_card(label)).last_used_days_ago(days))
        })
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
        as_labelled(request)
    })
}

/// All tokens but one, byte for byte.
fn all_but(id: ObjectId, tokens: &Collection<Document>) -> Vec<RawDocumentBuf> {
    let found = tokens.clone_with_type::<RawDocumentBuf>().find(doc! { "_id": { "$ne": id } }).run();
    found.expect("tokens").map(|token| token.expect("a token")).collect()
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
            count(Total::Faults, 1);
            let db = Mongod::shared().fresh_db();
            let [subject, bystander] = cause.seed(&db);
            let cards = db.snapshot().cards;
            let left = Arc::new(Mutex::new(None));
            let (tokens, leave) = (db.tokens(), Arc::clone(&left));
            let change = Arc::new(move || {
                change.make(&tokens, subject);
                *leave.lock().expect("left") = Some(all_but(bystander, &tokens));
            });
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
            let outcome = cause.run(&db, &api, &wire).go();
            let left = left.lock().expect("left").take().expect("the change was made");
            let now = all_but(bystander, &db.tokens());
            count(Total::AtRisk, left.len());
            count(Total::Lost, left.len().saturating_sub(now.len()));
            assert_eq!(now, left, "{}", outcome.stderr);
            assert_report(&outcome, &cause.report(&db, true));
            let after = db.snapshot();
            assert_eq!((after.bin, after.cards), (Vec::new(), cards));
        },
    );
}

#[test]
fn two_runs_at_once_delete_a_token_once() {
    each(
        &Cause::Invalid.moments(),
        |moment| format!("{moment:?}"),
        |&moment| {
            let db = Mongod::shared().fresh_db();
            let [id, _] = Cause::Invalid.seed(&db);
            let was = db.token(id);
            let (gate, reached, go) = Gate::new();
            let at_check = Arc::clone(&gate);
            let api = Stub::start(move |request| {
                if request.number == 1 && moment == Moment::Check {
                    at_check.wait();
                }
                as_labelled(request)
            });
            let wire = Wire::to(Mongod::shared().host(), move |command| {
                if !command.answered && moment == Moment::Command(command.number) {
                    gate.wait();
                }
                true
            });
            let first = Cause::Invalid.run(&db, &api, &wire).start();
            reached.recv_timeout(PATIENCE).expect("the moment");
            let second = talkative(&db, &api).go();
            assert_report(&second, &Cause::Invalid.report(&db, false));
            drop(go);
            let first = first.wait().expect(0);
            assert_eq!(first.stat("删除"), 0, "{}", first.stderr);
            assert_eq!(db.token(id), None);
            let binned: Vec<_> =
                db.bin().find(doc! {}).run().expect("bin").map(|entry| entry.expect("entry")).collect();
            assert_eq!(binned.len(), 1, "{binned:#?}");
            assert_eq!(binned[0].get_document("token").ok(), was.as_ref());
            db.assert_none_lost();
        },
    );
}
