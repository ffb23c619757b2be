//! Where the output goes may be full, gone or closed: the run is done all the same.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use super::Fate::{Recycled, Refreshed};
use super::support::{Mongod, PATIENCE, Run, Stub, Total, count, scratch_dir};
use super::{Gate, add_tokens, as_labelled, assert_fates, each, fates_by_id};

/// What is wrong with an output.
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
    NoStdoutNorStderr,
    /// Removed in mid-run.
    LogFileVanishes,
    LogFolderVanishes,
    /// Its place is taken by a folder in mid-run.
    LogFileBecomesFolder,
    MetricsFolderVanishes,
}
use Trouble::{
    FullLogFile, FullStderr, FullStdout, LogFileBecomesFolder, LogFileVanishes, LogFolderVanishes,
    MetricsFolderVanishes, NoStdoutNorStderr, StderrEnds, StdoutEnds,
};

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
    const ALL: [Trouble; 10] = [
        FullLogFile,
        FullStdout,
        FullStderr,
        StdoutEnds,
        StderrEnds,
        NoStdoutNorStderr,
        LogFileVanishes,
        LogFolderVanishes,
        LogFileBecomesFolder,
        MetricsFolderVanishes,
    ];
    let modes: [&[&str]; 3] = [&[], &["-v"], &["--json"]];
    let rows: Vec<_> = ALL.into_iter().flat_map(|trouble| modes.map(|mode| (trouble, mode))).collect();
    each(
        &rows,
        |row| format!("{row:?}"),
        |&(trouble, mode)| {
            count(Total::Faults, 1);
            let db = Mongod::shared().fresh_db();
            let ids = add_tokens(&db, &["invalid", "valid", "valid", "valid"]);
            let before = db.snapshot();
            let (gate, reached, go) = Gate::new();
            let api = Stub::start(move |request| {
                if request.number == 2 {
                    gate.wait();
                }
                as_labelled(request)
            });
            let (logs, metrics) = (scratch_dir(), scratch_dir());
            let log = if trouble == FullLogFile { "/dev/full".into() } else { logs.join("sub/log") };
            let run = Run::new(&db, &api).args(mode).arg("--log-file").arg(&log);
            let mut command = run.arg("--metrics-file").arg(metrics.join("metrics")).command();
            if trouble == NoStdoutNorStderr {
                command = without_outputs(&command);
            }
            let mut child = command
                .stdout(if trouble == FullStdout { full().into() } else { Stdio::piped() })
                .stderr(if trouble == FullStderr { full().into() } else { Stdio::piped() })
                .spawn()
                .expect("the program");
            reached.recv_timeout(PATIENCE).expect("the second request");
            match trouble {
                StdoutEnds if !mode.contains(&"--json") => {
                    let mut first = String::new();
                    BufReader::new(child.stdout.take().expect("a pipe"))
                        .read_line(&mut first)
                        .expect("a line");
                    assert!(first.contains("选项: "), "{first:?}");
                }
                StdoutEnds => drop(child.stdout.take()),
                StderrEnds => drop(child.stderr.take()),
                LogFileVanishes => fs::remove_file(&log).expect("log file"),
                LogFolderVanishes => fs::remove_dir_all(logs.join("sub")).expect("folder"),
                LogFileBecomesFolder => {
                    fs::remove_file(&log).expect("log file");
                    fs::create_dir(&log).expect("folder");
                }
                MetricsFolderVanishes => fs::remove_dir(&metrics).expect("folder"),
                FullLogFile | FullStdout | FullStderr | NoStdoutNorStderr => {}
            }
            drop(go);
            let status = child.wait().expect("the end");
            let mut said = String::new();
            for stream in [
                child.stdout.as_mut().map(|stream| stream as &mut dyn Read),
                child.stderr.as_mut().map(|stream| stream as &mut dyn Read),
            ] {
                stream.map(|stream| stream.read_to_string(&mut said).expect("UTF-8"));
            }
            // What could not be told is an error, and said so, a closed pipe aside; the run is done all the same.
            let untold = match trouble {
                FullLogFile | FullStdout | MetricsFolderVanishes => true,
                FullStderr => mode.contains(&"--json"),
                _ => false,
            };
            assert_eq!(status.code(), Some(i32::from(untold)), "{said}");
            assert!(!said.contains("panicked"), "{said}");
            assert_fates(&db, &before, fates_by_id(&ids, vec![Recycled, Refreshed, Refreshed, Refreshed]));
            if trouble != FullLogFile && trouble != LogFileBecomesFolder {
                assert!(fs::read_to_string(&log).expect("the log file").contains("🎉 刷新完成"));
            }
        },
    );
}

#[test]
fn help_and_version_say_when_they_cannot_be_written() {
    for flag in ["--help", "--version", "--no-such-flag"] {
        let mut command = Run::bare().arg(flag).command();
        let status = command.stdout(full()).stderr(full()).status().expect("the program");
        assert_eq!(status.code(), Some(if flag == "--no-such-flag" { 2 } else { 1 }), "{flag}");
    }
}
