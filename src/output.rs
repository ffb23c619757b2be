//! What the program prints: the log, the JSON object and the metrics file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use env_logger::Target;
use jiff::Timestamp;
use log::{Level, LevelFilter};
use serde_json::json;

use crate::args::Args;
use crate::clock::Clock;
use crate::secret::{AccessToken, mask_suspicious};
use crate::summary::Summary;

/// The log target of this program's own lines; all others are dropped, because
/// HTTP and database libraries log requests with tokens in them.
const LOG_TARGET: &str = env!("CARGO_CRATE_NAME");

/// How much of a text from outside is printed.
const SHOWN_CHARS: usize = 100;

/// A text from outside, made harmless: control characters, line separators and
/// bidirectional overrides could forge a log line or drive the terminal.
pub fn clean(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A text from outside, fit to be printed: harmless, and without tokens, be it
/// `own` or somebody else's.
pub fn presentable(text: &str, own: Option<&AccessToken>) -> String {
    let masked = mask_suspicious(&shorten(text, 4 * SHOWN_CHARS));
    let redacted = own.map_or_else(|| masked.clone(), |token| token.redact(&masked));
    shorten(&clean(&redacted), SHOWN_CHARS)
}

/// `text` cut to at most `max_chars` characters, the cut marked.
fn shorten(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Starts the log: stdout, or stderr under `--json`, and the log file.
/// `RUST_LOG` is not asked: it could only make libraries print secrets.
///
/// # Errors
/// When the log file cannot be opened.
pub fn start_log(args: &Args, clock: Clock) -> io::Result<()> {
    let file = match &args.log_file {
        Some(path) => Some(LogFile::open(path.clone())?),
        None => None,
    };
    let sink = Sink { to_stderr: args.json, file };
    env_logger::Builder::new()
        .filter_level(LevelFilter::Off)
        .filter_module(LOG_TARGET, args.level)
        .format(move |out, record| {
            let level = match record.level() {
                Level::Error => "ERROR",
                Level::Warn => "WARNING",
                Level::Info => "INFO",
                Level::Debug | Level::Trace => "DEBUG",
            };
            writeln!(out, "{} [{level}] {}", clock.wall_now(), record.args())
        })
        .target(Target::Pipe(Box::new(sink)))
        .init();
    Ok(())
}

/// Where the log goes. A closed pipe or a full disk never stops a run, so
/// errors are dropped here.
struct Sink {
    to_stderr: bool,
    file: Option<LogFile>,
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = if self.to_stderr { io::stderr().write_all(line) } else { io::stdout().write_all(line) };
        if let Some(file) = &mut self.file {
            let _ = file.write(line);
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
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let is_current = fs::metadata(&self.path)
            .is_ok_and(|there| self.file.metadata().is_ok_and(|ours| id(ours) == id(there)));
        if !is_current && let Ok(reopened) = Self::open(self.path.clone()) {
            *self = reopened;
        }
        self.file.write_all(line)
    }
}

/// One finished run, for the JSON object and the metrics file.
pub struct Report<'a> {
    /// The counts.
    pub summary: &'a Summary,
    /// The database's name.
    pub database: &'a str,
    /// When the run began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration_seconds: f64,
    /// Whether nothing was written.
    pub dry_run: bool,
}

impl Report<'_> {
    /// The one line of `--json`.
    pub fn to_json(&self, clock: &Clock) -> String {
        let counts = self.summary;
        let fields = [
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("database", json!(self.database)),
            ("started_at", json!(clock.rfc3339(self.started_at))),
            ("duration_seconds", json!(self.duration_seconds)),
            ("total", json!(counts.total)),
            ("success", json!(counts.success)),
            ("failed", json!(counts.failed)),
            ("deleted", json!(counts.deleted)),
            ("skipped", json!(counts.skipped)),
            ("withheld", json!(counts.withheld)),
            ("unprocessed", json!(counts.unprocessed)),
            ("cleaned", json!(counts.cleaned)),
            ("dry_run", json!(self.dry_run)),
            ("stopped", json!(counts.stopped())),
            ("exit_code", json!(counts.exit_code())),
        ];
        // Not as one `json!` object: that would sort the fields by name.
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    }

    /// Writes the Prometheus text: a new file beside the old one, then a rename,
    /// so that a collector never reads half of it.
    ///
    /// # Errors
    /// When the folder is missing, not writable or full.
    pub fn write_metrics(&self, path: &Path) -> io::Result<()> {
        use std::fmt::Write as _;

        const LAST_SUCCESS: &str = "baoming_refresh_last_success_timestamp_seconds";
        let counts = self.summary;
        let now = Timestamp::now().as_second();
        let last_success = if counts.exit_code() == 0 {
            now
        } else {
            let previous = fs::read_to_string(path).unwrap_or_default();
            previous
                .lines()
                .find_map(|line| line.strip_prefix(LAST_SUCCESS)?.trim().parse().ok())
                .unwrap_or(0)
        };
        let mut text = "# HELP baoming_refresh_tokens Tokens of the last run by result.\n\
                        # TYPE baoming_refresh_tokens gauge\n"
            .to_owned();
        for (result, count) in [
            ("success", counts.success),
            ("failed", counts.failed),
            ("deleted", counts.deleted),
            ("skipped", counts.skipped),
            ("withheld", counts.withheld),
            ("unprocessed", counts.unprocessed),
            ("cleaned", counts.cleaned),
        ] {
            let _ = writeln!(text, "baoming_refresh_tokens{{result=\"{result}\"}} {count}");
        }
        for (name, help, value) in [
            (
                "baoming_refresh_last_completion_timestamp_seconds",
                "Unix time at which the last run ended.",
                now.to_string(),
            ),
            (
                LAST_SUCCESS,
                "Unix time at which the last run with exit code 0 ended; 0 = never.",
                last_success.to_string(),
            ),
            (
                "baoming_refresh_duration_seconds",
                "Duration of the last run in seconds.",
                self.duration_seconds.to_string(),
            ),
            ("baoming_refresh_exit_code", "Exit code of the last run.", counts.exit_code().to_string()),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_cannot_forge_a_line_or_drive_a_terminal() {
        let table = [
            ("张三 🎉 名片", "张三 🎉 名片"),
            ("a\n2026 [INFO] b", "a\\n2026 [INFO] b"),
            ("\u{1b}[2J\r", "\\u{1b}[2J\\r"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("\u{202e}x\u{2066}y\u{2028}", "\\u{202e}x\\u{2066}y\\u{2028}"),
        ];
        for (text, expected) in table {
            assert_eq!(clean(text), expected);
        }
    }

    #[test]
    fn long_texts_are_cut_at_characters() {
        assert_eq!(shorten("系统繁忙", 4), "系统繁忙");
        assert_eq!(shorten("系统繁忙", 2), "系统…");
    }
}
