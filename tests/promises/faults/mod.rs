//! No token is lost by mistake and nothing is leaked, whatever happens: proved by faults that are
//! really injected into the API, the database, the network, the disk and the program itself.

mod outages;
mod outputs;
mod replies;
mod secrets;
mod servers;
mod steps;
mod stops;

use crate::support;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use crate::support::{Outcome, ReplicaSet, Reply, Request, Run, Seed, Snapshot, Stub, TestDb};
use crate::support::{unique_token, wall_clock, wall_clock_days_ago};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, RawDocumentBuf};
use serde_json::{Value, json};

/// What the API says of one token, in the words of the verdict table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Valid,
    Invalid,
    Unclear,
    NoAnswer,
    /// Too long to be sent.
    Unsendable,
    /// Somebody else deletes it before it is asked about.
    Gone,
}

/// What becomes of a token's document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Byte for byte as it was.
    Kept,
    /// The same but for the two dates.
    Refreshed,
    /// Whole in the recycle bin, and only there.
    Recycled,
    /// Deleted by somebody else.
    Gone,
}

/// A replica set of one, on which concerns are real.
fn single() -> &'static ReplicaSet {
    static SINGLE: OnceLock<ReplicaSet> = OnceLock::new();
    SINGLE.get_or_init(|| ReplicaSet::start_of(1, false, 5000))
}

/// A database of its own on it.
fn fresh_db() -> TestDb {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    single().fresh_db(&format!("set-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// The counts of the JSON object that are not 0, and all else that is not a matter of time.
fn report(db: &TestDb, code: i32, stopped: Option<&str>, counts: &[(&str, usize)]) -> Value {
    let mut report = json!({
        "database": db.name, "total": 0, "success": 0, "failed": 0, "deleted": 0, "skipped": 0,
        "withheld": 0, "unprocessed": 0, "cleaned": 0, "dry_run": false, "stopped": stopped, "exit_code": code,
    });
    for &(name, count) in counts {
        report[name] = count.into();
    }
    report
}

/// A run on which nothing may leak: all that can be told is told.
fn talkative(db: &TestDb, api: &Stub) -> Run {
    Run::new(db, api).args(["--json", "-v"]).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1")
}

/// Asserts the JSON object, the exit code, and that the statistics in the log say the same.
#[track_caller]
fn assert_report(outcome: &Outcome, expected: &Value) {
    let mut told = outcome.json();
    let fields = told.as_object_mut().expect("a JSON object");
    for of_the_moment in ["version", "started_at", "duration_seconds"] {
        assert!(fields.remove(of_the_moment).is_some(), "{of_the_moment}");
    }
    let reason = fields.remove("failure_reason").expect("failure_reason");
    assert_eq!(reason.is_null(), expected["failed"] == 0, "{reason}\n{}", outcome.stderr);
    assert_eq!(&told, expected, "{}", outcome.stderr);
    assert_eq!(Value::from(outcome.code), expected["exit_code"]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    let mut log = outcome.stderr.lines().map(|line| line.split_once("] ").map_or(line, |(_, text)| text));
    if log.any(|line| line == "📊 刷新统计:") {
        let always =
            [("📝 总计", "total"), ("✅ 成功", "success"), ("❌ 失败", "failed"), ("🗑️ 删除", "deleted")];
        let when_any = [("⏭️ 跳过", "skipped"), ("🛑 保留", "withheld"), ("⏸️ 未处理", "unprocessed")];
        let told = when_any.into_iter().filter(|(_, field)| expected[field] != 0);
        let statistics =
            always.into_iter().chain(told).map(|(label, field)| format!("  {label}: {} 个", expected[field]));
        let statistics: Vec<_> = statistics.collect();
        let said = log.by_ref().filter(|line| !line.contains("❗ 原因: "));
        assert_eq!(said.take(statistics.len()).collect::<Vec<_>>(), statistics);
        assert_eq!(expected["total"], sum(expected));
    }
}

/// What the counts of a report add up to.
fn sum(report: &Value) -> u64 {
    let parts = ["success", "failed", "deleted", "skipped", "withheld", "unprocessed"];
    parts.iter().filter_map(|part| report[part].as_u64()).sum()
}

/// The reply that the label of a token asks for.
fn as_labelled(request: &Request) -> Reply {
    match request.token() {
        token if token.contains("-invalid-") => Reply::invalid(),
        token if token.contains("-unclear-") => refusal("data not found"),
        token if token.contains("-close-") => Reply::close(),
        _ => Reply::valid(),
    }
}

/// A refusal with this message, which the API sends as JSON.
fn refusal(message: &str) -> Reply {
    Reply::json(200, &json!({ "sta": -1, "msg": message, "data": null }).to_string())
}

/// Adds tokens that are due in this order; each is called by its label, which is in the token too.
fn add_tokens(db: &TestDb, labels: &[&str]) -> Vec<ObjectId> {
    let first = wall_clock_days_ago(1.0).timestamp_millis();
    db.add_all(labels.iter().zip(0..).map(|(label, i)| {
        let used = DateTime::from_millis(first + i * 1000);
        let seed = Seed::new(&unique_token(label)).card(db.add_card(label));
        seed.set("updated_at", used).set("last_used", used)
    }))
}

/// Asserts what became of every document since `before`, byte for byte, that the bin holds what
/// was recycled and nothing else new, and that the cards are as they were.
#[track_caller]
fn assert_fates(db: &TestDb, before: &Snapshot, fate: impl Fn(ObjectId) -> Fate) {
    let after = db.snapshot();
    db.assert_none_lost();
    assert_eq!(after.cards, before.cards);
    let mut tokens = Vec::new();
    let mut recycled = BTreeSet::new();
    for raw in &before.tokens {
        let id = id_of(raw);
        match fate(id) {
            Fate::Kept => tokens.push(raw.clone()),
            Fate::Refreshed => tokens.push(refreshed(raw, &db.token(id).expect("a refreshed token"))),
            Fate::Recycled => drop(recycled.insert(raw.as_bytes())),
            Fate::Gone => {}
        }
    }
    assert_eq!(after.tokens, tokens);
    let (old, new): (Vec<_>, Vec<_>) = after.bin.iter().partition(|entry| before.bin.contains(entry));
    assert_eq!(old.len(), before.bin.len(), "nothing leaves the bin");
    assert_eq!(new.len(), recycled.len(), "{new:#?}");
    for entry in new {
        let fields: Vec<_> = entry.iter().map(|field| field.expect("a field").0.as_str()).collect();
        assert_eq!(fields, ["_id", "token", "reason", "deleted_at"]);
        let token = entry.get_document("token").expect("a token");
        assert!(recycled.remove(token.as_bytes()), "{entry:?}");
        assert!(!entry.get_str("reason").expect("a reason").is_empty());
        let age = DateTime::now().timestamp_millis()
            - entry.get_datetime("deleted_at").expect("a date").timestamp_millis();
        assert!((0..120_000).contains(&age), "{age} ms");
    }
}

fn id_of(document: &RawDocumentBuf) -> ObjectId {
    document.get_object_id("_id").expect("an _id")
}

/// What becomes of each of these tokens.
fn fates_by_id(ids: &[ObjectId], fates: Vec<Fate>) -> impl Fn(ObjectId) -> Fate {
    move |id| fates[ids.iter().position(|&known| known == id).expect("a known token")]
}

/// Whatever was interrupted, no token is between two states: each is as it was, or refreshed, or
/// whole in the bin. Gives those that are both living and in the bin.
#[track_caller]
fn assert_whole(db: &TestDb, before: &Snapshot) -> Vec<ObjectId> {
    db.assert_none_lost();
    let after = db.snapshot();
    assert_eq!(after.cards, before.cards);
    let in_bin = |snapshot: &Snapshot| -> BTreeSet<Vec<u8>> {
        let token = |entry: &RawDocumentBuf| entry.get_document("token").expect("token").as_bytes().to_vec();
        snapshot.bin.iter().map(token).collect()
    };
    let (was_binned, binned) = (in_bin(before), in_bin(&after));
    let known = before.tokens.iter().map(|token| token.as_bytes().to_vec()).chain(was_binned);
    let known: Vec<_> = known.map(|bytes| RawDocumentBuf::from_bytes(bytes).expect("a document")).collect();
    assert!(binned.iter().all(|token| known.iter().any(|old| old.as_bytes() == token)));
    let mut both = Vec::new();
    for old in &known {
        let (id, is_binned) = (id_of(old), binned.contains(old.as_bytes()));
        let was_living = before.tokens.contains(old);
        match after.tokens.iter().find(|token| id_of(token) == id) {
            Some(same) if same == old => both.extend(is_binned.then_some(id)),
            // Somebody else's document with this `_id`.
            Some(_) if !was_living && before.tokens.iter().any(|token| id_of(token) == id) => {}
            Some(new) => {
                assert_eq!(*new, refreshed(old, &db.token(id).expect("the token")));
                both.extend(is_binned.then_some(id));
            }
            None => assert!(is_binned || !was_living, "{old:?}"),
        }
    }
    both
}

/// A point at which the program waits, in a request or in a command, until the test lets it go on.
struct Gate(Mutex<(Sender<()>, Receiver<()>)>);

impl Gate {
    /// The gate; what tells that somebody is there; what opens it when dropped.
    fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let ((reach, reached), (open, opened)) = (channel(), channel());
        (Arc::new(Self(Mutex::new((reach, opened)))), reached, open)
    }

    fn wait(&self) {
        let gate = self.0.lock().expect("one at a time");
        gate.0.send(()).expect("a test that listens");
        // Ends with an error, when the other end is dropped.
        let _ = gate.1.recv();
    }
}

/// The document with the two dates that it has now, which must be of this moment; where two runs
/// wrote, the later one stands in `last_used`.
fn refreshed(raw: &RawDocumentBuf, now: &Document) -> RawDocumentBuf {
    let [used, updated] = ["last_used", "updated_at"].map(|name| *now.get_datetime(name).expect("a date"));
    let age = wall_clock().timestamp_millis() - updated.timestamp_millis();
    assert!((0..120_000).contains(&age) && used >= updated, "{age} ms: {now}");
    let mut expected = Document::try_from(raw.clone()).expect("a document");
    expected.insert("last_used", used);
    expected.insert("updated_at", updated);
    RawDocumentBuf::try_from(&expected).expect("a document")
}

/// Tests all rows, some at a time: most of them only wait. Names every row that failed.
fn each<T: Sync>(rows: &[T], name: impl Fn(&T) -> String + Sync, test: impl Fn(&T) + Sync) {
    const AT_A_TIME: usize = 12;
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if panic::catch_unwind(AssertUnwindSafe(|| test(row))).is_err() {
                        let name = name(row);
                        eprintln!("--- failed: {name}");
                        failed.lock().expect("names").insert(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("names");
    assert!(failed.is_empty(), "{} of {} rows failed: {failed:#?}", failed.len(), rows.len());
}
