//! `peak FILE PROGRAM [ARGUMENTS…]` runs a program, passes its exit code on, and leaves its peak
//! memory, in kB, in the file.
//!
//! A program of its own because a process counts what its parent held when it was started: this
//! one holds next to nothing, a test or the benchmark holds more than the program under test.

use nix::sys::resource::{UsageWho, getrusage};
use std::process::{Command, ExitCode};
use std::{env, fs};

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let (file, program) = args.next().zip(args.next()).expect("usage: peak FILE PROGRAM [ARGUMENTS…]");
    let status = Command::new(&program).args(args).status().expect("the program");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage of the program");
    fs::write(file, usage.max_rss().to_string()).expect("the file");
    // A signal has no exit code; 255 is none of the program's.
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
