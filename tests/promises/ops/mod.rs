//! What operators touch around the binary: the scripts, the units and the files for cron and
//! logrotate are run for real, or judged by the tools that read them on a server.

use crate::support;

mod install;
mod machine;
mod monitor;
mod notify;
mod readme;
mod rotate;
mod rules;
mod schedules;
mod sharded;

use crate::support::{Mongod, Reply, Run, Stub, TestDb, command};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// The search path of a shell that also finds what belongs to administrators.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// A tool that judges what we ship. Where it is not installed the test says on the terminal that
/// it was skipped; in continuous integration (`CI` is set) it must be there.
fn checker(program: &str) -> Option<Command> {
    let found = env::split_paths(&path()).any(|dir| dir.join(program).is_file());
    if !found {
        assert!(env::var_os("CI").is_none(), "{program} is not installed");
        // Not by a macro: the test harness would swallow it.
        let _ = writeln!(io::stderr(), "SKIPPED: a check by {program}, which is not installed");
        return None;
    }
    let mut tool = command(program);
    tool.env("PATH", path());
    Some(tool)
}

/// Panics, with what the tool said, when it fails.
#[track_caller]
fn must_pass(tool: &mut Command) -> String {
    let output = tool.output().expect("a tool that starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool:?}: {}\n{said}", output.status);
    said
}

/// A database and an API that answers by what the token is called: `invalid`, `busy`, else valid.
fn world() -> (TestDb, Stub) {
    let api = Stub::start(|request| match request.token() {
        token if token.contains("-invalid-") => Reply::invalid(),
        token if token.contains("-busy-") => Reply::busy(),
        _ => Reply::valid(),
    });
    (Mongod::shared().fresh_db(), api)
}

/// One of our scripts, in the environment of a run.
fn run_script(name: &str, db: &TestDb, api: &Stub) -> Run {
    let binary = support::binary();
    let mut path = OsString::from(binary.parent().expect("a folder"));
    path.push(":");
    path.push(self::path());
    Run::new(db, api).no_args().program(script(name)).env("PATH", path)
}
