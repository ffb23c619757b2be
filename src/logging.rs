//! The log: its lines, its file, and whether all of it could be written.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::PathBuf;
use std::sync::Mutex;

use env_logger::Target;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use log::{Level, LevelFilter};

use crate::args::Args;
use crate::clock::wall;
use crate::text::os_error;

/// The log target of this program's own lines; all others are dropped, because
/// HTTP and database libraries log requests with tokens in them.
const TARGET: &str = env!("CARGO_CRATE_NAME");

/// A pipe must wait for no reader (the value of Linux on `x86_64` and `aarch64`).
const O_NONBLOCK: i32 = 0o4000;

/// What could not be written, from the first fault on; taken by [`failure`].
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// Starts the log: stdout, or stderr under `--json`, and the log file, which may be
/// an error. `RUST_LOG` is not asked: it could only make libraries print secrets.
pub fn start(args: &Args, zone: TimeZone) -> io::Result<()> {
    let file = args.log_file.clone().map(LogFile::open).transpose()?;
    let sink = Sink { to_stderr: args.json, file };
    env_logger::Builder::new()
        .filter_level(LevelFilter::Off)
        .filter_module(TARGET, args.level)
        .format(move |out, record| {
            let level = match record.level() {
                Level::Warn => "WARNING",
                level => level.as_str(),
            };
            let (at, text) = (wall(&zone, Timestamp::now()), record.args().to_string());
            text.lines().try_for_each(|line| writeln!(out, "{at} [{level}] {line}"))
        })
        .target(Target::Pipe(Box::new(sink)))
        .init();
    Ok(())
}

/// Says once what of the log could not be written since the last call.
pub fn failure() -> Option<String> {
    FAILURE.lock().ok()?.take()
}

/// Where the log goes. A line that cannot be written never stops a run: the
/// run's end tells of it. A closed pipe is nobody's fault.
struct Sink {
    to_stderr: bool,
    file: Option<LogFile>,
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = if self.to_stderr { io::stderr().write_all(line) } else { io::stdout().write_all(line) };
        let filed = self.file.as_mut().map_or(Ok(()), |file| file.write(line));
        for (result, where_to) in [(shown, "输出流"), (filed, "--log-file 的文件")] {
            if let Err(error) = result
                && error.kind() != ErrorKind::BrokenPipe
                && let Ok(mut failure) = FAILURE.lock()
            {
                failure.get_or_insert_with(|| {
                    format!("日志没有完整写入{where_to}: {} (log incomplete)", os_error(&error))
                });
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log file. It is opened anew when its path no longer leads to it, so
/// that a rotated or removed file needs neither a signal nor a copy.
struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(O_NONBLOCK).open(&path)?;
        let (meta, is_file) = (file.metadata()?, fs::symlink_metadata(&path)?.is_file());
        let is_ours = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == meta.uid());
        if is_file && is_ours && meta.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(meta.mode() & 0o700))?;
        }
        Ok(Self { path, file })
    }

    /// What root opens anew belongs to whom the file belonged before, or the next run could not write it.
    fn take_after(&self, before: &File) {
        let metas = (before.metadata(), self.file.metadata(), fs::symlink_metadata(&self.path));
        if let (Ok(before), Ok(own), Ok(there)) = metas
            && own.len() == 0
            && (own.dev(), own.ino()) == (there.dev(), there.ino())
        {
            let _ = fchown(&self.file, Some(before.uid()), Some(before.gid())); // only root may
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let is_current = fs::metadata(&self.path)
            .is_ok_and(|there| self.file.metadata().is_ok_and(|ours| id(ours) == id(there)));
        if !is_current && let Ok(reopened) = Self::open(self.path.clone()) {
            reopened.take_after(&self.file);
            *self = reopened;
        }
        self.file.write_all(line)
    }
}
