//! The command line and the environment: every flag and variable takes effect, everything bad is
//! one clear line, and every exit code means what it says.

use crate::support::compare::{assert_text, timeless};
use crate::support::{
    Certificate, Mongod, Outcome, Proxy, Reply, Request, Run, Seed, Stub, free_port, scratch_dir, tls,
    unique_token,
};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What every mistake must be over in.
const PROMPT: Duration = Duration::from_secs(12);

/// A file with this content and mode in a folder of its own.
fn file(name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    let path = scratch_dir().join(name);
    fs::write(&path, content).expect("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    path
}

/// Where a connection is refused.
fn dead() -> String {
    format!("127.0.0.1:{}", free_port())
}

// ---------------------------------------------------------------- usage errors: exit code 2

/// A database and an API that are up, and take note of any connection.
struct Untouched {
    database: TcpListener,
    api: Stub,
}

impl Untouched {
    fn new() -> Self {
        let database = TcpListener::bind("127.0.0.1:0").expect("a free port");
        database.set_nonblocking(true).expect("no waiting");
        Self { database, api: Stub::always(Reply::valid()) }
    }

    fn run(&self) -> Run {
        let database = self.database.local_addr().expect("address");
        let run = Run::bare().env("MONGODB_URI", format!("mongodb://user:hunter2@{database}/"));
        run.env("BAOMING_API_BASE", self.api.base()).env("TZ", "Asia/Shanghai").secret("hunter2")
    }

    /// The run is to end with code 2 and one line that holds `named`, before it has connected to
    /// anything or made its log file.
    #[track_caller]
    fn refuses(&self, run: Run, what: &str, named: &str) {
        let log = scratch_dir().join("log");
        let outcome = run.arg("--log-file").arg(&log).limit(PROMPT).go();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{what}: {outcome:?}");
        let line =
            outcome.stderr.strip_prefix("refresh_baoming_tokens: ").and_then(|line| line.strip_suffix('\n'));
        assert!(line.is_some_and(|line| line.contains(named) && !line.contains('\n')), "{what}: {outcome:?}");
        let connection = self.database.accept().map_err(|error| error.kind());
        assert_eq!(connection.map(drop), Err(ErrorKind::WouldBlock), "{what}");
        assert_eq!(self.api.connections(), 0, "{what}");
        assert!(!log.exists(), "{what}");
    }
}

#[test]
fn bad_flags_name_the_flag_and_connect_to_nothing() {
    let table = [
        ("--dry-rum --cleanup-days 30", "--dry-rum"),
        ("--dry-run --dry-run", "--dry-run"),
        ("--dry-run=no", "--dry-run"),
        ("--max-age-days", "--max-age-days"),
        ("--max-age-days seven", "--max-age-days"),
        ("--cleanup-days 0", "--cleanup-days"),
        ("--cleanup-days=-1", "--cleanup-days"),
        ("--restore-hours=99999999999999999999", "--restore-hours"),
        ("--max-delete 101%", "--max-delete"),
        ("--shard 3/2", "--shard"),
        ("--eid=", "--eid"),
        ("--interval 2", "--interval"),
        ("-q -v", "-q"),
        ("--self-test --scheduler", "--self-test"),
        ("--scheduler --json", "--json"),
        ("--metrics-file no/such/folder/metrics.prom", "--metrics-file"),
        ("--mongodb-uri=mongodb://user:hunter2@host/", "--mongodb-uri"),
        ("mongodb://user:hunter2@host/", "argument"),
    ];
    let untouched = Untouched::new();
    for (flags, named) in table {
        untouched.refuses(untouched.run().args(flags.split(' ')), flags, named);
    }
}

#[test]
fn a_bad_environment_names_the_variable_and_connects_to_nothing() {
    const URI: &str = "mongodb://user:hunter2@127.0.0.1:1/";
    let path = |path: PathBuf| path.into_os_string();
    let no_file = || path(scratch_dir().join("none"));
    let text = OsString::from;
    let (uri, uri_file) = ("MONGODB_URI", "MONGODB_URI_FILE");
    // Variable, value, what the line says.
    let with_the_rest: Vec<(&str, OsString, &str)> = vec![
        (uri, text("mongodb://user:hunter2@host:port/"), "connection string"),
        (uri, text("mongodb://user:hunter2@@host/"), "connection string"),
        (uri, text("postgres://user:hunter2@host/"), "connection string"),
        (uri, text("hunter2"), "connection string"),
        (uri_file, path(file("uri", URI, 0o600)), uri_file),
        ("MONGODB_DB_NAME", text("a/b"), "MONGODB_DB_NAME"),
        ("MONGODB_DB_NAME", "x".repeat(64).into(), "MONGODB_DB_NAME"),
        ("TZ", text("Mars/Olympus_Mons"), "TZ"),
        ("TZ", text("Asia/Shanghia"), "TZ"),
        ("TZ", text("CST8:"), "TZ"),
        ("BAOMING_API_BASE", text("http://api.example/xcx"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("http://127.0.0.1.example/xcx"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("http://127.0.0.1@api.example/"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("https://user:hunter2@api.example/"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("https://api.example/?a=hunter2"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("ftp://127.0.0.1/xcx"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("api.example"), "BAOMING_API_BASE"),
        ("HTTP_PROXY", text("http://user:hunter2@:0:"), "HTTP_PROXY"),
        ("ALL_PROXY", text("socks5://127.0.0.1:1"), "ALL_PROXY"),
        ("SSL_CERT_FILE", no_file(), "SSL_CERT_FILE"),
        ("SSL_CERT_FILE", path(file("pem", "no certificate", 0o644)), "SSL_CERT_FILE"),
    ];
    let instead_of_uri: Vec<(&str, OsString, &str)> = vec![
        ("TZ", text("UTC"), uri),
        (uri_file, no_file(), uri_file),
        (uri_file, path(scratch_dir()), uri_file),
        (uri_file, path(file("uri", "\n", 0o600)), uri_file),
        (uri_file, path(file("uri", "mongodb://:hunter2", 0o600)), "connection string"),
        (uri_file, path(file("uri", URI, 0o640)), uri_file),
        (uri_file, path(file("uri", URI, 0o604)), uri_file),
        ("CREDENTIALS_DIRECTORY", path(scratch_dir()), "mongodb_uri"),
    ];
    let untouched = Untouched::new();
    for (name, value, named) in with_the_rest {
        let what = format!("{name}={}", value.display());
        untouched.refuses(untouched.run().env(name, value), &what, named);
    }
    for (name, value, named) in instead_of_uri {
        let what = format!("{name}={} without {uri}", value.display());
        untouched.refuses(untouched.run().env_remove(uri).env(name, value), &what, named);
    }
}

// ------------------------------------------------------- what cannot be done: exit code 1

#[test]
fn a_database_that_is_down_or_refuses_is_one_clear_line() {
    let server = Mongod::start_with_auth();
    let db = server.fresh_db();
    db.add_token("valid");
    let before = db.snapshot();
    let api = Stub::always(Reply::valid());
    let cards_only = server.add_user("cards_only", &db.name, &[("cards", &["find"])]);
    let (down, nowhere) = (dead(), "no-such-host.invalid".to_owned());
    // What is wrong, connection string, what it leads to.
    let table = [
        ("down", format!("mongodb://user:hunter2@{down}/"), down),
        ("no such host", format!("mongodb://user:hunter2@{nowhere}/"), nowhere),
        ("wrong password", server.uri_for("admin", "hunter2"), server.host()),
        ("no right to read", cards_only, server.host()),
    ];
    for (what, uri, host) in table {
        let outcome = Run::new(&db, &api).env("MONGODB_URI", uri).secret("hunter2").limit(PROMPT).go();
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        let [_, line] = lines[..] else { panic!("{what}: {outcome:?}") };
        assert!(["[ERROR] ❌ ", "连接失败", &host].iter().all(|part| line.contains(part)), "{what}: {line}");
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), ""), "{what}");
    }
    assert_eq!((api.requests(), db.snapshot()), (0, before));
}

#[test]
fn a_log_file_that_cannot_be_opened_stops_the_run_before_it_starts() {
    let untouched = Untouched::new();
    for path in [scratch_dir(), file("plain", "", 0o600).join("log")] {
        let run = untouched.run().args(["--json", "--log-file"]).arg(path);
        let outcome = run.limit(PROMPT).go().expect(1);
        assert!(outcome.stderr.starts_with("refresh_baoming_tokens: "), "{outcome:?}");
        assert!(outcome.stderr.contains("--log-file") && outcome.stderr.lines().count() == 1, "{outcome:?}");
        assert_eq!(outcome.json()["exit_code"], 1);
    }
    assert!(untouched.database.accept().is_err());
    assert_eq!(untouched.api.connections(), 0);
}

// -------------------------------------------------------------- exit codes, --json, -v, -q

/// The object of `--json`, to the letter; the two measured values are checked on their own.
fn assert_json(outcome: &Outcome, database: &str, counts: [u64; 8], dry_run: bool, stopped: &str) {
    let json = outcome.json();
    let started_at = json["started_at"].as_str().expect("text");
    assert_eq!(timeless(&started_at.replacen('T', " ", 1)), "NOW+08:00");
    // The support's clock starts when the program already runs, on a busy machine a while later.
    let duration =
        outcome.stdout.split("\"duration_seconds\":").nth(1).and_then(|rest| rest.split(',').next());
    let duration = duration.expect("duration_seconds");
    let seconds: f64 = duration.parse().expect("a number");
    assert!((0.0..outcome.elapsed.as_secs_f64() + 10.0).contains(&seconds), "{seconds}");
    let [total, success, failed, deleted, skipped, withheld, unprocessed, cleaned] = counts;
    let expected = format!(
        "{{\"version\":\"{}\",\"database\":\"{database}\",\"started_at\":\"{started_at}\",\
         \"duration_seconds\":{duration},\"total\":{total},\"success\":{success},\"failed\":{failed},\
         \"deleted\":{deleted},\"skipped\":{skipped},\"withheld\":{withheld},\"unprocessed\":{unprocessed},\
         \"cleaned\":{cleaned},\"dry_run\":{dry_run},\"stopped\":{stopped},\"exit_code\":{}}}\n",
        env!("CARGO_PKG_VERSION"),
        outcome.code.expect("a code"),
    );
    assert_text(&outcome.stdout, &expected);
}

#[test]
fn each_exit_code_with_its_json_object() {
    let api = Stub::start(|request| Reply::by_label(request.token()));
    // Tokens in the order of the run, flags, exit code, total success failed deleted skipped
    // withheld unprocessed cleaned, why it stopped. The two signals are tests of their own.
    let table: [(&str, &str, i32, [u64; 8], &str); 8] = [
        ("", "", 0, [0; 8], "null"),
        ("slow invalid", "", 0, [2, 1, 0, 1, 0, 0, 0, 0], "null"),
        ("valid busy", "", 3, [2, 1, 1, 0, 0, 0, 0, 0], "null"),
        ("down valid", "", 3, [2, 1, 1, 0, 0, 0, 0, 0], "null"),
        ("down", "", 5, [1, 0, 1, 0, 0, 0, 0, 0], "\"api_unreachable\""),
        ("down down down down down valid invalid", "", 5, [7, 0, 5, 0, 0, 0, 2, 0], "\"api_unreachable\""),
        ("invalid busy", "--max-delete=0", 25, [2, 0, 1, 0, 0, 1, 0, 0], "\"delete_limit\""),
        ("busy busy", "--dry-run --cleanup-days=1", 3, [2, 0, 2, 0, 0, 0, 0, 2], "null"),
    ];
    for (tokens, flags, code, counts, stopped) in table {
        let db = Mongod::shared().fresh_db();
        for (label, hours) in tokens.split_whitespace().zip(0_u32..) {
            db.add(Seed::new(&unique_token(label)).last_used_days_ago(9.0 - f64::from(hours) / 24.0));
        }
        let run = Run::new(&db, &api).args(["--json", "--retries=0"]).args(flags.split_whitespace());
        let outcome = run.go().expect(code);
        assert_json(&outcome, &db.name, counts, flags.contains("--dry-run"), stopped);
        let took = outcome.json()["duration_seconds"].as_f64();
        assert!(!tokens.starts_with("slow") || took >= Some(1.0), "{took:?}");
        // The log is where it does not disturb.
        assert!(
            timeless(&outcome.stderr).starts_with("NOW [INFO] 🔧 正在连接数据库...\n"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.lines().all(|line| timeless(line).starts_with("NOW [")), "{}", outcome.stderr);
        if tokens.is_empty() {
            let down = Run::new(&db, &api).arg("--json").env("MONGODB_URI", format!("mongodb://{}/", dead()));
            assert_json(&down.go().expect(1), &db.name, [0; 8], false, "\"database\"");
        }
        db.assert_none_lost();
    }
}

#[test]
fn verbose_and_quiet() {
    let db = Mongod::shared().fresh_db();
    let api = Stub::start(|request| Reply::by_label(request.token()));
    db.add_token("valid");
    let levels = |flags: &[&str]| {
        let log = Run::new(&db, &api).args(flags).go().log();
        let mut levels: Vec<String> = log
            .lines()
            .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
            .collect();
        levels.sort();
        levels.dedup();
        levels
    };
    for quiet in ["-q", "--quiet"] {
        let outcome = Run::new(&db, &api).arg(quiet).go().expect(0);
        assert_eq!(outcome.log(), "");
    }
    assert_eq!(levels(&[]), ["INFO"]);
    db.add_token("busy");
    assert_eq!(levels(&["-q"]), ["WARNING"]);
    assert_eq!(levels(&[]), ["INFO", "WARNING"]);
    for verbose in ["-v", "--verbose"] {
        assert_eq!(levels(&[verbose]), ["DEBUG", "INFO", "WARNING"]);
    }
}

#[test]
fn help_and_version_need_nothing() {
    for (short, long, start) in [
        ("-h", "--help", "Keeps the login tokens".to_owned()),
        ("-V", "--version", format!("refresh_baoming_tokens {} (", env!("CARGO_PKG_VERSION"))),
    ] {
        let outcome = Run::bare().arg(long).go().expect(0);
        assert!(outcome.stdout.starts_with(&start) && outcome.stdout.ends_with('\n'), "{outcome:?}");
        assert_eq!(Run::bare().arg(short).go().expect(0).log(), outcome.stdout);
    }
}

#[test]
fn the_readme_repeats_the_help_text() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).expect("README.md");
    let help = Run::bare().arg("--help").go().expect(0).stdout;
    assert!(readme.contains(&help), "README.md does not hold the text of --help:\n{help}");
}

// --------------------------------------------------------------------- requests to the API

#[test]
fn a_check_is_one_request_as_a_browser_would_send_it() {
    let db = Mongod::shared().fresh_db();
    let token = "x1+y/2=&eid=3 %41#?\"é名";
    db.add(Seed::new(token));
    let api = Stub::always(Reply::valid());
    for (flags, eid) in [(&[][..], "69844bcf8eaa2449c7a37fae"), (&["--eid", "a b&c=d"], "a b&c=d")] {
        Run::new(&db, &api).args(flags).go().expect(0);
        let request = api.recorded().pop().expect("a request");
        assert!(request.line.starts_with("GET /xcx/enroll/v3/detail?eid="), "{}", request.line);
        let query: Vec<(&str, &str)> = request.query.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(query, [("eid", eid), ("access_token", token), ("referer", ""), ("spider", "h5")]);
        assert_eq!(request.line.split(' ').count(), 3, "percent-encoded: {}", request.line);
        assert_eq!(request.header("Referer"), Some("https://p.baominggongju.com/"));
        assert!(request.header("User-Agent").is_some_and(|agent| agent.starts_with("Mozilla/5.0 (")));
        assert_eq!(request.body, b"");
    }
    assert_eq!(api.requests(), 2);
}

fn gaps(requests: &[std::sync::Arc<Request>]) -> Vec<Duration> {
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

fn millis(range: Range<u64>) -> Range<Duration> {
    Duration::from_millis(range.start)..Duration::from_millis(range.end)
}

#[test]
fn delay_ms_paces_from_start_to_start() {
    // Flag, tokens, latency of the API; from the first request to the last in milliseconds. In the
    // third row no pause at all would make it 1400, one from the end of a check 3400.
    let table = [(None, 2, 0, 500..5000), (Some("0"), 3, 0, 0..900), (Some("1000"), 3, 700, 1600..3000)];
    for (delay, tokens, latency, expected) in table {
        let db = Mongod::shared().fresh_db();
        db.add_tokens("valid", tokens);
        let api = Stub::always(Reply::valid().after(Duration::from_millis(latency)));
        let flags = delay.iter().flat_map(|delay| ["--delay-ms", delay]);
        Run::new(&db, &api).no_args().args(flags).go().expect(0);
        let took: Duration = gaps(&api.recorded()).iter().sum();
        assert!(millis(expected).contains(&took), "{delay:?}: {took:?}");
    }
}

#[test]
fn timeout_secs_limits_a_call() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::stall());
    thread::scope(|scope| {
        for (flags, expected) in [(&["--timeout-secs=1"][..], 1000..9000), (&[], 10_000..18_000)] {
            let run = Run::new(&db, &api).arg("--retries=0").args(flags);
            scope.spawn(move || {
                let outcome = run.go().expect(5);
                assert!(millis(expected).contains(&outcome.elapsed), "{flags:?}: {:?}", outcome.elapsed);
            });
        }
    });
}

#[test]
fn retries_after_growing_waits_or_what_the_api_asks_for() {
    // Flags, wait that the API asks for, least waits in seconds; each is over in two seconds more.
    let table: [(&[&str], Option<&str>, &[u64]); 5] = [
        (&["--retries=0"], None, &[]),
        (&[], None, &[1, 2]),
        (&[], Some("0"), &[0, 0]),
        (&["--retries=5"], Some("0"), &[0; 5]),
        (&["--retries", "1"], Some("3"), &[3]),
    ];
    for (flags, retry_after, waits) in table {
        let db = Mongod::shared().fresh_db();
        db.add_token("valid");
        let mut reply = Reply::json(503, r#"{"sta":-1,"msg":"invalid access_token"}"#);
        if let Some(secs) = retry_after {
            reply = reply.header("Retry-After", secs);
        }
        let api = Stub::always(reply);
        Run::new(&db, &api).args(flags).go().expect(5);
        let gaps = gaps(&api.recorded());
        let fits = |(gap, &secs): (&Duration, &u64)| {
            millis(secs * 1000..secs * 1000 + 2000).contains(&(*gap + Duration::from_millis(50)))
        };
        assert!(gaps.len() == waits.len() && gaps.iter().zip(waits).all(fits), "{flags:?}: {gaps:?}");
    }
}

#[test]
fn api_base_may_end_in_a_slash_and_be_any_loopback_name() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let port = api.address().port();
    for base in [format!("http://localhost:{port}/xcx/"), format!("HTTP://127.0.0.1:{port}/xcx")] {
        Run::new(&db, &api).env("BAOMING_API_BASE", base).go().expect(0);
    }
    assert!(api.recorded().iter().all(|request| request.path == "/xcx/enroll/v3/detail"));
    assert_eq!(api.requests(), 2);
}

#[test]
fn proxy_variables_are_those_of_any_http_client() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let plain = Stub::always(Reply::valid());
    let encrypted = Stub::start_tls(Certificate::Good, |_| Reply::valid());
    // Where to, variables that name the proxy, exceptions, whether the proxy is used.
    let table: [(&Stub, &[&str], &str, bool); 12] = [
        (&plain, &[], "", false),
        (&plain, &["HTTP_PROXY"], "", true),
        (&plain, &["ALL_PROXY"], "", true),
        (&plain, &["HTTPS_PROXY"], "", false),
        (&encrypted, &["HTTPS_PROXY"], "", true),
        (&encrypted, &["ALL_PROXY"], "", true),
        (&encrypted, &["HTTP_PROXY"], "", false),
        (&plain, &["HTTP_PROXY"], "127.0.0.1", false),
        (&plain, &["ALL_PROXY"], "example.org,127.0.0.1", false),
        (&encrypted, &["HTTPS_PROXY", "ALL_PROXY"], "*", false),
        (&plain, &["HTTP_PROXY"], "example.org", true),
        (&plain, &["HTTP_PROXY"], "7.0.0.1", true),
    ];
    for (api, names, exceptions, used) in table {
        let proxy = Proxy::start();
        let mut run = Run::new(&db, api).env("SSL_CERT_FILE", tls::ca_file());
        for name in names {
            run = run.env(name, proxy.uri());
        }
        run.env("NO_PROXY", exceptions).go().expect(0);
        let expected = used.then(|| api.address().to_string());
        assert_eq!(proxy.targets(), expected.into_iter().collect::<Vec<_>>(), "{names:?} but {exceptions:?}");
    }
}

#[test]
fn the_default_api_is_the_real_one_and_must_prove_it() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let before = db.snapshot();
    let impostor = Stub::start_tls(Certificate::WrongHost, |_| Reply::invalid());
    let proxy = Proxy::start_to(impostor.address());
    let run = Run::new(&db, &impostor).env_remove("BAOMING_API_BASE").env("HTTPS_PROXY", proxy.uri());
    run.env("SSL_CERT_FILE", tls::ca_file()).arg("--retries=0").go().expect(5);
    assert_eq!(proxy.targets(), ["api-xcx-qunsou.weiyoubot.cn:443"]);
    assert_eq!((impostor.requests(), db.snapshot()), (0, before));
}

#[test]
fn ssl_cert_file_adds_an_authority() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::start_tls(Certificate::Good, |_| Reply::valid());
    let run = || Run::new(&db, &api).arg("--retries=0");
    run().go().expect(5);
    assert_eq!(api.requests(), 0);
    run().env("SSL_CERT_FILE", tls::ca_file()).go().expect(0);
    assert_eq!(api.requests(), 1);
}

// ------------------------------------------------------------------------- the database

#[test]
fn the_connection_string_may_come_from_a_file() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let secret = |mode| file("mongodb_uri", format!("{}\n", db.uri), mode);
    let folder = |file: &Path| file.parent().expect("folder").to_path_buf();
    let credential = secret(0o440);
    let table: [&[(&str, PathBuf)]; 5] = [
        &[("MONGODB_URI_FILE", secret(0o600))],
        &[("MONGODB_URI_FILE", secret(0o400))],
        &[("CREDENTIALS_DIRECTORY", folder(&credential))],
        // Others may read it, but it is where systemd keeps its secrets.
        &[("MONGODB_URI_FILE", credential.clone()), ("CREDENTIALS_DIRECTORY", folder(&credential))],
        &[("MONGODB_URI_FILE", secret(0o600)), ("CREDENTIALS_DIRECTORY", scratch_dir())],
    ];
    for variables in table {
        let mut run = Run::new(&db, &api).env_remove("MONGODB_URI");
        for (name, path) in variables {
            run = run.env(name, path);
        }
        assert_eq!(run.go().expect(0).stat("成功"), 1, "{variables:?}");
    }
}

#[test]
fn the_database_is_the_variable_s_or_the_uri_s_or_the_default() {
    let server = Mongod::start();
    let (one, two) = (server.fresh_db(), server.fresh_db());
    one.add_tokens("valid", 1);
    two.add_tokens("valid", 2);
    let default = server.client().database("auto-form-db").collection("baoming_tokens");
    let tokens: Vec<_> = (0..3).map(|_| Seed::new(&unique_token("valid")).0).collect();
    default.insert_many(tokens).run().expect("tokens");
    let api = Stub::always(Reply::valid());
    for (path, variable, database, total) in [
        ("", Some(&one.name), &one.name, 1),
        (&two.name, Some(&one.name), &one.name, 1),
        (&two.name, None, &two.name, 2),
        (&two.name, Some(&String::new()), &two.name, 2),
        ("", None, &"auto-form-db".to_owned(), 3),
    ] {
        let mut run = Run::new(&one, &api).env("MONGODB_URI", format!("{}{path}", server.uri()));
        run = run.env_remove("MONGODB_DB_NAME");
        if let Some(name) = variable {
            run = run.env("MONGODB_DB_NAME", name);
        }
        let json = run.arg("--json").go().expect(0).json();
        assert_eq!((json["database"].as_str(), json["success"].as_u64()), (Some(&**database), Some(total)));
    }
}

// -------------------------------------------------------------------------- the log file

#[test]
fn log_file_gets_the_log_in_private_and_appended() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let log = scratch_dir().join("made/for/it/run.log");
    let run = |flag: &str| Run::new(&db, &api).arg(flag).arg("--log-file").arg(&log).go().expect(0);
    let mut expected = run("-v").stdout;
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&log), 0o600);
    assert_eq!(mode(log.parent().expect("folder")) & 0o022, 0, "nobody else may put files there");
    expected += &run("--json").stderr;
    run("-q");
    assert_text(&fs::read_to_string(&log).expect("log"), &expected);
}

#[test]
fn log_file_is_followed_when_it_is_renamed_or_vanishes() {
    let db = Mongod::shared().fresh_db();
    db.add_tokens("valid", 4);
    let log = scratch_dir().join("folder/run.log");
    let (path, renamed, vanished) = (log.clone(), log.with_extension("1"), log.with_extension("2"));
    let keep = vanished.with_file_name("../kept");
    let kept = keep.clone();
    let api = Stub::start(move |request| {
        match request.number {
            2 => fs::rename(&path, &renamed).expect("renamed"),
            3 => {
                let folder = path.parent().expect("folder");
                let both = [&renamed, &path].map(|file| fs::read_to_string(file).expect("log"));
                fs::write(&kept, both.concat()).expect("kept");
                fs::remove_dir_all(folder).expect("removed");
            }
            _ => {}
        }
        Reply::valid()
    });
    let outcome = Run::new(&db, &api).arg("--log-file").arg(&log).go().expect(0);
    let files = [&keep, &log].map(|file| fs::read_to_string(file).expect("log"));
    assert_text(&files.concat(), &outcome.stdout);
    assert!(files.iter().all(|text| text.contains("✅ Token 有效")));
    assert_eq!(fs::metadata(&log).expect("log").permissions().mode() & 0o777, 0o600);
}
