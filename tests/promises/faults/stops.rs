//! What ends a run early or holds it back: an API that is away, the delete limit, a signal. Then
//! nothing is deleted, and the next run goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Fate::{Kept, Recycled, Refreshed};
use super::Verdict::{Failed, Invalid, Unreachable, Valid};
use super::matrix::run_of;
use super::support::{Mongod, PATIENCE, Reply, Seed, Signal, Stub, unique_token};
use super::wire::Wire;
use super::{
    Fate, Gate, Verdict, add_tokens, as_labelled, assert_fates, assert_report, each, fates_by_id, report,
    talkative,
};

/// What is waited for between two tries.
struct Tries {
    name: &'static str,
    /// The replies to the first tries; the last one goes for all that follow.
    replies: Vec<Reply>,
    args: &'static [&'static str],
    verdict: Verdict,
    /// From each try to the next, in seconds.
    waits: &'static [u64],
}

fn tries() -> Vec<Tries> {
    let transient: [(&str, Reply); 12] = [
        ("500", Reply::json(500, "{}")),
        ("502", Reply::json(502, "<html>")),
        ("503", Reply::json(503, "{}")),
        ("599", Reply::json(599, "{}")),
        ("429", Reply::json(429, "{}")),
        ("reset", Reply::reset()),
        ("close", Reply::close()),
        ("garbage", Reply::garbage()),
        ("truncated", Reply::invalid().truncated(1)),
        ("huge header", Reply::huge_header(100_000)),
        ("503 with an odd Retry-After", Reply::json(503, "{}").header("Retry-After", "soon")),
        ("200 with Retry-After, truncated", Reply::valid().header("Retry-After", "9").truncated(1)),
    ];
    let settled: [(&str, Reply, Verdict); 9] = [
        ("valid", Reply::valid(), Valid),
        ("invalid", Reply::invalid(), Invalid),
        ("busy", Reply::busy(), Failed),
        ("busy with Retry-After", Reply::busy().header("Retry-After", "1"), Failed),
        ("not JSON", Reply::http(200, &[], "<html>"), Failed),
        ("endless", Reply::endless(), Failed),
        ("401", Reply::json(401, "{}"), Failed),
        ("404 with Retry-After", Reply::json(404, "{}").header("Retry-After", "1"), Failed),
        ("302", Reply::redirect("/"), Failed),
    ];
    let mut rows = Vec::new();
    for (name, reply) in transient {
        let row = |replies, args, verdict, waits| Tries { name, replies, args, verdict, waits };
        rows.push(row(vec![reply.clone(), Reply::valid()], &[], Valid, &[1]));
        rows.push(row(vec![reply.clone(), reply.clone(), Reply::invalid()], &[], Invalid, &[1, 2]));
        rows.push(row(
            vec![reply.clone(), reply.clone(), reply.clone(), Reply::invalid()],
            &[],
            Unreachable,
            &[1, 2],
        ));
        rows.push(row(vec![reply.clone(), Reply::valid()], &["--retries", "0"], Unreachable, &[]));
    }
    for (name, reply, verdict) in settled {
        let waits: &[u64] = &[];
        rows.push(Tries { name, replies: vec![reply.clone(), Reply::close()], args: &[], verdict, waits });
    }
    let after = |seconds: &str| Reply::json(503, "{}").header("Retry-After", seconds);
    let mut asked = |name, wish: &str, waits| {
        rows.push(Tries {
            name,
            replies: vec![after(wish), Reply::valid()],
            args: &[],
            verdict: Valid,
            waits,
        });
    };
    asked("Retry-After 3", "3", &[3]);
    asked("Retry-After 0", "0", &[0]);
    asked("Retry-After in the past", "Thu, 12 Feb 2026 10:00:00 GMT", &[0]);
    asked("Retry-After an hour", "3600", &[60]);
    let closed_unsaid = vec![Reply::valid().then_close(), Reply::valid()];
    rows.push(Tries {
        name: "stall",
        replies: vec![Reply::stall(), Reply::valid()],
        args: &[],
        verdict: Valid,
        waits: &[1 + 2],
    });
    rows.push(Tries {
        name: "four",
        replies: vec![Reply::reset()],
        args: &["--retries", "3"],
        verdict: Unreachable,
        waits: &[1, 2, 3],
    });
    rows.push(Tries { name: "closed unsaid", replies: closed_unsaid, args: &[], verdict: Valid, waits: &[] });
    // The longest first, so that nothing waits for it at the end.
    rows.sort_by_key(|row| std::cmp::Reverse(row.waits.iter().sum::<u64>()));
    rows
}

#[test]
fn transient_faults_are_tried_again_and_verdicts_are_not() {
    let name = |row: &Tries| format!("{} {:?} {:?}", row.name, row.args, row.waits);
    each(&tries(), name, |row| {
        let db = Mongod::shared().fresh_db();
        let ids = add_tokens(&db, &["tried", "valid"]);
        let before = db.snapshot();
        let replies = row.replies.clone();
        let api = Stub::start(move |request| {
            if request.token().contains("-tried-") {
                replies[request.nth.min(replies.len()) - 1].clone()
            } else {
                Reply::valid()
            }
        });
        let outcome = talkative(&db, &api)
            .args(["--timeout-secs", "2"])
            .args(row.args)
            .limit(Duration::from_secs(120))
            .go();
        let (expected, fates) = run_of(&db, &[row.verdict, Valid]);
        assert_report(&outcome, &expected);
        assert_fates(&db, &before, fates_by_id(&ids, fates));

        let requests = api.recorded();
        let tries: Vec<_> = requests.iter().filter(|request| request.token().contains("-tried-")).collect();
        assert_eq!(tries.len(), row.waits.len() + 1);
        for (pair, &wait) in tries.windows(2).zip(row.waits) {
            let waited = pair[1].at - pair[0].at;
            let wait = Duration::from_secs(wait);
            assert!(waited >= wait && waited < wait + Duration::from_secs(5), "{waited:?}, not {wait:?}");
        }
    });
}

#[test]
fn five_unreachable_in_a_row_or_all_of_fewer_end_the_run() {
    // V valid, I invalid, F failed, U unreachable.
    let rows = [
        "U",
        "UU",
        "UUUU",
        "UUUUU",
        "UUUUUU",
        "UUUUUUUUUV",
        "VUUUUU",
        "VUUUUUV",
        "IUUUUUV",
        "IVFUUUUUIV",
        "UUUUVUUUUV",
        "UUUUFUUUUF",
        "UUUUIUUUUI",
        "UUUUVUUUUUI",
        "UUUUV",
        "VU",
        "UI",
        "FU",
        "UF",
        "IU",
        "FFFFFFF",
        "UUUUFUUUU",
        "IIIUUUUUUUU",
    ];
    each(
        &rows,
        |row| (*row).to_owned(),
        |row| {
            let db = Mongod::shared().fresh_db();
            let of = |c| match c {
                'V' => ("valid", Valid),
                'I' => ("invalid", Invalid),
                'F' => ("busy", Failed),
                _ => ("close", Unreachable),
            };
            let (labels, verdicts): (Vec<_>, Vec<_>) = row.chars().map(of).unzip();
            let ids = add_tokens(&db, &labels);
            let before = db.snapshot();
            let api = Stub::start(as_labelled);
            let (mut expected, fates) = run_of(&db, &verdicts);
            // No cleanup after an early stop, and none of a token that was just refreshed.
            let outcome = talkative(&db, &api).args(["--retries", "0", "--cleanup-days", "30"]).go();
            assert_report(&outcome, &expected);
            assert_fates(&db, &before, fates_by_id(&ids, fates));
            if expected["exit_code"] == 5 {
                // The API is back: the next run finds the tokens as they were.
                expected = report(&db, 0, None, &[("total", ids.len()), ("success", ids.len())]);
                let healed = Stub::always(Reply::valid());
                assert_report(&talkative(&db, &healed).go(), &expected);
            }
        },
    );
}

#[test]
fn a_dead_api_that_asks_for_patience_is_not_waited_for_again_and_again() {
    let db = Mongod::shared().fresh_db();
    add_tokens(&db, &["valid"; 9]);
    let before = db.snapshot();
    let api = Stub::always(Reply::json(503, "{}").header("Retry-After", "6"));
    let outcome = talkative(&db, &api).go();
    let (expected, _) = run_of(&db, &[Unreachable; 9]);
    assert_report(&outcome, &expected);
    assert_fates(&db, &before, |_| Kept);
    // Five tokens at most: once 6 s + 6 s as asked, then 1 s + 2 s each.
    assert!(outcome.elapsed < Duration::from_secs(12 + 4 * 3 + 10), "{:?}", outcome.elapsed);
}

#[test]
fn the_delete_limit_holds_back_all_or_nothing() {
    // Tokens, how many are to go, --max-delete, whether that is too many.
    let rows: [(usize, usize, &str, bool); 22] = [
        (1, 1, "", false),
        (10, 10, "", false),
        (11, 10, "", false),
        (11, 11, "", true),
        (50, 10, "", false),
        (50, 11, "", true),
        (60, 12, "", false),
        (60, 13, "", true),
        (59, 11, "", false),
        (59, 12, "", true),
        (5, 0, "0", false),
        (5, 1, "0", true),
        (5, 5, "0", true),
        (5, 3, "3", false),
        (5, 4, "3", true),
        (5, 1, "0%", true),
        (9, 4, "50%", false),
        (9, 5, "50%", true),
        (3, 1, "33%", true),
        (30, 30, "100%", false),
        (30, 30, "99%", true),
        (30, 30, "4294967295", false),
    ];
    let rows: Vec<_> = rows.into_iter().flat_map(|row| [(row, true), (row, false)]).collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&((tokens, to_go, limit, held), by_verdict)| {
            let db = Mongod::shared().fresh_db();
            let label = |i| if i < to_go { "invalid" } else { "valid" };
            let labels: Vec<_> = (0..tokens).map(label).collect();
            let ids = if by_verdict {
                add_tokens(&db, &labels)
            } else {
                db.add_all((0..tokens).map(|i| {
                    let days = if i < to_go { 41.0 } else { 3.0 };
                    Seed::new(&unique_token(label(i))).last_used_days_ago(days)
                }))
            };
            let before = db.snapshot();
            let api = Stub::start(as_labelled);
            let run = || {
                let run = talkative(&db, &api);
                // Nothing was used within a day: no token is refreshed.
                if by_verdict { run } else { run.args(["--max-age-days", "1", "--cleanup-days", "30"]) }
            };
            let limited = || if limit.is_empty() { run() } else { run().args(["--max-delete", limit]) };
            let (code, stopped) = if held { (25, Some("delete_limit")) } else { (0, None) };
            let expected = |held: bool| {
                if by_verdict {
                    let gone = if held { "withheld" } else { "deleted" };
                    report(
                        &db,
                        code,
                        stopped,
                        &[("total", tokens), ("success", tokens - to_go), (gone, to_go)],
                    )
                } else {
                    report(&db, code, stopped, &[("cleaned", if held { 0 } else { to_go })])
                }
            };
            let mut would_be = expected(held);
            would_be["dry_run"] = true.into();
            assert_report(&limited().arg("--dry-run").go(), &would_be);
            assert_eq!(db.snapshot(), before);

            let outcome = limited().go();
            assert_report(&outcome, &expected(held));
            let warning = outcome.stderr.lines().find(|line| line.contains("--max-delete"));
            assert_eq!(warning.is_some(), held);
            let stays = if by_verdict { Refreshed } else { Kept };
            let fate = |goes: Fate| {
                let fates = (0..tokens).map(|i| if i < to_go { goes } else { stays });
                fates_by_id(&ids, fates.collect())
            };
            assert_fates(&db, &before, fate(if held { Kept } else { Recycled }));
            if let Some(warning) = warning {
                // It says how many, and how to go on; that works.
                assert!(
                    warning.contains("[WARNING]") && warning.contains(&format!("{to_go} 个")),
                    "{warning}"
                );
                let again = db.snapshot();
                let mut expected = expected(false);
                expected["exit_code"] = 0.into();
                expected["stopped"] = serde_json::Value::Null;
                assert_report(&run().args(["--max-delete", &to_go.to_string()]).go(), &expected);
                assert_fates(&db, &again, fate(Recycled));
            }
        },
    );
}

/// When a signal comes.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// While the API is asked about the n-th token.
    Check(usize),
    /// At the n-th deletion from `baoming_tokens`: the delete step's, then the cleanup's.
    Deletion(usize),
    /// While the program waits for the next token.
    Pause,
    /// While it waits to try again.
    Retry,
}

#[test]
fn a_signal_ends_the_run_after_the_token_at_hand() {
    let moments = [
        Then::Check(1),
        Then::Check(2),
        Then::Check(5),
        Then::Deletion(1),
        Then::Deletion(2),
        Then::Deletion(3),
        Then::Pause,
        Then::Retry,
    ];
    let rows: Vec<_> =
        moments.into_iter().flat_map(|then| [(then, Signal::INT), (then, Signal::TERM)]).collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(then, signal)| {
            let db = Mongod::shared().fresh_db();
            // Two are condemned, and two more are what the cleanup would take.
            let mut ids = db.add_all(
                ["busy", "busy"].map(|label| Seed::new(&unique_token(label)).last_used_days_ago(41.0)),
            );
            ids.extend(add_tokens(&db, &["invalid", "invalid", "last"]));
            let before = db.snapshot();
            let (gate, reached, go) = Gate::new();
            let at_check = Arc::clone(&gate);
            let api = Stub::start(move |request| {
                match then {
                    Then::Check(n) if request.number == n => at_check.wait(),
                    Then::Retry if request.number == 2 => {
                        return Reply::json(503, "{}").header("Retry-After", "60");
                    }
                    _ => {}
                }
                as_labelled(request)
            });
            let wire = Wire::to(Mongod::shared().host(), move |command| {
                let is_deletion = command.what == "delete baoming_tokens" && !command.answered;
                if is_deletion && matches!(then, Then::Deletion(n) if n == command.nth) {
                    gate.wait();
                }
                true
            });
            let run = talkative(&db, &api).args(["--cleanup-days", "30"]).env("MONGODB_URI", wire.uri());
            let run = if let Then::Pause = then {
                run.no_args().args(["--json", "-v", "--delay-ms", "600000"])
            } else {
                run
            };
            let live = run.start();
            match then {
                Then::Check(_) | Then::Deletion(_) => reached.recv_timeout(PATIENCE).expect("the moment"),
                Then::Pause => drop(live.await_line("刷新失败")),
                Then::Retry => drop(live.await_line("秒后重试")),
            }
            let start = Instant::now();
            live.signal(signal);
            drop(go);
            let outcome = live.wait();
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

            let (counts, fates): (&[(&str, usize)], _) = match then {
                Then::Check(1) | Then::Pause => (&[("failed", 1), ("unprocessed", 4)], [Kept; 5]),
                Then::Check(2) | Then::Retry => (&[("failed", 2), ("unprocessed", 3)], [Kept; 5]),
                Then::Check(_) => {
                    (&[("failed", 2), ("success", 1), ("withheld", 2)], [Kept, Kept, Kept, Kept, Refreshed])
                }
                Then::Deletion(1) => (
                    &[("failed", 2), ("success", 1), ("deleted", 1), ("withheld", 1)],
                    [Kept, Kept, Recycled, Kept, Refreshed],
                ),
                Then::Deletion(2) => (
                    &[("failed", 2), ("success", 1), ("deleted", 2)],
                    [Kept, Kept, Recycled, Recycled, Refreshed],
                ),
                Then::Deletion(_) => (
                    &[("failed", 2), ("success", 1), ("deleted", 2), ("cleaned", 1)],
                    [Recycled, Kept, Recycled, Recycled, Refreshed],
                ),
            };
            let code = if signal == Signal::INT { 130 } else { 143 };
            let counts: Vec<_> = counts.iter().copied().chain([("total", 5)]).collect();
            assert_report(&outcome, &report(&db, code, Some("signal"), &counts));
            assert_fates(&db, &before, fates_by_id(&ids, fates.to_vec()));
        },
    );
}
