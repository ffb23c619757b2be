//! What ends a run early or holds it back: an API that is away, the delete limit, a signal. Then
//! nothing is deleted, and the next run goes on.

use std::time::{Duration, Instant};

use mongodb::bson::doc;

use super::Fate::{Kept, Recycled, Refreshed};
use super::Verdict::{Gone, Invalid, NoAnswer, Unclear, Unsendable, Valid};
use super::replies::{run_of, twice};
use super::support::{Mongod, Reply, Seed, Signal, Stub, Total, count, unique_token};
use super::{Fate, Verdict, assert_fates, assert_report, dry, each, gated_by, of_tokens, report, talkative};

/// What is waited for between two tries: the name; the replies to the first tries, of which the
/// last one goes for all that follow; flags; from each try to the next, in seconds.
type Tries = (&'static str, Vec<Reply>, &'static [&'static str], Verdict, &'static [u64]);

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
        ("huge header", Reply::valid().header("X-Huge", &"h".repeat(100_000)).truncated(0)),
        ("503 with an odd Retry-After", Reply::json(503, "{}").header("Retry-After", "soon")),
        ("200 with Retry-After, truncated", Reply::valid().header("Retry-After", "9").truncated(1)),
    ];
    let settled: [(&str, Reply, Verdict); 8] = [
        ("valid", Reply::valid(), Valid),
        ("unclear", Reply::refusal("data not found"), Unclear),
        ("unclear with Retry-After", Reply::refusal("data not found").header("Retry-After", "1"), Unclear),
        ("not JSON", Reply::http(200, &[], "<html>"), NoAnswer),
        ("endless", Reply::endless(), NoAnswer),
        ("401", Reply::json(401, "{}"), NoAnswer),
        ("404 with Retry-After", Reply::json(404, "{}").header("Retry-After", "1"), NoAnswer),
        ("302", Reply::redirect("/"), NoAnswer),
    ];
    let mut rows: Vec<Tries> = vec![("invalid", vec![Reply::invalid()], &[], Invalid, &[])];
    for (name, reply) in transient {
        let times = |n: usize, last| [vec![reply.clone(); n], vec![last]].concat();
        rows.push((name, times(1, Reply::valid()), &[], Valid, &[1]));
        rows.push((name, times(2, Reply::invalid()), &[], Invalid, &[1, 2]));
        rows.push((name, times(3, Reply::invalid()), &[], NoAnswer, &[1, 2]));
        rows.push((name, times(1, Reply::valid()), &["--retries", "0"], NoAnswer, &[]));
    }
    for (name, reply, verdict) in settled {
        rows.push((name, vec![reply, Reply::close()], &[], verdict, &[]));
    }
    let asked = |wish: &str| vec![Reply::json(503, "{}").header("Retry-After", wish), Reply::valid()];
    rows.push(("Retry-After 3", asked("3"), &[], Valid, &[3]));
    rows.push(("Retry-After 0", asked("0"), &[], Valid, &[0]));
    rows.push(("Retry-After an hour", asked("3600"), &[], Valid, &[60]));
    rows.push(("stall", vec![Reply::stall(), Reply::valid()], &[], Valid, &[1 + 2]));
    rows.push(("four", vec![Reply::reset()], &["--retries", "3"], NoAnswer, &[1, 2, 3]));
    rows.push(("closed unsaid", vec![Reply::valid().then_close(), Reply::valid()], &[], Valid, &[]));
    // The longest first, so that nothing waits for it at the end.
    rows.sort_by_key(|(.., waits)| std::cmp::Reverse(waits.iter().sum::<u64>()));
    rows
}

#[test]
fn transient_faults_are_tried_again_and_verdicts_are_not() {
    each(&tries(), |(_, replies, args, verdict, waits)| {
        let db = Mongod::shared().fresh_db();
        let ids = db.add_labelled(&["tried", "valid"]);
        let before = db.snapshot();
        let replies = replies.clone();
        let api = Stub::start(move |request| {
            if request.token().contains("-tried-") {
                replies[request.nth.min(replies.len()) - 1].clone()
            } else {
                Reply::valid()
            }
        });
        let run = talkative(&db, &api).args(["--timeout-secs", "2"]).args(*args);
        let outcome = run.limit(Duration::from_secs(120)).go();
        let (expected, fates) = run_of(&db, &twice(&[*verdict, Valid]));
        assert_report(&outcome, &expected);
        assert_fates(&db, &before, &ids, &fates);

        let requests = api.recorded();
        let tries: Vec<_> = requests.iter().filter(|request| request.token().contains("-tried-")).collect();
        // A second question follows before a deletion.
        assert_eq!(tries.len(), waits.len() + 1 + usize::from(*verdict == Invalid));
        for (pair, &wait) in tries.windows(2).zip(*waits) {
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
    let rows = [
        // Fewer than five, or no control is left: it is among the five, gone, or cannot be sent.
        "U UU UUUU UUUUU VUUUUU TUUUUUT UUTUUU UUUUUG UT",
        // The control does not answer either.
        "UUUUUU UUUUUVU VUUUUUVU IUUUUUUVU IVFUUUUUIVU UUUUIUUUUUU IIIUUUUUUUU",
        // It answers: valid, invalid, unclear, gone meanwhile or too long and another one does.
        "UUUUUV UUUUUVI UUUUUVF UUUUUVG UUUUUVVGG UUUUUVT IUUUUUI UUUUUUUUUUUVVV",
        "UUUUUUUVVVVVVVVVVVVVVVVVVVVVVVVVVVVVV UUUUUUUUUUUUV",
        // No five in a row.
        "UUUUVUUUUV UUUUFUUUUF UUUUIUUUUI UUUUV VU UI FU UF IU FFFFFFF UUUUFUUUU TTTTTTT",
        // The second question: nobody dies of one reply.
        "i f u iVIV fIu VuuI VuuuuuII VuuuuIuI uuuuuuII",
    ];
    let modes: [&[&str]; 3] = [&[], &["--dry-run"], &["--shard", "0/1"]];
    let rows = rows.iter().flat_map(|rows| rows.split(' '));
    let rows: Vec<_> = rows.flat_map(|row| modes.map(|mode| (row, mode))).collect();
    count(Total::WALLS, rows.len());
    each(&rows, |&(row, mode)| {
        let db = Mongod::shared().fresh_db();
        let verdicts = verdicts_of(row);
        let long = "T".repeat(70_000);
        let label = |(i, c)| if c == 'T' { long.as_str() } else { &row[i..=i] };
        let ids = db.add_labelled(&row.char_indices().map(label).collect::<Vec<_>>());
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
                Unclear => Reply::refusal("data not found"),
                _ => Reply::close(),
            }
        });
        let (mut expected, mut fates) = run_of(&db, &verdicts);
        // No cleanup after an early stop, and none of a token that was just refreshed.
        let run =
            talkative(&db, &api).args(["--retries", "0", "--max-delete", "100%", "--cleanup-days", "30"]);
        let outcome = run.args(mode).go();
        let is_dry = mode == ["--dry-run"];
        expected["dry_run"] = is_dry.into();
        if is_dry {
            fates.iter_mut().filter(|fate| **fate != Fate::Gone).for_each(|fate| *fate = Kept);
        }
        assert_report(&outcome, &expected);
        assert_fates(&db, &before, &ids, &fates);
        if !is_dry && expected["exit_code"] == 5 && !row.contains(['T', 'G']) {
            // The API is back: the next run finds what is left as it was.
            let left = db.snapshot().tokens.len();
            let healed = Stub::always(Reply::valid());
            let expected = report(&db, 0, None, &[("success", left)]);
            assert_report(&talkative(&db, &healed).go(), &expected);
        }
    });
}

#[test]
fn a_wall_costs_six_questions() {
    let walls: [(&str, Reply, bool); 6] = [
        ("403", Reply::http(403, &[], "<html>invalid access_token</html>"), false),
        ("404", Reply::http(404, &[], "not found"), false),
        ("HTML", Reply::http(200, &[], "<html>invalid access_token</html>"), false),
        ("503", Reply::http(503, &[("Retry-After", "0")], "down"), true),
        ("busy", Reply::busy().header("Retry-After", "0"), true),
        ("reset", Reply::reset(), true),
    ];
    let modes: [&[&str]; 4] = [&[], &["--dry-run"], &["--shard", "1/2"], &["--cleanup-days", "30"]];
    let rows: Vec<_> = walls.iter().flat_map(|wall| modes.map(|mode| (wall, mode))).collect();
    count(Total::WALLS, rows.len());
    each(&rows, |((_, reply, is_tried_again), mode)| {
        let db = Mongod::shared().fresh_db();
        db.add_labelled(&["valid"; 58]);
        let _unused = ["valid", "valid"].map(|label| db.add_used(label, 41.0));
        let before = db.snapshot();
        let api = Stub::always(reply.clone());
        let outcome = talkative(&db, &api).args(*mode).go();
        let total = usize::try_from(outcome.json()["total"].as_u64().expect("a count")).expect("small");
        assert!(if mode.contains(&"--shard") { (7..60).contains(&total) } else { total == 60 });
        let counts = [("failed", 6), ("unprocessed", total - 6)];
        let mut expected = report(&db, 5, Some("api_unreachable"), &counts);
        expected["dry_run"] = mode.contains(&"--dry-run").into();
        assert_report(&outcome, &expected);
        assert_eq!(db.snapshot(), before);
        // Six questions, with the default tries.
        assert_eq!(api.requests(), if *is_tried_again { 18 } else { 6 });
    });
}

#[test]
fn an_api_that_refuses_everybody_says_nothing_about_who_is_unused() {
    for args in [&["--cleanup-days", "30"] as &[_], &["--cleanup-days", "30", "--dry-run"]] {
        let db = Mongod::shared().fresh_db();
        db.add_all([41.0, 2.0, 1.0].map(|days| Seed::new(&unique_token("unclear")).last_used_days_ago(days)));
        let before = db.snapshot();
        let outcome = talkative(&db, &Stub::by_label()).args(args).go();
        let mut expected = report(&db, 3, None, &[("failed", 3)]);
        expected["dry_run"] = args.contains(&"--dry-run").into();
        assert_report(&outcome, &expected);
        assert_eq!(db.snapshot(), before);
        let is_told = |line: &str| line.contains("[WARNING]") && line.contains("清理");
        assert!(outcome.stderr.lines().any(is_told), "{}", outcome.stderr);
    }
}

#[test]
fn the_delete_limit_holds_back_all_or_nothing() {
    // --max-delete, how many of how many tokens it lets go, and how many it does not.
    let limits = [
        ("", "1/1 3/3 3/8 3/19 4/20 12/60", "4/4 8/8 4/15 5/20 13/60"),
        ("0", "0/5", "1/5"),
        ("3", "3/5", "4/5"),
        ("0%", "", "1/5"),
        ("33%", "", "1/3"),
        ("50%", "4/9", "5/9"),
        ("99%", "", "30/30"),
        ("100%", "30/30", ""),
        ("4294967295", "30/30", ""),
    ];
    let mut rows = Vec::new();
    for (limit, few, many) in limits {
        for (part, held) in [(few, false), (many, true)] {
            for (to_go, tokens) in part.split(' ').filter_map(|part| part.split_once('/')) {
                let [to_go, tokens] = [to_go, tokens].map(|n| n.parse().expect("a number"));
                rows.extend([true, false].map(|by_verdict| ((tokens, to_go, limit, held), by_verdict)));
            }
        }
    }
    each(&rows, |&((tokens, to_go, limit, held), by_verdict): &((usize, usize, &str, bool), bool)| {
        let db = Mongod::shared().fresh_db();
        let label = |i| if i < to_go { "invalid" } else { "valid" };
        let labels: Vec<_> = (0..tokens).map(label).collect();
        let ids = if by_verdict {
            db.add_labelled(&labels)
        } else {
            (0..tokens).map(|i| db.add_used(label(i), if i < to_go { 41.0 } else { 3.0 })).collect()
        };
        let before = db.snapshot();
        let api = Stub::by_label();
        // By age nothing was used within a day: no token is refreshed.
        let age = if by_verdict { "100" } else { "1" };
        let run = || talkative(&db, &api).args(["--max-age-days", age, "--cleanup-days", "30"]);
        let limited = || if limit.is_empty() { run() } else { run().args(["--max-delete", limit]) };
        let expected = |held: bool| {
            let gone = if held { "withheld" } else { "deleted" };
            let counts = if by_verdict {
                vec![("success", tokens - to_go), (gone, to_go)]
            } else {
                vec![("cleaned", if held { 0 } else { to_go })]
            };
            let (code, stopped) = if held { (25, Some("delete_limit")) } else { (0, None) };
            report(&db, code, stopped, &counts)
        };
        let fates = |goes: Fate| {
            let stays = if by_verdict { Refreshed } else { Kept };
            [vec![goes; to_go], vec![stays; tokens - to_go]].concat()
        };
        assert_report(&limited().arg("--dry-run").go(), &dry(expected(held)));
        assert_eq!(db.snapshot(), before);
        let asked = if by_verdict { tokens + if held { 0 } else { to_go } } else { 0 };
        assert_eq!(api.requests(), asked, "a step that is held back asks nothing");

        let outcome = limited().go();
        assert_report(&outcome, &expected(held));
        assert_fates(&db, &before, &ids, &fates(if held { Kept } else { Recycled }));
        if held {
            // It says how many, and how to go on; that works.
            let said = |parts: &[&str]| {
                let is_it = |line: &&str| parts.iter().all(|part| line.contains(part));
                outcome.stderr.lines().filter(is_it).count()
            };
            assert_eq!(said(&["[WARNING]", "--max-delete", &format!("{to_go} 个")]), 1);
            assert!(!by_verdict || said(&["'invalid'"]) >= to_go && said(&["清理"]) == 1);
            let again = db.snapshot();
            assert_report(&run().args(["--max-delete", &to_go.to_string()]).go(), &expected(false));
            assert_fates(&db, &again, &ids, &fates(Recycled));
        } else {
            let back = report(&db, 0, None, &[("success", to_go)]);
            assert_report(&talkative(&db, &api).args(["--restore-hours", "1"]).go(), &back);
            assert!(db.snapshot().tokens.len() == tokens && db.snapshot().bin.is_empty());
        }
    });
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
    // Two are condemned, and two more are what the cleanup would take.
    let five: &[&str] = &["unclear-unused", "unclear-unused", "invalid", "invalid", "last"];
    // Tokens, moment, exit code if it is not the signal's; success, failed, deleted, withheld, unprocessed.
    let rows: [(&[&str], _, _, _); 11] = [
        (five, Check(1), None, [0, 1, 0, 0, 4]),
        (five, Check(2), None, [0, 2, 0, 0, 3]),
        (five, Check(5), None, [1, 2, 0, 2, 0]),
        (five, Check(6), None, [1, 2, 0, 2, 0]),
        (five, Check(7), None, [1, 2, 1, 1, 0]),
        (five, Pause, None, [0, 1, 0, 0, 4]),
        (five, Retry, None, [0, 2, 0, 0, 3]),
        // The very last question: what left nothing undone was not stopped.
        (&["valid"], Check(1), Some(0), [1, 0, 0, 0, 0]),
        (&["valid", "unclear"], Check(2), Some(3), [1, 1, 0, 0, 0]),
        (&["valid", "down"], Check(2), None, [1, 1, 0, 0, 0]),
        (&["valid", "invalid"], Check(2), None, [1, 0, 0, 1, 0]),
    ];
    let rows: Vec<_> = rows.into_iter().flat_map(|row| [(row, Signal::INT), (row, Signal::TERM)]).collect();
    each(&rows, |&((labels, then, code, counts), signal)| {
        let db = Mongod::shared().fresh_db();
        let ids: Vec<_> = labels
            .iter()
            .zip([0.9, 0.8, 0.7, 0.6, 0.5])
            .map(|(label, days)| db.add_used(label, if label.contains("unused") { 41.0 } else { days }))
            .collect();
        let before = db.snapshot();
        let n = if let Check(n) = then { n } else { 0 };
        let (api, moment) = gated_by(n, move |request| match then {
            Retry if request.number == 2 => Reply::json(503, "{}").header("Retry-After", "60"),
            _ => Reply::by_label(request.token()),
        });
        let delay = if let Pause = then { "600000" } else { "0" };
        let run = talkative(&db, &api).no_args().args(["--json", "-v", "--delay-ms", delay]);
        let live = run.args(["--cleanup-days", "30"]).start();
        match then {
            Check(_) => moment.come(),
            Pause => drop(live.await_line("刷新失败")),
            Retry => drop(live.await_line("秒后重试")),
        }
        let start = Instant::now();
        live.signal(signal);
        drop(moment);
        let outcome = live.wait();
        // A pause ends within 2 s; the rest is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

        let (code, stopped) = match code {
            Some(code) => (code, None),
            None => (if signal == Signal::INT { 130 } else { 143 }, Some("signal")),
        };
        let [success, _, deleted, ..] = counts;
        assert_report(&outcome, &report(&db, code, stopped, &of_tokens(counts)));
        let mut fates: Vec<_> = labels
            .iter()
            .map(|label| match *label {
                "last" | "valid" if success == 1 => Refreshed,
                _ => Kept,
            })
            .collect();
        if deleted == 1 {
            fates[2] = Recycled;
        }
        assert_fates(&db, &before, &ids, &fates);
    });
}
