//! A million tokens: memory, and what the database does for the queries that depend on their number.

use mongodb::bson::{DateTime, Document, doc};

use crate::measure::{self, Cost, Running};
use crate::support::{Mongod, Reply, Seed, Stub, TestDb, wall_clock, wall_clock_days_ago};
use crate::table::{Limit, Table};
use crate::{ROUNDS, full_run, seeded};

const TOKENS: u32 = 1_000_000;
const BATCH: u32 = 10_000;
/// They were last used over so many days, evenly.
const DAYS: u32 = 100;

/// Adds the targets of a million tokens; prints the explain plans.
pub fn measure(server: &Mongod, table: &mut Table) {
    let fewer = seeded(server, 10_000);
    let db = server.fresh_db();
    seed(&db);
    let (api, down) = (Stub::always(Reply::valid()), Stub::always(Reply::http(503, &[], "")));
    let rounds: Vec<[Cost; 3]> = (0..ROUNDS)
        .map(|_| {
            let base = full_run(&fewer, &api, 10_000);
            let shard = measure::product(&db, &api).args(["--delay-ms=0", "--shard", "1/1000"]);
            // All ids are in memory when the run finds that the API is down, after five tokens.
            let whole = measure::product(&db, &down).args(["--delay-ms=0", "--retries=0"]);
            let shard = Running::start(&shard).end(0, "失败: 0 个");
            [base, shard, Running::start(&whole).end(5, "失败: 6 个")]
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
    explain_all(&db);
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

/// What the server does for the queries whose cost depends on the number of tokens, without and with
/// an index on `last_used`.
fn explain_all(db: &TestDb) {
    let days_ago = |days| wall_clock_days_ago(f64::from(days));
    let queries = [
        ("all tokens", doc! {}),
        ("--max-age-days 7", doc! { "last_used": { "$gte": days_ago(7) } }),
        ("--cleanup-days 90", doc! { "last_used": { "$lt": days_ago(90) } }),
    ];
    println!("| query | index | plan | keys | documents | found | ms |\n|---|---|---|--:|--:|--:|--:|");
    for index in ["_id", "last_used, _id"] {
        for (what, filter) in &queries {
            let find = doc! { "find": "baoming_tokens", "filter": filter, "projection": { "last_used": 1 } };
            let explained = db.db.run_command(doc! { "explain": find, "verbosity": "executionStats" }).run();
            let explained = explained.expect("explain");
            let stats = explained.get_document("executionStats").expect("executionStats");
            let mut stage = stats.get_document("executionStages").expect("stages");
            let mut plan = stage.get_str("stage").expect("a stage").to_owned();
            while let Ok(inner) = stage.get_document("inputStage") {
                stage = inner;
                plan = format!("{plan} < {}", stage.get_str("stage").expect("a stage"));
            }
            let numbers = ["totalKeysExamined", "totalDocsExamined", "nReturned", "executionTimeMillis"];
            let [keys, documents, found, millis] = numbers.map(|name| stats.get_i32(name).expect("a number"));
            println!("| {what} | {index} | {plan} | {keys} | {documents} | {found} | {millis} |");
        }
        let index = doc! { "key": { "last_used": 1, "_id": 1 }, "name": "used" };
        db.db
            .run_command(doc! { "createIndexes": "baoming_tokens", "indexes": [index] })
            .run()
            .expect("index");
    }
}
