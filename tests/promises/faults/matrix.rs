//! Every kind of reply and fault × one token, some, all × dry run, self-test, run.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use mongodb::bson::oid::ObjectId;
use serde_json::Value;

use super::Verdict::{Failed, Invalid, Unreachable, Valid};
use super::support::{Certificate, Mongod, Proxy, Reply, Run, Stub, TestDb, free_port, tls};
use super::{
    Fate, Verdict, add_tokens, as_labelled, assert_fates, assert_report, each, fates_by_id, report, talkative,
};

/// How long the program waits for one of the replies that never come.
const TIMEOUT: Duration = Duration::from_secs(2);
const INVALID: &str = r#"{"sta":-1,"msg":"invalid access_token","data":null}"#;
const MIB: usize = 1 << 20;

/// A reply with status 200 and this body.
fn ok(body: impl AsRef<[u8]>) -> Reply {
    Reply::http(200, &[("Content-Type", "application/json")], body)
}

/// A refusal with this message, on the wire as JSON.
fn refusal(message: &str) -> Reply {
    ok(serde_json::json!({ "sta": -1, "msg": message, "data": null }).to_string())
}

/// A JSON object of exactly this many bytes.
fn padded(object: &str, bytes: usize) -> String {
    let (start, rest) = object.split_at(1);
    format!("{start}{}{rest}", " ".repeat(bytes - object.len()))
}

/// The replies, each with its name and what the verdict table says of it.
#[allow(clippy::too_many_lines)] // A table.
fn replies() -> Vec<(String, Reply, Verdict)> {
    let mut rows: Vec<(String, Reply, Verdict)> = Vec::new();
    let mut add = |name: &str, reply: Reply, verdict| rows.push((name.to_owned(), reply, verdict));

    add("valid", Reply::valid(), Valid);
    add("valid, never enrolled", Reply::never_enrolled(), Valid);
    add("valid in chunks", Reply::chunked(&["{\"st", "a\":0", "}"]), Valid);
    add("valid, closing", Reply::valid().closing(), Valid);
    add("valid and late", Reply::valid().after(Duration::from_millis(200)), Valid);
    add("valid and slow", Reply::valid().dripping(Duration::from_millis(2)), Valid);
    add("valid after 100 Continue", prefixed("HTTP/1.1 100 Continue\r\n\r\n"), Valid);
    add("valid after 103 Early Hints", prefixed("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), Valid);
    add("valid in HTTP/1.0", Reply::raw("HTTP/1.0 200 OK\r\n\r\n{\"sta\":0}").then_close(), Valid);
    add("valid, exactly 1 MiB", ok(padded(r#"{"sta":0}"#, MIB)), Valid);
    // What follows a reply on its connection is nobody's reply.
    add("valid, then invalid unasked", Reply::raw([wire(r#"{"sta":0}"#), wire(INVALID)].concat()), Valid);
    add("valid, then a byte too many", Reply::raw(wire(r#"{"sta":0}"#) + "x"), Valid);
    for body in [
        r#"{"sta":0}"#,
        r#"{"sta":0,"data":[]}"#,
        r#"{"sta":0,"data":"text"}"#,
        r#"{"sta":0,"data":7,"msg":null}"#,
        r#"{"sta":0,"msg":"invalid access_token"}"#,
        "\r\n\t {\"data\":{\"sta\":-1,\"msg\":\"invalid access_token\"},\"sta\":0}\n",
    ] {
        add(body, ok(body), Valid);
    }

    add("invalid", Reply::invalid(), Invalid);
    add("invalid in chunks", Reply::chunked(&[&INVALID[..9], &INVALID[9..]]), Invalid);
    add("invalid, closing", Reply::invalid().closing(), Invalid);
    add("invalid, exactly 1 MiB", ok(padded(INVALID, MIB)), Invalid);
    for sta in [1, -2, 40_001, i64::MIN, i64::MAX] {
        add(&format!("sta {sta}"), ok(format!(r#"{{"sta":{sta},"msg":"invalid access_token"}}"#)), Invalid);
    }
    for message in [
        "Invalid ACCESS_TOKEN",
        "token invalid",
        "the token has expired",
        "illegal token",
        "token已失效",
        "token 过期",
        "无效的token",
        "token错误",
        "请登录",
        "请重新登录",
        "用户未登录",
        "登录已过期",
        "登录失效",
    ] {
        add(message, refusal(message), Invalid);
    }
    add("msg in escapes", ok(r#"{"sta":-1,"msg":"token\u8fc7\u671f"}"#), Invalid);

    for message in [
        "系统繁忙，请稍后再试",
        "请稍后",
        "操作频繁",
        "次数过多",
        "busy",
        "over the limit",
        "too many requests",
        "please retry",
        "token 失效，请稍后再试",
        "invalid access_token: too many requests",
        "请登录后重试，系统繁忙",
        "活动已过期",
        "无效的活动ID",
        "活动已过期，token 无效",
        "invalid",
        "token",
        "登录",
        "参数错误",
        "已过期",
        " ",
        "",
    ] {
        add(&format!("msg {message:?}"), refusal(message), Failed);
    }
    for status in [201, 202, 206, 300, 304, 400, 401, 403, 404, 410, 418, 499, 600, 999] {
        add(&format!("invalid with {status}"), Reply::json(status, INVALID), Failed);
    }
    add("204", Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"), Failed);
    add("204 with a body", Reply::json(204, INVALID), Failed);
    for status in [301, 302, 303, 307, 308] {
        let redirect = Reply::http(status, &[("Location", "/xcx/elsewhere")], INVALID);
        add(&format!("redirect {status}"), redirect, Failed);
    }
    add("redirect to another host", Reply::redirect("https://example.invalid/"), Failed);
    add("redirect nowhere", Reply::redirect("://"), Failed);
    for body in [
        "",
        "<html>invalid access_token</html>",
        "invalid access_token",
        "null",
        "-1",
        r#""invalid access_token""#,
        r#"[-1,"invalid access_token",null]"#,
        r#"[{"sta":-1,"msg":"invalid access_token"}]"#,
        r#"{"msg":"invalid access_token"}"#,
        r#"{"data":{"sta":-1,"msg":"invalid access_token"}}"#,
        r#"{"STA":-1,"msg":"invalid access_token"}"#,
        r#"{"sta":null,"msg":"invalid access_token"}"#,
        r#"{"sta":"-1","msg":"invalid access_token"}"#,
        r#"{"sta":true,"msg":"invalid access_token"}"#,
        r#"{"sta":-1.0,"msg":"invalid access_token"}"#,
        r#"{"sta":-1e0,"msg":"invalid access_token"}"#,
        r#"{"sta":-0,"msg":"invalid access_token"}"#,
        r#"{"sta":[-1],"msg":"invalid access_token"}"#,
        r#"{"sta":{"sta":-1},"msg":"invalid access_token"}"#,
        r#"{"sta":99999999999999999999,"msg":"invalid access_token"}"#,
        r#"{"sta":NaN,"msg":"invalid access_token"}"#,
        r#"{"sta":0.0}"#,
        r#"{"sta":"0"}"#,
        r#"{"sta":-1}"#,
        r#"{"sta":-1,"msg":null}"#,
        r#"{"sta":-1,"msg":7}"#,
        r#"{"sta":-1,"msg":["invalid access_token"]}"#,
        r#"{"sta":-1,"msg":{"text":"invalid access_token"}}"#,
        r#"{"sta":-1,"data":"invalid access_token"}"#,
        r#"{"sta":-1,"msg":"invalid access_token""#,
        r#"{"sta":-1,"msg":"invalid access_token",}"#,
        r#"{"sta":-1,"msg":"invalid access_token"}}"#,
        r#"{"sta":-1,"msg":"invalid access_token"}{"sta":0}"#,
        r"{'sta':-1,'msg':'invalid access_token'}",
        r#"{"sta":0,"sta":-1,"msg":"invalid access_token"}"#,
        r#"{"sta":0,"\u0073ta":-1,"msg":"invalid access_token"}"#,
        r#"{"sta":-1,"msg":"ok","msg":"invalid access_token"}"#,
        "\u{feff}{\"sta\":-1,\"msg\":\"invalid access_token\"}",
        "{\"sta\":-1,\"msg\":\"invalid access_token\n\"}",
        "{\"sta\":-1,\"msg\":\"invalid access_token\"}\0",
    ] {
        add(&format!("body {body:?}"), ok(body), Failed);
    }
    add("msg not in UTF-8", ok(b"{\"sta\":-1,\"msg\":\"invalid access_token\xff\"}"), Failed);
    add("field not in UTF-8", ok(b"{\"sta\":-1,\"msg\":\"invalid access_token\",\"x\":\"\xff\"}"), Failed);
    add("UTF-16", ok(INVALID.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()), Failed);
    add("deeply nested", ok(r#"{"sta":"#.to_owned() + &"[".repeat(100_000)), Failed);
    add("invalid, 1 MiB and a byte", ok(padded(INVALID, MIB + 1)), Failed);
    add("invalid, then 10 MiB", ok(INVALID.to_owned() + &" ".repeat(10 * MIB)), Failed);
    add("endless", Reply::endless(), Failed);
    add(
        "cut, no length",
        Reply::raw("HTTP/1.1 200 OK\r\n\r\n{\"sta\":-1,\"msg\":\"inv").then_close(),
        Failed,
    );

    for status in [429, 500, 501, 502, 503, 504, 520, 599] {
        add(&format!("invalid with {status}"), Reply::json(status, INVALID), Unreachable);
    }
    add("503 without a body", Reply::http(503, &[("Retry-After", "60")], ""), Unreachable);
    add("truncated", Reply::invalid().truncated(1), Unreachable);
    add("truncated head", Reply::raw("HTTP/1.1 200 OK\r\nContent-Le").then_close(), Unreachable);
    add("truncated chunks", Reply::chunked(&[INVALID]).truncated(5), Unreachable);
    add(
        "a bad chunk",
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        Unreachable,
    );
    add("close", Reply::close(), Unreachable);
    add("reset", Reply::reset(), Unreachable);
    add("garbage", Reply::garbage(), Unreachable);
    add("no head", Reply::raw(INVALID).then_close(), Unreachable);
    add("HTTP/2", Reply::raw(b"\0\0\x12\x04\0\0\0\0\0\0\0".to_vec()).then_close(), Unreachable);
    add("a bad header", Reply::redirect("\u{1}"), Unreachable);
    add("huge header", Reply::huge_header(100_000), Unreachable);
    add(
        "a bad length",
        Reply::raw(format!("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{INVALID}")),
        Unreachable,
    );
    add("stall", Reply::stall(), Unreachable);
    add("stalled head", Reply::raw("HTTP/1.1 200 OK\r\nContent-"), Unreachable);
    add("stalled body", Reply::raw(wire(INVALID).replace("h: 5", "h: 95")), Unreachable);
    add("drip", Reply::invalid().dripping(Duration::from_millis(500)), Unreachable);
    add("too late", Reply::invalid().after(TIMEOUT * 2), Unreachable);
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

/// What a run does about tokens of which the API says this, in the order in which they are due.
pub fn run_of(db: &TestDb, verdicts: &[Verdict]) -> (Value, Vec<Fate>) {
    const IN_A_ROW: usize = 5;
    let mut row = 0;
    let judged = verdicts.iter().position(|&verdict| {
        row = if verdict == Unreachable { row + 1 } else { 0 };
        row == IN_A_ROW
    });
    let judged = &verdicts[..judged.map_or(verdicts.len(), |last| last + 1)];
    let count = |wanted: Verdict| judged.iter().filter(|&&verdict| verdict == wanted).count();
    let failed = count(Failed) + count(Unreachable);
    let stopped = row == IN_A_ROW || judged.iter().all(|&verdict| verdict == Unreachable);
    let fates = verdicts.iter().zip(0..).map(|(verdict, i)| match verdict {
        Valid if i < judged.len() => Fate::Refreshed,
        Invalid if !stopped => Fate::Recycled,
        _ => Fate::Kept,
    });
    let (code, reason) = match (stopped, failed) {
        (true, _) => (5, Some("api_unreachable")),
        (false, 1..) => (3, None),
        (false, 0) => (0, None),
    };
    let counts = [
        ("total", verdicts.len()),
        ("success", count(Valid)),
        ("failed", failed),
        (if stopped { "withheld" } else { "deleted" }, count(Invalid)),
        ("unprocessed", verdicts.len() - judged.len()),
    ];
    (report(db, code, reason, &counts), fates.collect())
}

/// What the self-test does about its one token.
fn self_test_of(db: &TestDb, verdict: Verdict) -> (Value, Fate) {
    let (code, count, fate) = match verdict {
        Valid => (0, "success", Fate::Refreshed),
        Invalid => (1, "withheld", Fate::Kept),
        Failed | Unreachable => (1, "failed", Fate::Kept),
    };
    (report(db, code, None, &[("total", 1), (count, 1)]), fate)
}

/// Dry run, self-test and run, one after the other, of tokens of which the API says this.
fn assert_all_modes(db: &TestDb, ids: &[ObjectId], verdicts: &[Verdict], run: impl Fn() -> Run) {
    let before = db.snapshot();
    let (expected, fates) = run_of(db, verdicts);

    let mut would_be = expected.clone();
    would_be["dry_run"] = true.into();
    assert_report(&run().arg("--dry-run").go(), &would_be);
    assert_eq!(db.snapshot(), before, "a dry run changes nothing");

    // It takes the token that was updated last, which stays the last one.
    let mut self_tested = vec![Fate::Kept; ids.len()];
    let (told, fate) = self_test_of(db, verdicts[ids.len() - 1]);
    self_tested[ids.len() - 1] = fate;
    assert_report(&run().arg("--self-test").go(), &told);
    assert_fates(db, &before, fates_by_id(ids, self_tested));

    let before = db.snapshot();
    let start = Instant::now();
    assert_report(&run().go(), &expected);
    assert_fates(db, &before, fates_by_id(ids, fates));
    // Whatever the API does, a request has its limit; the rest is for a busy machine.
    let limit = TIMEOUT * 5 + Duration::from_secs(20);
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
}

#[test]
fn every_reply_to_one_token_some_and_all() {
    const WHO: [(&str, &[usize]); 3] = [("one", &[6]), ("some", &[2, 4, 6]), ("all", &[1, 2, 3, 4, 5, 6])];
    let replies = replies();
    let mut rows: Vec<_> = replies.iter().flat_map(|reply| WHO.map(|who| (reply, who))).collect();
    // Those that take long first, so that nothing waits for them at the end.
    rows.reverse();
    each(
        &rows,
        |((name, ..), (who, _))| format!("{name} × {who}"),
        |((_, reply, verdict), (_, who))| {
            let db = Mongod::shared().fresh_db();
            // The first token is invalid in every row: it must go, but not after an early stop.
            let label = |i| {
                if i == 0 {
                    "invalid"
                } else if who.contains(&i) {
                    "faulty"
                } else {
                    "valid"
                }
            };
            let labels: Vec<_> = (0..7).map(label).collect();
            let ids = add_tokens(&db, &labels);
            let verdicts: Vec<_> = labels
                .iter()
                .map(|&label| match label {
                    "invalid" => Invalid,
                    "faulty" => *verdict,
                    _ => Valid,
                })
                .collect();
            let reply = reply.clone();
            let api = Stub::start(move |request| match request.token() {
                token if token.contains("-faulty-") => reply.clone(),
                _ => as_labelled(request),
            });
            let timeout = TIMEOUT.as_secs().to_string();
            assert_all_modes(&db, &ids, &verdicts, || {
                talkative(&db, &api).args(["--retries", "0", "--timeout-secs", &timeout])
            });
            let paths = api.recorded();
            assert!(
                paths.iter().all(|request| request.path == "/xcx/enroll/v3/detail"),
                "a redirect was followed"
            );
        },
    );
}

/// Why no token's check gets through.
#[derive(Clone, Copy, Debug)]
enum Outage {
    UnknownAuthority,
    SelfSigned,
    Expired,
    WrongHost,
    NoTls,
    NoSuchHost,
    Refused,
    NoProxy,
    ProxyRefuses,
}

#[test]
fn every_outage_with_one_token_few_and_many() {
    const OUTAGES: [Outage; 9] = [
        Outage::UnknownAuthority,
        Outage::SelfSigned,
        Outage::Expired,
        Outage::WrongHost,
        Outage::NoTls,
        Outage::NoSuchHost,
        Outage::Refused,
        Outage::NoProxy,
        Outage::ProxyRefuses,
    ];
    let rows: Vec<_> = OUTAGES.into_iter().flat_map(|outage| [1, 3, 7].map(|n| (outage, n))).collect();
    each(
        &rows,
        |(outage, n)| format!("{outage:?} × {n}"),
        |&(outage, n)| {
            let db = Mongod::shared().fresh_db();
            let ids = add_tokens(&db, &vec!["valid"; n]);
            let (certificate, ca) = match outage {
                Outage::UnknownAuthority => (Certificate::Good, false),
                Outage::SelfSigned => (Certificate::SelfSigned, true),
                Outage::Expired => (Certificate::Expired, true),
                Outage::WrongHost => (Certificate::WrongHost, true),
                _ => (Certificate::Good, true),
            };
            let api = match outage {
                Outage::NoTls => Stub::always(Reply::valid()),
                _ => Stub::start_tls(certificate, |_| Reply::valid()),
            };
            let (nobody, proxy) = (format!("127.0.0.1:{}", free_port()), Proxy::start());
            let (base, proxy) = match outage {
                Outage::NoTls => (format!("https://{}/xcx", api.address()), None),
                // RFC 6761: nobody has such a name.
                Outage::NoSuchHost => ("https://api.invalid/xcx".to_owned(), None),
                Outage::Refused => (format!("https://{nobody}/xcx"), None),
                Outage::NoProxy => (api.base(), Some(format!("http://user:pr0xyW0rd@{nobody}"))),
                Outage::ProxyRefuses => (format!("https://{nobody}/xcx"), Some(proxy.uri())),
                _ => (api.base(), None),
            };
            assert_all_modes(&db, &ids, &vec![Unreachable; n], || {
                let run =
                    talkative(&db, &api).args(["--retries", "0", "--timeout-secs", "5"]).secret("pr0xyW0rd");
                let run = run.env("BAOMING_API_BASE", &base);
                let run = if ca { run.env("SSL_CERT_FILE", tls::ca_file()) } else { run };
                match &proxy {
                    Some(proxy) => run.env("HTTPS_PROXY", proxy),
                    None => run,
                }
            });
            assert_eq!(api.requests(), if matches!(outage, Outage::NoTls) { api.connections() } else { 0 });
        },
    );
}

/// Forwards its n-th connection to the n-th of these addresses, all later ones to the last.
fn forward(targets: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("address");
    // The threads end with the test process.
    thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let server = TcpStream::connect(targets[n.min(targets.len() - 1)]).expect("a stub");
            for (mut from, mut to) in [(&client, &server), (&server, &client)]
                .map(|(from, to)| (from.try_clone().expect("handle"), to.try_clone().expect("handle")))
            {
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    address
}

#[test]
fn a_certificate_that_goes_bad_in_mid_run() {
    let certificates = [Certificate::SelfSigned, Certificate::Expired, Certificate::WrongHost];
    let rows: Vec<_> =
        certificates.into_iter().flat_map(|bad| [true, false].map(|heals| (bad, heals))).collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(bad, heals)| {
            let db = Mongod::shared().fresh_db();
            let ids =
                add_tokens(&db, &["invalid", "valid", "valid", "valid", "valid", "valid", "valid", "valid"]);
            let good = Stub::start_tls(Certificate::Good, |request| as_labelled(request).closing());
            let bad = Stub::start_tls(bad, |_| Reply::invalid());
            let (good, bad, api) = (good.address(), bad.address(), (good, bad));
            let mut targets = vec![good, good, bad, bad];
            targets.extend(heals.then_some(good));
            let front = forward(targets);
            let before = db.snapshot();
            let outcome = talkative(&db, &api.0)
                .args(["--retries", "0"])
                .env("BAOMING_API_BASE", format!("https://{front}/xcx"))
                .env("SSL_CERT_FILE", tls::ca_file())
                .go();
            let rest = if heals { Valid } else { Unreachable };
            let verdicts = [Invalid, Valid, Unreachable, Unreachable, rest, rest, rest, rest];
            let (expected, fates) = run_of(&db, &verdicts);
            assert_report(&outcome, &expected);
            assert_fates(&db, &before, fates_by_id(&ids, fates));
            assert_eq!(api.1.requests(), 0, "no token is sent to a stranger");
        },
    );
}
