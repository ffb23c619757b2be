//! What ends a run early or holds it back: an API that is away, the delete limit, a signal. Then
//! nothing is deleted, and the next run goes on.

use std::time::{Duration, Instant};

use mongodb::bson::doc;

use super::Fate::{Kept, Recycled, Refreshed};
use super::Verdict::{Gone, Invalid, NoAnswer, Unclear, Unsendable, Valid};
use super::replies::{run_of, twice};
use super::support::{Mongod, PATIENCE, Reply, Seed, Signal, Stub, Total, count, unique_token};
use super::{
    Fate, Gate, Verdict, add_tokens, as_labelled, assert_fates, assert_report, each, fates_by_id, refusal,
    report, talkative,
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
    let transient: [(&str, Reply); 13] = [
        ("500", Reply::json(500, "{}")),
        ("502", Reply::json(502, "<html>")),
        ("503", Reply::json(503, "{}")),
        ("599", Reply::json(599, "{}")),
        ("429", Reply::json(429, "{}")),
        ("busy", Reply::busy()),
        ("reset", Reply::reset()),
        ("close", Reply::close()),
        ("garbage", Reply::garbage()),
        ("truncated", Reply::invalid().truncated(1)),
        ("huge header", Reply::huge_header(100_000)),
        ("503 with an odd Retry-After", Reply::json(503, "{}").header("Retry-After", "soon")),
        ("200 with Retry-After, truncated", Reply::valid().header("Retry-After", "9").truncated(1)),
    ];
    let settled: [(&str, Reply, Verdict); 8] = [
        ("valid", Reply::valid(), Valid),
        ("unclear", refusal("data not found"), Unclear),
        ("unclear with Retry-After", refusal("data not found").header("Retry-After", "1"), Unclear),
        ("not JSON", Reply::http(200, &[], "<html>"), NoAnswer),
        ("endless", Reply::endless(), NoAnswer),
        ("401", Reply::json(401, "{}"), NoAnswer),
        ("404 with Retry-After", Reply::json(404, "{}").header("Retry-After", "1"), NoAnswer),
        ("302", Reply::redirect("/"), NoAnswer),
    ];
    let row = |name, replies, args, verdict, waits| Tries { name, replies, args, verdict, waits };
    let mut rows = vec![row("invalid", vec![Reply::invalid()], &[], Invalid, &[])];
    for (name, reply) in transient {
        let times = |n: usize, last| [vec![reply.clone(); n], vec![last]].concat();
        rows.push(row(name, times(1, Reply::valid()), &[], Valid, &[1]));
        rows.push(row(name, times(2, Reply::invalid()), &[], Invalid, &[1, 2]));
        rows.push(row(name, times(3, Reply::invalid()), &[], NoAnswer, &[1, 2]));
        rows.push(row(name, times(1, Reply::valid()), &["--retries", "0"], NoAnswer, &[]));
    }
    for (name, reply, verdict) in settled {
        rows.push(row(name, vec![reply, Reply::close()], &[], verdict, &[]));
    }
    let mut asked = |name, wish: &str, waits| {
        let replies = vec![Reply::json(503, "{}").header("Retry-After", wish), Reply::valid()];
        rows.push(row(name, replies, &[], Valid, waits));
    };
    asked("Retry-After 3", "3", &[3]);
    asked("Retry-After 0", "0", &[0]);
    asked("Retry-After an hour", "3600", &[60]);
    rows.push(row("stall", vec![Reply::stall(), Reply::valid()], &[], Valid, &[1 + 2]));
    rows.push(row("four", vec![Reply::reset()], &["--retries", "3"], NoAnswer, &[1, 2, 3]));
    let closed_unsaid = vec![Reply::valid().then_close(), Reply::valid()];
    rows.push(row("closed unsaid", closed_unsaid, &[], Valid, &[]));
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
        let run = talkative(&db, &api).args(["--timeout-secs", "2"]).args(row.args);
        let outcome = run.limit(Duration::from_secs(120)).go();
        let (expected, fates) = run_of(&db, &twice(&[row.verdict, Valid]));
        assert_report(&outcome, &expected);
        assert_fates(&db, &before, fates_by_id(&ids, fates));

        let requests = api.recorded();
        let tries: Vec<_> = requests.iter().filter(|request| request.token().contains("-tried-")).collect();
        // A second question follows before a deletion.
        assert_eq!(tries.len(), row.waits.len() + 1 + usize::from(row.verdict == Invalid));
        for (pair, &wait) in tries.windows(2).zip(row.waits) {
            let waited = pair[1].at - pair[0].at;
            let wait = Duration::from_secs(wait);
            assert!(waited >= wait && waited < wait + Duration::from_secs(5), "{waited:?}, not {wait:?}");
        }
    });
}

/// V valid, I invalid, F unclear, U no answer, T too long to be sent, G gone once five were asked;
/// i invalid and then valid, f invalid and then unclear, u invalid and then no answer.
fn verdicts_of(row: &str) -> Vec<(Verdict, Verdict)> {
    let of = |c| match c {
        'V' => (Valid, Valid),
        'I' => (Invalid, Invalid),
        'F' => (Unclear, Unclear),
        'T' => (Unsendable, Unsendable),
        'G' => (Gone, Gone),
        'i' => (Invalid, Valid),
        'f' => (Invalid, Unclear),
        'u' => (Invalid, NoAnswer),
        _ => (NoAnswer, NoAnswer),
    };
    row.chars().map(of).collect()
}

#[test]
fn five_in_a_row_without_an_answer_ask_for_a_control() {
    let (good, long) = (format!("UUUUUUU{}", "V".repeat(30)), format!("{}V", "U".repeat(12)));
    let rows = [
        // Fewer than five, or no control is left: it is among the five, gone, or cannot be sent.
        "U",
        "UU",
        "UUUU",
        "UUUUU",
        "VUUUUU",
        "TUUUUUT",
        "UUTUUU",
        "UUUUUG",
        "UT",
        // The control does not answer either.
        "UUUUUU",
        "UUUUUVU",
        "VUUUUUVU",
        "IUUUUUUVU",
        "IVFUUUUUIVU",
        "UUUUIUUUUUU",
        "IIIUUUUUUUU",
        // It answers: valid, invalid, unclear, gone meanwhile or too long and another one does.
        &good,
        "UUUUUV",
        "UUUUUVI",
        "UUUUUVF",
        "UUUUUVG",
        "UUUUUVVGG",
        "UUUUUVT",
        "IUUUUUI",
        "UUUUUUUUUUUVVV",
        &long,
        // No five in a row.
        "UUUUVUUUUV",
        "UUUUFUUUUF",
        "UUUUIUUUUI",
        "UUUUV",
        "VU",
        "UI",
        "FU",
        "UF",
        "IU",
        "FFFFFFF",
        "UUUUFUUUU",
        "TTTTTTT",
        // The second question: nobody dies of one reply.
        "i",
        "f",
        "u",
        "iVIV",
        "fIu",
        "VuuI",
        "VuuuuuII",
        "VuuuuIuI",
        "uuuuuuII",
    ];
    let modes: [&[&str]; 3] = [&[], &["--dry-run"], &["--shard", "0/1"]];
    let rows: Vec<_> = rows.iter().flat_map(|row| modes.map(|mode| (*row, mode))).collect();
    count(Total::Walls, rows.len());
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(row, mode)| {
            let db = Mongod::shared().fresh_db();
            let verdicts = verdicts_of(row);
            let long = "T".repeat(4_096);
            let label = |(i, c)| if c == 'T' { long.as_str() } else { &row[i..=i] };
            let ids = add_tokens(&db, &row.char_indices().map(label).collect::<Vec<_>>());
            let gone = ids.iter().zip(row.chars()).filter(|(_, c)| *c == 'G').map(|(id, _)| *id);
            let gone: Vec<_> = gone.inspect(|&id| db.disown(id)).collect();
            let (before, tokens) = (db.snapshot(), db.tokens());
            let api = Stub::start(move |request| {
                if request.number == 5 {
                    tokens.delete_many(doc! { "_id": { "$in": &gone } }).run().expect("delete");
                }
                let label = request.token().split('-').nth(1).unwrap_or_default();
                let [(first, second)] = verdicts_of(label)[..] else { panic!("{label}") };
                match if request.nth == 1 { first } else { second } {
                    Valid | Gone => Reply::valid(),
                    Invalid => Reply::invalid(),
                    Unclear => refusal("data not found"),
                    _ => Reply::close(),
                }
            });
            let (mut expected, fates) = run_of(&db, &verdicts);
            // No cleanup after an early stop, and none of a token that was just refreshed.
            let run =
                talkative(&db, &api).args(["--retries", "0", "--max-delete", "100%", "--cleanup-days", "30"]);
            let outcome = run.args(mode).go();
            if mode == ["--dry-run"] {
                expected["dry_run"] = true.into();
                assert_report(&outcome, &expected);
                let kept =
                    |id| if fates_by_id(&ids, fates.clone())(id) == Fate::Gone { Fate::Gone } else { Kept };
                assert_fates(&db, &before, kept);
                return;
            }
            assert_report(&outcome, &expected);
            assert_fates(&db, &before, fates_by_id(&ids, fates));
            if expected["exit_code"] == 5 && !row.contains(['T', 'G']) {
                // The API is back: the next run finds what is left as it was.
                let left = db.snapshot().tokens.len();
                let healed = Stub::always(Reply::valid());
                let expected = report(&db, 0, None, &[("total", left), ("success", left)]);
                assert_report(&talkative(&db, &healed).go(), &expected);
            }
        },
    );
}

#[test]
fn a_wall_costs_six_questions() {
    let walls: [(&str, Reply, bool); 6] = [
        ("403", Reply::http(403, &[], "<html>invalid access_token</html>"), false),
        ("404", Reply::http(404, &[], "not found"), false),
        ("HTML", Reply::http(200, &[], "<html>invalid access_token</html>"), false),
        ("503", Reply::http(503, &[], "down"), true),
        ("busy", Reply::busy(), true),
        ("reset", Reply::reset(), true),
    ];
    let modes: [&[&str]; 4] = [&[], &["--dry-run"], &["--shard", "1/2"], &["--cleanup-days", "30"]];
    let rows: Vec<_> = walls.iter().flat_map(|wall| modes.map(|mode| (wall, mode))).collect();
    count(Total::Walls, rows.len());
    each(
        &rows,
        |((name, ..), mode)| format!("{name} {mode:?}"),
        |((_, reply, is_tried_again), mode)| {
            let db = Mongod::shared().fresh_db();
            add_tokens(&db, &["valid"; 58]);
            db.add_all(
                ["valid", "valid"].map(|label| Seed::new(&unique_token(label)).last_used_days_ago(41.0)),
            );
            let before = db.snapshot();
            let api = Stub::always(reply.clone());
            let outcome = talkative(&db, &api).args(["--retries", "1"]).args(*mode).go();
            let total = usize::try_from(outcome.json()["total"].as_u64().expect("a count")).expect("small");
            assert!(if mode.contains(&"--shard") { (7..60).contains(&total) } else { total == 60 });
            let counts = [("total", total), ("failed", 6), ("unprocessed", total - 6)];
            let mut expected = report(&db, 5, Some("api_unreachable"), &counts);
            expected["dry_run"] = mode.contains(&"--dry-run").into();
            assert_report(&outcome, &expected);
            assert_eq!(db.snapshot(), before);
            assert_eq!(api.requests(), if *is_tried_again { 12 } else { 6 });
        },
    );
}

#[test]
fn a_dead_api_that_asks_for_patience_ends_the_run_with_the_default_tries() {
    let db = Mongod::shared().fresh_db();
    add_tokens(&db, &["valid"; 9]);
    let before = db.snapshot();
    let api = Stub::always(Reply::json(503, "{}").header("Retry-After", "2"));
    let outcome = talkative(&db, &api).go();
    let (expected, _) = run_of(&db, &twice(&[NoAnswer; 9]));
    assert_report(&outcome, &expected);
    assert_fates(&db, &before, |_| Kept);
    assert_eq!(api.requests(), 6 * 3);
}

#[test]
fn an_api_that_refuses_everybody_says_nothing_about_who_is_unused() {
    for args in [&["--cleanup-days", "30"] as &[_], &["--cleanup-days", "30", "--dry-run"]] {
        let db = Mongod::shared().fresh_db();
        db.add_all([41.0, 2.0, 1.0].map(|days| Seed::new(&unique_token("unclear")).last_used_days_ago(days)));
        let before = db.snapshot();
        let outcome = talkative(&db, &Stub::start(as_labelled)).args(args).go();
        let mut expected = report(&db, 3, None, &[("total", 3), ("failed", 3)]);
        expected["dry_run"] = args.contains(&"--dry-run").into();
        assert_report(&outcome, &expected);
        assert_eq!(db.snapshot(), before);
        let is_told = |line: &str| line.contains("[WARNING]") && line.contains("清理");
        assert!(outcome.stderr.lines().any(is_told), "{}", outcome.stderr);
    }
}

#[test]
fn the_delete_limit_holds_back_all_or_nothing() {
    // Tokens, how many are to go, --max-delete, whether that is too many.
    let rows: [(usize, usize, &str, bool); 22] = [
        (1, 1, "", false),
        (3, 3, "", false),
        (4, 4, "", true),
        (8, 3, "", false),
        (8, 8, "", true),
        (15, 4, "", true),
        (19, 3, "", false),
        (20, 4, "", false),
        (20, 5, "", true),
        (60, 12, "", false),
        (60, 13, "", true),
        (5, 0, "0", false),
        (5, 1, "0", true),
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
            // By age nothing was used within a day: no token is refreshed.
            let age = if by_verdict { "100" } else { "1" };
            let run = || talkative(&db, &api).args(["--max-age-days", age, "--cleanup-days", "30"]);
            let limited = || if limit.is_empty() { run() } else { run().args(["--max-delete", limit]) };
            let expected = |held: bool| {
                let gone = if held { "withheld" } else { "deleted" };
                let by_verdict =
                    by_verdict.then_some([("total", tokens), ("success", tokens - to_go), (gone, to_go)]);
                let counts =
                    by_verdict.map_or_else(|| vec![("cleaned", if held { 0 } else { to_go })], Vec::from);
                let (code, stopped) = if held { (25, Some("delete_limit")) } else { (0, None) };
                report(&db, code, stopped, &counts)
            };
            let mut would_be = expected(held);
            would_be["dry_run"] = true.into();
            assert_report(&limited().arg("--dry-run").go(), &would_be);
            assert_eq!(db.snapshot(), before);
            let asked = if by_verdict { tokens + if held { 0 } else { to_go } } else { 0 };
            assert_eq!(api.requests(), asked, "a step that is held back asks nothing");

            let outcome = limited().go();
            assert_report(&outcome, &expected(held));
            let is_limit = |line: &&str| line.contains("[WARNING]") && line.contains("--max-delete");
            let warning = outcome.stderr.lines().find(is_limit);
            let stays = if by_verdict { Refreshed } else { Kept };
            let fate = |goes: Fate| {
                let fates = (0..tokens).map(|i| if i < to_go { goes } else { stays });
                fates_by_id(&ids, fates.collect())
            };
            assert_fates(&db, &before, fate(if held { Kept } else { Recycled }));
            let said = |part: &str| outcome.stderr.lines().filter(|line| line.contains(part)).count();
            if held {
                // It says how many, and how to go on; that works.
                let warning = warning.unwrap_or_else(|| panic!("{}", outcome.stderr));
                assert!(warning.contains(&format!("{to_go} 个")), "{warning}");
                assert!(!by_verdict || said("'invalid'") >= to_go, "{}", outcome.stderr);
                assert!(!by_verdict || said("清理") == 1, "{}", outcome.stderr);
                let again = db.snapshot();
                let enough = to_go.to_string();
                assert_report(&run().args(["--max-delete", &enough]).go(), &expected(false));
                assert_fates(&db, &again, fate(Recycled));
            } else {
                let back = report(&db, 0, None, &[("total", to_go), ("success", to_go)]);
                assert_report(&talkative(&db, &api).args(["--restore-hours", "1"]).go(), &back);
                assert!(db.snapshot().tokens.len() == tokens && db.snapshot().bin.is_empty());
            }
        },
    );
}

/// When a signal comes, besides at every command to the database (`steps.rs`).
#[derive(Clone, Copy, Debug)]
enum Then {
    /// While the API is asked the n-th question: five, then the second ones.
    Check(usize),
    /// While the program waits for the next token.
    Pause,
    /// While it waits to try again.
    Retry,
}

#[test]
fn a_signal_ends_the_run_after_the_token_at_hand() {
    use Then::{Check, Pause, Retry};
    let moments = [Check(1), Check(2), Check(5), Check(6), Check(7), Pause, Retry];
    let rows: Vec<_> =
        moments.into_iter().flat_map(|then| [(then, Signal::INT), (then, Signal::TERM)]).collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(then, signal)| {
            let db = Mongod::shared().fresh_db();
            // Two are condemned, and two more are what the cleanup would take.
            let mut ids = db.add_all(
                ["unclear", "unclear"].map(|label| Seed::new(&unique_token(label)).last_used_days_ago(41.0)),
            );
            ids.extend(add_tokens(&db, &["invalid", "invalid", "last"]));
            let before = db.snapshot();
            let (gate, reached, go) = Gate::new();
            let api = Stub::start(move |request| {
                match then {
                    Check(n) if request.number == n => gate.wait(),
                    Retry if request.number == 2 => {
                        return Reply::json(503, "{}").header("Retry-After", "60");
                    }
                    _ => {}
                }
                as_labelled(request)
            });
            let delay = if let Pause = then { "600000" } else { "0" };
            let run = talkative(&db, &api).no_args().args(["--json", "-v", "--delay-ms", delay]);
            let live = run.args(["--cleanup-days", "30"]).start();
            match then {
                Check(_) => reached.recv_timeout(PATIENCE).expect("the moment"),
                Pause => drop(live.await_line("刷新失败")),
                Retry => drop(live.await_line("秒后重试")),
            }
            let start = Instant::now();
            live.signal(signal);
            drop(go);
            let outcome = live.wait();
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

            let last = if let Check(5..=7) = then { Refreshed } else { Kept };
            let (counts, gone): (&[(&str, usize)], _) = match then {
                Check(1) | Pause => (&[("failed", 1), ("unprocessed", 4)], Kept),
                Check(2) | Retry => (&[("failed", 2), ("unprocessed", 3)], Kept),
                Check(5 | 6) => (&[("failed", 2), ("success", 1), ("withheld", 2)], Kept),
                Check(_) => (&[("failed", 2), ("success", 1), ("deleted", 1), ("withheld", 1)], Recycled),
            };
            let code = if signal == Signal::INT { 130 } else { 143 };
            let counts: Vec<_> = counts.iter().copied().chain([("total", 5)]).collect();
            assert_report(&outcome, &report(&db, code, Some("signal"), &counts));
            assert_fates(&db, &before, fates_by_id(&ids, vec![Kept, Kept, gone, Kept, last]));
        },
    );
}
