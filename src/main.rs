//! Keeps the login tokens of the 报名工具 service alive: arguments to settings
//! to action to exit code.

mod api;
mod args;
mod cleanup;
mod clock;
mod context;
mod db_error;
mod import;
mod output;
mod refresh;
mod restore;
mod scheduler;
mod secret;
mod self_test;
mod settings;
mod shard;
mod stop;
mod store;
mod summary;
mod verdict;

use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use jiff::Timestamp;
use log::warn;

use crate::args::{Action, USAGE};
use crate::clock::Clock;
use crate::context::Context;
use crate::output::Report;
use crate::settings::Settings;
use crate::summary::Summary;

const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let code = try_main().unwrap_or_else(|error| {
        complain(&error);
        USAGE_ERROR
    });
    ExitCode::from(code)
}

/// Checks all input, then acts. An error is a usage error.
fn try_main() -> Result<u8, String> {
    let args = args::parse(env::args_os().skip(1).collect())?;
    match args.action {
        Action::Help => return Ok(print(USAGE)),
        Action::Version => {
            let commit = env!("BUILD_COMMIT");
            let version = env!("CARGO_PKG_VERSION");
            return Ok(print(&format!("refresh_baoming_tokens {version} ({commit})\n")));
        }
        _ => {}
    }
    if let Some(path) = &args.metrics_file {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        if !folder.unwrap_or(Path::new(".")).is_dir() {
            return Err("--metrics-file names a folder that does not exist; make it first".to_owned());
        }
    }
    let context = Context { settings: Settings::from_env()?, clock: Clock::from_env()?, args };
    stop::register().map_err(|error| format!("cannot handle signals: {error}"))?;

    let started_at = Timestamp::now();
    if let Err(error) = output::start_log(&context.args, context.clock.clone()) {
        complain(&format!("cannot open the file of --log-file: {}", error.kind()));
        let summary = Summary::broken();
        report(&context, &summary, started_at, Instant::now());
        return Ok(summary.exit_code());
    }
    let act = |action: &Action| {
        let (started_at, start) = (Timestamp::now(), Instant::now());
        let mut summary = match action {
            Action::SelfTest => self_test::run(&context),
            Action::Restore { hours } => restore::run(&context, *hours),
            Action::Import { file } => import::run(&context, file),
            _ => refresh::run(&context),
        };
        summary.signal = stop::requested();
        report(&context, &summary, started_at, start);
        summary.exit_code()
    };
    match context.args.action {
        Action::Schedule { interval, run_immediately } => {
            scheduler::run(interval, run_immediately, || {
                act(&Action::Refresh);
            });
            Ok(0)
        }
        ref action => Ok(act(action)),
    }
}

/// Writes the JSON object and the metrics file, where asked for.
fn report(context: &Context, summary: &Summary, started_at: Timestamp, start: Instant) {
    let args = &context.args;
    let report = Report {
        summary,
        database: &context.settings.database,
        started_at,
        duration_seconds: start.elapsed().as_secs_f64(),
        dry_run: args.dry_run,
    };
    // A dry run refreshed nothing, so monitoring must not hear of it.
    if let (Some(path), false) = (&args.metrics_file, args.dry_run)
        && let Err(error) = report.write_metrics(path)
    {
        warn!("⚠️ 无法写入 --metrics-file: {}", error.kind());
    }
    if args.json {
        print(&(report.to_json(&context.clock) + "\n"));
    }
}

/// Prints on stdout; a closed pipe is no error.
fn print(text: &str) -> u8 {
    let _ = io::stdout().write_all(text.as_bytes());
    0
}

/// One line on stderr; a closed stderr is no error.
fn complain(error: &dyn Display) {
    let _ = writeln!(io::stderr(), "refresh_baoming_tokens: {error}");
}
