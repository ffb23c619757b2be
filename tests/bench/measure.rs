//! What one run of a program costs. The benchmark starts itself once more for each run, as a small
//! launcher: what the system then accounts to the launcher's children is that one run and no other.

use nix::sys::resource::{UsageWho, getrusage};
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use crate::support::{Run, Stub, TestDb, binary, scratch_dir};

pub const LAUNCH: &str = "launch";
pub const FLOOR: &str = "floor";

fn own_path() -> PathBuf {
    env::current_exe().expect("own path")
}

/// What a run took, from before its start to after its end.
pub struct Cost {
    pub wall_secs: f64,
    /// The system's on its behalf included.
    pub cpu_secs: f64,
    /// Most physical memory at any one time.
    pub peak_kib: f64,
}

pub struct Running {
    launcher: Child,
    log: PathBuf,
}

impl Running {
    pub fn product(db: &TestDb, api: &Stub, flags: &[&str]) -> Self {
        Self::start(&binary(), db, api, flags)
    }

    pub fn floor(db: &TestDb, api: &Stub) -> Self {
        Self::start(&own_path(), db, api, &[FLOOR])
    }

    /// The log goes to a file, as that of a cron job does.
    fn start(program: &Path, db: &TestDb, api: &Stub, args: &[&str]) -> Self {
        let log = scratch_dir().join("log");
        let file = File::create(&log).expect("a log file");
        let run = Run::new(db, api).program(own_path()).no_args().arg(LAUNCH).arg(program).args(args);
        let launcher = run.command().stdout(Stdio::piped()).stderr(file).spawn().expect("launcher");
        Self { launcher, log }
    }

    /// Waits for its end. Panics, and shows the log's end, unless it exits with `code` and its last
    /// words have `proof` of what it did.
    pub fn end(self, code: u32, proof: &str) -> Cost {
        let output = self.launcher.wait_with_output().expect("the launcher's report");
        let report = String::from_utf8_lossy(&output.stdout);
        let log = fs::read_to_string(&self.log).expect("the run's log");
        fs::remove_file(&self.log).expect("the run's log");
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        let numbers: Vec<u32> = report.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let &[ended_with, wall_micros, cpu_micros, peak_kib] = numbers.as_slice() else {
            panic!("no report, but {report:?}; {tail}");
        };
        assert!(ended_with == code && tail.contains(proof), "exit code {ended_with}; no {proof:?} in {tail}");
        Cost {
            wall_secs: f64::from(wall_micros) / 1e6,
            cpu_secs: f64::from(cpu_micros) / 1e6,
            peak_kib: f64::from(peak_kib),
        }
    }
}

/// The launcher: runs a program and reports its exit code, microseconds of real time, microseconds
/// of processor time, and KiB of memory.
///
/// The memory is never less than the launcher's own, which has done nothing yet and is smaller.
pub fn launch(command: &[String]) -> ExitCode {
    let [program, args @ ..] = command else { return ExitCode::from(2) };
    let start = Instant::now();
    let status = Command::new(program).args(args).stdout(io::stderr()).status().expect("the program");
    let wall = start.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage of children");
    let cpu = usage.user_time() + usage.system_time();
    let cpu_micros = cpu.tv_sec() * 1_000_000 + cpu.tv_usec();
    let code = status.code().unwrap_or(255);
    println!("{code} {} {cpu_micros} {}", wall.as_micros(), usage.max_rss());
    ExitCode::SUCCESS
}
