//! A million tokens: memory, and how soon the first of them is asked about.

use mongodb::bson::{DateTime, Document};

use crate::measure::{Cost, Running};
use crate::support::{Mongod, Reply, Seed, Stub, TestDb, wall_clock};
use crate::table::{Limit, Table};
use crate::{ROUNDS, full_run, seeded};

const TOKENS: u32 = 1_000_000;
const BATCH: u32 = 10_000;
/// They were last used over so many days, evenly.
const DAYS: u32 = 100;

pub fn measure(server: &Mongod, table: &mut Table) {
    let fewer = seeded(server, 10_000);
    let db = server.fresh_db();
    seed(&db);
    let (api, down) = (Stub::always(Reply::valid()), Stub::always(Reply::http(503, &[], "")));
    let rounds: Vec<[Cost; 3]> = (0..ROUNDS)
        .map(|_| {
            let base = full_run(&fewer, &api, 10_000);
            let shard = Running::product(&db, &api, &["--delay-ms=0", "--shard=1/1000"]);
            let shard = shard.end(0, "失败: 0 个");
            // All ids are in memory when the run finds that the API is down, after five tokens.
            let whole = Running::product(&db, &down, &["--delay-ms=0", "--retries=0"]);
            [base, shard, whole.end(5, "失败: 6 个")]
        })
        .collect();
    let more = f64::from(TOKENS - 10_000);
    for (which, what) in [(1, "--shard 1/1000"), (2, "all")] {
        let peaks = rounds.iter().map(|round| round[which].peak_kib);
        let bytes = rounds.iter().map(|round| (round[which].peak_kib - round[0].peak_kib) * 1024.0 / more);
        let name = format!("1,000,000 tokens, {what}: bytes a token beyond 10,000");
        table.add(&name, Limit::AtMost(24.0), bytes);
        table.add(&format!("1,000,000 tokens, {what}: peak memory, KiB"), Limit::None, peaks);
    }
    let secs = rounds.iter().map(|round| round[2].wall_secs);
    table.add("1,000,000 tokens: s until the first are checked", Limit::None, secs);
}

fn seed(db: &TestDb) {
    let card = db.add_card("card");
    let (now, step) = (wall_clock().timestamp_millis(), i64::from(DAYS) * 86_400_000 / i64::from(TOKENS));
    for first in (0..TOKENS).step_by(BATCH as usize) {
        let batch = (first..first + BATCH).map(|n| {
            // In no order, as in real life: multiplied by a number without a common divisor.
            let place = i64::from(n) * 7919 % i64::from(TOKENS);
            let used = DateTime::from_millis(now - place * step);
            Seed::new(&format!("token-{n}")).card(card).set("last_used", used).set("updated_at", used).0
        });
        // Not by the database's own helper, which would remember all of them.
        db.tokens().insert_many(batch.collect::<Vec<Document>>()).run().expect("tokens");
    }
}
