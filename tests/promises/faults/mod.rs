//! No token is lost by mistake and nothing is leaked, whatever happens: proved by faults that are
//! really injected into the API, the database, the network, the disk and the program itself.

mod outages;
mod outputs;
mod replies;
mod secrets;
mod servers;
mod steps;
mod stops;

use crate::support::compare::{assert_bin_entry, assert_refreshed};
use crate::support::{self, Outcome, PATIENCE, ReplicaSet, Run, Snapshot, Stub, TestDb};
use crate::support::{Reply, Request};
use mongodb::bson::RawDocumentBuf;
use mongodb::bson::oid::ObjectId;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

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
    Gone,
}

/// A replica set of one, on which concerns are real.
fn single() -> &'static ReplicaSet {
    static SINGLE: OnceLock<ReplicaSet> = OnceLock::new();
    SINGLE.get_or_init(|| ReplicaSet::start_of(1, false, 5000))
}

fn fresh_db() -> TestDb {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    single().fresh_db(&format!("set-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
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

/// The counts of what becomes of a token, by their names.
fn of_tokens(counts: [usize; 5]) -> Vec<(&'static str, usize)> {
    ["success", "failed", "deleted", "withheld", "unprocessed"].into_iter().zip(counts).collect()
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
    let mut log = outcome.stderr.lines().map(|line| line.split_once("] ").map_or(line, |(_, text)| text));
    if log.any(|line| line == "📊 刷新统计:") {
        let always = ["📝 总计 total", "✅ 成功 success", "❌ 失败 failed", "🗑️ 删除 deleted"];
        let when_any = ["⏭️ 跳过 skipped", "🛑 保留 withheld", "⏸️ 未处理 unprocessed"];
        let statistics = always.into_iter().chain(when_any).enumerate().filter_map(|(i, line)| {
            let (label, field) = line.rsplit_once(' ').expect("two words");
            (i < 4 || expected[field] != 0).then(|| format!("  {label}: {} 个", expected[field]))
        });
        let statistics: Vec<_> = statistics.collect();
        let said = log.by_ref().filter(|line| !line.contains("❗ 原因: "));
        assert_eq!(said.take(statistics.len()).collect::<Vec<_>>(), statistics);
        assert_eq!(expected["total"], sum(expected));
    }
}

fn sum(report: &Value) -> u64 {
    let parts = ["success", "failed", "deleted", "skipped", "withheld", "unprocessed"];
    parts.iter().filter_map(|part| report[part].as_u64()).sum()
}

/// Asserts what became of these tokens, which are all there were, byte for byte, that the bin holds
/// what was recycled and nothing else new, and that the cards are as they were.
#[track_caller]
fn assert_fates(db: &TestDb, before: &Snapshot, ids: &[ObjectId], fates: &[Fate]) {
    let after = db.snapshot();
    db.assert_none_lost();
    assert_eq!(after.cards, before.cards);
    let mut living = after.tokens.iter();
    let mut recycled = Vec::new();
    for raw in &before.tokens {
        match fates[ids.iter().position(|&id| id == id_of(raw)).expect("a known token")] {
            Fate::Kept => assert_eq!(living.next(), Some(raw)),
            Fate::Refreshed => assert_refreshed(raw, living.next().expect("a token")),
            Fate::Recycled => recycled.push(raw),
            Fate::Gone => {}
        }
    }
    assert_eq!(living.next(), None);
    let (old, new): (Vec<_>, Vec<_>) = after.bin.iter().partition(|entry| before.bin.contains(entry));
    assert_eq!((old.len(), new.len()), (before.bin.len(), recycled.len()), "{new:#?}");
    for raw in recycled {
        let is_its = |entry: &&&RawDocumentBuf| {
            entry.get_document("token").is_ok_and(|token| token.as_bytes() == raw.as_bytes())
        };
        assert_bin_entry(new.iter().find(is_its).expect("an entry in the bin"), raw);
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

/// A point at which the program waits, in a request or in a command, until the test lets it go on.
struct Gate(Mutex<(Sender<()>, Receiver<()>)>);

/// The other side of a [`Gate`], which opens when this is dropped.
struct Moment {
    reached: Receiver<()>,
    _open: Sender<()>,
}

impl Gate {
    fn new() -> (Arc<Self>, Moment) {
        let ((reach, reached), (open, opened)) = (channel(), channel());
        (Arc::new(Self(Mutex::new((reach, opened)))), Moment { reached, _open: open })
    }

    fn wait(&self) {
        let gate = self.0.lock().expect("one at a time");
        gate.0.send(()).expect("a test that listens");
        // Ends with an error, when the other end is dropped.
        let _ = gate.1.recv();
    }
}

impl Moment {
    fn come(&self) {
        self.reached.recv_timeout(PATIENCE).expect("the moment");
    }
}

/// An API that answers by label, the n-th request once a moment has come and gone.
fn gated(n: usize) -> (Stub, Moment) {
    gated_by(n, |request| Reply::by_label(request.token()))
}

fn gated_by(n: usize, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Stub, Moment) {
    let (gate, moment) = Gate::new();
    let api = Stub::start(move |request| {
        if request.number == n {
            gate.wait();
        }
        reply(request)
    });
    (api, moment)
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
