//! `notify.sh` against a local sink, which it reaches as a proxy for the real host names.

use super::support::tls::ca_file;
use super::support::{Certificate, Outcome, Reply, Request, Run, Stub, scratch_dir};
use super::{path, run_script, script, world};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

const KEY: &str = "5ecretKey";
const ACCEPTED: &str = r#"{"errcode":0,"errmsg":"ok","code":0,"msg":"success"}"#;

/// The report of a run in which all of ten tokens were refreshed, but for these fields.
fn report(changes: &[(&str, serde_json::Value)]) -> String {
    let mut report = serde_json::json!({
        "version": "0.1.0", "database": "auto-form-db", "started_at": "2026-02-12T18:50:13+08:00",
        "duration_seconds": 1.25, "total": 10, "success": 10, "failed": 0, "deleted": 0, "skipped": 0,
        "withheld": 0, "unprocessed": 0, "cleaned": 0, "dry_run": false, "stopped": null, "exit_code": 0,
    });
    for (field, value) in changes {
        report[*field] = value.clone();
    }
    report.to_string()
}

/// Runs `notify.sh ARGS` with this on stdin.
fn notify(stdin: &str, args: &[&str], sink: &Stub) -> Run {
    let pipe = Run::bare().program("sh").args(["-c", r#"printf %s "$STDIN" | "$@""#, "sh"]);
    pipe.arg(script("notify.sh"))
        .args(args)
        .env("STDIN", stdin)
        .env("PATH", path())
        .secret(KEY)
        .env("http_proxy", format!("http://{}", sink.address()))
}

fn text_of(request: &Request, pointer: &str) -> String {
    let payload: serde_json::Value = serde_json::from_slice(&request.body).expect("a JSON payload");
    payload.pointer(pointer).and_then(|text| text.as_str()).expect("a text").to_owned()
}

#[test]
fn each_kind_of_host_gets_its_own_form() {
    let failed = report(&[("failed", 3.into()), ("success", 7.into()), ("exit_code", 3.into())]);
    let dingtalk = r#"{"msgtype":"text","text":{"content":"#;
    let feishu = r#"{"msg_type":"text","content":{"text":"#;
    for (host, path, form, pointer) in [
        ("oapi.dingtalk.com", "/robot/send?access_token=", dingtalk, "/text/content"),
        ("QYAPI.weixin.qq.com:80", "/cgi-bin/webhook/send?key=", dingtalk, "/text/content"),
        ("open.feishu.cn", "/open-apis/bot/v2/hook/", feishu, "/content/text"),
        ("open.larksuite.com", "/open-apis/bot/v2/hook/", feishu, "/content/text"),
        ("chat.example", "/hooks/", r#"{"text":"#, "/text"),
    ] {
        let sink = Stub::always(Reply::json(200, ACCEPTED));
        let outcome = notify(&failed, &[&format!("http://{host}{path}{KEY}")], &sink).go().expect(3);
        assert_eq!(outcome.log(), "", "{host}");
        let request = sink.await_request(1);
        assert_eq!(sink.requests(), 1, "{host}");
        let target = format!("http://{}{path}{KEY}", host.trim_end_matches(":80")).to_lowercase();
        assert!(request.line.to_lowercase().starts_with(&format!("post {target} http")), "{}", request.line);
        assert_eq!(request.header("Content-Type"), Some("application/json; charset=utf-8"));
        assert!(String::from_utf8_lossy(&request.body).starts_with(form), "{host}");
        let text = text_of(&request, pointer);
        for part in ["报名工具 Token 刷新: ❌ 退出码 3\n", "总计 10, 成功 7, 失败 3\n", "auto-form-db"]
        {
            assert!(text.contains(part), "{host}: no {part:?} in {text:?}");
        }
    }
}

#[test]
fn it_posts_what_needs_attention_and_passes_the_exit_code_on() {
    let changed = |changes: &[(&str, serde_json::Value)]| report(changes);
    let clean = changed(&[]);
    let missing_field = clean.replace(r#""total":10,"#, "");
    for (stdin, flag, code, expected) in [
        (clean.clone(), None, 0, None),
        (clean.clone(), Some("-a"), 0, Some("✅ 完成")),
        (changed(&[("failed", 1.into()), ("exit_code", 3.into())]), None, 3, Some("失败 1")),
        (changed(&[("deleted", 2.into())]), None, 0, Some("删除 2")),
        (changed(&[("cleaned", 2.into())]), None, 0, Some("清理 2")),
        (changed(&[("skipped", 2.into())]), None, 0, None),
        (changed(&[("withheld", 30.into()), ("exit_code", 25.into())]), None, 25, Some("保留 30")),
        (changed(&[("stopped", "database".into()), ("exit_code", 1.into())]), None, 1, Some("数据库不可用")),
        (changed(&[("stopped", "signal".into()), ("exit_code", 143.into())]), None, 143, Some("被信号中止")),
        (changed(&[("dry_run", true.into()), ("deleted", 1.into())]), None, 0, Some("(试运行)")),
        // What the program prints is escaped, and stays so.
        (changed(&[("database", "a\"}\\\n,名".into()), ("deleted", 1.into())]), None, 0, Some("a\"}\\\n,名")),
        (clean.replace(',', " ,\n  ").replace(':', " : "), Some("-a"), 0, Some("✅ 完成")),
        // Whoever cannot report has failed.
        (String::new(), None, 1, Some("没有收到运行结果")),
        ("refresh_baoming_tokens: no database".to_owned(), None, 1, Some("没有收到运行结果")),
        (clean[..clean.len() - 1].to_owned(), None, 1, Some("没有收到运行结果")),
        (clean.clone() + &clean, None, 1, Some("没有收到运行结果")),
        (missing_field, None, 1, Some("没有收到运行结果")),
        (changed(&[("exit_code", 256.into())]), None, 1, Some("没有收到运行结果")),
        (changed(&[("failed", "1".into())]), None, 1, Some("没有收到运行结果")),
    ] {
        let sink = Stub::always(Reply::json(200, ""));
        let url = format!("http://chat.example/{KEY}");
        let args: Vec<&str> = flag.into_iter().chain([url.as_str()]).collect();
        let outcome = notify(&stdin, &args, &sink).go().expect(code);
        assert_eq!(outcome.log(), "", "{stdin}");
        let texts: Vec<String> = sink.recorded().iter().map(|request| text_of(request, "/text")).collect();
        match expected {
            None => assert!(texts.is_empty(), "{stdin}: {texts:?}"),
            Some(part) => assert!(texts.len() == 1 && texts[0].contains(part), "{stdin}: {texts:?}"),
        }
    }
}

#[test]
fn a_message_that_cannot_be_delivered_is_a_warning_with_its_text() {
    let failed = report(&[("deleted", 1.into())]);
    let refused = r#"{"errcode":310000,"errmsg":"keywords not in content"}"#;
    let feishu = r#"{"code":19001,"msg":"param invalid"}"#;
    // A retry helps against what passes by.
    let recovering = Stub::start(|request| match request.number {
        1 => Reply::http(503, &[], "later"),
        _ => Reply::json(200, ACCEPTED),
    });
    let outcome =
        notify(&failed, &[&format!("http://oapi.dingtalk.com/?access_token={KEY}")], &recovering).go();
    assert_eq!(outcome.expect(0).log(), "");
    assert_eq!(recovering.requests(), 2);

    for (host, reply, warning) in [
        ("oapi.dingtalk.com", Reply::json(200, refused), "HTTP 200, errcode 310000"),
        ("open.feishu.cn", Reply::json(200, feishu), "HTTP 200, errcode 19001"),
        ("oapi.dingtalk.com", Reply::json(200, "<html>"), "HTTP 200"),
        ("oapi.dingtalk.com", Reply::json(404, ACCEPTED), "HTTP 404"),
        ("chat.example", Reply::redirect("http://other.example/"), "HTTP 302"),
        ("chat.example", Reply::close(), "curl 52"),
    ] {
        let sink = Stub::always(reply);
        let outcome = notify(&failed, &[&format!("http://{host}/{KEY}")], &sink).go().expect(0);
        assert!(outcome.stderr.contains(&format!("could not post to {host}")), "{outcome:?}");
        assert!(outcome.stderr.contains(warning) && outcome.stderr.contains("删除 1"), "{outcome:?}");
    }
}

#[test]
fn the_key_can_come_from_a_file_and_then_shows_in_no_process_list() {
    const KEY: &str = "f1leKey"; // not the one that other tests put on the command line
    let file = scratch_dir().join("webhook_url");
    fs::write(&file, format!("http://chat.example/{KEY}\n")).expect("file");
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let commands = Arc::clone(&seen);
    let sink = Stub::start(move |_| {
        // While notify.sh and its curl wait for this very reply.
        let lines = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
            let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        commands.lock().expect("lock").extend(lines);
        Reply::json(200, "")
    });
    notify("", &[file.to_str().expect("UTF-8")], &sink).go().expect(1);
    assert_eq!(sink.requests(), 1);
    let commands = seen.lock().expect("lock");
    assert!(commands.iter().any(|line| line.starts_with("curl ")), "no curl among {commands:?}");
    let told: Vec<&String> = commands.iter().filter(|line| line.contains(KEY)).collect();
    assert!(told.is_empty(), "{told:?}");

    // No address in it: no robot; the text goes where cron mails it from.
    fs::write(&file, "").expect("file");
    let outcome = notify("", &[file.to_str().expect("UTF-8")], &sink).go().expect(1);
    assert!(outcome.stderr.contains("没有收到运行结果\n"), "{outcome:?}");
    assert_eq!(sink.requests(), 1);
}

#[test]
fn tls_is_verified() {
    for (certificate, posted) in
        [(Certificate::Good, 1), (Certificate::SelfSigned, 0), (Certificate::Expired, 0)]
    {
        let sink = Stub::start_tls(certificate, |_| Reply::json(200, ""));
        let url = format!("https://localhost:{}/{KEY}", sink.address().port());
        let outcome = notify("", &[&url], &sink).env("CURL_CA_BUNDLE", ca_file()).go().expect(1);
        assert_eq!(sink.requests(), posted, "{certificate:?}: {outcome:?}");
        assert_eq!(outcome.stderr.contains("could not post to localhost"), posted == 0, "{outcome:?}");
    }
}

#[test]
fn usage_errors_are_exit_2_and_post_nothing() {
    let missing: PathBuf = scratch_dir().join("missing");
    let missing = missing.to_str().expect("UTF-8").to_owned();
    let sink = Stub::always(Reply::json(200, ""));
    for args in [
        vec![],
        vec!["http://a", "http://b"],
        vec!["-x", "http://a"],
        vec![&missing],
        vec!["http://"],
        vec!["http://a/\"b"],
        vec!["http://a/\nurl=http://b"],
    ] {
        let outcome: Outcome = notify("", &args, &sink).go().expect(2);
        assert!(
            outcome.stderr.starts_with("notify.sh: ") && outcome.stderr.lines().count() == 1,
            "{outcome:?}"
        );
    }
    assert_eq!(sink.requests(), 0);
}

#[test]
fn the_report_of_a_real_run_is_understood() {
    let (db, api) = world();
    db.add_tokens("busy", 2);
    db.add_tokens("good", 3);
    let sink = Stub::always(Reply::json(200, ""));
    let chain = format!(
        "refresh_baoming_tokens --json --delay-ms 0 2>/dev/null | '{}' http://chat.example/{KEY}",
        script("notify.sh").display()
    );
    let run = run_script("notify.sh", &db, &api).program("sh").args(["-c", &chain]).secret(KEY);
    // The stub of the API is on loopback, where the program takes plain HTTP; not by way of a proxy.
    let run = run.env("http_proxy", format!("http://{}", sink.address())).env("NO_PROXY", "127.0.0.1");
    assert_eq!(run.go().expect(3).log(), "");
    let text = text_of(&sink.await_request(1), "/text");
    assert!(text.contains("总计 5, 成功 3, 失败 2\n") && text.contains(&db.name), "{text}");
}
