//! What a run did and how it ended: the counts, the reasons of failures, the
//! gravest cause to stop, and what follows for exit code, JSON and metrics. Pure.

use std::collections::HashMap;

use serde::Serialize;

/// Every token of the run is counted exactly once, so that `total` is the sum
/// of the next six; `cleaned` stands apart. The one list of the counts: the
/// JSON has these names, the metrics too, and [`LABELS`] their words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Tokens of the run.
    pub total: usize,
    /// Valid, `last_used` moved.
    pub success: usize,
    /// Kept, nothing known about them.
    pub failed: usize,
    /// Invalid, moved to the recycle bin.
    pub deleted: usize,
    /// Changed by somebody else meanwhile, left alone.
    pub skipped: usize,
    /// Invalid, but held back by the delete limit or an early stop.
    pub withheld: usize,
    /// Not reached before an early stop.
    pub unprocessed: usize,
    /// Long-unused tokens that the cleanup moved to the recycle bin.
    pub cleaned: usize,
}

/// The counts of the statistics, and whether a line stands there also for 0.
const LABELS: [(&str, bool); 7] = [
    ("📝 总计", true),
    ("✅ 成功", true),
    ("❌ 失败", true),
    ("🗑️ 删除", true),
    ("⏭️ 跳过", false),
    ("🛑 保留", false),
    ("⏸️ 未处理", false),
];

impl Counts {
    /// Name and value of each count, in the order of the fields.
    fn list(&self) -> [(&'static str, usize); 8] {
        [
            ("total", self.total),
            ("success", self.success),
            ("failed", self.failed),
            ("deleted", self.deleted),
            ("skipped", self.skipped),
            ("withheld", self.withheld),
            ("unprocessed", self.unprocessed),
            ("cleaned", self.cleaned),
        ]
    }
}

/// Why a run did not simply end, from the least grave. Nothing is deleted any
/// more once there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The API does not answer.
    ApiUnreachable,
    /// The delete limit held a step back.
    DeleteLimit,
    /// Something else could not be done: a file cannot be read, a check did not pass.
    Broken,
    /// The database cannot be reached, refuses, takes no writes or was lost; clocks apart.
    Database,
    /// This signal came.
    Signal(u8),
}

/// How many reasons are kept apart; the rest is one.
const MAX_REASONS: usize = 20;
const OTHER_REASONS: &str = "其他";
/// How many reasons are shown.
const SHOWN_REASONS: usize = 3;

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many tokens had which fate.
    pub counts: Counts,
    /// The gravest cause to stop.
    pub stop: Option<Stop>,
    /// Whether a deletion of the cleanup failed.
    pub cleanup_failed: bool,
    /// Whether any token was valid, whatever became of it.
    pub any_valid: bool,
    /// Whether any token was condemned, whatever became of it.
    pub any_invalid: bool,
    reasons: HashMap<String, usize>,
}

impl Summary {
    /// A run that ended for this cause before its first token.
    pub fn stopped_by(stop: Stop) -> Self {
        Self { stop: Some(stop), ..Self::default() }
    }

    /// Notes a cause to stop; a graver one stays.
    pub fn raise(&mut self, stop: Stop) {
        self.stop = self.stop.max(Some(stop));
    }

    /// Notes a signal that left some of the total undone.
    pub fn raise_if_unfinished(&mut self, signal: u8) {
        self.close();
        if self.counts.unprocessed > 0 {
            self.raise(Stop::Signal(signal));
        }
    }

    /// Counts a failed token; the reason is safe to show.
    pub fn fail(&mut self, reason: &str) {
        self.counts.failed += 1;
        let known = self.reasons.len() < MAX_REASONS || self.reasons.contains_key(reason);
        *self.reasons.entry(if known { reason } else { OTHER_REASONS }.to_owned()).or_default() += 1;
    }

    /// Counts as unprocessed what has no other count yet.
    pub fn close(&mut self) {
        let Counts { total, success, failed, deleted, skipped, withheld, .. } = self.counts;
        self.counts.unprocessed = total.saturating_sub(success + failed + deleted + skipped + withheld);
    }

    /// The commonest reasons of failure with their numbers, the commonest first.
    fn commonest(&self) -> Vec<(&str, usize)> {
        let mut reasons: Vec<_> =
            self.reasons.iter().map(|(reason, &count)| (reason.as_str(), count)).collect();
        reasons.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b)));
        reasons.truncate(SHOWN_REASONS);
        reasons
    }

    /// The commonest reason of failure.
    pub fn failure_reason(&self) -> Option<&str> {
        self.commonest().first().map(|&(reason, _)| reason)
    }

    /// Whether something failed and nothing was valid or condemned.
    pub fn nothing_worked(&self) -> bool {
        self.counts.failed > 0 && !self.any_valid && !self.any_invalid
    }

    /// The lines of the statistics.
    pub fn lines(&self) -> Vec<String> {
        let counts = self.counts.list().into_iter().zip(LABELS);
        let mut lines: Vec<String> = counts
            .filter(|((_, count), (_, is_always))| *count > 0 || *is_always)
            .map(|((_, count), (label, _))| format!("  {label}: {count} 个"))
            .collect();
        // After 失败, 删除 and 跳过, which the reasons explain.
        let place =
            lines.iter().position(|line| line.contains("🛑") || line.contains("⏸️")).unwrap_or(lines.len());
        let reasons =
            self.commonest().into_iter().map(|(reason, count)| format!("  ❗ 原因: {reason} × {count}"));
        lines.splice(place..place, reasons);
        lines
    }

    /// The exit code: when several reasons apply, the gravest.
    pub fn exit_code(&self) -> u8 {
        match self.stop {
            Some(Stop::Signal(number)) => 128 + number,
            Some(Stop::Database | Stop::Broken) => 1,
            Some(Stop::DeleteLimit) => 25,
            Some(Stop::ApiUnreachable) => 5,
            None if self.counts.failed > 0 || self.cleanup_failed => 3,
            None => 0,
        }
    }

    /// The `stopped` field of the JSON object.
    pub fn stopped(&self) -> Option<&'static str> {
        match self.stop? {
            Stop::Signal(_) => Some("signal"),
            Stop::Database => Some("database"),
            Stop::Broken => None,
            Stop::DeleteLimit => Some("delete_limit"),
            Stop::ApiUnreachable => Some("api_unreachable"),
        }
    }

    /// The metrics in Prometheus' text format; times in seconds.
    pub fn metrics(&self, schedule: &str, ended: i64, last_success: f64, duration: f64) -> String {
        let schedule = schedule.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let head = |name: &str, help: &str| format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        let mut text = head("baoming_refresh_tokens", "Tokens of the last run by result.");
        for (result, count) in &self.counts.list()[1..] {
            let labels = format!("result=\"{result}\",schedule=\"{schedule}\"");
            text.extend(["baoming_refresh_tokens{", &labels, "} ", &count.to_string(), "\n"]);
        }
        for (name, help, value) in [
            (
                "baoming_refresh_last_completion_timestamp_seconds",
                "Unix time at which the last run ended.",
                ended.to_string(),
            ),
            (
                LAST_SUCCESS,
                "Unix time at which the last run with exit code 0 ended; 0 = never.",
                last_success.to_string(),
            ),
            (
                "baoming_refresh_duration_seconds",
                "Duration of the last run in seconds.",
                duration.to_string(),
            ),
            ("baoming_refresh_exit_code", "Exit code of the last run.", self.exit_code().to_string()),
        ] {
            text += &(head(name, help) + &format!("{name}{{schedule=\"{schedule}\"}} {value}\n"));
        }
        text
    }
}

const LAST_SUCCESS: &str = "baoming_refresh_last_success_timestamp_seconds";

/// The last success that a metrics file tells of, whatever its labels, other
/// bytes and number format; 0 when there is none.
pub fn last_success(metrics: &[u8]) -> f64 {
    let text = String::from_utf8_lossy(metrics);
    let value = |line: &str| -> Option<f64> {
        let rest = line.trim_start().strip_prefix(LAST_SUCCESS)?;
        let value = match rest.trim_start().strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(char::is_whitespace)?,
        };
        value.split_whitespace().next()?.parse().ok().filter(|at: &f64| at.is_finite() && *at > 0.0)
    };
    text.lines().filter_map(value).fold(0.0, f64::max)
}

/// One finished run as the JSON object of `--json` tells it.
#[derive(Serialize)]
pub struct Report<'a> {
    version: &'static str,
    database: &'a str,
    started_at: String,
    duration_seconds: f64,
    #[serde(flatten)]
    counts: &'a Counts,
    failure_reason: Option<&'a str>,
    dry_run: bool,
    stopped: Option<&'static str>,
    exit_code: u8,
}

impl<'a> Report<'a> {
    /// Of a run that began at `started_at` (RFC 3339).
    pub fn new(
        summary: &'a Summary,
        database: &'a str,
        started_at: String,
        seconds: f64,
        dry_run: bool,
    ) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            database,
            started_at,
            duration_seconds: seconds,
            counts: &summary.counts,
            failure_reason: summary.failure_reason(),
            dry_run,
            stopped: summary.stopped(),
            exit_code: summary.exit_code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_gravest_cause_decides() {
        let mut summary = Summary::default();
        assert_eq!((summary.exit_code(), summary.stopped()), (0, None));
        summary.fail("HTTP 404");
        assert_eq!((summary.exit_code(), summary.stopped()), (3, None));
        let table = [
            (Stop::ApiUnreachable, 5, Some("api_unreachable")),
            (Stop::DeleteLimit, 25, Some("delete_limit")),
            (Stop::Broken, 1, None),
            (Stop::Database, 1, Some("database")),
            (Stop::Signal(2), 130, Some("signal")),
            (Stop::Signal(15), 143, Some("signal")),
        ];
        for (stop, code, stopped) in table {
            summary.raise(stop);
            summary.raise(Stop::ApiUnreachable);
            assert_eq!((summary.exit_code(), summary.stopped()), (code, stopped), "{stop:?}");
        }
        let uncleaned = Summary { cleanup_failed: true, ..Summary::default() };
        assert_eq!(uncleaned.exit_code(), 3);
    }

    #[test]
    fn the_three_commonest_of_twenty_reasons_are_told() {
        let mut summary = Summary::default();
        for (reason, times) in [("b", 8), ("a", 2), ("c", 5)] {
            (0..times).for_each(|_| summary.fail(reason));
        }
        (0..30).for_each(|n| summary.fail(&format!("reason {n}")));
        summary.counts.total = 50;
        summary.close();
        assert_eq!(summary.failure_reason(), Some("其他"));
        assert_eq!(
            summary.lines(),
            [
                "  📝 总计: 50 个",
                "  ✅ 成功: 0 个",
                "  ❌ 失败: 45 个",
                "  🗑️ 删除: 0 个",
                "  ❗ 原因: 其他 × 13",
                "  ❗ 原因: b × 8",
                "  ❗ 原因: c × 5",
                "  ⏸️ 未处理: 5 个",
            ]
        );
        assert!(summary.nothing_worked());
        summary.any_invalid = true;
        assert!(!summary.nothing_worked());
    }

    #[test]
    fn the_json_has_its_fields_in_their_order() {
        let mut summary = Summary::stopped_by(Stop::ApiUnreachable);
        summary.counts = Counts { total: 2, ..Counts::default() };
        summary.fail("HTTP 500");
        summary.close();
        let report = Report::new(&summary, "db", "2026-02-12T18:50:13+08:00".to_owned(), 0.5, false);
        let expected = format!(
            r#"{{"version":"{}","database":"db","started_at":"2026-02-12T18:50:13+08:00","duration_seconds":0.5,"total":2,"success":0,"failed":1,"deleted":0,"skipped":0,"withheld":0,"unprocessed":1,"cleaned":0,"failure_reason":"HTTP 500","dry_run":false,"stopped":"api_unreachable","exit_code":5}}"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(serde_json::to_string(&report).expect("JSON"), expected);
    }

    #[test]
    fn the_counts_have_the_same_names_everywhere() {
        let json = serde_json::to_value(Counts::default()).expect("JSON");
        let metrics = Summary::default().metrics("a\"b\\c", 1, 0.0, 0.0);
        for (name, _) in Counts::default().list() {
            assert!(json.get(name).is_some(), "{name}");
            let sample = format!("baoming_refresh_tokens{{result=\"{name}\",schedule=\"a\\\"b\\\\c\"}} 0\n");
            assert_eq!(metrics.contains(&sample), name != "total", "{name}");
        }
    }

    #[test]
    fn the_last_success_survives_any_file() {
        let name = LAST_SUCCESS;
        let table = [
            (format!("{name} 1770000000\n"), 1_770_000_000.0),
            (format!("{name}{{schedule=\"a}}b\"}} 1.77e9 1770000001000\n"), 1_770_000_000.0),
            (format!("# HELP {name} 5\n{name}{{}}\t1770000000.5\r\n"), 1_770_000_000.5),
            (format!("{name}{{a=\"b\"}} NaN\n{name} +Inf\n"), 0.0),
            (format!("{name}_other 7\n"), 0.0),
            (String::new(), 0.0),
        ];
        for (text, expected) in table {
            let mut bytes = b"\xff\xfe broken\n".to_vec();
            bytes.extend(text.as_bytes());
            assert!((last_success(&bytes) - expected).abs() < 0.1, "{text}");
        }
        let own = Summary::default().metrics("active", 7, 1_770_000_000.0, 0.1);
        assert!((last_success(own.as_bytes()) - 1_770_000_000.0).abs() < 0.1);
    }

    proptest! {
        #[test]
        fn the_total_is_the_sum_of_the_counts(counts in prop::array::uniform5(0..1000_usize), rest in 0..1000_usize) {
            let [success, failed, deleted, skipped, withheld] = counts;
            let total = counts.iter().sum::<usize>() + rest;
            let counts = Counts { total, success, failed, deleted, skipped, withheld, ..Counts::default() };
            let mut summary = Summary { counts, ..Summary::default() };
            summary.close();
            prop_assert_eq!(summary.counts.unprocessed, rest);
            prop_assert_eq!(summary.exit_code(), if failed > 0 { 3 } else { 0 });
        }
    }
}
