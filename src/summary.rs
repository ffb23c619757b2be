//! The counts of a run, and the exit code that follows from them.

/// What one run did. Every token of the run is counted exactly once, so that
/// `total` is the sum of the six other token counts; `cleaned` stands apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
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
    /// Long-unused tokens that the cleanup could not move.
    pub cleanup_failed: usize,
    /// SIGINT or SIGTERM ended the run.
    pub signal: Option<u8>,
    /// The database could not be reached, refused or was lost.
    pub database_lost: bool,
    /// Something else could not be done: a file cannot be read, a check did not pass.
    pub broken: bool,
    /// The delete limit held a deletion back.
    pub limit_reached: bool,
    /// The API could not be reached for several tokens in a row.
    pub api_unreachable: bool,
}

impl Summary {
    /// A run that never had a database.
    pub fn without_database() -> Self {
        Self { database_lost: true, ..Self::default() }
    }

    /// A run that could not be done for another reason.
    pub fn broken() -> Self {
        Self { broken: true, ..Self::default() }
    }

    /// Whether the run ended before its last token, so that nothing may be deleted.
    pub fn stopped_early(&self) -> bool {
        self.signal.is_some() || self.database_lost || self.api_unreachable
    }

    /// Counts as unprocessed what has no other count yet.
    pub fn close(&mut self) {
        let counted = self.success + self.failed + self.deleted + self.skipped + self.withheld;
        self.unprocessed = self.total.saturating_sub(counted);
    }

    /// The exit code: when several reasons apply, the gravest.
    pub fn exit_code(&self) -> u8 {
        if let Some(signal) = self.signal {
            128 + signal
        } else if self.database_lost || self.broken {
            1
        } else if self.limit_reached {
            25
        } else if self.api_unreachable {
            5
        } else if self.failed + self.cleanup_failed > 0 {
            3
        } else {
            0
        }
    }

    /// The `stopped` field of the JSON line: the gravest reason, too.
    pub fn stopped(&self) -> Option<&'static str> {
        if self.signal.is_some() {
            Some("signal")
        } else if self.database_lost {
            Some("database")
        } else if self.limit_reached {
            Some("delete_limit")
        } else if self.api_unreachable {
            Some("api_unreachable")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_gravest_reason_decides() {
        let failed = Summary { total: 1, failed: 1, ..Summary::default() };
        let unreachable = Summary { api_unreachable: true, ..failed.clone() };
        let held_back = Summary { limit_reached: true, ..unreachable.clone() };
        let lost = Summary { database_lost: true, ..held_back.clone() };
        let stopped = Summary { signal: Some(15), ..lost.clone() };
        let uncleaned = Summary { cleanup_failed: 1, ..Summary::default() };
        let table = [
            (Summary::default(), 0, None),
            (failed, 3, None),
            (uncleaned, 3, None),
            (unreachable, 5, Some("api_unreachable")),
            (held_back, 25, Some("delete_limit")),
            (lost, 1, Some("database")),
            (Summary::broken(), 1, None),
            (stopped, 143, Some("signal")),
        ];
        for (summary, code, stopped) in table {
            assert_eq!(summary.exit_code(), code, "{summary:?}");
            assert_eq!(summary.stopped(), stopped, "{summary:?}");
        }
    }

    proptest! {
        #[test]
        fn the_total_is_the_sum_of_the_counts(counts in prop::array::uniform5(0..1000_usize), rest in 0..1000_usize) {
            let [success, failed, deleted, skipped, withheld] = counts;
            let total = counts.iter().sum::<usize>() + rest;
            let mut summary = Summary { total, success, failed, deleted, skipped, withheld, ..Summary::default() };
            summary.close();
            prop_assert_eq!(summary.unprocessed, rest);
            prop_assert_eq!(summary.exit_code(), if failed > 0 { 3 } else { 0 });
        }
    }
}
