//! What is said: nothing is leaked and no line is forged, whatever the API, the database and the
//! environment say. That no secret is in an output, a log file or a metrics file is asserted of every
//! run. Where the output goes may be full, gone or closed: the run is done all the same.

use std::fs::{self, File};

use super::support::compare::date;
use super::support::{
    Mongod, Outcome, Reply, Run, Seed, Stub, Total, binary, count, scratch_dir, unique_token,
};
use super::{Trial, each, struck, talkative};
use serde_json::json;

/// Runs this; each line of its log is one of ours, and holds nothing that drives a terminal.
#[track_caller]
fn assert_harmless(run: Run) -> Outcome {
    let log_file = scratch_dir().join("log");
    let outcome = run.arg("--log-file").arg(&log_file).go();
    for line in outcome.stderr.lines() {
        let (time, rest) = line.split_at_checked(19).expect("a time");
        let is_ours =
            [" [DEBUG] ", " [INFO] ", " [WARNING] ", " [ERROR] "].iter().any(|it| rest.starts_with(it));
        assert!(date(time) != date(FORGED_TIME) && is_ours, "{line:?}");
        let drives = |c: char| {
            c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
        };
        assert!(!line.contains(drives), "{line:?}");
    }
    assert_eq!(fs::read_to_string(log_file).expect("a log file"), outcome.stderr);
    assert!(!outcome.stdout.trim_end().contains(char::is_control));
    outcome
}

/// The time in forged lines, long ago.
const FORGED_TIME: &str = "2026-02-12 18:50:13";

/// What a name or a message may try: to end the line and begin one of its own, to move the cursor,
/// to colour, to turn the reading direction, to show a token.
const FORGERIES: [&str; 10] = [
    "a\n2026-02-12 18:50:13 [ERROR] 伪造",
    "a\r2026-02-12 18:50:13 [ERROR] 伪造",
    "a\r\n伪造",
    "a\u{b}\u{c}\u{85}\u{2028}\u{2029}b",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{9b}31m\u{90}\u{9d}\u{7f}",
    "\u{202e}txet\u{202c}\u{202a}\u{2066}\u{2069}\u{200f}",
    "\0\u{1}\u{8}\u{1f}",
    "\u{feff}{}%s%n$(id)`id`\\n\"'",
    "名片 OWN，OTHER",
];

#[test]
fn no_name_and_no_message_forges_a_line_or_shows_a_token() {
    each(&FORGERIES, |&text| {
        let db = Mongod::shared().fresh_db();
        let other = unique_token("valid");
        let third = other.clone();
        let filled = move |own: &str| text.replace("OWN", own).replace("OTHER", &third);
        let seed = |token: &str, days: f64| {
            let name = filled(token);
            Seed::new(token).card(db.add_card(&name)).set("uname", name).last_used_days_ago(days)
        };
        let [busy, invalid, failed] = ["busy", "invalid", "failed"].map(unique_token);
        db.add_all([seed(&busy, 45.0), seed(&other, 3.0), seed(&invalid, 2.0), seed(&failed, 1.0)]);
        let api = Stub::start(move |request| {
            let token = request.token();
            let text = filled(token);
            let (sta, msg) = match token {
                token if token.contains("-valid-") => (0, text.clone()),
                token if token.contains("-invalid-") => (-1, format!("{text} 请登录 {text}")),
                _ => (-1, text.clone()),
            };
            Reply::json(200, json!({ "sta": sta, "msg": msg, "data": { "info_id": text } }).to_string())
        });
        let runs: [(&[&str], i32); 4] = [
            (&["--self-test"], 1),
            (&["--dry-run", "--cleanup-days", "30"], 3),
            (&["--cleanup-days", "30"], 3),
            (&["--restore-hours", "1"], 0),
        ];
        for (args, code) in runs {
            assert_harmless(talkative(&db, &api).args(args)).expect(code);
        }
    });
}

#[test]
fn nothing_that_the_api_repeats_is_shown() {
    type Echo = fn(&str, &str) -> Reply;
    // What the API answers to `token`; `other` is another user's.
    let echoes: [(&str, Echo); 20] = [
        ("invalid", |token, _| Reply::refusal(&format!("invalid access_token {token}"))),
        ("invalid, in quotes", |token, _| Reply::refusal(&format!("token \"{token}\" invalid"))),
        ("failed", |token, _| Reply::refusal(&format!("{token} 系统繁忙 {token}"))),
        ("failed, glued", |token, _| Reply::refusal(&format!("用户{token}的请求过于频繁{token}。"))),
        ("failed, encoded", |token, _| {
            let encoded: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
            Reply::refusal(&format!("GET /?access_token={encoded}"))
        }),
        ("failed, in part", |token, _| Reply::refusal(&format!("busy: {}***", &token[..10]))),
        ("failed, cut", |token, _| Reply::refusal(&format!("{}{token}", "忙".repeat(90)))),
        ("failed, in two lines", |token, _| Reply::refusal(&format!("{}\n{}", &token[..12], &token[12..]))),
        ("another's", |_, other| Reply::refusal(&format!("{other} 系统繁忙"))),
        ("another's, invalid", |_, other| Reply::refusal(&format!("invalid access_token {other}"))),
        ("info_id", |token, other| {
            Reply::json(200, json!({ "sta": 0, "data": { "info_id": token, "other": other } }).to_string())
        }),
        ("page", |token, other| Reply::json(200, format!("<html>{token} {other}</html>"))),
        ("key", |token, other| Reply::json(200, format!(r#"{{"{token}":1,"sta":"{other}"}}"#))),
        ("half JSON", |token, _| Reply::json(200, format!(r#"{{"sta":-1,"msg":"{token}"#))),
        ("503", |token, other| Reply::http(503, &[("Retry-After", token)], other)),
        ("redirect", |token, _| Reply::redirect(&format!("https://{token}.invalid/?access_token={token}"))),
        ("header", |token, other| Reply::busy().header(token, other)),
        ("status line", |token, _| Reply::raw(format!("HTTP/1.1 200 {token}\r\nContent-Length: 0\r\n\r\n"))),
        ("garbage", |token, _| Reply::raw(format!("{token}\r\n{token}\r\n\r\n")).then_close()),
        ("chunk", |token, _| {
            Reply::raw(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{token}\r\n"))
        }),
    ];
    // Plain, and full of what URLs and JSON must escape.
    let tokens: [fn() -> String; 2] = [|| unique_token("echo"), || unique_token("echo") + " /+&=%2F\"\\ä"];
    let rows: Vec<_> = echoes.into_iter().flat_map(|echo| tokens.map(|token| (echo, token))).collect();
    each(&rows, |&((_, echo), token)| {
        let db = Mongod::shared().fresh_db();
        let other = unique_token("other");
        db.add_all([Seed::new(&other), Seed::new(&token()), Seed::new(&token()).last_used_days_ago(0.5)]);
        let api = Stub::start(move |request| match request.token() {
            token if token.contains("-other-") => Reply::valid(),
            token => echo(token, &other),
        });
        for flags in [&["--dry-run"][..], &["--self-test"], &[]] {
            let run = talkative(&db, &api).args(flags).args(["--retries", "0", "--timeout-secs", "2"]);
            assert_harmless(run);
        }
        db.assert_none_lost();
    });
}

/// What a shell does with the outputs, and whether something cannot be told then, in a plain run and
/// under `--json`. A closed pipe is nobody's fault. That files vanish is a test of `files`.
const OUTPUTS: [(&str, bool, bool); 8] = [
    (r#""$0" "$@" >/dev/full"#, true, true),
    (r#""$0" "$@" 2>/dev/full"#, false, true),
    (r#""$0" "$@" >&- 2>&-"#, false, false),
    (r#"{ "$0" "$@"; echo $? >"$CODE"; } | head -1; exit "$(cat "$CODE")""#, false, false),
    (r#"{ "$0" "$@" 2>&1 >&-; echo $? >"$CODE"; } | head -1; exit "$(cat "$CODE")""#, false, false),
    (CUT_LOG, true, true),
    (FULL_LOG, true, true),
    (LOG_BECOMES_FOLDER, true, true),
];
const CUT_LOG: &str = r#"ulimit -f 1; exec "$0" "$@""#;
const FULL_LOG: &str = r#""$0" "$@" --log-file /dev/full"#;
const LOG_BECOMES_FOLDER: &str = r#""$0" "$@""#;

#[test]
fn a_run_is_done_whatever_becomes_of_its_output() {
    let modes = ["--delay-ms=0", "-v", "--json"];
    let rows: Vec<_> = OUTPUTS.iter().flat_map(|output| modes.map(|mode| (output, mode))).collect();
    each(&rows, |&(&(script, plain, json), mode)| {
        count(Total::FAULTS, 1);
        let trial = Trial::new(Mongod::shared().fresh_db(), &["invalid", "valid", "valid", "valid"]);
        let [log, code, metrics] = ["log", "code", "m.prom"].map(|name| scratch_dir().join(name));
        let run = |api: &Stub| {
            let run = Run::new(&trial.db, api).no_args().program("sh").args(["-c", script]);
            let run = run.env("CODE", code).env("PATH", "/usr/bin:/bin").arg(binary()).arg(mode);
            let run = run.arg("--metrics-file").arg(&metrics);
            if script == FULL_LOG { run } else { run.arg("--log-file").arg(&log) }
        };
        let spoil = || {
            if script == LOG_BECOMES_FOLDER {
                fs::remove_file(&log).expect("log file");
                fs::create_dir(&log).expect("folder");
            }
        };
        let (_api, live) = struck(2, run, spoil);
        let outcome = live.wait();
        let untold = if mode == "--json" { json } else { plain };
        assert_eq!(outcome.code, Some(i32::from(untold)), "{outcome:?}");
        assert!(!outcome.log().contains("panicked"), "{outcome:?}");
        trial.assert_ends("x+++");
        if script != CUT_LOG {
            let metrics = fs::read_to_string(&metrics).expect("metrics");
            let exit_code = format!("baoming_refresh_exit_code{{schedule=\"m\"}} {}\n", i32::from(untold));
            assert!(metrics.ends_with(&exit_code), "{metrics}");
            let is_success =
                !metrics.contains("baoming_refresh_last_success_timestamp_seconds{schedule=\"m\"} 0\n");
            assert_eq!(is_success, !untold, "{metrics}");
        }
        if log.is_file() && script != CUT_LOG {
            assert!(fs::read_to_string(&log).expect("the log file").contains("🎉 刷新完成"));
        }
    });
}

#[test]
fn help_and_version_say_when_they_cannot_be_written() {
    let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
    for (flag, code) in [("--help", 1), ("--version", 1), ("--no-such-flag", 2)] {
        let status = Run::bare().arg(flag).command().stdout(full()).stderr(full()).status();
        assert_eq!(status.expect("the program").code(), Some(code), "{flag}");
    }
}
