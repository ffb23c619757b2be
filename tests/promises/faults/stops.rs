//! What ends a run early or holds it back: an API that is away, the delete limit, a signal. Then
//! nothing is deleted, and the next run goes on.

use std::time::{Duration, Instant};

use mongodb::bson::doc;

use super::support::{Mongod, Reply, Signal, Stub, Total, count};
use super::{Trial, assert_report, come, dry, each, gated, report, talkative};

/// What is waited for between two tries: the name; the replies to the first tries, of which the
/// last one goes for all that follow; flags; what becomes of the token; from each try to the next,
/// in seconds.
type Tries = (&'static str, Vec<Reply>, &'static [&'static str], char, &'static [u64]);

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
    let settled: [(&str, Reply, char); 8] = [
        ("valid", Reply::valid(), '+'),
        ("unclear", Reply::refusal("data not found"), '!'),
        ("unclear with Retry-After", Reply::refusal("data not found").header("Retry-After", "1"), '!'),
        ("not JSON", Reply::http(200, &[], "<html>"), '!'),
        ("endless", Reply::endless(), '!'),
        ("401", Reply::json(401, "{}"), '!'),
        ("404 with Retry-After", Reply::json(404, "{}").header("Retry-After", "1"), '!'),
        ("302", Reply::redirect("/"), '!'),
    ];
    let mut rows: Vec<Tries> = vec![("invalid", vec![Reply::invalid()], &[], 'x', &[])];
    for (name, reply) in transient {
        let times = |n: usize, last| [vec![reply.clone(); n], vec![last]].concat();
        rows.push((name, times(1, Reply::valid()), &[], '+', &[1]));
        rows.push((name, times(2, Reply::invalid()), &[], 'x', &[1, 2]));
        rows.push((name, times(3, Reply::invalid()), &[], '!', &[1, 2]));
        rows.push((name, times(1, Reply::valid()), &["--retries", "0"], '!', &[]));
    }
    for (name, reply, verdict) in settled {
        rows.push((name, vec![reply, Reply::close()], &[], verdict, &[]));
    }
    let asked = |wish: &str| vec![Reply::json(503, "{}").header("Retry-After", wish), Reply::valid()];
    rows.push(("Retry-After 3", asked("3"), &[], '+', &[3]));
    rows.push(("Retry-After 0", asked("0"), &[], '+', &[0]));
    rows.push(("Retry-After an hour", asked("3600"), &[], '+', &[60]));
    rows.push(("stall", vec![Reply::stall(), Reply::valid()], &[], '+', &[1 + 2]));
    rows.push(("four", vec![Reply::reset()], &["--retries", "3"], '!', &[1, 2, 3]));
    rows.push(("closed unsaid", vec![Reply::valid().then_close(), Reply::valid()], &[], '+', &[]));
    // The longest first, so that nothing waits for it at the end.
    rows.sort_by_key(|(.., waits)| std::cmp::Reverse(waits.iter().sum::<u64>()));
    rows
}

#[test]
fn transient_faults_are_tried_again_and_verdicts_are_not() {
    each(&tries(), |(_, replies, args, end, waits)| {
        let trial = Trial::new(Mongod::shared().fresh_db(), &["tried", "valid"]);
        let replies = replies.clone();
        let api = Stub::start(move |request| {
            if request.token().contains("-tried-") {
                replies[request.nth.min(replies.len()) - 1].clone()
            } else {
                Reply::valid()
            }
        });
        let run = talkative(&trial.db, &api).args(["--timeout-secs", "2"]).args(*args);
        let outcome = run.limit(Duration::from_secs(120)).go();
        trial.assert_end(&outcome, if *end == '!' { 3 } else { 0 }, &format!("{end}+"));

        let requests = api.recorded();
        let tries: Vec<_> = requests.iter().filter(|request| request.token().contains("-tried-")).collect();
        // A second question follows before a deletion.
        assert_eq!(tries.len(), waits.len() + 1 + usize::from(*end == 'x'));
        for (pair, &wait) in tries.windows(2).zip(*waits) {
            let waited = pair[1].at - pair[0].at;
            // A busy machine notes a request late.
            let (least, most) =
                (Duration::from_millis(wait * 1000 - wait.min(1) * 500), Duration::from_secs(wait + 5));
            assert!(waited >= least && waited < most, "{waited:?}, not {wait} s");
        }
    });
}

#[test]
fn five_in_a_row_without_an_answer_ask_for_a_control() {
    // Exit code, and tokens with what becomes of each: V valid, I invalid, F unclear, U no answer,
    // T too long to be sent, G gone once five were asked; i invalid and then valid, f invalid and
    // then unclear, u invalid and then no answer.
    let table = [
        // Fewer than five, or no control is left: it is among the five, gone, or cannot be sent.
        (
            5,
            "U:! UU:!! UUUU:!!!! UUUUU:!!!!! VUUUUU:+!!!!! UUUUUG:!!!!!g UT:!! TUUUUUT:!!!!!!- UUTUUU:!!!!!!",
        ),
        // The control does not answer either.
        (5, "UUUUUU:!!!!!! UUUUUVU:!!!!!-! VUUUUUVU:+!!!!!-! IUUUUUUVU:w!!!!!--! IVFUUUUUIVU:w+!!!!!!--!"),
        (5, "UUUUIUUUUUU:!!!!w!!!!!! IIIUUUUUUUU:www!!!!!--! UUUUUUUUUUUUV:!!!!!!!!!!-!+"),
        // It answers: valid, invalid, unclear, gone meanwhile or too long and another one does.
        (3, "UUUUUV:!!!!!+ UUUUUVI:!!!!!+x UUUUUVF:!!!!!+! UUUUUVG:!!!!!+s UUUUUVVGG:!!!!!++ss"),
        (3, "UUUUUVT:!!!!!+! IUUUUUI:x!!!!!x UUUUUUUUUUUVVV:!!!!!!!!!!!+++"),
        (3, "UUUUUUUVVVVVVVVVVVVVVVVVVVVVVVVVVVVVV:!!!!!!!++++++++++++++++++++++++++++++"),
        // No five in a row.
        (3, "UUUUVUUUUV:!!!!+!!!!+ UUUUFUUUUF:!!!!!!!!!! UUUUIUUUUI:!!!!x!!!!x UUUUV:!!!!+ UF:!! IU:x!"),
        (3, "VU:+! UI:!x FU:!! FFFFFFF:!!!!!!! UUUUFUUUU:!!!!!!!!! TTTTTTT:!!!!!!!"),
        // The second question: nobody dies of one reply.
        (0, "i:+ iVIV:++x+"),
        (3, "f:! u:! fIu:!x! VuuI:+!!x VuuuuIuI:+!!!!x!x"),
        (5, "VuuuuuII:+!!!!!ww uuuuuuII:!!!!!www"),
    ];
    let modes = ["", "--dry-run", "--shard 0/1"];
    let rows = table.iter().flat_map(|(code, rows)| rows.split(' ').map(move |row| (*code, row)));
    let rows: Vec<_> = rows.flat_map(|(code, row)| modes.map(|mode| (code, row, mode))).collect();
    count(Total::WALLS, rows.len());
    each(&rows, |&(code, row, mode)| {
        let (tokens, ends) = row.split_once(':').expect("tokens and ends");
        let db = Mongod::shared().fresh_db();
        let long = "T".repeat(70_000);
        let label = |(i, c)| if c == 'T' { long.as_str() } else { &tokens[i..=i] };
        let trial = Trial::new(db, &tokens.char_indices().map(label).collect::<Vec<_>>());
        let gone = trial.ids.iter().zip(tokens.chars()).filter(|(_, c)| *c == 'G').map(|(id, _)| *id);
        let gone: Vec<_> = gone.inspect(|&id| trial.db.disown(id)).collect();
        let collection = trial.db.tokens();
        let api = Stub::start(move |request| {
            if request.number == 5 {
                collection.delete_many(doc! { "_id": { "$in": &gone } }).run().expect("delete");
            }
            match (request.token().split('-').nth(1).unwrap_or_default(), request.nth) {
                ("V" | "G", _) | ("i", 2) => Reply::valid(),
                ("I", _) | ("i" | "f" | "u", 1) => Reply::invalid(),
                ("F", _) | ("f", 2) => Reply::refusal("data not found"),
                _ => Reply::close(),
            }
        });
        // No cleanup after an early stop, and none of a token that was just refreshed.
        let run = talkative(&trial.db, &api).args(["--retries", "0", "--max-delete", "100%"]);
        trial.assert_run(run.args(["--cleanup-days", "30"]), mode, code, ends);
        if mode != "--dry-run" && code == 5 && !tokens.contains(['T', 'G']) {
            // The API is back: the next run finds what is left as it was.
            let left = trial.db.snapshot().tokens.len();
            let expected = report(&trial.db, 0, None, &[("success", left)]);
            assert_report(&talkative(&trial.db, &Stub::always(Reply::valid())).go(), &expected);
        }
    });
}

#[test]
fn a_wall_costs_six_questions_and_nothing_that_refuses_everybody_a_token() {
    // Name, reply, exit code, how often each token is asked about.
    let walls: [(&str, Reply, i32, usize); 7] = [
        ("403", Reply::http(403, &[], "<html>invalid access_token</html>"), 5, 1),
        ("404", Reply::http(404, &[], "not found"), 5, 1),
        ("HTML", Reply::http(200, &[], "<html>invalid access_token</html>"), 5, 1),
        ("503", Reply::http(503, &[("Retry-After", "0")], "down"), 5, 3),
        ("busy", Reply::busy().header("Retry-After", "0"), 5, 3),
        ("reset", Reply::reset(), 5, 3),
        // This is an answer, but says nothing about who is unused.
        ("unclear", Reply::refusal("data not found"), 3, 1),
    ];
    let modes = ["", "--dry-run", "--shard 1/2", "--cleanup-days 30", "--cleanup-days 30 --dry-run"];
    let rows: Vec<_> = walls.iter().flat_map(|wall| modes.map(|mode| (wall, mode))).collect();
    count(Total::WALLS, rows.len());
    each(&rows, |&((_, reply, code, tries), mode)| {
        let labels = [&["valid-41d"; 2][..], &["valid"; 58]].concat();
        let trial = Trial::new(Mongod::shared().fresh_db(), &labels);
        let api = Stub::always(reply.clone());
        let outcome = talkative(&trial.db, &api).args(mode.split_whitespace()).go();
        let total = usize::try_from(outcome.json()["total"].as_u64().expect("a count")).expect("small");
        assert!(if mode.contains("--shard") { (7..60).contains(&total) } else { total == 60 });
        let failed = if *code == 5 { 6 } else { total };
        let expected = trial.report(*code, &("!".repeat(failed) + &"-".repeat(total - failed)));
        assert_report(&outcome, &if mode.contains("--dry-run") { dry(expected) } else { expected });
        assert_eq!(trial.db.snapshot(), trial.before);
        assert_eq!(api.requests(), failed * tries);
        let is_told = |line: &str| line.contains("[WARNING]") && line.contains("清理");
        let must_tell = *code == 3 && mode.contains("--cleanup-days");
        assert!(!must_tell || outcome.stderr.lines().any(is_told), "{}", outcome.stderr);
    });
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
    let parts = limits.iter().flat_map(|(limit, few, many)| [(limit, few, false), (limit, many, true)]);
    let cases =
        parts.flat_map(|(limit, part, held)| part.split_whitespace().map(move |it| (*limit, it, held)));
    let rows: Vec<_> = cases.flat_map(|case| [true, false].map(|by_verdict| (case, by_verdict))).collect();
    each(&rows, |&((limit, case, held), by_verdict)| {
        let (to_go, tokens) = case.split_once('/').expect("two numbers");
        let [to_go, tokens]: [usize; 2] = [to_go, tokens].map(|n| n.parse().expect("a number"));
        let [goes, stays] = if by_verdict { ["invalid", "valid"] } else { ["invalid-41d", "valid-3d"] };
        let labels = [vec![goes; to_go], vec![stays; tokens - to_go]].concat();
        let mut trial = Trial::new(Mongod::shared().fresh_db(), &labels);
        let api = Stub::by_label();
        // By age nothing was used within a day: no token is refreshed.
        let age = if by_verdict { "100" } else { "1" };
        let run = || talkative(&trial.db, &api).args(["--max-age-days", age, "--cleanup-days", "30"]);
        let limited = || if limit.is_empty() { run() } else { run().args(["--max-delete", limit]) };
        let ends = |held: bool| {
            let [goes, stays] = match (by_verdict, held) {
                (true, true) => ["w", "+"],
                (true, false) => ["x", "+"],
                (false, true) => [".", "."],
                (false, false) => ["c", "."],
            };
            goes.repeat(to_go) + &stays.repeat(tokens - to_go)
        };
        let code = if held { 25 } else { 0 };
        trial.assert_run(limited(), "--dry-run", code, &ends(held));
        let asked = if by_verdict { tokens + if held { 0 } else { to_go } } else { 0 };
        assert_eq!(api.requests(), asked, "a step that is held back asks nothing");

        let outcome = trial.assert_run(limited(), "", code, &ends(held));
        if held {
            // It says how many, and how to go on; that works.
            let said = |parts: &[&str]| {
                let is_it = |line: &&str| parts.iter().all(|part| line.contains(part));
                outcome.stderr.lines().filter(is_it).count()
            };
            assert_eq!(said(&["[WARNING]", "--max-delete", &format!("{to_go} 个")]), 1);
            assert!(!by_verdict || said(&["'invalid'"]) >= to_go && said(&["清理"]) == 1);
            trial.before = trial.db.snapshot();
            trial.assert_run(run(), &format!("--max-delete {to_go}"), 0, &ends(false));
        } else {
            let back = trial.report(0, &"+".repeat(to_go));
            assert_report(&talkative(&trial.db, &api).args(["--restore-hours", "1"]).go(), &back);
            let after = trial.db.snapshot();
            assert!(after.tokens.len() == tokens && after.bin.is_empty());
        }
    });
}

/// Besides at every command to the database (`steps.rs`).
#[test]
fn a_signal_ends_the_run_after_the_token_at_hand() {
    // Two are condemned, and two more are what the cleanup would take.
    let five: &[&str] = &["unclear-41d", "unclear-41d", "invalid", "invalid", "last"];
    let waits: &[&str] = &["unclear-41d", "waits-41d", "invalid", "invalid", "last"];
    let (in_a_pause, before_a_retry) = (Err("刷新失败"), Err("秒后重试"));
    // Tokens, the question (five, then the second ones) or the line at which the signal comes, exit
    // code if it is not the signal's, what becomes of each token.
    let rows: [(&[&str], Result<usize, &str>, _, _); 11] = [
        (five, Ok(1), None, "!----"),
        (five, Ok(2), None, "!!---"),
        (five, Ok(5), None, "!!ww+"),
        (five, Ok(6), None, "!!ww+"),
        (five, Ok(7), None, "!!xw+"),
        (five, in_a_pause, None, "!----"),
        (waits, before_a_retry, None, "!!---"),
        // The very last question: what left nothing undone was not stopped.
        (&["valid"], Ok(1), Some(0), "+"),
        (&["valid", "unclear"], Ok(2), Some(3), "+!"),
        (&["valid", "down"], Ok(2), None, "+!"),
        (&["valid", "invalid"], Ok(2), None, "+w"),
    ];
    let rows: Vec<_> = rows.into_iter().flat_map(|row| [(row, Signal::INT), (row, Signal::TERM)]).collect();
    each(&rows, |&((labels, when, code, ends), signal)| {
        let trial = Trial::new(Mongod::shared().fresh_db(), labels);
        let (api, moment) = gated(when.unwrap_or(0), |request| match request.token() {
            token if token.contains("-waits-") => Reply::json(503, "{}").header("Retry-After", "60"),
            token => Reply::by_label(token),
        });
        let delay = if when == in_a_pause { "600000" } else { "0" };
        let run = talkative(&trial.db, &api).no_args().args(["--json", "-v", "--delay-ms", delay]);
        let live = run.args(["--cleanup-days", "30"]).start();
        let held = when.map(|_| come(&moment)).map_err(|line| live.await_line(line));
        let start = Instant::now();
        live.signal(signal);
        drop(held);
        let outcome = live.wait();
        // A pause ends within 2 s; the rest is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

        let of_signal = if signal == Signal::INT { 130 } else { 143 };
        trial.assert_end(&outcome, code.unwrap_or(of_signal), ends);
    });
}
