//! Where the output goes may be full, gone or closed: the run is done all the same.

use std::fs::{self, File};

use super::support::{Mongod, Run, Stub, Total, binary, count, scratch_dir};
use super::{Trial, each, struck};

/// What a shell does with the outputs, and whether something cannot be told then, in a plain run and
/// under `--json`. A closed pipe is nobody's fault. That files vanish is a test of `files`.
const OUTPUTS: [(&str, bool, bool); 8] = [
    (r#""$0" "$@" >/dev/full"#, true, true),
    (r#""$0" "$@" 2>/dev/full"#, false, true),
    (r#""$0" "$@" >&- 2>&-"#, false, false),
    (r#"{ "$0" "$@"; echo $? >"$CODE"; } | head -1; exit "$(cat "$CODE")""#, false, false),
    (r#"{ "$0" "$@" 2>&1 >&-; echo $? >"$CODE"; } | head -1; exit "$(cat "$CODE")""#, false, false),
    (CUT_LOG, true, true),
    (FULL_LOG, true, true),
    (LOG_BECOMES_FOLDER, false, false),
];
const CUT_LOG: &str = r#"ulimit -f 1; exec "$0" "$@""#;
const FULL_LOG: &str = r#""$0" "$@" --log-file /dev/full"#;
const LOG_BECOMES_FOLDER: &str = r#""$0" "$@""#;

#[test]
fn a_run_is_done_whatever_becomes_of_its_output() {
    let modes = ["--delay-ms=0", "-v", "--json"];
    let rows: Vec<_> = OUTPUTS.iter().flat_map(|output| modes.map(|mode| (output, mode))).collect();
    each(&rows, |&(&(script, plain, json), mode)| {
        count(Total::FAULTS, 1);
        let trial = Trial::new(Mongod::shared().fresh_db(), &["invalid", "valid", "valid", "valid"]);
        let [log, code, metrics] = ["log", "code", "m.prom"].map(|name| scratch_dir().join(name));
        let run = |api: &Stub| {
            let run = Run::new(&trial.db, api).no_args().program("sh").args(["-c", script]);
            let run = run.env("CODE", code).env("PATH", "/usr/bin:/bin").arg(binary()).arg(mode);
            let run = run.arg("--metrics-file").arg(&metrics);
            if script == FULL_LOG { run } else { run.arg("--log-file").arg(&log) }
        };
        let spoil = || {
            if script == LOG_BECOMES_FOLDER {
                fs::remove_file(&log).expect("log file");
                fs::create_dir(&log).expect("folder");
            }
        };
        let (_api, live) = struck(2, run, spoil);
        let outcome = live.wait();
        let untold = if mode == "--json" { json } else { plain };
        assert_eq!(outcome.code, Some(i32::from(untold)), "{outcome:?}");
        assert!(!outcome.log().contains("panicked"), "{outcome:?}");
        trial.assert_ends("x+++");
        if script != CUT_LOG {
            let metrics = fs::read_to_string(&metrics).expect("metrics");
            let exit_code = format!("baoming_refresh_exit_code{{schedule=\"m\"}} {}\n", i32::from(untold));
            assert!(metrics.ends_with(&exit_code), "{metrics}");
        }
        if log.is_file() && script != CUT_LOG {
            assert!(fs::read_to_string(&log).expect("the log file").contains("🎉 刷新完成"));
        }
    });
}

#[test]
fn help_and_version_say_when_they_cannot_be_written() {
    let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
    for (flag, code) in [("--help", 1), ("--version", 1), ("--no-such-flag", 2)] {
        let status = Run::bare().arg(flag).command().stdout(full()).stderr(full()).status();
        assert_eq!(status.expect("the program").code(), Some(code), "{flag}");
    }
}
