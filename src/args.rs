//! The command line: strict flags, one usage text.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use pico_args::Arguments;

use crate::shard::Shard;

/// The text of `--help`; the README repeats it and a test keeps the two equal.
pub const USAGE: &str = "\
Keeps the login tokens of the 报名工具 service alive.

Usage: refresh_baoming_tokens [FLAGS]

Which tokens:
  --max-age-days N        refresh only tokens used within the last N days [all]
  --shard K/N             only the K-th of N disjoint, equal parts [1/1]
  --cleanup-days N        afterwards delete tokens unused for more than N days [off]
  --max-delete N|P%       most tokens one step may delete; 0 = none, 100% = no limit
                          [20%, but never less than 10]
  --dry-run               ask the API, write nothing, say what would happen

Instead of one run:
  --scheduler             stay up and run again and again
    --interval H          hours between two runs [6]
    --interval-minutes M  minutes between two runs; wins over --interval
    --run-immediately     first run at start
  --self-test             check database, tokens, one refresh and the cleanup
  --restore-hours N       put back what the recycle bin took in the last N hours
  --import-json FILE      load a legacy baoming_tokens.json

API:
  --delay-ms N            least time from one token's check to the next [1000]
  --timeout-secs N        limit of one API call [10]
  --retries N             further tries after a transient fault [2]
  --eid ID                event id sent with each check [69844bcf8eaa2449c7a37fae]

Output:
  --log-file PATH         append the log there too (mode 0600)
  --metrics-file PATH     write Prometheus text there after each run
  --json                  one JSON object on stdout, the log on stderr
  -v, --verbose           DEBUG lines too
  -q, --quiet             only warnings and errors
  -h, --help              this text
  -V, --version           version and commit

Environment:
  MONGODB_URI, MONGODB_URI_FILE or $CREDENTIALS_DIRECTORY/mongodb_uri
                          connection string (required)
  MONGODB_DB_NAME         database [the one in the URI, else auto-form-db]
  BAOMING_API_BASE        [https://api-xcx-qunsou.weiyoubot.cn/xcx]
  TZ                      the wall clock of the data, e.g. Asia/Shanghai
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE

Exit codes:
  0 done   1 could not run   2 usage   3 some tokens failed   5 API unreachable
  25 held back by --max-delete   130, 143 stopped by SIGINT, SIGTERM
";

/// What the program was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// One run.
    Refresh,
    /// Run again and again.
    Schedule {
        /// From the end of one run to the start of the next.
        interval: Duration,
        /// Whether the first run comes before the first pause.
        run_immediately: bool,
    },
    /// The four checks.
    SelfTest,
    /// Put back what the recycle bin took in the last hours.
    Restore {
        /// How many hours back.
        hours: u32,
    },
    /// Load a legacy `baoming_tokens.json`.
    Import {
        /// The legacy file.
        file: PathBuf,
    },
    /// Print the usage text.
    Help,
    /// Print version and commit.
    Version,
}

/// The most tokens that one step may delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxDelete {
    /// 20%, but never less than 10.
    Default,
    /// A number of tokens.
    Count(usize),
    /// A part of the tokens, 0 to 100.
    Percent(usize),
}

impl MaxDelete {
    /// The limit for a step that decides on `total` tokens.
    pub fn limit(self, total: usize) -> usize {
        // Split by hundreds, so that no count overflows.
        let part = |percent: usize| total / 100 * percent + total % 100 * percent / 100;
        match self {
            Self::Default => part(20).max(10),
            Self::Count(count) => count,
            Self::Percent(percent) => part(percent),
        }
    }
}

/// The command line, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are the flags of the usage text above.
pub struct Args {
    pub action: Action,
    pub max_age_days: Option<u32>,
    pub shard: Shard,
    pub cleanup_days: Option<u32>,
    pub max_delete: MaxDelete,
    pub dry_run: bool,
    pub delay: Duration,
    pub timeout: Duration,
    pub retries: u32,
    pub eid: String,
    pub log_file: Option<PathBuf>,
    pub metrics_file: Option<PathBuf>,
    pub json: bool,
    pub level: LevelFilter,
}

/// A hundred years: longer is a typing error.
const MAX_DAYS: u64 = 36_500;

/// Checks the command line (without the program's name).
///
/// # Errors
/// One line that names the flag. Values are never repeated: they may be a
/// secret that was put in the wrong place.
pub fn parse(args: Vec<OsString>) -> Result<Args, String> {
    let mut flags = Flags(Arguments::from_vec(args));
    let help = flags.0.contains(["-h", "--help"]);
    let version = flags.0.contains(["-V", "--version"]);

    let max_age_days = flags.number("--max-age-days", 1, MAX_DAYS)?;
    let shard = flags.value("--shard", "K/N with 1 <= K <= N", parse_shard)?;
    let cleanup_days = flags.number("--cleanup-days", 1, MAX_DAYS)?;
    let max_delete = flags.value("--max-delete", "a count N or P%", parse_max_delete)?;
    let dry_run = flags.0.contains("--dry-run");
    let scheduler = flags.0.contains("--scheduler");
    // The longer name first: pico_args takes `--interval-minutes=5` for an odd `--interval`.
    let minutes = flags.number("--interval-minutes", 1, MAX_DAYS * 24 * 60)?;
    let hours = flags.number("--interval", 1, MAX_DAYS * 24)?;
    let run_immediately = flags.0.contains("--run-immediately");
    let self_test = flags.0.contains("--self-test");
    let restore_hours = flags.number("--restore-hours", 1, MAX_DAYS * 24)?;
    let import_file = flags.path("--import-json")?;
    let delay_ms = flags.number("--delay-ms", 0, 86_400_000)?;
    let timeout_secs = flags.number("--timeout-secs", 1, 3_600)?;
    let retries = flags.number("--retries", 0, 100)?;
    let eid = flags.value("--eid", "an event id", |text| {
        (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
    })?;
    let log_file = flags.path("--log-file")?;
    let metrics_file = flags.path("--metrics-file")?;
    let json = flags.0.contains("--json");
    let verbose = flags.0.contains(["-v", "--verbose"]);
    let quiet = flags.0.contains(["-q", "--quiet"]);
    flags.finish()?;

    let chosen: Vec<&str> = [
        ("--scheduler", scheduler),
        ("--self-test", self_test),
        ("--restore-hours", restore_hours.is_some()),
        ("--import-json", import_file.is_some()),
    ]
    .into_iter()
    .filter_map(|(flag, given)| given.then_some(flag))
    .collect();
    let is_run = chosen.is_empty() || scheduler;
    let needs_run = |flag: &str, given: bool| match chosen.first() {
        Some(action) if given && !is_run => Err(format!("{flag} does not go with {action}")),
        _ => Ok(()),
    };
    let needs_scheduler = |flag: &str, given: bool| {
        if given && !scheduler {
            return Err(format!("{flag} needs --scheduler"));
        }
        Ok(())
    };

    if let [first, second, ..] = chosen[..] {
        return Err(format!("{first} and {second} cannot be combined"));
    }
    if quiet && verbose {
        return Err("-q and -v cannot be combined".to_owned());
    }
    if scheduler && json {
        return Err("--json and --scheduler cannot be combined: one object per process".to_owned());
    }
    needs_scheduler("--interval", hours.is_some())?;
    needs_scheduler("--interval-minutes", minutes.is_some())?;
    needs_scheduler("--run-immediately", run_immediately)?;
    needs_run("--max-age-days", max_age_days.is_some())?;
    needs_run("--shard", shard.is_some())?;
    needs_run("--max-delete", max_delete.is_some())?;
    needs_run("--metrics-file", metrics_file.is_some())?;
    needs_run("--cleanup-days", cleanup_days.is_some() && !self_test)?;

    let action = if help {
        Action::Help
    } else if version {
        Action::Version
    } else if scheduler {
        let minutes = minutes.unwrap_or_else(|| hours.unwrap_or(6) * 60);
        Action::Schedule { interval: Duration::from_secs(u64::from(minutes) * 60), run_immediately }
    } else if self_test {
        Action::SelfTest
    } else if let Some(hours) = restore_hours {
        Action::Restore { hours }
    } else if let Some(file) = import_file {
        Action::Import { file }
    } else {
        Action::Refresh
    };
    Ok(Args {
        action,
        max_age_days,
        shard: shard.unwrap_or(Shard::WHOLE),
        cleanup_days,
        max_delete: max_delete.unwrap_or(MaxDelete::Default),
        dry_run,
        delay: Duration::from_millis(delay_ms.unwrap_or(1000).into()),
        timeout: Duration::from_secs(timeout_secs.unwrap_or(10).into()),
        retries: retries.unwrap_or(2),
        eid: eid.unwrap_or_else(|| "69844bcf8eaa2449c7a37fae".to_owned()),
        log_file,
        metrics_file,
        json,
        level: match (verbose, quiet) {
            (true, _) => LevelFilter::Debug,
            (_, true) => LevelFilter::Warn,
            _ => LevelFilter::Info,
        },
    })
}

/// `pico_args` with one-line errors that name the flag and never the value.
struct Flags(Arguments);

impl Flags {
    /// The raw value; `pico_args` would take a following flag for it.
    fn raw(&mut self, flag: &'static str) -> Result<Option<String>, String> {
        match self.0.opt_value_from_str::<_, String>(flag) {
            Ok(Some(text)) if text.is_empty() || text.starts_with('-') => {
                Err(format!("{flag} needs a value"))
            }
            Ok(value) => Ok(value),
            Err(_) => Err(format!("{flag} needs a value")),
        }
    }

    fn value<T>(
        &mut self,
        flag: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.raw(flag)? else {
            return Ok(None);
        };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{flag} expects {expected}")),
        }
    }

    fn number(&mut self, flag: &'static str, min: u64, max: u64) -> Result<Option<u32>, String> {
        let expected = format!("a whole number from {min} to {max}");
        self.value(flag, &expected, |text| {
            let number = digits(text)?;
            (min..=max).contains(&number).then(|| u32::try_from(number).ok())?
        })
    }

    fn path(&mut self, flag: &'static str) -> Result<Option<PathBuf>, String> {
        Ok(self.raw(flag)?.map(PathBuf::from))
    }

    fn finish(self) -> Result<(), String> {
        let Some(left) = self.0.finish().into_iter().next() else {
            return Ok(());
        };
        let left = left.to_string_lossy();
        let flag = left.split('=').next().unwrap_or_default();
        let is_flag = flag.len() > 1
            && flag.starts_with('-')
            && flag.len() < 40
            && flag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let known = USAGE.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == flag);
        Err(match (is_flag, known) {
            (true, true) if left.contains('=') => format!("{flag} takes no value, or was repeated"),
            (true, true) => format!("{flag} was given more than once"),
            (true, false) => format!("unknown flag {flag}; see --help"),
            (false, _) => "unexpected argument that is no flag; see --help".to_owned(),
        })
    }
}

/// A number of plain digits: no sign, no blanks.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn parse_shard(text: &str) -> Option<Shard> {
    let (k, n) = text.split_once('/')?;
    let k = u32::try_from(digits(k)?).ok()?;
    let count = u32::try_from(digits(n)?).ok()?;
    (1..=count).contains(&k).then(|| Shard { index: k - 1, count })
}

fn parse_max_delete(text: &str) -> Option<MaxDelete> {
    match text.strip_suffix('%') {
        Some(percent) => {
            usize::try_from(digits(percent)?).ok().filter(|&percent| percent <= 100).map(MaxDelete::Percent)
        }
        None => usize::try_from(digits(text)?).ok().map(MaxDelete::Count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Args, String> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn defaults() {
        let args = parse_line("").expect("no flags are fine");
        let expected = Args {
            action: Action::Refresh,
            max_age_days: None,
            shard: Shard::WHOLE,
            cleanup_days: None,
            max_delete: MaxDelete::Default,
            dry_run: false,
            delay: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            retries: 2,
            eid: "69844bcf8eaa2449c7a37fae".to_owned(),
            log_file: None,
            metrics_file: None,
            json: false,
            level: LevelFilter::Info,
        };
        assert_eq!(args, expected);
    }

    #[test]
    fn every_flag_takes_effect_with_either_separator() {
        let line = "--max-age-days 7 --shard 2/3 --cleanup-days 30 --max-delete 5 --dry-run \
                    --delay-ms 0 --timeout-secs 3 --retries 0 --eid abc --log-file a/b.log \
                    --metrics-file m.prom --json -v";
        let expected = Args {
            action: Action::Refresh,
            max_age_days: Some(7),
            shard: Shard { index: 1, count: 3 },
            cleanup_days: Some(30),
            max_delete: MaxDelete::Count(5),
            dry_run: true,
            delay: Duration::ZERO,
            timeout: Duration::from_secs(3),
            retries: 0,
            eid: "abc".to_owned(),
            log_file: Some(PathBuf::from("a/b.log")),
            metrics_file: Some(PathBuf::from("m.prom")),
            json: true,
            level: LevelFilter::Debug,
        };
        assert_eq!(parse_line(line), Ok(expected.clone()));
        let mut with_equals = String::new();
        for word in line.split_whitespace() {
            with_equals += if word.starts_with('-') { " " } else { "=" };
            with_equals += word;
        }
        assert_eq!(parse_line(&with_equals), Ok(expected));
    }

    #[test]
    fn actions() {
        let schedule = |minutes: u64, run_immediately| Action::Schedule {
            interval: Duration::from_secs(minutes * 60),
            run_immediately,
        };
        let table = [
            ("--scheduler", schedule(360, false)),
            ("--scheduler --interval 2", schedule(120, false)),
            ("--scheduler --interval=2 --interval-minutes=10", schedule(10, false)),
            ("--scheduler --interval-minutes 90 --run-immediately", schedule(90, true)),
            ("--self-test --cleanup-days 7", Action::SelfTest),
            ("--restore-hours 24 --dry-run --json", Action::Restore { hours: 24 }),
            ("--import-json x.json -q", Action::Import { file: "x.json".into() }),
            ("-h", Action::Help),
            ("--version", Action::Version),
        ];
        for (line, action) in table {
            assert_eq!(parse_line(line).map(|args| args.action), Ok(action), "{line}");
        }
    }

    #[test]
    fn bad_lines_name_the_flag_and_never_the_value() {
        let table = [
            ("--dry-rum", "--dry-rum"),
            ("-x", "-x"),
            ("-vq", "-vq"),
            ("--dry-run --dry-run", "--dry-run"),
            ("-v --verbose", "--verbose"),
            ("--max-age-days 1 --max-age-days 2", "--max-age-days"),
            ("--dry-run=yes", "--dry-run"),
            ("--max-age-days", "--max-age-days"),
            ("--max-age-days --dry-run", "--max-age-days"),
            ("--max-age-days=", "--max-age-days"),
            ("--max-age-days 0", "--max-age-days"),
            ("--max-age-days -7", "--max-age-days"),
            ("--max-age-days=-7", "--max-age-days"),
            ("--max-age-days +7", "--max-age-days"),
            ("--max-age-days 7.5", "--max-age-days"),
            ("--max-age-days 0x7", "--max-age-days"),
            ("--max-age-days 99999999999999999999999", "--max-age-days"),
            ("--max-age-days 36501", "--max-age-days"),
            ("--cleanup-days 0", "--cleanup-days"),
            ("--cleanup-days 18446744073709551616", "--cleanup-days"),
            ("--shard 0/2", "--shard"),
            ("--shard 3/2", "--shard"),
            ("--shard 1/0", "--shard"),
            ("--shard 1", "--shard"),
            ("--shard 1/2/3", "--shard"),
            ("--max-delete 101%", "--max-delete"),
            ("--max-delete ten", "--max-delete"),
            ("--max-delete -1", "--max-delete"),
            ("--max-delete %", "--max-delete"),
            ("--restore-hours 0", "--restore-hours"),
            ("--scheduler --interval 0", "--interval"),
            ("--scheduler --interval-minutes 0", "--interval-minutes"),
            ("--interval 6", "--interval"),
            ("--interval-minutes 6", "--interval-minutes"),
            ("--run-immediately", "--run-immediately"),
            ("--delay-ms 1s", "--delay-ms"),
            ("--delay-ms 4294967296", "--delay-ms"),
            ("--timeout-secs 0", "--timeout-secs"),
            ("--retries 101", "--retries"),
            ("--eid=", "--eid"),
            ("--log-file", "--log-file"),
            ("--metrics-file -v", "--metrics-file"),
            ("--self-test --scheduler", "--self-test"),
            ("--restore-hours 1 --import-json x", "--import-json"),
            ("-q -v", "-q"),
            ("--json --scheduler", "--json"),
            ("--self-test --shard 1/2", "--shard"),
            ("--self-test --metrics-file m", "--metrics-file"),
            ("--restore-hours 1 --cleanup-days 3", "--cleanup-days"),
            ("--restore-hours 1 --max-age-days 3", "--max-age-days"),
            ("--import-json x --max-delete 3", "--max-delete"),
            ("--mongodb-uri=mongodb://u:secret@h", "--mongodb-uri"),
            ("mongodb://u:secret@h", "no flag"),
            ("-- --dry-run", "--"),
        ];
        for (line, named) in table {
            let error = parse_line(line).expect_err(line);
            assert!(error.contains(named), "{line}: {error}");
            assert!(!error.contains('\n') && !error.contains("secret"), "{line}: {error}");
        }
    }

    #[test]
    fn the_delete_limit() {
        let table = [
            (MaxDelete::Default, 0, 10),
            (MaxDelete::Default, 50, 10),
            (MaxDelete::Default, 99, 19),
            (MaxDelete::Default, 1000, 200),
            (MaxDelete::Count(0), 1000, 0),
            (MaxDelete::Count(7), 3, 7),
            (MaxDelete::Percent(0), 1000, 0),
            (MaxDelete::Percent(5), 19, 0),
            (MaxDelete::Percent(50), 5, 2),
            (MaxDelete::Percent(100), usize::MAX, usize::MAX),
        ];
        for (max_delete, total, limit) in table {
            assert_eq!(max_delete.limit(total), limit, "{max_delete:?} of {total}");
        }
    }
}
