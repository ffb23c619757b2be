//! `notify.sh` against a local sink, which it reaches as a proxy for the real host names.

use super::support::tls::ca_file;
use super::support::{Certificate, Reply, Request, Run, Signal, Stub, scratch_dir};
use super::{path, run_script, script, world};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::{Arc, Mutex};
use std::{env, fs};

const KEY: &str = "5ecretKey";
const ACCEPTED: &str = r#"{"errcode":0,"errmsg":"ok","code":0,"msg":"success"}"#;

/// The report of a run in which all of ten tokens were refreshed, but for these fields.
fn report(changes: &[(&str, serde_json::Value)]) -> String {
    let mut report = serde_json::json!({
        "version": "0.2.0", "database": "auto-form-db", "started_at": "2026-02-12T18:50:13+08:00",
        "duration_seconds": 1.25, "total": 10, "success": 10, "failed": 0, "deleted": 0, "skipped": 0,
        "withheld": 0, "unprocessed": 0, "cleaned": 0, "failure_reason": null, "dry_run": false, "stopped": null, "exit_code": 0,
    });
    for (field, value) in changes {
        report[*field] = value.clone();
    }
    report.to_string()
}

/// What stands for the program: says this report, this error, and ends with this code.
const FAKE: [&str; 3] =
    ["sh", "-c", r#"printf %s "$REPORT"; [ -z "$SAY" ] || echo "$SAY" >&2; exit "$CODE""#];

/// A file that holds this address, for its owner's eyes only.
fn webhook(address: &str) -> String {
    let file = scratch_dir().join("webhook_url");
    fs::write(&file, format!("{address}\n")).expect("file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("mode");
    file.to_str().expect("UTF-8").to_owned()
}

/// Runs `notify.sh ARGS FAKE`.
fn notify(report: &str, code: i32, args: &[&str], sink: &Stub) -> Run {
    let run = Run::bare().program(script("notify.sh")).args(args).args(FAKE);
    run.env("REPORT", report)
        .env("SAY", "")
        .env("CODE", code.to_string())
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
    let failed = report(&[
        ("failed", 3.into()),
        ("success", 7.into()),
        ("failure_reason", "HTTP \"500\"".into()),
        ("exit_code", 3.into()),
    ]);
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
        let file = webhook(&format!("http://{host}{path}{KEY}"));
        let outcome = notify(&failed, 3, &[&file], &sink).env("SCHEDULE", "all").go().expect(3);
        assert_eq!(outcome.log(), "", "{host}");
        let request = sink.await_request(1);
        assert_eq!(sink.requests(), 1, "{host}");
        let target = format!("http://{}{path}{KEY}", host.trim_end_matches(":80")).to_lowercase();
        assert!(request.line.to_lowercase().starts_with(&format!("post {target} http")), "{}", request.line);
        assert_eq!(request.header("Content-Type"), Some("application/json; charset=utf-8"));
        assert!(String::from_utf8_lossy(&request.body).starts_with(form), "{host}");
        let text = text_of(&request, pointer);
        let parts = [
            "报名工具 Token 刷新 [all] ⚠️ 退出码 3",
            "\n总计 10, 成功 7, 失败 3\n原因: HTTP \"500\"\n",
            "auto-form-db",
        ];
        for part in parts.into_iter().chain(["\n下一步: ", "\n主机 "]) {
            assert!(text.contains(part), "{host}: no {part:?} in {text:?}");
        }
    }
}

#[test]
fn it_posts_what_needs_attention_and_passes_the_exit_code_on() {
    let changed = |changes: &[(&str, serde_json::Value)]| report(changes);
    let clean = changed(&[]);
    let none = "没有收到运行结果";
    for (report, flag, code, expected) in [
        (clean.clone(), None, 0, None),
        (clean.clone(), Some("-a"), 0, Some("✅ 完成")),
        (changed(&[("failed", 1.into()), ("exit_code", 3.into())]), None, 3, Some("失败 1")),
        (changed(&[("deleted", 2.into())]), None, 0, Some("删除 2")),
        (changed(&[("cleaned", 2.into())]), None, 0, Some("清理 2")),
        (changed(&[("skipped", 2.into())]), None, 0, None),
        (changed(&[("withheld", 30.into()), ("exit_code", 25.into())]), None, 25, Some("--max-delete")),
        (
            changed(&[("stopped", "database".into()), ("exit_code", 1.into())]),
            None,
            1,
            Some("数据库或文件故障"),
        ),
        (changed(&[("stopped", "signal".into()), ("exit_code", 143.into())]), None, 143, Some("被信号停止")),
        (changed(&[("dry_run", true.into()), ("deleted", 1.into())]), None, 0, Some("(试运行)")),
        // What the program prints is escaped, and stays so.
        (changed(&[("database", "a\"}\\\n,名".into()), ("deleted", 1.into())]), None, 0, Some("a\"}\\\n,名")),
        (clean.replace(',', " ,\n  ").replace(':', " : "), Some("-a"), 0, Some("✅ 完成")),
        // The true exit code, not the one of a report that could not be finished.
        (clean.clone(), None, 1, Some("退出码 1")),
        (String::new(), None, 0, Some(none)),
        ("refresh_baoming_tokens: no database".to_owned(), None, 1, Some(none)),
        (clean[..clean.len() - 1].to_owned(), None, 0, Some(none)),
        (clean.clone() + &clean, None, 0, Some(none)),
        (clean.replace(r#""total":10,"#, ""), None, 0, Some(none)),
        (changed(&[("failed", "1".into())]), None, 0, Some(none)),
    ] {
        let sink = Stub::always(Reply::json(200, ""));
        let file = webhook(&format!("http://chat.example/{KEY}"));
        let args: Vec<&str> = flag.into_iter().chain([file.as_str()]).collect();
        let outcome = notify(&report, code, &args, &sink).go().expect(code);
        assert_eq!(outcome.log(), "", "{report}");
        let texts: Vec<String> = sink.recorded().iter().map(|request| text_of(request, "/text")).collect();
        match expected {
            None => assert!(texts.is_empty(), "{report}: {texts:?}"),
            Some(part) => assert!(texts.len() == 1 && texts[0].contains(part), "{report}: {texts:?}"),
        }
    }
}

#[test]
fn a_command_that_said_nothing_was_killed_or_is_not_there_is_told_with_its_last_error() {
    let sink = Stub::always(Reply::json(200, ""));
    let file = webhook(&format!("http://chat.example/{KEY}"));
    let usage = "refresh_baoming_tokens: 未知参数 --crad (unknown flag; see --help)";
    let log = "2026-02-12 18:50:13 [ERROR] ❌ \"boom\"\\\n2026-02-12 18:50:14 [INFO] later";
    let texts = |run: Run, code| {
        let before = sink.requests();
        let outcome = run.go().expect(code);
        let texts = sink.recorded().split_off(before);
        assert_eq!(texts.len(), 1, "{outcome:?}");
        (text_of(&texts[0], "/text"), outcome)
    };
    let (text, outcome) = texts(notify("", 2, &[&file], &sink).env("SAY", usage), 2);
    assert!(
        text.contains(&format!("退出码 2: 参数或配置错误，没有运行\n没有收到运行结果\n最后错误: {usage}\n")),
        "{text}"
    );
    assert_eq!(outcome.stderr, format!("{usage}\n"));
    let (text, outcome) = texts(notify("", 1, &["-s", &file], &sink).env("SAY", log), 1);
    assert!(text.contains("\n最后错误: 2026-02-12 18:50:13 [ERROR] ❌ \"boom\"\\\n"), "{text}");
    assert_eq!(outcome.log(), "");

    let other = |command: &[&str]| notify("", 0, &[&file], &sink).no_args().arg(&file).args(command);
    let (text, _) = texts(other(&["/nonexistent/program"]), 127);
    assert!(text.contains("退出码 127: 程序没能运行") && text.contains("/nonexistent/program"), "{text}");
    let (text, _) = texts(other(&["sh", "-c", "kill -9 $$"]), 137);
    assert!(text.contains("被信号 9 杀死"), "{text}");

    // A signal reaches the command once, and its end is told.
    let stoppable = r"trap 'echo stopped >&2; kill $!; exit 143' TERM; sleep 60 & echo ready >&2; wait";
    let before = sink.requests();
    let run = other(&["sh", "-c", stoppable]).start();
    run.await_line("ready");
    run.signal(Signal::TERM);
    let outcome = run.wait().expect(143);
    assert_eq!(outcome.stderr.matches("stopped").count(), 1, "{outcome:?}");
    let text = text_of(&sink.await_request(before + 1), "/text");
    assert!(text.contains("退出码 143: 被信号停止"), "{text}");

    // Without jq nobody can read the report; the command is run all the same.
    let tools = scratch_dir();
    for tool in [
        "sh", "sed", "awk", "tr", "tee", "iconv", "mkfifo", "mktemp", "setsid", "rm", "find", "uname",
        "tail", "curl",
    ] {
        let found = env::split_paths(&path()).map(|dir| dir.join(tool)).find(|file| file.is_file());
        symlink(found.expect(tool), tools.join(tool)).expect("tool");
    }
    let run = notify(&report(&[]), 5, &[&file], &sink).env("SAY", log).env("PATH", &tools);
    let (text, _) = texts(run, 5);
    assert!(text.contains("退出码 5: API 无响应\n没有安装 jq") && text.contains("[ERROR] ❌"), "{text}");
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
    let file = webhook(&format!("http://oapi.dingtalk.com/?access_token={KEY}"));
    let outcome = notify(&failed, 0, &[&file], &recovering).go();
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
        let outcome = notify(&failed, 0, &[&webhook(&format!("http://{host}/{KEY}"))], &sink).go().expect(0);
        assert!(outcome.stderr.contains(&format!("无法发送到 {host}")), "{outcome:?}");
        assert!(outcome.stderr.contains(warning) && outcome.stderr.contains("删除 1"), "{outcome:?}");
    }
}

#[test]
fn the_key_shows_in_no_process_list() {
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
    notify("", 1, &[&webhook(&format!("http://chat.example/{KEY}"))], &sink).go().expect(1);
    assert_eq!(sink.requests(), 1);
    let commands = seen.lock().expect("lock");
    assert!(commands.iter().any(|line| line.starts_with("curl ")), "no curl among {commands:?}");
    let told: Vec<&String> = commands.iter().filter(|line| line.contains(KEY)).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn a_robot_that_cannot_be_used_stops_no_run() {
    let sink = Stub::always(Reply::json(200, ""));
    let failed = report(&[("failed", 3.into())]);
    let wide = webhook("http://chat.example/");
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o640)).expect("mode");
    for (file, code, ending, warning) in [
        (webhook(""), 3, 3, None),
        (scratch_dir().join("missing").to_str().expect("UTF-8").to_owned(), 3, 3, Some("无法读取")),
        (wide.clone(), 3, 3, Some("0600")),
        (wide, 0, 2, Some("0600")),
        (webhook("mongodb://x"), 3, 3, Some("没有 http(s) 地址")),
        (webhook("http://a/\"b"), 3, 3, Some("不会有的字符")),
    ] {
        let outcome = notify(&failed, code, &[&file], &sink).go().expect(ending);
        assert!(outcome.stderr.contains("总计 10, 成功 10, 失败 3\n"), "{outcome:?}");
        let warned = outcome.stderr.lines().find(|line| line.starts_with("notify.sh: ")).unwrap_or_default();
        assert_eq!(warned.is_empty(), warning.is_none(), "{outcome:?}");
        assert!(warned.contains(warning.unwrap_or_default()), "{outcome:?}");
    }
    // Under systemd it is handed over, whatever its mode.
    let folder = scratch_dir();
    let file = folder.join("webhook_url");
    fs::write(&file, "http://chat.example/").expect("file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).expect("mode");
    let run =
        notify(&failed, 3, &[file.to_str().expect("UTF-8")], &sink).env("CREDENTIALS_DIRECTORY", &folder);
    assert_eq!((run.go().expect(3).log().as_str(), sink.requests()), ("", 1));
}

#[test]
fn tls_is_verified() {
    for (certificate, posted) in
        [(Certificate::Good, 1), (Certificate::SelfSigned, 0), (Certificate::Expired, 0)]
    {
        let sink = Stub::start_tls(certificate, |_| Reply::json(200, ""));
        let file = webhook(&format!("https://localhost:{}/{KEY}", sink.address().port()));
        let outcome = notify("", 1, &[&file], &sink).env("CURL_CA_BUNDLE", ca_file()).go().expect(1);
        assert_eq!(sink.requests(), posted, "{certificate:?}: {outcome:?}");
        assert_eq!(outcome.stderr.contains("无法发送到 localhost"), posted == 0, "{outcome:?}");
    }
}

#[test]
fn usage_errors_are_exit_2_and_run_nothing() {
    let mark = scratch_dir().join("ran");
    let touch = format!("touch {}", mark.display());
    for args in [
        &[][..],
        &["-x", "file", "sh"],
        &["file"],
        &["http://a", "sh", "-c", &touch],
        &["-a", "https://a/b", "sh", "-c", &touch],
    ] {
        let outcome = Run::bare()
            .program(script("notify.sh"))
            .args(args.iter().copied())
            .env("PATH", path())
            .go()
            .expect(2);
        assert!(
            outcome.stderr.starts_with("notify.sh: ") && outcome.stderr.lines().count() == 1,
            "{outcome:?}"
        );
    }
    assert!(!mark.exists());
}

#[test]
fn the_report_of_a_real_run_is_understood() {
    let (db, api) = world();
    db.add_tokens("busy", 2);
    db.add_tokens("good", 3);
    let sink = Stub::always(Reply::json(200, ""));
    let file = webhook(&format!("http://chat.example/{KEY}"));
    let args = ["-s", &file, "refresh_baoming_tokens", "--delay-ms", "0"];
    let run = run_script("notify.sh", &db, &api).args(args).secret(KEY);
    // The stub of the API is on loopback, where the program takes plain HTTP; not by way of a proxy.
    let run = run.env("http_proxy", format!("http://{}", sink.address())).env("NO_PROXY", "127.0.0.1");
    assert_eq!(run.go().expect(3).log(), "");
    let text = text_of(&sink.await_request(1), "/text");
    assert!(text.contains("总计 5, 成功 3, 失败 2\n") && text.contains(&db.name), "{text}");
}
