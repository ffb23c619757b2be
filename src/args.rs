//! The command line: strict flags, one usage text.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::select::{MaxDelete, Shard, digits};
use crate::text::{escape, presentable};

/// The text of `--help`: the README's list of flags, which the build takes out of it.
pub const USAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/usage.txt"));

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Refresh,
    Schedule { interval: Duration, run_immediately: bool },
    SelfTest,
    Restore { hours: u32 },
    Import { file: PathBuf },
    Help,
    Version,
}

/// The command line, checked; the fields are the flags of the usage text above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    pub action: Action,
    pub max_age_days: Option<u32>,
    pub shard: Shard,
    pub card: Option<String>,
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
    /// The flags that differ from the defaults, as given, safe to show.
    pub changed: String,
}

/// A hundred years: longer is a typing error.
const MAX_DAYS: u32 = 36_500;

/// Checks the command line (without the program's name). An error is one line
/// that names the flag, never its value: it may be a secret in the wrong place.
pub fn parse(args: Vec<OsString>) -> Result<Args, String> {
    let flags = Flags::read(args)?;
    flags.check_combinations()?;
    let days = |flag| flags.number(flag, 1, MAX_DAYS);
    let hours = |flag| flags.number(flag, 1, MAX_DAYS * 24);
    let (interval, restore_hours) = (hours("--interval")?.unwrap_or_default(), hours("--restore-hours")?);
    let minutes = flags.number("--interval-minutes", 1, MAX_DAYS * 24 * 60)?.unwrap_or(interval * 60);
    let [import_file, log_file, metrics_file] =
        ["--import-json", "--log-file", "--metrics-file"].map(|flag| flags.text(flag).map(PathBuf::from));
    let place = |file: &Option<PathBuf>| file.as_deref().and_then(place);
    if place(&log_file).is_some_and(|log| Some(log) == place(&metrics_file)) {
        return Err(cannot_combine("--log-file", "--metrics-file (同一文件, same file)"));
    }
    let is_eid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let eid = |text: &str| (text.len() <= 64 && text.chars().all(is_eid)).then(|| text.to_owned());
    Ok(Args {
        action: match (restore_hours, import_file) {
            _ if flags.has("--help") => Action::Help,
            _ if flags.has("--version") => Action::Version,
            _ if flags.has("--scheduler") => Action::Schedule {
                interval: Duration::from_secs(60 * u64::from(minutes)),
                run_immediately: flags.has("--run-immediately"),
            },
            _ if flags.has("--self-test") => Action::SelfTest,
            (Some(hours), _) => Action::Restore { hours },
            (None, Some(file)) => Action::Import { file },
            (None, None) => Action::Refresh,
        },
        max_age_days: days("--max-age-days")?,
        shard: flags.value("--shard", "K/N, 0 <= K <= N", Shard::parse)?.unwrap_or(Shard::WHOLE),
        card: flags.text("--card").map(str::to_owned),
        cleanup_days: days("--cleanup-days")?,
        max_delete: flags.value("--max-delete", "N | P%", MaxDelete::parse)?.unwrap_or(MaxDelete::Default),
        dry_run: flags.has("--dry-run"),
        delay: Duration::from_millis(flags.number("--delay-ms", 0, 86_400_000)?.unwrap_or_default().into()),
        timeout: Duration::from_secs(flags.number("--timeout-secs", 1, 3_600)?.unwrap_or_default().into()),
        retries: flags.number("--retries", 0, 100)?.unwrap_or_default(),
        eid: flags.value("--eid", "1-64 × A-Z a-z 0-9 _ -", eid)?.unwrap_or_default(),
        log_file,
        metrics_file,
        json: flags.has("--json"),
        level: match (flags.has("--verbose"), flags.has("--quiet")) {
            (true, _) => LevelFilter::Debug,
            (_, true) => LevelFilter::Warn,
            _ => LevelFilter::Info,
        },
        changed: flags.changed(),
    })
}

const NO_RUNS: &[&str] = &["--self-test", "--restore-hours", "--import-json"];
/// Every flag; its default where it takes a value (empty: none); what it does not go with.
const FLAGS: [(&str, Option<&str>, &[&str]); 24] = [
    ("--max-age-days", Some(""), NO_RUNS),
    ("--shard", Some("1/1"), NO_RUNS),
    ("--card", Some(""), &["--cleanup-days", "--scheduler", "--self-test", "--import-json"]),
    ("--cleanup-days", Some(""), &["--restore-hours", "--import-json"]),
    ("--max-delete", Some(""), NO_RUNS),
    ("--dry-run", None, &[]),
    ("--scheduler", None, NO_RUNS),
    ("--interval", Some("6"), &[]),
    ("--interval-minutes", Some(""), &[]),
    ("--run-immediately", None, &[]),
    ("--self-test", None, &["--restore-hours", "--import-json"]),
    ("--restore-hours", Some(""), &["--import-json"]),
    ("--import-json", Some(""), &[]),
    ("--delay-ms", Some("1000"), &[]),
    ("--timeout-secs", Some("10"), &[]),
    ("--retries", Some("2"), &[]),
    ("--eid", Some("69844bcf8eaa2449c7a37fae"), &[]),
    ("--log-file", Some(""), &[]),
    ("--metrics-file", Some(""), NO_RUNS),
    ("--json", None, &["--scheduler"]),
    ("--verbose", None, &[]),
    ("--quiet", None, &["--verbose"]),
    ("--help", None, &[]),
    ("--version", None, &[]),
];

/// The flags as given, each at most once, with their values; empty where a flag takes none.
struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// Not with `pico_args`: it takes flags out of the line one by one, so that
    /// in `--restore-hours --dry-run 24` the 24 would become the hours.
    fn read(args: Vec<OsString>) -> Result<Self, String> {
        let mut given: Vec<(&str, String)> = Vec::new();
        let mut args = args.into_iter().map(|arg| arg.to_string_lossy().into_owned());
        while let Some(arg) = args.next() {
            let (name, value) =
                arg.split_once('=').map_or((&*arg, None), |(name, value)| (name, Some(value)));
            let long = match name {
                "-v" => "--verbose",
                "-q" => "--quiet",
                "-h" => "--help",
                "-V" => "--version",
                name => name,
            };
            let (flag, default, _) =
                FLAGS.iter().find(|(flag, ..)| *flag == long).ok_or_else(|| unknown(name))?;
            if given.iter().any(|(known, _)| known == flag) {
                return Err(format!("{name} 重复给出 (given more than once)"));
            }
            let value = match (default, value) {
                (None, None) => String::new(),
                (None, Some(_)) => return Err(format!("{name} 不带值 (takes no value)")),
                (Some(_), Some(value)) => value.to_owned(),
                // What looks like a flag is one.
                (Some(_), None) => args.next().filter(|value| !value.starts_with('-')).unwrap_or_default(),
            };
            if default.is_some() && value.is_empty() || value.contains('\u{fffd}') {
                return Err(format!("{name} 缺少值，或值不是 UTF-8 (needs a value in UTF-8)"));
            }
            given.push((*flag, value));
        }
        Ok(Self(given))
    }

    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|(given, _)| *given == flag)
    }

    /// The value given, else the default.
    fn text(&self, flag: &str) -> Option<&str> {
        let given = self.0.iter().find(|(given, _)| *given == flag).map(|(_, value)| value.as_str());
        given.or(default(flag)).filter(|value| !value.is_empty())
    }

    fn value<T>(
        &self,
        flag: &str,
        must: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let wrong = || format!("{flag} 的值应为 {must} (expects {must})");
        self.text(flag).map(|text| parse(text).ok_or_else(wrong)).transpose()
    }

    fn number(&self, flag: &str, min: u32, max: u32) -> Result<Option<u32>, String> {
        self.value(flag, &format!("{min}..{max}"), |text| digits(text).filter(|n| (min..=max).contains(n)))
    }

    fn check_combinations(&self) -> Result<(), String> {
        for (flag, _, others) in FLAGS.iter().filter(|(flag, ..)| self.has(flag)) {
            if let Some(other) = others.iter().find(|other| self.has(other)) {
                return Err(cannot_combine(flag, other));
            }
        }
        let scheduling = ["--interval", "--interval-minutes", "--run-immediately"];
        match scheduling.iter().find(|flag| self.has(flag) && !self.has("--scheduler")) {
            Some(flag) => Err(format!("{flag} 只能与 --scheduler 一起使用 (needs --scheduler)")),
            None => Ok(()),
        }
    }

    fn changed(&self) -> String {
        let changed = self.0.iter().filter(|(flag, value)| default(flag) != Some(value));
        let safe = |flag: &str, value: &str| match flag {
            "--card" => presentable(value, None),
            _ => escape(value),
        };
        let shown = changed.map(|(flag, value)| match safe(flag, value) {
            value if value.contains(char::is_whitespace) => format!("{flag} '{value}'"),
            value => format!("{flag} {value}").trim_end().to_owned(),
        });
        shown.collect::<Vec<_>>().join(" ")
    }
}

fn default(flag: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(known, ..)| *known == flag)?.1
}

fn cannot_combine(a: &str, b: &str) -> String {
    format!("{a} 与 {b} 不能同时使用 (cannot be combined)")
}

/// What is no flag of ours is only repeated when it looks like a mistyped one.
fn unknown(name: &str) -> String {
    let word = name.strip_prefix("--").or_else(|| name.strip_prefix('-').filter(|word| word.len() < 3));
    let is_word = |word: &str| {
        (1..30).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    };
    if word.is_some_and(is_word) {
        format!("未知参数 {name} (unknown flag; see --help)")
    } else {
        "有一个参数不是选项，内容不显示 (an argument is no flag; see --help)".to_owned()
    }
}

/// Where a file is or will be, whatever way its path is written; none without its folder.
fn place(path: &Path) -> Option<PathBuf> {
    let path = Path::new(".").join(path);
    let in_folder = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(in_folder)
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
            card: None,
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
            changed: String::new(),
        };
        assert_eq!(args, expected);
    }

    #[test]
    fn every_flag_takes_effect_with_either_separator() {
        let line = "--max-age-days 7 --shard 2/3 --cleanup-days 30 --max-delete 5 --dry-run \
                    --delay-ms 0 --timeout-secs 3 --retries 0 --eid abc --log-file a/b.log \
                    --metrics-file m.prom --json --verbose";
        let expected = Args {
            action: Action::Refresh,
            max_age_days: Some(7),
            shard: Shard { index: 1, count: 3 },
            card: None,
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
            changed: line.split_whitespace().collect::<Vec<_>>().join(" "),
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
            ("--restore-hours 24 --card a", Action::Restore { hours: 24 }),
            ("--import-json x.json -q", Action::Import { file: "x.json".into() }),
            ("--card a --shard 1/1", Action::Refresh),
            ("-h", Action::Help),
            ("--version", Action::Version),
        ];
        for (line, action) in table {
            assert_eq!(parse_line(line).map(|args| args.action), Ok(action), "{line}");
        }
    }

    #[test]
    fn values_stay_as_they_are() {
        for name in ["'a'", "\"a b\"", "-x", "a=b", " 张三 "] {
            let args = parse(vec![format!("--card={name}").into()]).expect(name);
            assert_eq!(args.card.as_deref(), Some(name));
        }
        let changed = |line| parse_line(line).expect(line).changed;
        assert_eq!(changed("-v --retries 2 --shard=1/1 --delay-ms=0"), "--verbose --delay-ms 0");
        let odd = parse(vec!["--card".into(), "a\nb c".into()]).expect("a name");
        assert_eq!(odd.changed, "--card 'a\\nb c'");
        assert_eq!(changed("--card secret-4lphaB3taG4mma"), "--card secr…");
    }

    #[test]
    fn bad_lines_name_the_flag_and_never_the_value() {
        let table = [
            ("--dry-rum", "--dry-rum"),
            ("--crad secret", "--crad"),
            ("-x", "-x"),
            ("-vq", "-vq"),
            ("--dry-run --dry-run", "--dry-run"),
            ("-v --verbose", "--verbose"),
            ("--max-age-days 1 --max-age-days 2", "--max-age-days"),
            ("--dry-run=yes", "--dry-run"),
            ("--dry-run=", "--dry-run"),
            ("--max-age-days", "--max-age-days"),
            ("--max-age-days --dry-run", "--max-age-days"),
            ("--restore-hours --dry-run 24", "--restore-hours"),
            ("--restore-hours -q 24", "--restore-hours"),
            ("--card --dry-run", "--card"),
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
            ("--shard 3/2", "--shard"),
            ("--max-delete 101%", "--max-delete"),
            ("--restore-hours 0", "--restore-hours"),
            ("--help --restore-hours x", "--restore-hours"),
            ("--scheduler --interval 0", "--interval"),
            ("--scheduler --interval-minutes 0", "--interval-minutes"),
            ("--scheduler --interval x --interval-minutes 5", "--interval"),
            ("--interval 6", "--interval"),
            ("--interval-minutes 6", "--interval-minutes"),
            ("--run-immediately", "--run-immediately"),
            ("--delay-ms 1s", "--delay-ms"),
            ("--delay-ms 4294967296", "--delay-ms"),
            ("--timeout-secs 0", "--timeout-secs"),
            ("--retries 101", "--retries"),
            ("--eid=", "--eid"),
            ("--eid a&b", "--eid"),
            ("--eid 12345678901234567890123456789012345678901234567890123456789012345", "--eid"),
            ("--log-file", "--log-file"),
            ("--metrics-file -v", "--metrics-file"),
            ("--log-file x --metrics-file ./x", "--metrics-file"),
            ("--log-file src/../src/x --metrics-file src/x", "--metrics-file"),
            ("--self-test --scheduler", "--self-test"),
            ("--restore-hours 1 --import-json x", "--import-json"),
            ("-q -v", "--quiet"),
            ("--json --scheduler", "--json"),
            ("--self-test --shard 1/2", "--shard"),
            ("--self-test --metrics-file m", "--metrics-file"),
            ("--restore-hours 1 --cleanup-days 3", "--cleanup-days"),
            ("--restore-hours 1 --max-age-days 3", "--max-age-days"),
            ("--import-json x --max-delete 3", "--max-delete"),
            ("--card a --cleanup-days 3", "--card"),
            ("--card a --scheduler", "--card"),
            ("--card a --self-test", "--card"),
            ("--import-json x --card a", "--card"),
            ("--mongodb-uri=mongodb://u:secret@h", "--mongodb-uri"),
            ("mongodb://u:secret@h", "no flag"),
            ("-psecret", "no flag"),
            ("--secret123=x", "no flag"),
            ("-- --dry-run", "no flag"),
        ];
        for (line, named) in table {
            let error = parse_line(line).expect_err(line);
            assert!(error.contains(named), "{line}: {error}");
            assert!(!error.contains('\n') && !error.contains("secret"), "{line}: {error}");
        }
    }

    #[test]
    fn every_flag_is_in_the_usage_text_and_nothing_else() {
        let mut told: Vec<&str> = USAGE.split(|c: char| !c.is_ascii_lowercase() && c != '-').collect();
        told.retain(|word| word.len() > 3 && word.starts_with("--"));
        for (flag, ..) in FLAGS {
            assert!(told.contains(&flag), "{flag}");
        }
        assert!(told.iter().all(|word| FLAGS.iter().any(|(flag, ..)| flag == word)));
    }
}
