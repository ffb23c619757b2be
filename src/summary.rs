//! What a run did and how it ended: the counts, the reasons of failures, the
//! gravest cause to stop, and what follows for exit code, JSON and metrics. Pure.

use std::collections::HashMap;

use serde::Serialize;

/// Every token of the run is counted exactly once, so that `total` is the sum
/// of the next six; `cleaned` stands apart. The JSON and the metrics have these names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
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

impl Counts {
    /// Name, word of the statistics and value of each count.
    fn list(&self) -> [(&'static str, &'static str, usize); 8] {
        [
            ("total", "📝 总计", self.total),
            ("success", "✅ 成功", self.success),
            ("failed", "❌ 失败", self.failed),
            ("deleted", "🗑️ 删除", self.deleted),
            ("skipped", "⏭️ 跳过", self.skipped),
            ("withheld", "🛑 保留", self.withheld),
            ("unprocessed", "⏸️ 未处理", self.unprocessed),
            ("cleaned", "", self.cleaned),
        ]
    }
}

/// Why a run did not simply end, from the least grave. Nothing is deleted any
/// more once there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    ApiUnreachable,
    DeleteLimit,
    /// Something else could not be done: a file cannot be read, a check did not pass.
    Broken,
    /// The database cannot be reached, refuses, takes no writes or was lost; clocks apart.
    Database,
    Signal(u8),
}

/// How many reasons are kept apart; the rest is one.
const MAX_REASONS: usize = 20;
const OTHER_REASONS: &str = "其他";
const SHOWN_REASONS: usize = 3;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// What the statistics are of; nothing when no verb ran.
    title: &'static str,
    pub counts: Counts,
    /// The gravest cause to stop.
    pub stop: Option<Stop>,
    /// Whether a deletion of the cleanup failed.
    pub cleanup_failed: bool,
    /// Whether any token was valid, whatever became of it.
    pub any_valid: bool,
    reasons: HashMap<String, usize>,
}

impl Summary {
    /// Of a verb that now begins.
    pub fn of(title: &'static str) -> Self {
        Self { title, ..Self::default() }
    }

    /// A run that ended for this cause before its first token.
    pub fn stopped_by(stop: Stop) -> Self {
        Self { stop: Some(stop), ..Self::default() }
    }

    /// Notes a cause to stop; a graver one stays.
    pub fn raise(&mut self, stop: Stop) {
        self.stop = self.stop.max(Some(stop));
    }

    /// Notes that the database is out of order, or that a signal ended the waiting for it.
    pub fn lose_database(&mut self, signal: Option<u8>) {
        self.stop = self.stop.max(Some(Stop::Database)).max(signal.map(Stop::Signal));
    }

    /// Closes a verb that a signal stops only if some of the total was left undone.
    pub fn close_after(&mut self, signal: Option<u8>) {
        self.close();
        if self.counts.unprocessed > 0 {
            self.stop = self.stop.max(signal.map(Stop::Signal));
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

    /// The reasons of failure with their numbers, the commonest first.
    fn commonest(&self) -> Vec<(&String, &usize)> {
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b)));
        reasons
    }

    pub fn failure_reason(&self) -> Option<&str> {
        self.commonest().first().map(|(reason, _)| reason.as_str())
    }

    /// The lines of the statistics: four counts always, the others unless 0.
    pub fn lines(&self) -> Vec<String> {
        if self.title.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![format!("📊 {}统计:", self.title)];
        for (index, (name, label, count)) in self.counts.list().into_iter().take(7).enumerate() {
            if name == "withheld" {
                // After 失败, 删除 and 跳过, which the reasons explain.
                let reasons = self.commonest().into_iter().take(SHOWN_REASONS);
                lines.extend(reasons.map(|(reason, count)| format!("  ❗ 原因: {reason} × {count}")));
            }
            if index < 4 || count > 0 {
                lines.push(format!("  {label}: {count} 个"));
            }
        }
        lines
    }

    /// Exit code and the JSON's `stopped`: when several causes apply, the gravest.
    fn ending(&self) -> (u8, Option<&'static str>) {
        match self.stop {
            Some(Stop::Signal(number)) => (128 + number, Some("signal")),
            Some(Stop::Database) => (1, Some("database")),
            Some(Stop::Broken) => (1, None),
            Some(Stop::DeleteLimit) => (25, Some("delete_limit")),
            Some(Stop::ApiUnreachable) => (5, Some("api_unreachable")),
            None if self.counts.failed > 0 || self.cleanup_failed => (3, None),
            None => (0, None),
        }
    }

    pub fn exit_code(&self) -> u8 {
        self.ending().0
    }

    /// The metrics in Prometheus' text format; times in seconds.
    pub fn metrics(&self, schedule: &str, ended: i64, last_success: f64, duration: f64) -> String {
        let schedule = schedule.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let head = |name: &str, help: &str| format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        let mut text = head(TOKENS, "Tokens of the last run by result.");
        text.extend(self.counts.list()[1..].iter().map(|(result, _, count)| {
            format!("{TOKENS}{{result=\"{result}\",schedule=\"{schedule}\"}} {count}\n")
        }));
        let others = [
            (LAST_COMPLETION, "Unix time at which the last run ended.", ended.to_string()),
            (
                LAST_SUCCESS,
                "Unix time of the last run with exit code 0; 0 = never.",
                last_success.to_string(),
            ),
            (DURATION, "Duration of the last run in seconds.", duration.to_string()),
            (EXIT_CODE, "Exit code of the last run.", self.exit_code().to_string()),
        ];
        text.extend(others.map(|(name, help, value)| {
            head(name, help) + &format!("{name}{{schedule=\"{schedule}\"}} {value}\n")
        }));
        text
    }

    /// The JSON object, of a run that began at `started_at` (RFC 3339).
    pub fn json(&self, database: &str, started_at: &str, duration_seconds: f64, dry_run: bool) -> String {
        #[derive(Serialize)]
        struct Report<'a> {
            version: &'a str,
            database: &'a str,
            started_at: &'a str,
            duration_seconds: f64,
            #[serde(flatten)]
            counts: &'a Counts,
            failure_reason: Option<&'a str>,
            dry_run: bool,
            stopped: Option<&'a str>,
            exit_code: u8,
        }
        let (exit_code, stopped) = self.ending();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            database,
            started_at,
            duration_seconds,
            counts: &self.counts,
            failure_reason: self.failure_reason(),
            dry_run,
            stopped,
            exit_code,
        };
        serde_json::to_string(&report).unwrap_or_default()
    }
}

const TOKENS: &str = "baoming_refresh_tokens";
const LAST_COMPLETION: &str = "baoming_refresh_last_completion_timestamp_seconds";
const LAST_SUCCESS: &str = "baoming_refresh_last_success_timestamp_seconds";
const DURATION: &str = "baoming_refresh_duration_seconds";
const EXIT_CODE: &str = "baoming_refresh_exit_code";

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_gravest_cause_decides() {
        let mut summary = Summary::default();
        assert_eq!(summary.ending(), (0, None));
        summary.fail("HTTP 404");
        assert_eq!(summary.ending(), (3, None));
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
            assert_eq!(summary.ending(), (code, stopped), "{stop:?}");
        }
        let uncleaned = Summary { cleanup_failed: true, ..Summary::default() };
        assert_eq!(uncleaned.exit_code(), 3);
    }

    #[test]
    fn the_three_commonest_of_twenty_reasons_are_told() {
        let mut summary = Summary::of("刷新");
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
                "📊 刷新统计:",
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
    }

    #[test]
    fn the_json_has_its_fields_in_their_order() {
        let mut summary = Summary::stopped_by(Stop::ApiUnreachable);
        summary.counts = Counts { total: 2, ..Counts::default() };
        summary.fail("HTTP 500");
        summary.close();
        let json = summary.json("db", "2026-02-12T18:50:13+08:00", 0.5, false);
        let expected = format!(
            r#"{{"version":"{}","database":"db","started_at":"2026-02-12T18:50:13+08:00","duration_seconds":0.5,"total":2,"success":0,"failed":1,"deleted":0,"skipped":0,"withheld":0,"unprocessed":1,"cleaned":0,"failure_reason":"HTTP 500","dry_run":false,"stopped":"api_unreachable","exit_code":5}}"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn the_counts_have_the_same_names_everywhere() {
        let json = serde_json::to_value(Counts::default()).expect("JSON");
        let metrics = Summary::default().metrics("a\"b\\c", 1, 0.0, 0.0);
        for (name, ..) in Counts::default().list() {
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
