//! No token is lost by mistake and nothing is leaked, whatever happens: proved by faults that are
//! really injected into the API, the database, the network, the disk and the program itself.

mod outputs;
mod replies;
mod servers;
mod steps;
mod stops;

use crate::support::compare::{assert_bin_entry, assert_refreshed};
use crate::support::{self, Live, Outcome, PATIENCE, ReplicaSet, Run, Snapshot, Stub, TestDb};
use crate::support::{Reply, Request};
use mongodb::bson::RawDocumentBuf;
use mongodb::bson::oid::ObjectId;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

/// The counts that make the total: what becomes of their tokens, as letters, and their names in the
/// JSON object and in the log. `+` is refreshed, the same but for the two dates; `x` and `c`, which
/// is cleaned up, are whole in the recycle bin, and only there; `s` and `g` are gone, because somebody
/// else deleted them. All others are byte for byte as they were, also `.`, which is none of the run's.
const COUNTS: [(&str, &str, &str); 6] = [
    ("+", "success", "✅ 成功"),
    ("!", "failed", "❌ 失败"),
    ("x", "deleted", "🗑️ 删除"),
    ("s", "skipped", "⏭️ 跳过"),
    ("w", "withheld", "🛑 保留"),
    ("-g", "unprocessed", "⏸️ 未处理"),
];

/// A database with its tokens, in the order of a run, and how it was before.
struct Trial {
    db: TestDb,
    ids: Vec<ObjectId>,
    before: Snapshot,
}

/// A replica set of one, on which concerns are real.
fn single() -> &'static ReplicaSet {
    static SINGLE: OnceLock<ReplicaSet> = OnceLock::new();
    SINGLE.get_or_init(|| ReplicaSet::start_of(1, false, 5000))
}

/// The JSON object but for what is a matter of time: the counts that are not 0, which make the total.
pub fn report(db: &TestDb, code: i32, stopped: Option<&str>, counts: &[(&str, usize)]) -> Value {
    let mut report = json!({
        "database": db.name, "version": env!("CARGO_PKG_VERSION"), "total": 0, "success": 0, "failed": 0,
        "deleted": 0, "skipped": 0, "withheld": 0, "unprocessed": 0, "cleaned": 0, "dry_run": false,
        "stopped": stopped, "exit_code": code,
    });
    for &(name, count) in counts {
        report[name] = count.into();
    }
    report["total"] = sum(&report).into();
    report
}

/// What a dry run says where the run would say this.
pub fn dry(mut report: Value) -> Value {
    report["dry_run"] = true.into();
    report
}

/// A run that tells all that it can tell.
fn talkative(db: &TestDb, api: &Stub) -> Run {
    Run::new(db, api).args(["--json", "-v"])
}

fn with_option(uri: &str, option: &str) -> String {
    format!("{uri}{}{option}", if uri.contains('?') { '&' } else { '?' })
}

/// Asserts the JSON object, the exit code, and that the statistics in the log say the same.
#[track_caller]
pub fn assert_report(outcome: &Outcome, expected: &Value) {
    let mut told = outcome.json();
    let fields = told.as_object_mut().expect("a JSON object");
    let mut take = |name: &str| fields.remove(name).unwrap_or_else(|| panic!("no {name}"));
    assert!(take("started_at").is_string());
    // The support's clock starts when the program already runs, on a busy machine a while later.
    let seconds = take("duration_seconds").as_f64().expect("a number");
    assert!((0.0..outcome.elapsed.as_secs_f64() + 10.0).contains(&seconds), "{seconds}");
    let reason = take("failure_reason");
    assert_eq!(reason.is_null(), expected["failed"] == 0, "{reason}\n{}", outcome.stderr);
    assert_eq!(&told, expected, "{}", outcome.stderr);
    assert_eq!(Value::from(outcome.code), expected["exit_code"]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    if outcome.stderr.contains("📊 刷新统计:") {
        assert_eq!(outcome.stat("📝 总计"), expected["total"], "{}", outcome.stderr);
        for (_, name, label) in COUNTS {
            assert_eq!(outcome.stat(label), expected[name], "{label}\n{}", outcome.stderr);
        }
    }
}

fn sum(report: &Value) -> u64 {
    COUNTS.iter().filter_map(|(_, name, _)| report[name].as_u64()).sum()
}

impl Trial {
    fn new(db: TestDb, labels: &[&str]) -> Self {
        let ids = db.add_labelled(labels);
        Self { before: db.snapshot(), ids, db }
    }

    /// The report of a run with this exit code in which this became of each token.
    fn report(&self, code: i32, ends: &str) -> Value {
        let stopped = match code {
            1 => Some("database"),
            5 => Some("api_unreachable"),
            25 => Some("delete_limit"),
            130 | 143 => Some("signal"),
            _ => None,
        };
        let count = |letters: &str| ends.chars().filter(|end| letters.contains(*end)).count();
        let mut counts = COUNTS.map(|(letters, name, _)| (name, count(letters))).to_vec();
        counts.push(("cleaned", count("c")));
        report(&self.db, code, stopped, &counts)
    }

    /// A run with these flags ends so, or says that it would in a dry run, which changes nothing.
    #[track_caller]
    fn assert_run(&self, run: Run, flags: &str, code: i32, ends: &str) -> Outcome {
        let (outcome, mut expected) = (run.args(flags.split_whitespace()).go(), self.report(code, ends));
        let is_dry = flags.contains("--dry-run");
        expected["dry_run"] = is_dry.into();
        if flags == "--self-test" {
            // It is done, whatever it found.
            expected["stopped"] = Value::Null;
        }
        assert_report(&outcome, &expected);
        let is_kept = |end| is_dry && !"sg".contains(end);
        self.assert_ends(&ends.replace(is_kept, "."));
        outcome
    }

    /// Asserts that the run says so, and that it is so.
    #[track_caller]
    fn assert_end(&self, outcome: &Outcome, code: i32, ends: &str) {
        assert_report(outcome, &self.report(code, ends));
        self.assert_ends(ends);
    }

    /// Asserts what became of the tokens, which are all there were, that the bin holds what was
    /// recycled and nothing else new, and that the cards are as they were.
    #[track_caller]
    fn assert_ends(&self, ends: &str) {
        let (before, after) = (&self.before, self.db.snapshot());
        self.db.assert_none_lost();
        assert_eq!(after.cards, before.cards);
        let mut living = after.tokens.iter();
        let mut recycled = Vec::new();
        for raw in &before.tokens {
            let end = self.ids.iter().zip(ends.chars()).find(|(id, _)| **id == id_of(raw));
            match end.expect("a known token").1 {
                '+' => assert_refreshed(raw, living.next().expect("a token")),
                'x' | 'c' => recycled.push(raw),
                's' | 'g' => {}
                _ => assert_eq!(living.next(), Some(raw)),
            }
        }
        assert_eq!(living.next(), None);
        let (old, new): (Vec<_>, Vec<_>) = after.bin.iter().partition(|entry| before.bin.contains(entry));
        assert_eq!((old.len(), new.len()), (before.bin.len(), recycled.len()), "{new:#?}");
        for raw in recycled {
            let its = new
                .iter()
                .find(|it| it.get_document("token").is_ok_and(|it| it.as_bytes() == raw.as_bytes()));
            assert_bin_entry(its.expect("an entry in the bin"), raw);
        }
    }

    /// No token is between two states, and the next run completes what one began.
    #[track_caller]
    fn assert_completed(&self) {
        assert_whole(&self.db, &self.before);
        talkative(&self.db, &Stub::by_label()).go().expect(0);
        assert_whole(&self.db, &self.before);
    }
}

fn id_of(document: &RawDocumentBuf) -> ObjectId {
    document.get_object_id("_id").expect("an _id")
}

/// Whatever was interrupted, no token is between two states: each is as it was, or refreshed, or
/// whole in the bin. Gives those that are both living and in the bin.
#[track_caller]
fn assert_whole(db: &TestDb, before: &Snapshot) -> Vec<ObjectId> {
    db.assert_none_lost();
    let after = db.snapshot();
    assert_eq!(after.cards, before.cards);
    let (binned, known) = (after.binned(), [before.tokens.clone(), before.binned()].concat());
    assert!(binned.iter().all(|token| known.contains(token)));
    let mut both = Vec::new();
    for old in &known {
        let (id, is_binned, was_living) = (id_of(old), binned.contains(old), before.tokens.contains(old));
        match after.tokens.iter().find(|token| id_of(token) == id) {
            // Somebody else's document with this `_id`.
            Some(new) if new != old && !was_living && before.tokens.iter().any(|it| id_of(it) == id) => {}
            Some(new) => {
                if new != old {
                    assert_refreshed(old, new);
                }
                both.extend(is_binned.then_some(id));
            }
            None => assert!(is_binned || !was_living, "{old:?}"),
        }
    }
    both
}

/// Where the program waits, in a request or in a command, until what it hands over is dropped.
fn wait_at(gate: &Sender<Sender<()>>) {
    let (open, opened) = channel();
    gate.send(open).expect("a test that listens");
    // Ends with an error, when the other end is dropped.
    let _ = opened.recv();
}

/// The test's side of it.
type Moment = Receiver<Sender<()>>;

fn come(moment: &Moment) -> Sender<()> {
    moment.recv_timeout(PATIENCE).expect("the moment")
}

/// An API that answers so, the n-th request once a moment has come and gone.
fn gated(n: usize, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Stub, Moment) {
    let (gate, moment) = channel();
    let api = Stub::start(move |request| {
        if request.number == n {
            wait_at(&gate);
        }
        reply(request)
    });
    (api, moment)
}

/// A run, and what happens while it asks the n-th question of an API that answers by label.
fn struck(n: usize, run: impl FnOnce(&Stub) -> Run, strike: impl FnOnce()) -> (Stub, Live) {
    let (api, moment) = gated(n, |request| Reply::by_label(request.token()));
    let live = run(&api).start();
    let held = come(&moment);
    strike();
    drop(held);
    (api, live)
}

/// Tests all rows, some at a time: most of them only wait. Names every row that failed.
pub fn each<T: Debug + Sync>(rows: &[T], test: impl Fn(&T) + Sync) {
    const AT_A_TIME: usize = 12;
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if panic::catch_unwind(AssertUnwindSafe(|| test(row))).is_err() {
                        let name: String = format!("{row:?}").chars().take(300).collect();
                        eprintln!("--- failed: {name}");
                        failed.lock().expect("names").push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("names");
    assert!(failed.is_empty(), "{} of {} rows failed: {failed:#?}", failed.len(), rows.len());
}
