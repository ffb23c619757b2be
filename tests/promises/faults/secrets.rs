//! Nothing is leaked and no line is forged, whatever the API, the database and the environment
//! say. That no secret is in an output, a log file or a metrics file is asserted of every run.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use mongodb::bson::doc;

use super::support::{
    Certificate, Mongod, Outcome, Reply, Run, Seed, Stub, TestDb, free_port, mongod::PASSWORD, scratch_dir,
    tls, unique_token,
};
use super::{add_tokens, as_labelled, assert_report, each, report, talkative};

/// A run that says all it can, everywhere it can.
fn everywhere(db: &TestDb, api: &Stub) -> Run {
    let dir = scratch_dir();
    talkative(db, api).arg("--log-file").arg(dir.join("log")).arg("--metrics-file").arg(dir.join("metrics"))
}

/// Each line of the log is one of ours, and holds nothing that drives a terminal.
#[track_caller]
fn assert_harmless(text: &str) {
    for line in text.lines() {
        let (time, rest) = line.split_at_checked(20).unwrap_or((line, ""));
        let is_time = time
            .bytes()
            .zip(b"0000-00-00 00:00:00 ".iter())
            .all(|(byte, &form)| if form == b'0' { byte.is_ascii_digit() } else { byte == form });
        let is_ours =
            ["[DEBUG] ", "[INFO] ", "[WARNING] ", "[ERROR] "].iter().any(|level| rest.starts_with(level));
        assert!(is_time && is_ours && !line.starts_with(FORGED_TIME), "{line:?}");
        let drives = |c: char| {
            c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
        };
        assert!(!line.contains(drives), "{line:?}");
    }
}

/// The time in forged lines, long ago.
const FORGED_TIME: &str = "2026-02-12 18:50:13";

/// What a name or a message may try: to end the line and begin one of its own, to move the cursor,
/// to colour, to turn the reading direction.
const FORGERIES: [&str; 9] = [
    "a\n2026-02-12 18:50:13 [ERROR] 伪造",
    "a\r2026-02-12 18:50:13 [ERROR] 伪造",
    "a\r\n伪造",
    "a\u{b}\u{c}\u{85}\u{2028}\u{2029}b",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{9b}31m\u{90}\u{9d}\u{7f}",
    "\u{202e}txet\u{202c}\u{202a}\u{2066}\u{2069}\u{200f}",
    "\0\u{1}\u{8}\u{1f}",
    "\u{feff}{}%s%n$(id)`id`\\n\"'",
];

#[test]
fn no_name_and_no_message_forges_a_line() {
    each(
        &FORGERIES,
        |text| format!("{text:?}"),
        |&text| {
            let db = Mongod::shared().fresh_db();
            let card = db.add_card(text);
            let seed = |label, days: f64| {
                Seed::new(&unique_token(label)).card(card).set("uname", text).last_used_days_ago(days)
            };
            db.add_all([seed("busy", 45.0), seed("valid", 3.0), seed("invalid", 2.0), seed("failed", 1.0)]);
            let message = move |sta: i64, msg: &str| {
                let body =
                    serde_json::json!({ "sta": sta, "msg": msg, "data": { "info_id": text } }).to_string();
                Reply::http(200, &[], body)
            };
            let invalid = format!("{text} 请登录 {text}");
            let api = Stub::start(move |request| match request.token() {
                token if token.contains("-valid-") => message(0, text),
                token if token.contains("-invalid-") => message(-1, &invalid),
                _ => message(-1, text),
            });
            let runs: [(&[&str], i32); 4] = [
                (&["--self-test"], 1),
                (&["--dry-run", "--cleanup-days", "30"], 3),
                (&["--cleanup-days", "30"], 3),
                (&["--restore-hours", "1"], 0),
            ];
            for (args, code) in runs {
                let log_file = scratch_dir().join("log");
                let run = talkative(&db, &api).args(args).arg("--log-file").arg(&log_file);
                let outcome = run.go().expect(code);
                assert_harmless(&outcome.stderr);
                assert_eq!(fs::read_to_string(log_file).expect("a log file"), outcome.stderr);
                assert!(!outcome.stdout.trim_end().contains(char::is_control));
            }
        },
    );
}

#[test]
fn nothing_that_the_api_repeats_is_shown() {
    type Echo = fn(&str, &str) -> Reply;
    fn says(sta: i64, msg: &str) -> Reply {
        Reply::http(200, &[], serde_json::json!({ "sta": sta, "msg": msg }).to_string())
    }
    fn encoded(text: &str) -> String {
        form_urlencoded::byte_serialize(text.as_bytes()).collect()
    }
    // What the API answers to `token`; `other` is another user's.
    let echoes: [(&str, Echo); 20] = [
        ("invalid", |token, _| says(-1, &format!("invalid access_token {token}"))),
        ("invalid, in quotes", |token, _| says(-1, &format!("token \"{token}\" invalid"))),
        ("failed", |token, _| says(-1, &format!("{token} 系统繁忙 {token}"))),
        ("failed, glued", |token, _| says(-1, &format!("用户{token}的请求过于频繁{token}。"))),
        ("failed, encoded", |token, _| says(-1, &format!("GET /?access_token={}", encoded(token)))),
        ("failed, in part", |token, _| says(-1, &format!("busy: {}***", &token[..10]))),
        ("failed, cut", |token, _| says(-1, &format!("{}{token}", "忙".repeat(90)))),
        ("failed, in two lines", |token, _| says(-1, &format!("{}\n{}", &token[..12], &token[12..]))),
        ("another's", |_, other| says(-1, &format!("{other} 系统繁忙"))),
        ("another's, invalid", |_, other| says(-1, &format!("invalid access_token {other}"))),
        ("info_id", |token, other| {
            let data = serde_json::json!({ "info_id": token, "other": other });
            Reply::http(200, &[], serde_json::json!({ "sta": 0, "data": data }).to_string())
        }),
        ("page", |token, other| Reply::http(200, &[], format!("<html>{token} {other}</html>"))),
        ("key", |token, other| Reply::http(200, &[], format!(r#"{{"{token}":1,"sta":"{other}"}}"#))),
        ("half JSON", |token, _| Reply::http(200, &[], format!(r#"{{"sta":-1,"msg":"{token}"#))),
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
    each(
        &rows,
        |((name, _), token)| format!("{name}, {:?}", token()),
        |&((_, echo), token)| {
            let db = Mongod::shared().fresh_db();
            let other = unique_token("other");
            db.add_all([Seed::new(&other), Seed::new(&token()), Seed::new(&token()).last_used_days_ago(0.5)]);
            let api = Stub::start(move |request| match request.token() {
                token if token.contains("-other-") => Reply::valid(),
                token => echo(token, &other),
            });
            for args in [["--dry-run"], ["--self-test"], ["-v"]] {
                let args = args.into_iter().filter(|arg| *arg != "-v");
                let run = talkative(&db, &api).args(args).args(["--retries", "0", "--timeout-secs", "2"]);
                assert_harmless(&run.go().stderr);
            }
            db.assert_none_lost();
        },
    );
}

#[test]
fn no_name_shows_a_token() {
    let db = Mongod::shared().fresh_db();
    let (own, other) = (unique_token("unclear"), unique_token("other"));
    let name = format!("名片 {own}，{other}");
    let card = db.add_card(&name);
    let seed = Seed::new(&own).card(card).set("uname", name.as_str()).last_used_days_ago(41.0);
    db.add_all([seed, Seed::new(&other)]);
    let api = Stub::start(as_labelled);
    let all: [&[&str]; 4] = [
        &["--self-test"],
        &["--dry-run", "--cleanup-days", "30"],
        &["--cleanup-days", "30"],
        &["--restore-hours", "1"],
    ];
    let all: Vec<&[&str]> = all.to_vec();
    for args in all {
        let outcome = everywhere_for(args, &db, &api).go();
        assert!(outcome.stderr.contains("名片"), "{}", outcome.stderr);
    }
}

/// Metrics go with runs only.
fn everywhere_for(args: &[&str], db: &TestDb, api: &Stub) -> Run {
    let is_run = !args.iter().any(|arg| ["--self-test", "--restore-hours"].contains(arg));
    if is_run { everywhere(db, api).args(args) } else { talkative(db, api).args(args) }
}

/// One line that says what is wrong, or a log that does, and nothing else.
#[track_caller]
fn assert_clear(outcome: &Outcome, code: i32) {
    assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
    if code == 2 {
        assert_eq!((outcome.stderr.lines().count(), outcome.stdout.as_str()), (1, ""), "{}", outcome.stderr);
        assert!(outcome.stderr.starts_with("refresh_baoming_tokens: "));
    } else {
        assert_harmless(&outcome.stderr);
    }
}

#[test]
fn no_connection_string_is_shown() {
    let server = Mongod::start_with_auth();
    let db = server.fresh_db();
    add_tokens(&db, &["valid"]);
    let api = Stub::always(Reply::valid());
    let (host, secret) = (server.host(), "s3cr3tP");
    let good = server.uri();
    let credentials = format!("adm1nName:{secret}");
    let nobody = format!("127.0.0.1:{}", free_port());
    let rows: Vec<(String, i32)> = vec![
        (good.clone(), 0),
        (format!(" {good}\n"), 0),
        (server.uri_for("admin", secret), 1),
        (server.uri_for("adm1nName", secret), 1),
        (good.replace("authSource=admin", "authSource=elsewhere"), 1),
        (good.replace("authSource=admin", "authSource=admin&authMechanism=SCRAM-SHA-1&tls=true"), 1),
        (format!("mongodb://{credentials}@{nobody}/"), 1),
        (format!("mongodb://{credentials}@nobody.invalid/"), 1),
        (format!("mongodb+srv://{credentials}@nobody.invalid/"), 1),
        (format!("mongodb://{credentials}@{host}/?tls=true&tlsCAFile=/nonexistent/{secret}"), 2),
        (format!("mongodb://admin:{PASSWORD}@{host}/"), 2),
        (format!("mongodb://{credentials}@{host}:99999/"), 2),
        (format!("mongodb://{credentials}@{host}/?tls={secret}"), 2),
        (format!("mongodb://{credentials}@{host}/?w={secret}&w=1&ssl=1"), 2),
        (format!("mongodb://{credentials}@{host}/?authMechanism={secret}"), 2),
        (format!("mongodb://{credentials}@{host}/?socketTimeoutMS={secret}"), 2),
        (format!("mongodb://{credentials}@{host}/?readPreference={secret}"), 2),
        (format!("mongodb://{credentials}@@{host}/"), 2),
        (format!("mongodb://{credentials}%zz@{host}/"), 2),
        (format!("mongodb:/{credentials}@{host}/"), 2),
        (format!("http://{credentials}@{host}/"), 2),
        (credentials.clone(), 2),
        (format!("mongodb://{credentials}@{host}/{secret} {secret}"), 2),
        (format!("mongodb+srv://{credentials}@{host}/"), 2),
    ];
    each(
        &rows,
        |(uri, _)| uri.clone(),
        |(uri, code)| {
            let private = scratch_dir().join("uri");
            fs::write(&private, uri).expect("file");
            fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
            let run = || talkative(&db, &api).secret(secret).secret(uri.trim()).secret("adm1nName");
            assert_clear(&run().env("MONGODB_URI", uri).go(), *code);
            let from_file = run().env_remove("MONGODB_URI").env("MONGODB_URI_FILE", private);
            assert_clear(&from_file.go(), *code);
        },
    );
    // Bytes that are no text at all.
    let odd = OsString::from_vec([b"mongodb://u:s3cr3tP\xff@".as_slice(), host.as_bytes()].concat());
    assert_clear(&talkative(&db, &api).secret(secret).env("MONGODB_URI", odd).go(), 2);
}

#[test]
fn no_secret_of_the_proxy_or_the_api_s_address_is_shown() {
    let db = Mongod::shared().fresh_db();
    add_tokens(&db, &["valid"]);
    let api = Stub::always(Reply::valid());
    let nobody = format!("127.0.0.1:{}", free_port());
    let rows: [(&str, String, i32); 7] = [
        ("HTTPS_PROXY", format!("http://user:pr0xyW0rd@{nobody}"), 5),
        ("HTTPS_PROXY", "http://user:pr0xyW0rd@proxy.invalid:3128".to_owned(), 5),
        ("HTTPS_PROXY", format!("socks5://user:pr0xyW0rd@{nobody}"), 2),
        ("HTTPS_PROXY", "http://user:pr0xyW0rd@[:::".to_owned(), 2),
        ("BAOMING_API_BASE", "https://user:pr0xyW0rd@127.0.0.1/xcx".to_owned(), 2),
        ("BAOMING_API_BASE", "http://pr0xyW0rd.example/xcx".to_owned(), 2),
        ("BAOMING_API_BASE", "https://127.0.0.1/xcx?key=pr0xyW0rd".to_owned(), 2),
    ];
    each(
        &rows,
        |row| format!("{row:?}"),
        |(name, value, code)| {
            // A loopback API never goes through a proxy.
            let run = talkative(&db, &api).env("BAOMING_API_BASE", "https://api.invalid/xcx");
            let run = run.args(["--retries", "0"]).env(name, value).secret("pr0xyW0rd");
            assert_clear(&run.go(), *code);
        },
    );
}

#[test]
fn mongodb_over_tls_is_verified() {
    let server = Mongod::start_with_tls();
    let db = server.fresh_db();
    let api = Stub::start_tls(Certificate::Good, |_| Reply::valid());
    let ca = |path: &Path| format!("mongodb://{}/?tls=true&tlsCAFile={}", server.host(), path.display());
    let stranger = tls::pem_file(Certificate::SelfSigned);
    let rows = [
        (server.uri(), 0),
        (ca(tls::ca_file()), 0),
        (format!("mongodb://{}/?tls=true", server.host()), 1),
        (ca(&stranger), 1),
        (format!("mongodb://{}/", server.host()), 1),
    ];
    for (uri, code) in rows {
        add_tokens(&db, &["valid"]);
        let total =
            usize::try_from(db.tokens().count_documents(doc! {}).run().expect("count")).expect("small");
        let run = talkative(&db, &api).env("MONGODB_URI", &uri).env("SSL_CERT_FILE", tls::ca_file());
        let outcome = run.go();
        let (stopped, n) = if code == 0 { (None, total) } else { (Some("database"), 0) };
        assert_report(&outcome, &report(&db, code, stopped, &[("total", n), ("success", n)]));
    }
    db.assert_none_lost();
}
