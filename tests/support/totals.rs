//! What the tests went through, over all test binaries.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Total {
    Runs,
    /// Replies of the stub that were no proper answer, servers frozen, and the like.
    Faults,
    Kills,
    /// Seeded tokens of which a test made sure that they are still there.
    AtRisk,
    Lost,
    Leaked,
    Commands,
    Requests,
    Walls,
}

/// Adds to a total in the file that `TEST_TOTALS` names, if any, for a sum over all test binaries
/// (nothing found, 0, is worth a line there too).
pub fn count(total: Total, n: usize) {
    let name = match total {
        Total::Runs => "runs",
        Total::Faults => "faults injected",
        Total::Kills => "kills",
        Total::AtRisk => "tokens at risk",
        Total::Lost => "tokens lost",
        Total::Leaked => "secrets leaked",
        Total::Commands => "commands disturbed",
        Total::Requests => "requests disturbed",
        Total::Walls => "walls of silence",
    };
    if let Some(path) = env::var_os("TEST_TOTALS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        // One write, so that lines of several processes do not mix.
        let line = format!("{n} {name}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("TEST_TOTALS can be written");
    }
}
