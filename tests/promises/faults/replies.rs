//! Every kind of reply and fault × every request of a run, and outages × one token, few, many; in
//! a dry run and a self-test, too.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use serde_json::Value;

use super::Verdict::{Gone, Invalid, NoAnswer, Unclear, Unsendable, Valid};
use super::support::{Certificate, Mongod, Proxy, Reply, Run, Stub, TestDb, Total, count, dead, tls};
use super::{Fate, Verdict, assert_fates, assert_report, assert_whole, dry, each, report, talkative};

/// How long the program waits for one of the replies that never come.
const TIMEOUT: Duration = Duration::from_secs(2);
const INVALID: &str = r#"{"sta":-1,"msg":"invalid access_token","data":null}"#;
const MIB: usize = 1 << 20;

/// A reply with status 200 and this body.
fn ok(body: impl AsRef<[u8]>) -> Reply {
    Reply::json(200, body)
}

/// A JSON object of exactly this many bytes.
fn padded(object: &str, bytes: usize) -> String {
    let (start, rest) = object.split_at(1);
    format!("{start}{}{rest}", " ".repeat(bytes - object.len()))
}

/// The replies, each with its name and what the verdict table says of it. All the bodies that the
/// table tells apart are a unit test of `src/verdict.rs`; here is what only a wire can do, and a
/// body of each kind.
#[allow(clippy::too_many_lines)] // A table.
fn replies() -> Vec<(String, Reply, Verdict)> {
    let mut rows: Vec<(String, Reply, Verdict)> = Vec::new();
    let mut add = |name: &str, reply: Reply, verdict| rows.push((name.to_owned(), reply, verdict));

    add("valid", Reply::valid(), Valid);
    add("valid, never enrolled", Reply::never_enrolled(), Valid);
    add("valid, whatever msg", ok(r#"{"sta":0,"msg":"invalid access_token"}"#), Valid);
    add("valid in chunks", Reply::chunked(&["{\"st", "a\":0", "}"]), Valid);
    add("valid, closing", Reply::valid().header("Connection", "close").then_close(), Valid);
    add("valid and late", Reply::valid().after(Duration::from_millis(200)), Valid);
    add("valid and slow", Reply::valid().dripping(Duration::from_millis(2)), Valid);
    add("valid after 100 Continue", prefixed("HTTP/1.1 100 Continue\r\n\r\n"), Valid);
    add("valid after 103 Early Hints", prefixed("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), Valid);
    add("valid in HTTP/1.0", Reply::raw("HTTP/1.0 200 OK\r\n\r\n{\"sta\":0}").then_close(), Valid);
    add("valid, exactly 1 MiB", ok(padded(r#"{"sta":0}"#, MIB)), Valid);
    // What follows a reply on its connection is nobody's reply.
    add("valid, then invalid unasked", Reply::raw([wire(r#"{"sta":0}"#), wire(INVALID)].concat()), Valid);
    add("valid, then a byte too many", Reply::raw(wire(r#"{"sta":0}"#) + "x"), Valid);

    add("invalid", Reply::invalid(), Invalid);
    add("invalid in chunks", Reply::chunked(&[&INVALID[..9], &INVALID[9..]]), Invalid);
    add("invalid, closing", Reply::invalid().header("Connection", "close").then_close(), Invalid);
    add("invalid, exactly 1 MiB", ok(padded(INVALID, MIB)), Invalid);
    add("the API's own", ok(r#"{"msg":"invalid access_token","sta":-500}"#), Invalid);

    for message in
        ["data not found", "token错误", "invalid token", "请重新登录", "invalid access_to\u{212a}en", ""]
    {
        add(&format!("msg {message:?}"), Reply::refusal(message), Unclear);
    }
    add("msg in a list", ok(r#"{"sta":-1,"msg":["invalid access_token"]}"#), Unclear);
    add("a new login", ok(r#"{"sta":-500,"msg":"系统异常"}"#), Unclear);

    for status in [201, 204, 300, 304, 400, 401, 403, 404, 418, 600, 999] {
        add(&format!("invalid with {status}"), Reply::json(status, INVALID), NoAnswer);
    }
    for status in [301, 302, 307, 308] {
        let redirect = Reply::http(status, &[("Location", "/xcx/elsewhere")], INVALID);
        add(&format!("redirect {status}"), redirect, NoAnswer);
    }
    add("redirect to another host", Reply::redirect("https://example.invalid/"), NoAnswer);
    add("redirect nowhere", Reply::redirect("://"), NoAnswer);
    for body in [
        "",
        "<html>invalid access_token</html>",
        r#"[{"sta":-1,"msg":"invalid access_token"}]"#,
        r#"{"sta":"-1","msg":"invalid access_token"}"#,
        r#"{"sta":-1,"msg":"invalid access_token""#,
        r#"{"sta":-1,"msg":"invalid access_token"}{"sta":0}"#,
        r#"{"sta":0,"sta":-1,"msg":"invalid access_token"}"#,
        "{\"sta\":-1,\"msg\":\"invalid access_token\"}\0",
    ] {
        add(&format!("body {body:?}"), ok(body), NoAnswer);
    }
    add("msg not in UTF-8", ok(b"{\"sta\":-1,\"msg\":\"invalid access_token\xff\"}"), NoAnswer);
    add("UTF-16", ok(INVALID.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()), NoAnswer);
    add("deeply nested", ok(r#"{"sta":"#.to_owned() + &"[".repeat(100_000)), NoAnswer);
    add("invalid, 1 MiB and a byte", ok(padded(INVALID, MIB + 1)), NoAnswer);
    add("invalid, then 10 MiB", ok(INVALID.to_owned() + &" ".repeat(10 * MIB)), NoAnswer);
    add("endless", Reply::endless(), NoAnswer);
    let cut = "HTTP/1.1 200 OK\r\n\r\n{\"sta\":-1,\"msg\":\"inv";
    add("cut, no length", Reply::raw(cut).then_close(), NoAnswer);

    for status in [429, 500, 502, 503, 599] {
        add(&format!("invalid with {status}"), Reply::json(status, INVALID), NoAnswer);
    }
    for message in ["系统繁忙，请稍后再试", "请求过于频繁", "too many requests"] {
        add(&format!("msg {message:?}"), Reply::refusal(message), NoAnswer);
    }
    add("503 without a body", Reply::http(503, &[("Retry-After", "60")], ""), NoAnswer);
    add("truncated", Reply::invalid().truncated(1), NoAnswer);
    add("truncated head", Reply::raw("HTTP/1.1 200 OK\r\nContent-Le").then_close(), NoAnswer);
    add("truncated chunks", Reply::chunked(&[INVALID]).truncated(5), NoAnswer);
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n";
    add("a bad chunk", Reply::raw(chunk), NoAnswer);
    add("close", Reply::close(), NoAnswer);
    add("reset", Reply::reset(), NoAnswer);
    add("garbage", Reply::garbage(), NoAnswer);
    add("no head", Reply::raw(INVALID).then_close(), NoAnswer);
    add("HTTP/2", Reply::raw(b"\0\0\x12\x04\0\0\0\0\0\0\0".to_vec()).then_close(), NoAnswer);
    add("a bad header", Reply::redirect("\u{1}"), NoAnswer);
    add("huge header", Reply::valid().header("X-Huge", &"h".repeat(100_000)), NoAnswer);
    let length = format!("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{INVALID}");
    add("a bad length", Reply::raw(length), NoAnswer);
    add("too short a length", Reply::raw(wire(INVALID).replace("h: 5", "h: ")), NoAnswer);
    add("stall", Reply::stall(), NoAnswer);
    add("stalled head", Reply::raw("HTTP/1.1 200 OK\r\nContent-"), NoAnswer);
    add("stalled body", Reply::raw(wire(INVALID).replace("h: 5", "h: 95")), NoAnswer);
    add("drip", Reply::invalid().dripping(Duration::from_millis(500)), NoAnswer);
    add("too late", Reply::invalid().after(TIMEOUT * 2), NoAnswer);
    rows
}

/// A whole reply with this body, as it is on the wire.
fn wire(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A good reply after an informational one.
fn prefixed(informational: &str) -> Reply {
    Reply::raw(informational.to_owned() + &wire(r#"{"sta":0}"#))
}

/// What a run does about tokens of which the API says this when asked first and, if it comes to
/// that, a second time, in the order in which they are due; without tries and with no limit.
pub fn run_of(db: &TestDb, verdicts: &[(Verdict, Verdict)]) -> (Value, Vec<Fate>) {
    const IN_A_ROW: usize = 5;
    let mut finals: Vec<Option<Verdict>> = vec![None; verdicts.len()];
    let (mut row, mut stopped) = (0, false);
    for (i, &(first, _)) in verdicts.iter().enumerate() {
        if finals[i].is_some() {
            continue; // It was the control.
        }
        finals[i] = Some(first);
        row = match first {
            NoAnswer => row + 1,
            Unsendable | Gone => row,
            _ => 0,
        };
        if row < IN_A_ROW {
            continue;
        }
        let can_tell = |j: &usize| finals[*j].is_none() && ![Unsendable, Gone].contains(&verdicts[*j].0);
        let control = (i + 1..verdicts.len()).rev().find(can_tell);
        stopped = control.is_none_or(|control| verdicts[control].0 == NoAnswer);
        if let Some(control) = control {
            finals[control] = Some(verdicts[control].0);
        }
        if stopped {
            break;
        }
        row = 0;
    }
    stopped |= finals.iter().all(|verdict| [Some(NoAnswer), Some(Unsendable)].contains(verdict))
        && finals.contains(&Some(NoAnswer))
        && finals.len() < IN_A_ROW;
    // The second question.
    let condemned: Vec<_> = (0..finals.len()).filter(|&i| finals[i] == Some(Invalid)).collect();
    let (mut row, mut withheld) = (0, BTreeSet::new());
    for i in condemned {
        if stopped {
            withheld.insert(i);
            continue;
        }
        finals[i] = Some(verdicts[i].1);
        row = if verdicts[i].1 == NoAnswer { row + 1 } else { 0 };
        stopped = row == IN_A_ROW;
    }
    let count = |wanted: &[Verdict]| finals.iter().flatten().filter(|it| wanted.contains(it)).count();
    let failed = count(&[Unclear, NoAnswer, Unsendable]);
    let fates = finals.iter().enumerate().map(|(i, verdict)| match verdict {
        Some(Valid) => Fate::Refreshed,
        Some(Invalid) if !withheld.contains(&i) => Fate::Recycled,
        _ if verdicts[i].0 == Gone => Fate::Gone,
        _ => Fate::Kept,
    });
    let fates = fates.collect();
    let (code, reason) = match (stopped, failed) {
        (true, _) => (5, Some("api_unreachable")),
        (false, 1..) => (3, None),
        (false, 0) => (0, None),
    };
    let counts = [
        ("success", count(&[Valid])),
        ("failed", failed),
        ("deleted", count(&[Invalid]) - withheld.len()),
        ("withheld", withheld.len()),
        ("skipped", count(&[Gone])),
        ("unprocessed", finals.iter().filter(|verdict| verdict.is_none()).count()),
    ];
    (report(db, code, reason, &counts), fates)
}

/// The same answer to both questions.
pub fn twice(verdicts: &[Verdict]) -> Vec<(Verdict, Verdict)> {
    verdicts.iter().map(|&verdict| (verdict, verdict)).collect()
}

/// What the self-test does about its one token.
fn self_test_of(db: &TestDb, verdict: Verdict) -> (Value, Fate) {
    let (code, count, fate) = match verdict {
        Valid => (0, "success", Fate::Refreshed),
        Invalid => (1, "withheld", Fate::Kept),
        _ => (1, "failed", Fate::Kept),
    };
    (report(db, code, None, &[(count, 1)]), fate)
}

/// How the program is run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Wet,
    Dry,
    SelfTest,
}
use Mode::{Dry, SelfTest, Wet};

/// One run of tokens of which the API says this; a self-test takes the last one.
fn assert_run(db: &TestDb, ids: &[ObjectId], verdicts: &[(Verdict, Verdict)], mode: Mode, run: Run) {
    let before = db.snapshot();
    let (mut expected, mut fates) = run_of(db, verdicts);
    let run = match mode {
        Wet => run,
        Dry => {
            expected = dry(expected);
            run.arg("--dry-run")
        }
        SelfTest => {
            fates.fill(Fate::Kept);
            (expected, fates[ids.len() - 1]) = self_test_of(db, verdicts[ids.len() - 1].0);
            run.arg("--self-test")
        }
    };
    let outcome = run.go();
    assert_report(&outcome, &expected);
    if mode == Dry {
        assert_eq!(db.snapshot(), before, "a dry run changes nothing");
    } else {
        assert_fates(db, &before, ids, &fates);
    }
    // Whatever the API does, a request has its limit; the rest is for a busy machine.
    let limit = TIMEOUT * 7 + Duration::from_secs(20);
    assert!(outcome.elapsed < limit, "{:?}", outcome.elapsed);
}

#[test]
fn every_reply_to_every_request() {
    const LABELS: [&str; 4] = ["invalid", "valid", "invalid", "valid"];
    // Each token is asked about once, and then the invalid ones a second time.
    const ASKED: [usize; 6] = [0, 1, 2, 3, 0, 2];
    let replies = replies();
    let modes = |n: usize| match n {
        1 | 6 => vec![(n, Wet), (n, Dry)],
        2 => vec![(n, Wet), (1, SelfTest)],
        _ => vec![(n, Wet)],
    };
    let mut rows: Vec<_> =
        replies.iter().flat_map(|reply| (1..=6).flat_map(modes).map(move |at| (reply, at))).collect();
    // Those that take long first, so that nothing waits for them at the end.
    rows.reverse();
    count(Total::REQUESTS, rows.len());
    each(&rows, |((_, reply, verdict), (n, mode))| {
        let db = Mongod::shared().fresh_db();
        let ids = db.add_labelled(&LABELS);
        let mut verdicts = twice(&[Invalid, Valid, Invalid, Valid]);
        let (n, mode) = (*n, *mode);
        match (mode, n) {
            (SelfTest, _) => verdicts[3].0 = *verdict,
            (_, ..=4) => verdicts[ASKED[n - 1]].0 = *verdict,
            _ => verdicts[ASKED[n - 1]].1 = *verdict,
        }
        if n <= 4 && mode != SelfTest && LABELS[ASKED[n - 1]] == "valid" {
            // A valid token that is condemned is found valid when asked again.
            verdicts[ASKED[n - 1]].1 = Valid;
        }
        let reply = reply.clone();
        let api = Stub::start(move |request| match request.number {
            number if number == n => reply.clone(),
            _ => Reply::by_label(request.token()),
        });
        let timeout = TIMEOUT.as_secs().to_string();
        let run = talkative(&db, &api).args(["--retries", "0", "--timeout-secs", &timeout]);
        assert_run(&db, &ids, &verdicts, mode, run);
        let requests = api.recorded();
        assert!(requests.iter().all(|it| it.path == "/xcx/enroll/v3/detail"), "a redirect was followed");
        // The second question goes over a connection of its own.
        let seconds = requests.iter().filter(|it| it.nth == 2);
        let shared = |at: usize| requests.iter().filter(|it| it.connection == at).count() > 1;
        assert!(mode == SelfTest || seconds.clone().all(|it| !shared(it.connection)));
    });
}

/// When a reply comes that nobody asked for, or another one's.
#[derive(Clone, Copy, Debug)]
enum Stray {
    /// With the reply before.
    Twice,
    /// Before the next request.
    Early,
    /// Each request on a connection gets the reply of the one before.
    Late,
}

#[test]
fn no_token_dies_of_a_reply_that_is_not_its_own() {
    for stray in [Stray::Twice, Stray::Early, Stray::Late] {
        let db = Mongod::shared().fresh_db();
        let ids = db.add_labelled(&["valid", "invalid", "valid", "valid", "valid", "valid"]);
        let before = db.snapshot();
        let previous = Mutex::new(HashMap::new());
        let api = Stub::start(move |request| {
            let own = Reply::by_label(request.token());
            match stray {
                Stray::Twice => own.and(Reply::invalid()),
                Stray::Early => own.and(Reply::invalid().after(Duration::from_millis(30))),
                Stray::Late => {
                    let mut previous = previous.lock().expect("replies");
                    previous.insert(request.connection, own.clone()).unwrap_or(own)
                }
            }
        });
        let run = Run::new(&db, &api).no_args().args(["--json", "-v", "--retries", "0", "--delay-ms", "100"]);
        let outcome = run.args(["--max-delete", "100%"]).go();
        let is_gone = |id: &&ObjectId| db.token(**id).is_none();
        let gone: Vec<_> = ids.iter().filter(is_gone).collect();
        assert!(gone.iter().all(|id| **id == ids[1]), "{stray:?}: {}", outcome.stderr);
        assert!(assert_whole(&db, &before).is_empty());
        assert_eq!(gone.len() as u64, outcome.stat("删除"));
    }
}

#[test]
fn every_outage_with_one_token_few_and_many() {
    use Certificate::{Expired, Good, SelfSigned, WrongHost};
    // RFC 6761: nobody has such a name.
    let unknown = || Some("https://api.invalid/xcx".to_owned());
    let refuses = Proxy::start(None);
    let proxy = |address: &str| Some(format!("http://user:pr0xyW0rd@{address}"));
    // What is wrong, certificate if there is any, address if it is not the stub's, proxy.
    let outages = [
        ("unknown authority", Some(Good), None, None),
        ("self-signed", Some(SelfSigned), None, None),
        ("expired", Some(Expired), None, None),
        ("another's name", Some(WrongHost), None, None),
        ("no TLS", None, None, None),
        ("no such host", Some(Good), unknown(), None),
        ("refused", Some(Good), Some(format!("https://{}/xcx", dead())), None),
        ("proxy is not there", Some(Good), unknown(), proxy(&dead())),
        ("no such proxy", Some(Good), unknown(), proxy("proxy.invalid:3128")),
        ("proxy refuses", Some(Good), unknown(), Some(refuses.uri())),
    ];
    let rows: Vec<_> = outages.iter().flat_map(|outage| [1, 3, 7].map(|n| (outage, n))).collect();
    each(&rows, |&((name, certificate, base, proxy), n)| {
        let db = Mongod::shared().fresh_db();
        let ids = db.add_labelled(&vec!["valid"; n]);
        let api = match certificate {
            None => Stub::always(Reply::valid()),
            Some(certificate) => Stub::start_tls(*certificate, |_| Reply::valid()),
        };
        let base = base.clone().unwrap_or_else(|| format!("https://{}/xcx", api.address()));
        for mode in [Dry, SelfTest, Wet] {
            let mut run = talkative(&db, &api).args(["--retries", "0", "--timeout-secs", "5"]);
            run = run.secret("pr0xyW0rd").env("BAOMING_API_BASE", &base);
            if *name != "unknown authority" {
                run = run.env("SSL_CERT_FILE", tls::ca_file());
            }
            if let Some(proxy) = proxy {
                run = run.env("HTTPS_PROXY", proxy);
            }
            assert_run(&db, &ids, &twice(&vec![NoAnswer; n]), mode, run);
        }
        assert!(certificate.is_none() || api.requests() == 0);
    });
}
