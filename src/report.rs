//! What is left behind when a run has ended: the metrics file, the JSON
//! object, and a line on stderr about what could not be written.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use log::{Level, warn};

use crate::args::Args;
use crate::clock::Clock;
use crate::logging;
use crate::summary::{Stop, Summary, last_success};
use crate::text::os_error;

/// Writes the metrics file and the JSON object, where asked for. What cannot
/// be written makes the run exit 1, and a line on stderr says so.
pub fn finish(args: &Args, database: &str, clock: &Clock, summary: &mut Summary) {
    // With -q they are due for any exit code but 0.
    let mut are_due = args.level < Level::Info;
    let mut statistics = |summary: &Summary| {
        if are_due && summary.exit_code() != 0 {
            summary.lines().iter().for_each(|line| warn!("{line}"));
            are_due = false;
        }
    };
    statistics(summary);
    let broken = |summary: &mut Summary, failure: &str| {
        complain(failure);
        summary.raise(Stop::Broken);
    };
    if let Some(failure) = logging::failure() {
        broken(summary, &failure);
    }
    // Of the file that another run left, also where this one has to write twice.
    let previous = args.metrics_file.as_deref().map_or(Ok(0.0), previous_success);
    let tell_monitors = |summary: &mut Summary| {
        // A dry run refreshed nothing, so monitoring must not hear of it.
        if let (Some(path), false) = (&args.metrics_file, args.dry_run)
            && let Err(error) = write_metrics(path, summary, clock, &previous)
        {
            broken(summary, &format!("无法写入 --metrics-file: {} (cannot write it)", os_error(&error)));
        }
    };
    tell_monitors(summary);
    if args.json {
        let started_at = clock.rfc3339(clock.started);
        let line = summary.json(database, &started_at, clock.elapsed().as_secs_f64(), args.dry_run) + "\n";
        if let Err(error) = print(&line) {
            broken(summary, &format!("无法输出 --json: {} (cannot write stdout)", os_error(&error)));
            tell_monitors(summary);
        }
    }
    statistics(summary); // what could not be written may have made it the first exit code but 0
}

/// Checks the target of `--metrics-file` before a run. An error is a usage error.
pub fn check_metrics_target(path: &Path) -> Result<(), String> {
    if !Path::new(".").join(path).parent().is_some_and(Path::is_dir) {
        return Err("--metrics-file 所在的文件夹不存在，请先创建 (no such folder; make it first)".to_owned());
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => {
            Err("--metrics-file 不是普通文件 (not a regular file: a link, folder, pipe or device)".to_owned())
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("--metrics-file 无法使用: {} (cannot be used)", os_error(&error)))
        }
        _ => Ok(()),
    }
}

/// The last success that a metrics file tells of; 0 when there is no file.
fn previous_success(path: &Path) -> io::Result<f64> {
    match fs::read(path) {
        Ok(previous) => Ok(last_success(&previous)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0.0),
        Err(error) => Err(error),
    }
}

/// A new file beside the old one, then a rename, so that a collector never reads half of it. The
/// `previous` last success is taken over, or nothing is written.
fn write_metrics(
    path: &Path,
    summary: &Summary,
    clock: &Clock,
    previous: &io::Result<f64>,
) -> io::Result<()> {
    let now = clock.now().as_second();
    let schedule = path.file_name().unwrap_or_default().to_string_lossy();
    let schedule = schedule.strip_suffix(".prom").unwrap_or(&schedule);
    let last_success = match previous {
        _ if summary.exit_code() == 0 => clock.now().as_duration().as_secs_f64().floor(),
        Ok(previous) => *previous,
        Err(error) => {
            return Err(error
                .raw_os_error()
                .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error));
        }
    };
    let text = summary.metrics(schedule, now, last_success, clock.elapsed().as_secs_f64());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let _ = fs::remove_file(temporary); // left over from a process of the same number that was killed
    // `create_new` follows no link.
    let written = File::create_new(temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(temporary);
    }
    written
}

/// Prints on stdout; a closed pipe is no error, a full disk is.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// One line on stderr; a closed stderr is no error.
pub fn complain(error: &str) {
    let _ = writeln!(io::stderr(), "refresh_baoming_tokens: {error}");
}
