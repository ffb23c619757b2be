//! Where the output goes may be full, gone or closed: the run is done all the same.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use super::Fate::{Recycled, Refreshed};
use super::support::{Mongod, Run, Total, count, scratch_dir};
use super::{assert_fates, each, gated};

/// What is wrong with an output. That files vanish in mid-run is a test of `files`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// A disk without room, for the log file or for what is redirected.
    FullLogFile,
    FullStdout,
    FullStderr,
    /// `| head -1`
    StdoutEnds,
    StderrEnds,
    /// Not even open.
    NoneOpen,
    /// Its place is taken by a folder in mid-run.
    LogBecomesFolder,
}
use Trouble::{FullLogFile, FullStderr, FullStdout, LogBecomesFolder, NoneOpen, StderrEnds, StdoutEnds};

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("/dev/full")
}

/// The same command with standard output and standard error not open.
fn without_outputs(command: &Command) -> Command {
    let mut sh = Command::new("sh");
    sh.args(["-c", r#"exec "$0" "$@" >&- 2>&-"#]).arg(command.get_program()).args(command.get_args());
    sh.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    sh
}

#[test]
fn a_run_is_done_whatever_becomes_of_its_output() {
    let all = [FullLogFile, FullStdout, FullStderr, StdoutEnds, StderrEnds, NoneOpen, LogBecomesFolder];
    let modes: [&[&str]; 3] = [&[], &["-v"], &["--json"]];
    let rows: Vec<_> = all.into_iter().flat_map(|trouble| modes.map(|mode| (trouble, mode))).collect();
    each(&rows, |&(trouble, mode)| {
        count(Total::Faults, 1);
        let db = Mongod::shared().fresh_db();
        let ids = db.add_labelled(&["invalid", "valid", "valid", "valid"]);
        let before = db.snapshot();
        let (api, moment) = gated(2);
        let folder = scratch_dir();
        let log = if trouble == FullLogFile { "/dev/full".into() } else { folder.join("log") };
        let mut command = Run::new(&db, &api).args(mode).arg("--log-file").arg(&log).command();
        if trouble == NoneOpen {
            command = without_outputs(&command);
        }
        let mut child = command
            .stdout(if trouble == FullStdout { full().into() } else { Stdio::piped() })
            .stderr(if trouble == FullStderr { full().into() } else { Stdio::piped() })
            .spawn()
            .expect("the program");
        moment.come();
        match trouble {
            StdoutEnds if !mode.contains(&"--json") => {
                let mut first = String::new();
                let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
                stdout.read_line(&mut first).expect("a line");
                assert!(first.contains("选项: "), "{first:?}");
            }
            StdoutEnds => drop(child.stdout.take()),
            StderrEnds => drop(child.stderr.take()),
            LogBecomesFolder => {
                fs::remove_file(&log).expect("log file");
                fs::create_dir(&log).expect("folder");
            }
            FullLogFile | FullStdout | FullStderr | NoneOpen => {}
        }
        drop(moment);
        let status = child.wait().expect("the end");
        let mut said = String::new();
        child.stdout.map(|mut stream| stream.read_to_string(&mut said).expect("UTF-8"));
        child.stderr.map(|mut stream| stream.read_to_string(&mut said).expect("UTF-8"));
        // What could not be told is an error, and said so, a closed pipe aside; the run is done all the same.
        let untold = match trouble {
            FullLogFile | FullStdout => true,
            FullStderr => mode.contains(&"--json"),
            _ => false,
        };
        assert_eq!(status.code(), Some(i32::from(untold)), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_fates(&db, &before, &ids, &[Recycled, Refreshed, Refreshed, Refreshed]);
        if trouble != FullLogFile && trouble != LogBecomesFolder {
            assert!(fs::read_to_string(&log).expect("the log file").contains("🎉 刷新完成"));
        }
    });
}

#[test]
fn help_and_version_say_when_they_cannot_be_written() {
    for flag in ["--help", "--version", "--no-such-flag"] {
        let mut command = Run::bare().arg(flag).command();
        let status = command.stdout(full()).stderr(full()).status().expect("the program");
        assert_eq!(status.code(), Some(if flag == "--no-such-flag" { 2 } else { 1 }), "{flag}");
    }
}
