//! What the tests went through, over all test binaries.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

/// What is counted, by the name that it has in the sums.
pub struct Total(&'static str);

impl Total {
    pub const RUNS: Self = Self("runs");
    /// Replies of the stub that were no proper answer, servers frozen, and the like.
    pub const FAULTS: Self = Self("faults injected");
    pub const KILLS: Self = Self("kills");
    /// Seeded tokens of which a test made sure that they are still there.
    pub const AT_RISK: Self = Self("tokens at risk");
    pub const LOST: Self = Self("tokens lost");
    pub const LEAKED: Self = Self("secrets leaked");
    pub const COMMANDS: Self = Self("commands disturbed");
    pub const REQUESTS: Self = Self("requests disturbed");
    pub const WALLS: Self = Self("walls of silence");
}

/// Adds to a total in the file that `TEST_TOTALS` names, if any, for a sum over all test binaries
/// (nothing found, 0, is worth a line there too).
pub fn count(Total(name): Total, n: usize) {
    if let Some(path) = env::var_os("TEST_TOTALS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        // One write, so that lines of several processes do not mix.
        let line = format!("{n} {name}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("TEST_TOTALS can be written");
    }
}
