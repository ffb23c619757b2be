//! One run: which tokens, in which order, by whose clock, and how the API is asked.

use crate::prelude::*;
use crate::support::mongod::READS;

#[test]
fn least_recently_used_first_on_one_connection_with_one_write_each() {
    const N: u32 = 450;
    let server = Mongod::start();
    let db = server.fresh_db();
    let minutes_ago = |n: u32| Seed::new(&unique_token("valid")).last_used_days_ago(f64::from(n) / 1440.0);
    let seeds: Vec<Seed> = (1..=N).map(minutes_ago).collect();
    let token_of = |seed: &Seed| seed.0.get_str("access_token").expect("token").to_owned();
    let mut expected: Vec<String> = seeds.iter().rev().map(token_of).collect();
    db.add_all(seeds);
    // Its user logs in anew while the first tokens are checked: the run must ask with the new token.
    let (renewed, last) = (unique_token("valid"), expected.pop().expect("the last"));
    db.add_secret(&renewed[..5]);
    expected.push(renewed.clone());
    let tokens = db.tokens();
    let api = Stub::start(move |request| {
        if request.number == 1 {
            let change = doc! { "$set": { "access_token": &renewed } };
            tokens.update_one(doc! { "access_token": &last }, change).run().expect("new login");
        }
        Reply::valid()
    });

    let sent = || [&["update", "findAndModify", "insert"][..], &READS].map(|kinds| server.commands(kinds));
    let before = sent();
    let outcome = Run::new(&db, &api).go().expect(0);
    let [writes, reads] = sent();
    assert_eq!(outcome.stat("成功"), u64::from(N));
    let asked: Vec<String> = api.recorded().iter().map(|request| request.token().to_owned()).collect();
    assert_eq!(asked, expected);
    assert_eq!(api.connections(), 1);
    // One of them is the new login.
    assert_eq!(writes - before[0], i64::from(N) + 1);
    let reads = reads - before[1];
    assert!(reads <= i64::from(N) / 100 + 20, "{reads} reads");
}

#[test]
fn max_age_days_selects_by_the_wall_clock() {
    const HOUR: f64 = 1.0 / 24.0;
    let (db, api) = world();
    // Between UTC and Shanghai lie eight hours: an hour this or that side tells them apart.
    for (label, days) in [("inside", 7.0 - HOUR), ("outside", 7.0 + HOUR), ("recent", 0.0)] {
        db.add_used(label, days);
    }
    db.add(Seed::new(&unique_token("never")).without("last_used"));
    db.add(Seed::new(&unique_token("odd")).set("last_used", "yesterday"));
    let outcome = Run::new(&db, &api).arg("--max-age-days=7").go().expect(0);
    let head = "[INFO] 📊 只刷新 7 天内使用过的 Token\n";
    assert!(outcome.stdout.contains(head), "{}", outcome.stdout);
    let asked = api.recorded();
    let asked: Vec<&str> = asked.iter().filter_map(|request| request.token().split('-').nth(1)).collect();
    assert_eq!((asked, outcome.stat("总计")), (vec!["inside", "recent"], 2));
    let all = Run::new(&db, &api).go().expect(0);
    assert_eq!(all.stat("总计"), 5);
    assert!(!all.stdout.contains("只刷新"), "{}", all.stdout);
}

#[test]
fn card_refreshes_one_colleague_s_token_by_name_or_id() {
    let (db, api) = world();
    let [wang, twin, second_twin, _] = ["王五", "同名", "同名", "没有 Token"].map(|name| db.add_card(name));
    let cardless = ObjectId::new();
    for card in [wang, twin, second_twin, cardless] {
        db.add(Seed::new(&unique_token("valid")).card(card));
    }
    db.add(Seed::new(&unique_token("valid")).card_dbref(wang));
    let binned = ObjectId::new();
    db.add_to_bin(Seed::new("gone").card(binned).0, "x", 31.0 * 24.0);
    // Name, exit code, tokens of the run, what is said.
    let ids = [twin, second_twin].map(ObjectId::to_hex);
    let table: [(&str, i32, u64, &[&str]); 9] = [
        ("王五", 0, 2, &["⚙️ 选项: --delay-ms 0 --card 王五"]),
        (&wang.to_hex(), 0, 2, &["名片 '王五'"]),
        (&second_twin.to_hex(), 0, 1, &["名片 '同名'"]),
        (&cardless.to_hex(), 0, 1, &["名片 '已删除的名片'"]),
        (&binned.to_hex(), 0, 0, &["✅ 没有需要刷新的 Token"]),
        ("没有 Token", 0, 0, &["✅ 没有需要刷新的 Token"]),
        ("王", 2, 0, &["--card"]),
        (&ObjectId::new().to_hex(), 2, 0, &["--card"]),
        ("同名", 2, 0, &["--card", &ids[0], &ids[1]]),
    ];
    for (name, code, tokens, says) in table {
        let (before, asked) = (db.snapshot(), api.requests());
        let outcome = Run::new(&db, &api).arg("--card").arg(name).go().expect(code);
        let log = outcome.log();
        assert!(says.iter().all(|text| log.contains(text)), "{name}: {log}");
        assert_eq!((api.requests() - asked) as u64, tokens, "{name}");
        let after = db.snapshot();
        let changed = before.tokens.iter().zip(&after.tokens).filter(|(before, after)| before != after);
        assert_eq!((changed.count() as u64, &after.bin), (tokens, &before.bin), "{name}");
        if code == 2 {
            let line = outcome.stderr.strip_prefix("refresh_baoming_tokens: --card ");
            assert!(line.is_some_and(|line| line.lines().count() == 1), "{name}: {}", outcome.stderr);
        } else {
            assert_eq!(outcome.stat("总计"), tokens, "{name}");
        }
    }
}

/// The wall clock by the system's own `date`, to the second. It is given the rule rather than a
/// name: that works without zone files, too.
fn clock_by_date(posix_rule: &str) -> DateTime {
    let output = Command::new("date").env("TZ", posix_rule).arg("+%Y-%m-%d %H:%M:%S").output().expect("date");
    date(String::from_utf8(output.stdout).expect("a date").trim_end())
}

#[test]
fn the_wall_clock_of_tz_is_shown_and_stored() {
    for (zone, rule) in [
        ("Asia/Shanghai", "CST-8"),
        ("UTC", "UTC0"),
        ("America/New_York", "EST5EDT,M3.2.0,M11.1.0"),
        ("<+0545>-5:45", "XXX-5:45"),
    ] {
        let (db, api) = world();
        let id = db.add_used("valid", 3.0);
        let start = clock_by_date(rule);
        let outcome = Run::new(&db, &api).env("TZ", zone).go().expect(0);
        let end = clock_by_date(rule);
        let is_now = |at| (start..=end).contains(&at);
        let token = db.token(id).expect("token");
        let used = token.get_datetime("last_used").expect("a date");
        assert_eq!(token.get_datetime("updated_at").expect("a date"), used, "{zone}");
        let to_the_second = DateTime::from_millis(used.timestamp_millis() / 1000 * 1000);
        assert!(is_now(to_the_second), "{zone}: {used} stored, not {start} to {end}");
        for line in outcome.stdout.lines() {
            assert!(is_now(date(&line[..19])), "{zone}: {line}");
        }
        let shown = outcome.stdout.split_once("⏰ 运行时间: ").expect("the line").1;
        assert!(is_now(date(&shown[..19])), "{zone}: {shown}");
    }
}

#[test]
fn a_last_used_that_lies_ahead_is_another_zone_s_and_never_moved_back() {
    for (minutes, is_told) in [(58, false), (62, true), (480, true)] {
        let (db, api) = valid_tokens(1);
        let ahead = DateTime::from_millis(wall_clock().timestamp_millis() + minutes * 60_000);
        let id = db.add(Seed::new(&unique_token("valid")).set("last_used", ahead));
        let shown = ahead.try_to_rfc3339_string().expect("a date")[..19].replace('T', " ");
        for flags in [&[][..], &["--self-test"]] {
            let outcome = Run::new(&db, &api).args(flags).go().expect(0);
            let mut warnings = outcome.stdout.lines().filter(|line| line.contains("[WARNING]"));
            let told = warnings.next().map(|line| line.contains("TZ") && line.contains(&shown));
            assert_eq!((told, warnings.next()), (is_told.then_some(true), None), "{}", outcome.stdout);
            let token = db.token(id).expect("token");
            assert_eq!(token.get_datetime("last_used").ok(), Some(&ahead));
        }
    }
}

#[test]
fn a_check_is_one_request_as_a_browser_would_send_it() {
    let (db, api) = world();
    let token = "x1+y/2=&eid=3 %41#?\"é名";
    db.add(Seed::new(token));
    let longest = "aZ_09-".repeat(10) + "wxyz";
    for (flags, eid) in [(&[][..], "69844bcf8eaa2449c7a37fae"), (&["--eid", &longest], &longest)] {
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

#[test]
fn delay_ms_paces_from_start_to_start() {
    // Flag, tokens, latency of the API; from the first request to the last in milliseconds. In the
    // third row no pause at all would make it 1400, one from the end of a check 3400. In the last
    // one the token is asked about twice before it is deleted.
    let table = [
        (None, "valid", 2, 0, 500..5000),
        (Some("0"), "valid", 3, 0, 0..900),
        (Some("1000"), "valid", 3, 700, 1600..3000),
        (Some("1000"), "invalid", 2, 0, 1600..6000),
    ];
    for (delay, label, tokens, latency, expected) in table {
        let (db, _) = world();
        db.add_tokens(label, tokens);
        let latency = Duration::from_millis(latency);
        let api = Stub::start(move |request| Reply::by_label(request.token()).after(latency));
        let flags = delay.iter().flat_map(|delay| ["--delay-ms", delay]);
        Run::new(&db, &api).no_args().args(flags).go().expect(0);
        let requests = api.recorded();
        let took = (requests[requests.len() - 1].at - requests[0].at).as_millis();
        assert!(expected.contains(&took), "{delay:?}: {took} ms");
    }
}

#[test]
fn timeout_secs_limits_each_phase_of_a_call() {
    let (db, _) = valid_tokens(1);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"s";
    let pause = Duration::from_secs(2);
    let in_parts = Reply::raw(head).after(pause).and(Reply::raw("ta\":0}").after(pause));
    let (_sockets, address) = unresponsive();
    // What the API does unless it takes no connection, flags, exit code, milliseconds of the run.
    let table = [
        (None, "--timeout-secs=1", 5, 1000..9000),
        (Some(Reply::stall()), "--timeout-secs=1", 5, 1000..9000),
        (Some(Reply::raw(head).and(Reply::stall())), "--timeout-secs=1", 5, 1000..9000),
        // Neither phase takes so long, both together do.
        (Some(in_parts), "--timeout-secs=3", 0, 4000..12_000),
        (Some(Reply::stall()), "", 5, 10_000..18_000),
    ];
    each(&table, |(reply, flag, code, expected)| {
        let api = Stub::always(reply.clone().unwrap_or_else(Reply::valid));
        let nobody = reply.is_none().then(|| ("BAOMING_API_BASE", format!("http://{address}/xcx")));
        let run = Run::new(&db, &api).arg("--retries=0").args(flag.split_whitespace()).envs(nobody);
        let outcome = run.go().expect(*code);
        assert!(expected.contains(&outcome.elapsed.as_millis()), "{flag}: {:?}", outcome.elapsed);
    });
}

#[test]
fn proxies_and_certificates_are_those_of_any_http_client() {
    let (db, plain) = valid_tokens(1);
    // Nobody has such a name: without the proxy there is no connection.
    let api = Stub::always_tls(Certificate::WrongHost, Reply::valid());
    let nowhere = || format!("http://{}", dead());
    // Variables that name the proxy, and one that names none, exceptions, whether the proxy is
    // used. All of NO_PROXY is a unit test of src/settings.rs.
    let table: [(&[&str], Option<&str>, &str, bool); 7] = [
        (&[], None, "", false),
        (&["HTTPS_PROXY"], Some("ALL_PROXY"), "", true),
        (&["https_proxy"], Some("HTTPS_PROXY"), "elsewhere.example", true),
        (&["ALL_PROXY"], Some("HTTP_PROXY"), "", true),
        (&["HTTP_PROXY"], None, "", false),
        (&["HTTPS_PROXY"], None, "other.example", false),
        (&["HTTPS_PROXY", "ALL_PROXY"], None, "*", false),
    ];
    for (names, other, exceptions, used) in table {
        let proxy = Stub::always(Reply::tunnel(api.address()));
        let run = Run::new(&db, &api).env("SSL_CERT_FILE", tls::ca_file()).arg("--retries=0");
        let run = run.envs(names.iter().map(|name| (*name, format!("http://{}", proxy.address()))));
        let run = run.envs(other.map(|name| (name, nowhere())));
        let run = run.env("BAOMING_API_BASE", "https://other.example/xcx").env("NO_PROXY", exceptions);
        run.go().expect(if used { 0 } else { 5 });
        let expected: &[&str] = if used { &["other.example:443"] } else { &[] };
        assert_eq!(proxy.paths(), expected, "{names:?} but {exceptions:?}");
    }
    let run = Run::new(&db, &api).env("BAOMING_API_BASE", "https://other.example/xcx").arg("--retries=0");
    let gone = dead();
    let outcome = run.env("HTTPS_PROXY", format!("http://{gone}")).go().expect(5);
    assert!(outcome.stdout.contains(&format!(" (经代理 {gone})")), "the proxy is the cause: {outcome:?}");
    // A loopback API, under any name, goes past any proxy.
    let port = plain.address().port();
    for base in [format!("http://localhost:{port}/xcx/"), format!("HTTP://127.0.0.1:{port}/xcx")] {
        let proxies = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"].map(|name| (name, nowhere()));
        let run = Run::new(&db, &plain).env("BAOMING_API_BASE", base).envs(proxies);
        run.go().expect(0);
    }
    assert!(plain.recorded().iter().all(|request| request.path == "/xcx/enroll/v3/detail"));
    // The default API is the real one, and must prove it.
    let (before, asked, proxy) = (db.snapshot(), api.requests(), Stub::always(Reply::tunnel(api.address())));
    let run = Run::new(&db, &api).env_remove("BAOMING_API_BASE");
    let run = run.env("HTTPS_PROXY", format!("http://{}", proxy.address()));
    run.env("SSL_CERT_FILE", tls::ca_file()).arg("--retries=0").go().expect(5);
    assert_eq!(proxy.paths(), ["api-xcx-qunsou.weiyoubot.cn:443"]);
    assert_eq!((api.requests(), db.snapshot()), (asked, before));
}
