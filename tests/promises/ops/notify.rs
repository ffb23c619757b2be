//! `notify.sh` against a local sink, which it reaches as a proxy for the real host names.

use super::support::tls::ca_file;
use super::{chat, messages, path, script, text_of, tool, tools};
use crate::prelude::*;

const KEY: &str = "5ecretKey";

/// The report of a run in which all of ten tokens were refreshed, but for these fields.
fn report(changes: serde_json::Value) -> String {
    let mut report = json!({
        "version": "0.2.0", "database": "auto-form-db", "started_at": "2026-02-12T18:50:13+08:00",
        "duration_seconds": 1.25, "total": 10, "success": 10, "failed": 0, "deleted": 0, "skipped": 0,
        "withheld": 0, "unprocessed": 0, "cleaned": 0, "failure_reason": null, "dry_run": false, "stopped": null, "exit_code": 0,
    });
    if let serde_json::Value::Object(changes) = changes {
        report.as_object_mut().expect("an object").extend(changes);
    }
    report.to_string()
}

const FAKE: &str = r#"printf %s "$REPORT"; [ -z "$SAY" ] || echo "$SAY" >&2; exit "$CODE""#;

/// A file that holds this address, for its owner's eyes only.
fn webhook(address: &str) -> PathBuf {
    file("webhook_url", format!("{address}\n"), 0o600)
}

fn chat_file() -> PathBuf {
    webhook(&format!("http://chat.example/{KEY}"))
}

/// `notify.sh`, whose arguments are yet to come, by a sink.
fn notify(sink: &Stub) -> Run {
    let run = Run::bare().program(script("notify.sh")).env("PATH", path()).secret(KEY);
    run.env("http_proxy", format!("http://{}", sink.address()))
}

fn with_fake(run: Run, report: &str, code: i32) -> Run {
    run.args(["sh", "-c", FAKE]).env("REPORT", report).env("SAY", "").env("CODE", code.to_string())
}

fn told(report: &str, code: i32, webhook: &Path, sink: &Stub) -> Run {
    with_fake(notify(sink).arg(webhook), report, code)
}

#[test]
fn each_kind_of_host_gets_its_own_form() {
    let failed =
        report(json!({ "failed": 3, "success": 7, "failure_reason": "HTTP \"500\"", "exit_code": 3 }));
    let dingtalk = r#"{"msgtype":"text","text":{"content":"#;
    let feishu = r#"{"msg_type":"text","content":{"text":"#;
    for (host, path, form) in [
        ("oapi.dingtalk.com", "/robot/send?access_token=", dingtalk),
        ("QYAPI.weixin.qq.com:80", "/cgi-bin/webhook/send?key=", dingtalk),
        ("open.feishu.cn", "/open-apis/bot/v2/hook/", feishu),
        ("open.larksuite.com", "/open-apis/bot/v2/hook/", feishu),
        ("chat.example", "/hooks/", r#"{"text":"#),
    ] {
        let sink = chat();
        let file = webhook(&format!("http://{host}{path}{KEY}"));
        // Where the first folder for temporary files is none, another one is.
        let run = told(&failed, 3, &file, &sink).env("SCHEDULE", "all").env("TMPDIR", "/nonexistent");
        let outcome = run.go().expect(3);
        assert_eq!((outcome.log().as_str(), sink.requests()), ("", 1), "{host}");
        let request = sink.await_request(1);
        let target = format!("http://{}{path}{KEY}", host.trim_end_matches(":80")).to_lowercase();
        assert!(request.line.to_lowercase().starts_with(&format!("post {target} http")), "{}", request.line);
        assert_eq!(request.header("Content-Type"), Some("application/json; charset=utf-8"));
        assert!(String::from_utf8_lossy(&request.body).starts_with(form), "{host}");
        let text = text_of(&request);
        for part in [
            "报名工具 Token 刷新 [all] ⚠️ 退出码 3",
            "\n总计 10, 成功 7, 失败 3\n原因: HTTP \"500\"\n",
            "auto-form-db",
            "\n下一步: ",
            "\n主机 ",
        ] {
            assert!(text.contains(part), "{host}: no {part:?} in {text:?}");
        }
    }
}

#[test]
fn it_posts_what_needs_attention_and_passes_the_exit_code_on() {
    let clean = report(json!({}));
    let none = "没有收到运行结果";
    let dry = |field: &str| report(json!({ "dry_run": true, field: 1 }));
    let failing = |failed, deleted| {
        report(json!({ "success": 0, "failed": failed, "deleted": deleted, "exit_code": 3 }))
    };
    for (report, flag, code, expected) in [
        (clean.clone(), "", 0, ""),
        (clean.clone(), "-a", 0, "✅ 完成"),
        (report(json!({ "failed": 1, "exit_code": 3 })), "", 3, "失败 1"),
        (failing(10, 0), "", 3, "退出码 3: 没有一个 Token 刷新成功"),
        (failing(9, 1), "", 3, "部分 Token 失败"),
        (report(json!({ "deleted": 2 })), "", 0, "⚠️ 完成，有删除\n总计 10, 成功 10, 删除 2"),
        (report(json!({ "cleaned": 2 })), "", 0, "清理 2"),
        (report(json!({ "failed": 1, "deleted": 1, "exit_code": 3 })), "", 3, "--restore-hours"),
        (report(json!({ "skipped": 2 })), "", 0, ""),
        (report(json!({ "withheld": 30, "exit_code": 25 })), "", 25, "--max-delete"),
        (report(json!({ "stopped": "database", "exit_code": 1 })), "", 1, "数据库或文件故障"),
        (report(json!({ "stopped": "signal", "exit_code": 143 })), "", 143, "被信号停止"),
        // Nothing was deleted in a dry run.
        (dry("deleted"), "", 0, "⚠️ 试运行: 将会删除，数据库未改动\n试运行，预计: 总计 10, 成功 10, 删除 1"),
        (dry("cleaned"), "", 0, "⚠️ 试运行: 将会删除，数据库未改动\n"),
        (dry("skipped"), "", 0, ""),
        // What the program prints is escaped, and stays so.
        (report(json!({ "database": "a\"}\\\n,名", "deleted": 1 })), "", 0, "a\"}\\\n,名"),
        (clean.replace(',', " ,\n  ").replace(':', " : "), "-a", 0, "✅ 完成"),
        // The true exit code, not the one of a report that could not be finished.
        (clean.clone(), "", 1, "退出码 1"),
        (String::new(), "", 0, none),
        ("refresh_baoming_tokens: no database".to_owned(), "", 1, none),
        (clean[..clean.len() - 1].to_owned(), "", 0, none),
        (clean.clone() + &clean, "", 0, none),
        (clean.replace(r#""total":10,"#, ""), "", 0, none),
        (report(json!({ "failed": "1" })), "", 0, none),
    ] {
        let sink = chat();
        let run = notify(&sink).args(flag.split_whitespace()).arg(chat_file());
        let outcome = with_fake(run, &report, code).go().expect(code);
        assert_eq!(outcome.log(), "", "{report}");
        let texts = messages(&sink);
        assert_eq!(texts.len(), usize::from(!expected.is_empty()), "{report}: {texts:?}");
        assert!(texts.iter().all(|text| text.contains(expected)), "{report}: {texts:?}");
        let deleted = texts.iter().any(|text| text.contains("有删除") || text.contains("误删"));
        assert!(!(deleted && report.contains(r#""dry_run":true"#)), "{texts:?}");
    }
}

#[test]
fn a_command_that_said_nothing_was_killed_or_is_not_there_is_told_with_its_last_error() {
    let sink = chat();
    let file = chat_file();
    let usage = "refresh_baoming_tokens: 未知参数 --crad (unknown flag; see --help)";
    let of_usage = format!("退出码 2: 参数或配置错误，没有运行\n没有收到运行结果\n最后错误: {usage}\n");
    let log =
        "echo '2026-02-12 18:50:13 [ERROR] ❌ \"boom\"\\\n2026-02-12 18:50:14 [INFO] later' >&2; exit 5";
    let error = "\n最后错误: 2026-02-12 18:50:13 [ERROR] ❌ \"boom\"\\\n";
    let missing = "/nonexistent/program";
    // Without jq nobody can read the report; the command is run all the same.
    let bare = tools(&[
        "sh", "sed", "grep", "tr", "iconv", "mktemp", "setsid", "rm", "find", "uname", "tail", "head", "curl",
    ]);
    let shell = |command| notify(&sink).arg(&file).args(["sh", "-c", command]);
    for (run, code, parts, stderr) in [
        (told("", 2, &file, &sink).env("SAY", usage), 2, [&*of_usage, ""], Some(usage)),
        (notify(&sink).arg("-s").arg(&file).args(["sh", "-c", log]), 5, [error, ""], Some("")),
        (notify(&sink).arg(&file).arg(missing), 127, ["退出码 127: 程序没能运行", missing], None),
        (shell("kill -9 $$"), 137, ["被信号 9 杀死", ""], None),
        // What the command leaves behind, with its stderr open, holds nothing up.
        (shell("echo gone >&2; sleep 1000 & exit 1"), 1, ["最后错误: gone\n", ""], Some("gone")),
        (shell(log).env("PATH", bare), 5, ["退出码 5: API 无响应\n没有安装 jq", error], None),
    ] {
        let before = sink.requests();
        let outcome = run.go().expect(code);
        let new = messages(&sink).split_off(before);
        assert!(new.len() == 1 && parts.iter().all(|part| new[0].contains(part)), "{parts:?}: {new:?}");
        assert!(stderr.is_none_or(|said| outcome.stderr.trim_end() == said), "{outcome:?}");
    }

    // A signal reaches the command once, and its end is told.
    let stoppable = r"trap 'echo stopped >&2; kill $!; exit 143' TERM; sleep 60 & echo ready >&2; wait";
    let before = sink.requests();
    let run = shell(stoppable).start();
    run.await_line("ready");
    run.signal(Signal::TERM);
    let outcome = run.wait().expect(143);
    assert_eq!(outcome.stderr.matches("stopped").count(), 1, "{outcome:?}");
    assert!(text_of(&sink.await_request(before + 1)).contains("退出码 143: 被信号停止"));
}

#[test]
fn a_message_that_cannot_be_delivered_is_a_warning_with_its_text_and_stops_no_run() {
    let deleted = report(json!({ "deleted": 1 }));
    let refusal = r#"{"errcode":310000,"errmsg":"keywords not in content"}"#;
    let feishu = r#"{"code":19001,"msg":"param invalid"}"#;
    let wide = file("webhook_url", "http://chat.example/", 0o440);
    let refused = |host: &str, reply, warning: &str| {
        let warning = format!("无法发送到 {host}: curl {warning}");
        (webhook(&format!("http://{host}/{KEY}")), Stub::always(reply), 0, 0, warning, 1)
    };
    let unusable =
        |file: PathBuf, code, ending, warning: &str| (file, chat(), code, ending, warning.into(), 0);
    let of_tls = |certificate, warning: &str, posted| {
        let sink = Stub::always_tls(certificate, Reply::json(200, ""));
        let file = webhook(&format!("https://localhost:{}/{KEY}", sink.address().port()));
        (file, sink, 0, 0, warning.into(), posted)
    };
    // Of a run with this exit code, that of the script, its warning, whether there was a request.
    for (file, sink, code, ending, warning, posted) in [
        refused("oapi.dingtalk.com", Reply::json(200, refusal), "0, HTTP 200, errcode 310000"),
        refused("open.feishu.cn", Reply::json(200, feishu), "0, HTTP 200, errcode 19001"),
        refused("oapi.dingtalk.com", Reply::json(200, "<html>"), "0, HTTP 200"),
        refused("oapi.dingtalk.com", Reply::json(404, r#"{"errcode":0}"#), "0, HTTP 404"),
        refused("chat.example", Reply::redirect("http://other.example/"), "0, HTTP 302"),
        refused("chat.example", Reply::close(), "52,"),
        unusable(webhook(""), 3, 3, ""),
        unusable(scratch_dir().join("missing"), 3, 3, "无法读取"),
        unusable(wide.clone(), 3, 3, "0600"),
        unusable(wide.clone(), 0, 2, "0600"),
        unusable(webhook("mongodb://x"), 3, 3, "没有 http(s) 地址"),
        unusable(webhook("http://a/\"b"), 3, 3, "没有 http(s) 地址"),
        of_tls(Certificate::SelfSigned, "无法发送到 localhost", 0),
        of_tls(Certificate::Expired, "无法发送到 localhost", 0),
    ] {
        let outcome = told(&deleted, code, &file, &sink).env("CURL_CA_BUNDLE", ca_file()).go().expect(ending);
        assert!(outcome.stderr.contains("总计 10, 成功 10, 删除 1\n"), "{outcome:?}");
        let warned = outcome.stderr.lines().find(|line| line.starts_with("notify.sh: ")).unwrap_or_default();
        assert!(
            warned.contains(&warning) && warned.is_empty() == warning.is_empty(),
            "{warning}: {outcome:?}"
        );
        assert_eq!(sink.requests().min(1), posted, "{outcome:?}");
    }
    // Under systemd it is handed over, whatever its mode; a good certificate is taken; a retry helps against what
    // passes by.
    let folder = wide.parent().expect("a folder").to_owned();
    let (file, tls_sink, ..) = of_tls(Certificate::Good, "", 1);
    let recovering = Stub::start(|request| match request.number {
        1 => Reply::http(503, &[], "later"),
        _ => Reply::json(200, r#"{"errcode":0}"#),
    });
    let dingtalk = webhook(&format!("http://oapi.dingtalk.com/?access_token={KEY}"));
    for (file, sink, requests) in [(wide, chat(), 1), (file, tls_sink, 1), (dingtalk, recovering, 2)] {
        let run = told(&deleted, 0, &file, &sink).env("CREDENTIALS_DIRECTORY", &folder);
        let outcome = run.env("CURL_CA_BUNDLE", ca_file()).go().expect(0);
        assert_eq!((outcome.log().as_str(), sink.requests()), ("", requests));
    }
}

#[test]
fn the_key_shows_in_no_process_list() {
    let (seen, commands) = mpsc::channel();
    let sink = Stub::start(move |_| {
        // While notify.sh and its curl wait for this very reply.
        let _ = seen.send(tool("ps").args(["-ww", "-eo", "args"]).go().stdout);
        Reply::json(200, "")
    });
    told("", 1, &chat_file(), &sink).go().expect(1);
    let commands = commands.recv().expect("a request");
    assert!(commands.lines().any(|line| line.starts_with("curl ")), "no curl in {commands}");
    let leaking: Vec<&str> = commands.lines().filter(|line| line.contains(KEY)).collect();
    assert!(leaking.is_empty(), "{leaking:?}");
}
