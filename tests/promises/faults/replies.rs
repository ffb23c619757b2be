//! Every kind of reply and fault × every request of a run, and outages × one token, few, many; in
//! a dry run and a self-test, too.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;

use super::support::{Certificate, Mongod, Reply, Run, Stub, Total, count, dead, tls};
use super::{Trial, assert_whole, each, talkative};

/// How long the program waits for one of the replies that never come.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Whatever the API does, a request has its limit; the rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(2 * 7 + 20);
const INVALID: &str = r#"{"sta":-1,"msg":"invalid access_token","data":null}"#;
const MIB: usize = 1 << 20;
const SELF_TEST: &str = "--self-test";

/// A reply with status 200 and this body.
fn ok(body: impl AsRef<[u8]>) -> Reply {
    Reply::json(200, body)
}

/// A JSON object of exactly this many bytes.
fn padded(object: &str, bytes: usize) -> String {
    let (start, rest) = object.split_at(1);
    format!("{start}{}{rest}", " ".repeat(bytes - object.len()))
}

/// The replies, each with its name and what the verdict table says of it: `+` valid, `x` invalid,
/// `!` unclear, `?` no answer. All the bodies that the table tells apart are a unit test of `src/verdict.rs`; here is what only a wire can do, and a
/// body of each kind.
#[allow(clippy::too_many_lines)] // A table.
fn replies() -> Vec<(String, Reply, char)> {
    let mut rows: Vec<(String, Reply, char)> = Vec::new();
    let mut add = |name: &str, reply: Reply, verdict| rows.push((name.to_owned(), reply, verdict));

    add("valid", Reply::valid(), '+');
    add("valid, never enrolled", Reply::never_enrolled(), '+');
    add("valid, whatever msg", ok(r#"{"sta":0,"msg":"invalid access_token"}"#), '+');
    add("valid in chunks", Reply::chunked(&["{\"st", "a\":0", "}"]), '+');
    add("valid, closing", Reply::valid().header("Connection", "close").then_close(), '+');
    add("valid and late", Reply::valid().after(Duration::from_millis(200)), '+');
    add("valid and slow", Reply::valid().dripping(Duration::from_millis(2)), '+');
    for informational in ["100 Continue", "103 Early Hints\r\nLink: </x>"] {
        let reply = format!("HTTP/1.1 {informational}\r\n\r\n{}", wire(r#"{"sta":0}"#));
        add(&format!("valid after {informational}"), Reply::raw(reply), '+');
    }
    add("valid in HTTP/1.0", Reply::raw("HTTP/1.0 200 OK\r\n\r\n{\"sta\":0}").then_close(), '+');
    add("valid, exactly 1 MiB", ok(padded(r#"{"sta":0}"#, MIB)), '+');
    // What follows a reply on its connection is nobody's reply.
    add("valid, then invalid unasked", Reply::raw([wire(r#"{"sta":0}"#), wire(INVALID)].concat()), '+');
    add("valid, then a byte too many", Reply::raw(wire(r#"{"sta":0}"#) + "x"), '+');

    add("invalid", Reply::invalid(), 'x');
    add("invalid in chunks", Reply::chunked(&[&INVALID[..9], &INVALID[9..]]), 'x');
    add("invalid, closing", Reply::invalid().header("Connection", "close").then_close(), 'x');
    add("invalid, exactly 1 MiB", ok(padded(INVALID, MIB)), 'x');
    add("the API's own", ok(r#"{"msg":"invalid access_token","sta":-500}"#), 'x');

    for message in
        ["data not found", "token错误", "invalid token", "请重新登录", "invalid access_to\u{212a}en", ""]
    {
        add(&format!("msg {message:?}"), Reply::refusal(message), '!');
    }
    add("msg in a list", ok(r#"{"sta":-1,"msg":["invalid access_token"]}"#), '!');
    add("a new login", ok(r#"{"sta":-500,"msg":"系统异常"}"#), '!');

    for status in [201, 204, 300, 304, 400, 401, 403, 404, 418, 429, 500, 502, 503, 599, 600, 999] {
        add(&format!("invalid with {status}"), Reply::json(status, INVALID), '?');
    }
    for status in [301, 302, 307, 308] {
        let redirect = Reply::http(status, &[("Location", "/xcx/elsewhere")], INVALID);
        add(&format!("redirect {status}"), redirect, '?');
    }
    add("redirect to another host", Reply::redirect("https://example.invalid/"), '?');
    add("redirect nowhere", Reply::redirect("://"), '?');
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
        add(&format!("body {body:?}"), ok(body), '?');
    }
    add("msg not in UTF-8", ok(b"{\"sta\":-1,\"msg\":\"invalid access_token\xff\"}"), '?');
    add("UTF-16", ok(INVALID.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()), '?');
    add("deeply nested", ok(r#"{"sta":"#.to_owned() + &"[".repeat(100_000)), '?');
    add("invalid, 1 MiB and a byte", ok(padded(INVALID, MIB + 1)), '?');
    add("invalid, then 10 MiB", ok(INVALID.to_owned() + &" ".repeat(10 * MIB)), '?');
    add("endless", Reply::endless(), '?');
    let cut = "HTTP/1.1 200 OK\r\n\r\n{\"sta\":-1,\"msg\":\"inv";
    add("cut, no length", Reply::raw(cut).then_close(), '?');

    for message in ["系统繁忙，请稍后再试", "请求过于频繁", "too many requests"] {
        add(&format!("msg {message:?}"), Reply::refusal(message), '?');
    }
    add("503 without a body", Reply::http(503, &[("Retry-After", "60")], ""), '?');
    add("truncated", Reply::invalid().truncated(1), '?');
    add("truncated head", Reply::raw("HTTP/1.1 200 OK\r\nContent-Le").then_close(), '?');
    add("truncated chunks", Reply::chunked(&[INVALID]).truncated(5), '?');
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n";
    add("a bad chunk", Reply::raw(chunk), '?');
    add("close", Reply::close(), '?');
    add("reset", Reply::reset(), '?');
    add("garbage", Reply::garbage(), '?');
    add("no head", Reply::raw(INVALID).then_close(), '?');
    add("HTTP/2", Reply::raw(b"\0\0\x12\x04\0\0\0\0\0\0\0".to_vec()).then_close(), '?');
    add("a bad header", Reply::redirect("\u{1}"), '?');
    add("huge header", Reply::valid().header("X-Huge", &"h".repeat(100_000)), '?');
    let length = format!("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{INVALID}");
    add("a bad length", Reply::raw(length), '?');
    add("too short a length", Reply::raw(wire(INVALID).replace("h: 5", "h: ")), '?');
    add("stall", Reply::stall(), '?');
    add("stalled head", Reply::raw("HTTP/1.1 200 OK\r\nContent-"), '?');
    add("stalled body", Reply::raw(wire(INVALID).replace("h: 5", "h: 95")), '?');
    add("drip", Reply::invalid().dripping(Duration::from_millis(500)), '?');
    add("too late", Reply::invalid().after(TIMEOUT * 2), '?');
    rows
}

/// A whole reply with this body, as it is on the wire.
fn wire(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn every_reply_to_every_request() {
    const LABELS: [&str; 4] = ["invalid", "valid", "invalid", "valid"];
    // Each token is asked about once, and then the invalid ones a second time.
    const ASKED: [usize; 6] = [0, 1, 2, 3, 0, 2];
    let replies = replies();
    // Which request, how many tokens, flags.
    let modes = |n: usize| match n {
        1 => vec![(n, 4, ""), (n, 4, "--dry-run"), (n, 4, SELF_TEST), (n, 1, "")],
        6 => vec![(n, 4, ""), (n, 4, "--dry-run")],
        _ => vec![(n, 4, "")],
    };
    let mut rows: Vec<_> =
        replies.iter().flat_map(|reply| (1..=6).flat_map(modes).map(move |at| (reply, at))).collect();
    // Those that take long first, so that nothing waits for them at the end.
    rows.reverse();
    count(Total::REQUESTS, rows.len());
    each(&rows, |&((_, reply, verdict), (n, tokens, flags))| {
        let labels = &LABELS[4 - tokens..];
        let trial = Trial::new(Mongod::shared().fresh_db(), labels);
        // A self-test asks about the last one.
        let asked = if flags == SELF_TEST { 3 } else { ASKED[n - 1] };
        let end = match verdict {
            'x' if flags == SELF_TEST => 'w',
            // A valid token that is condemned is found valid when asked again.
            'x' if labels[asked] == "valid" => '+',
            '?' => '!',
            verdict => *verdict,
        };
        let ends = labels.iter().enumerate().map(|(i, label)| match *label {
            _ if i == asked => end,
            _ if flags == SELF_TEST => '.',
            "valid" => '+',
            _ => 'x',
        });
        let code = match end {
            '!' | 'w' if flags == SELF_TEST => 1,
            '!' if tokens == 1 && *verdict == '?' => 5,
            '!' => 3,
            _ => 0,
        };
        let reply = reply.clone();
        let api = Stub::start(move |request| match request.number {
            number if number == n => reply.clone(),
            _ => Reply::by_label(request.token()),
        });
        let timeout = TIMEOUT.as_secs().to_string();
        let run = talkative(&trial.db, &api).args(["--retries", "0", "--timeout-secs", &timeout]);
        trial.assert_run(run.limit(LIMIT), flags, code, &ends.collect::<String>());
        let requests = api.recorded();
        assert!(requests.iter().all(|it| it.path == "/xcx/enroll/v3/detail"), "a redirect was followed");
        // The second question goes over a connection of its own.
        let mut seconds = requests.iter().filter(|it| it.nth == 2);
        let shared = |at: usize| requests.iter().filter(|it| it.connection == at).count() > 1;
        assert!(seconds.all(|it| !shared(it.connection)));
    });
}

#[test]
fn no_token_dies_of_a_reply_that_is_not_its_own() {
    // What is answered, of the own reply and the one before on the connection.
    type Stray = fn(Reply, Option<Reply>) -> Reply;
    let strays: [(&str, Stray); 3] = [
        ("with the reply before", |own, _| own.and(Reply::invalid())),
        ("before the next request", |own, _| own.and(Reply::invalid().after(Duration::from_millis(30)))),
        ("each for the next one", |own, previous| previous.unwrap_or(own)),
    ];
    for (when, stray) in strays {
        let labels = ["valid", "invalid", "valid", "valid", "valid", "valid"];
        let Trial { db, ids, before } = Trial::new(Mongod::shared().fresh_db(), &labels);
        let previous = Mutex::new(HashMap::new());
        let api = Stub::start(move |request| {
            let own = Reply::by_label(request.token());
            let previous = previous.lock().expect("replies").insert(request.connection, own.clone());
            stray(own, previous)
        });
        let run = Run::new(&db, &api).no_args().args(["--json", "-v", "--retries", "0", "--delay-ms", "100"]);
        let outcome = run.args(["--max-delete", "100%"]).go();
        let is_gone = |id: &&ObjectId| db.token(**id).is_none();
        let gone: Vec<_> = ids.iter().filter(is_gone).collect();
        assert!(gone.iter().all(|id| **id == ids[1]), "{when}: {}", outcome.stderr);
        assert!(assert_whole(&db, &before).is_empty());
        assert_eq!(gone.len() as u64, outcome.stat("删除"));
    }
}

#[test]
fn every_outage_with_one_token_few_and_many() {
    use Certificate::{Expired, Good, SelfSigned, WrongHost};
    // RFC 6761: nobody has such a name.
    let unknown = || Some("https://api.invalid/xcx".to_owned());
    let refuses = Stub::always(Reply::http(502, &[], ""));
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
        ("proxy refuses", Some(Good), unknown(), Some(format!("http://{}", refuses.address()))),
    ];
    // After five the last one is asked.
    let ends = ["!", "!!!", "!!!!!-!"];
    let rows: Vec<_> = outages.iter().flat_map(|outage| ends.map(|ends| (outage, ends))).collect();
    each(&rows, |&((name, certificate, base, proxy), ends)| {
        let trial = Trial::new(Mongod::shared().fresh_db(), &vec!["valid"; ends.len()]);
        let api = match certificate {
            None => Stub::always(Reply::valid()),
            Some(certificate) => Stub::always_tls(*certificate, Reply::valid()),
        };
        let base = base.clone().unwrap_or_else(|| format!("https://{}/xcx", api.address()));
        let last = ".".repeat(ends.len() - 1) + "!";
        for (flags, code, ends) in [("--dry-run", 5, ends), (SELF_TEST, 1, &last), ("", 5, ends)] {
            let mut run = talkative(&trial.db, &api).args(["--retries", "0", "--timeout-secs", "5"]);
            run = run.secret("pr0xyW0rd").env("BAOMING_API_BASE", &base);
            if *name != "unknown authority" {
                run = run.env("SSL_CERT_FILE", tls::ca_file());
            }
            if let Some(proxy) = proxy {
                run = run.env("HTTPS_PROXY", proxy);
            }
            trial.assert_run(run.limit(LIMIT), flags, code, ends);
        }
        assert!(certificate.is_none() || api.requests() == 0);
    });
}
