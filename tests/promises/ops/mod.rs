//! What operators touch around the binary: the scripts, the units and the files for cron and
//! logrotate are run for real, or judged by the tools that read them on a server.

use crate::prelude::*;
use crate::support;

mod install;
mod machine;
mod monitor;
mod notify;
mod readme;
mod schedules;
mod sharded;
mod units;

use std::env;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// The search path of a shell that also finds what belongs to administrators.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&path()).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn tools(names: &[&str]) -> PathBuf {
    let dir = scratch_dir();
    for name in names {
        symlink(find(name).unwrap_or_else(|| panic!("no {name}")), dir.join(name)).expect("tool");
    }
    dir
}

/// A tool that judges what we ship. Where it is not installed the test says on the terminal that
/// it was skipped; in continuous integration (`CI` is set) it must be there.
fn checker(program: &str) -> Option<Run> {
    if find(program).is_none() {
        assert!(env::var_os("CI").is_none(), "{program} is not installed");
        // Not by a macro: the test harness would swallow it.
        let _ = writeln!(io::stderr(), "SKIPPED: a check by {program}, which is not installed");
        return None;
    }
    Some(tool(program))
}

fn tool(program: &str) -> Run {
    Run::bare().program(program).env("PATH", path())
}

#[track_caller]
fn assert_one_line(said: &str, start: &str) {
    assert!(said.starts_with(start) && said.lines().count() == 1, "not one line {start:?}…: {said:?}");
}

/// One of our scripts, in the environment of a run.
fn run_script(name: &str, db: &TestDb, api: &Stub) -> Run {
    let mut path = OsString::from(support::binary().parent().expect("a folder"));
    path.push(":");
    path.push(self::path());
    Run::new(db, api).no_args().program(script(name)).env("PATH", path)
}

fn chat() -> Stub {
    Stub::always(Reply::json(200, r#"{"errcode":0,"errmsg":"ok","code":0,"msg":"success"}"#))
}

/// The text that a robot posted, in any of the services' forms.
fn text_of(request: &Request) -> String {
    let payload: serde_json::Value = serde_json::from_slice(&request.body).expect("a JSON payload");
    let text =
        ["/text/content", "/content/text", "/text"].iter().find_map(|&at| payload.pointer(at)?.as_str());
    text.expect("a text").to_owned()
}

fn messages(chat: &Stub) -> Vec<String> {
    chat.recorded().iter().map(|request| text_of(request)).collect()
}

#[test]
fn what_a_script_cannot_do_is_one_clear_line_and_touches_nothing() {
    let (db, api) = world();
    let folder = scratch_dir();
    let foreign = file("foreign", "no program of this machine", 0o755);
    let [foreign, touched] = [foreign, folder.join("touched")].map(|path| path.display().to_string());
    let bare = tools(&["sh", "dirname", "id"]);
    let of = |name: &str, args: &str| {
        let run = run_script(name, &db, &api).env("DESTDIR", &folder).env("TMPDIR", &folder);
        run.args(args.replace("TOUCH", &format!("touch {touched}")).split_whitespace())
    };
    let install = |args: &str| of("install.sh", args);
    let notify = |args: &str| (of("notify.sh", args), 2, "notify.sh: ");
    let sharded = |args: &str, line| (of("refresh_sharded.sh", args), 2, line);
    for (run, code, line) in [
        (install("/nonexistent/binary"), 1, "install.sh: 程序 /nonexistent/binary 不存在"),
        (install(&foreign), 1, "install.sh: 程序 "),
        (install("/bin/true"), 1, "install.sh: 程序 /bin/true 不存在，不是 refresh_baoming_tokens"),
        (install("--purge"), 2, "install.sh: 未知参数"),
        (install(""), 2, "install.sh: 需要程序文件"),
        (install("a b"), 2, "install.sh: 需要程序文件"),
        (install("a").env("PATH", bare), 1, "install.sh: 没有安装 jq"),
        notify(""),
        notify("-x file TOUCH"),
        notify("file"),
        notify("http://a TOUCH"),
        notify("-a https://a/b TOUCH"),
        sharded("0", "refresh_sharded.sh: 需要进程数"),
        sharded("x", "refresh_sharded.sh: 需要进程数"),
        sharded("1000", "refresh_sharded.sh: 需要进程数"),
        sharded("2 --scheduler", "refresh_sharded.sh: --scheduler、--card、"),
        sharded("2 --log-file=x", "refresh_sharded.sh: --scheduler、--card、"),
        sharded("2 --metrics-file x", "refresh_sharded.sh: --scheduler、--card、"),
        sharded("2 --card x", "refresh_sharded.sh: --scheduler、--card、"),
        sharded("2 --shard 1/2", "refresh_baoming_tokens: --shard 重复"),
        sharded("2 --json --json", "refresh_baoming_tokens: --json 重复"),
        sharded("2 --dry-runn", "refresh_baoming_tokens: "),
        sharded("2 --self-test", "refresh_baoming_tokens: "),
        sharded("2 --version", "refresh_baoming_tokens: "),
        // What only a process itself can tell is the same for all.
        (of("refresh_sharded.sh", "3 --json").env_remove("MONGODB_URI"), 2, "refresh_baoming_tokens: "),
    ] {
        let outcome = run.go().expect(code);
        assert_one_line(&outcome.stderr, line);
        assert_eq!((outcome.stdout.as_str(), api.requests()), ("", 0), "{outcome:?}");
        assert_eq!(fs::read_dir(&folder).expect("folder").count(), 0, "{outcome:?}");
    }
    let help = of("refresh_sharded.sh", "2 --dry-run --help").go().expect(0);
    assert!(
        help.stdout.starts_with("用法 / usage: refresh_sharded.sh N") && help.stderr.is_empty(),
        "{help:?}"
    );
}
