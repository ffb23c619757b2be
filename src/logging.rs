//! The log: its lines, its file, and whether all of it could be written.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
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

/// `ELOOP`.
const TOO_MANY_LINKS: i32 = 40;

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

fn id(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// The log file. It is opened anew when its path no longer leads to it, so
/// that a rotated or removed file needs neither a signal nor a copy.
struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let folder = Path::new(".").join(&path).parent().map_or_else(PathBuf::new, Path::to_owned);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let own = fs::metadata("/proc/self").map(|own| own.uid()).ok();
        let owner = fs::metadata(&folder)?;
        // Root follows no link of somebody else's.
        let follows = own != Some(0) || owner.uid() == 0;
        let is_link = || fs::symlink_metadata(&path).is_ok_and(|there| there.is_symlink());
        if !follows && is_link() {
            return Err(io::Error::from_raw_os_error(TOO_MANY_LINKS));
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(O_NONBLOCK).open(&path)?;
        let (meta, there) = (file.metadata()?, fs::symlink_metadata(&path)?);
        let is_there = there.is_file() && id(&there) == id(&meta);
        if !follows && !is_there {
            return Err(io::Error::from_raw_os_error(TOO_MANY_LINKS)); // it became one meanwhile
        }
        if is_there && meta.len() == 0 {
            // What root makes belongs to whom the folder belongs, or the next run could not write it.
            let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
        }
        if is_there && own == Some(meta.uid()) && meta.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(meta.mode() & 0o700))?;
        }
        Ok(Self { path, file })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let is_current = fs::metadata(&self.path)
            .is_ok_and(|there| self.file.metadata().is_ok_and(|ours| id(&ours) == id(&there)));
        let reopened = if is_current { Ok(()) } else { Self::open(self.path.clone()).map(|new| *self = new) };
        self.file.write_all(line).and(reopened)
    }
}
