//! The targets for speed, memory and the load on API and database, each measured beside a floor,
//! the least that the same crates can do, so that a slow or noisy machine slows both.
//!
//! `cargo bench` takes about three minutes, `cargo bench -- --long` three more: it adds a million
//! tokens and the default pace. Names of parts are a filter: `cargo bench -- memory shards`. Exit
//! code 1 when a target is missed.

#[path = "../support/mod.rs"]
mod support;

mod floor;
mod measure;
mod table;

use mongodb::bson::{DateTime, Document, doc};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use std::env;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use measure::{Cost, FLOOR, LAUNCH, Running};
use support::mongod::READS;
use support::{Mongod, Reply, Seed, Stub, TestDb, wall_clock};
use table::{Limit, Table};

/// How often each measurement is made; the median of them counts. The shorter it is, the more it
/// suffers from whatever else the machine does.
const ROUNDS: usize = 5;
const SHORT_ROUNDS: usize = 25;
const SHORTEST_ROUNDS: usize = 101;

const USAGE: &str = "usage: cargo bench [-- [--long] [NAME…]]";

struct Part {
    name: &'static str,
    /// Only with `--long`, or when named.
    long: bool,
    /// Whether program, floor, API and database share one CPU. Only one of them works at a time in a
    /// sequential loop; on several CPUs it is luck how far apart the scheduler puts them, and that
    /// luck is worth more than what is measured.
    one_cpu: bool,
    measure: fn(&Mongod, &mut Table),
}

const PARTS: [Part; 7] = [
    Part { name: "one", long: false, one_cpu: true, measure: one_token },
    Part { name: "thousand", long: false, one_cpu: true, measure: thousand_tokens },
    Part { name: "memory", long: false, one_cpu: false, measure: memory },
    Part { name: "latency", long: false, one_cpu: false, measure: latency },
    Part { name: "shards", long: false, one_cpu: false, measure: shards },
    Part { name: "pace", long: true, one_cpu: false, measure: pace },
    Part { name: "million", long: true, one_cpu: false, measure: million },
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some(LAUNCH) => return measure::launch(&args[1..]),
        Some(FLOOR) => {
            floor::run().expect("the floor's run");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let has = |wanted: &str| args.iter().any(|arg| arg == wanted);
    let is_part = |arg: &String| PARTS.iter().any(|part| part.name == arg);
    // Cargo adds this to a benchmark, but not when it runs one as a test.
    let is_bench = has("--bench");
    if !is_bench || !args.iter().all(|arg| is_part(arg) || arg == "--bench" || arg == "--long") {
        println!("{USAGE}");
        return ExitCode::from(if is_bench { 2 } else { 0 });
    }
    let (start, mut table) = (Instant::now(), Table::new());
    for part in &PARTS {
        let is_default = !args.iter().any(is_part) && (has("--long") || !part.long);
        if is_default || has(part.name) {
            // A thread of its own, because what it starts inherits its CPU.
            thread::scope(|scope| scope.spawn(|| part.run(&mut table)).join().expect("measurement"));
        }
    }
    println!("{} of the targets missed, {} s", table.missed, start.elapsed().as_secs());
    ExitCode::from(u8::from(table.missed > 0))
}

impl Part {
    fn run(&self, table: &mut Table) {
        if self.one_cpu {
            let mut here = CpuSet::new();
            here.set(sched_getcpu().expect("a CPU")).expect("its place in the set");
            sched_setaffinity(Pid::from_raw(0), &here).expect("a CPU of its own");
        }
        (self.measure)(&Mongod::start(), table);
    }
}

fn seeded(server: &Mongod, tokens: u32) -> TestDb {
    let db = server.fresh_db();
    db.add_tokens("valid", tokens);
    db
}

fn all_valid(tokens: u32) -> String {
    format!("成功: {tokens} 个")
}

/// A run of the program without a pause between tokens, all of which are valid.
fn full_run(db: &TestDb, api: &Stub, tokens: u32) -> Cost {
    Running::product(db, api, &["--delay-ms=0"]).end(0, &all_valid(tokens))
}

/// Floor and program in turns, after one turn of each that does not count.
fn in_turns(db: &TestDb, api: &Stub, tokens: u32, rounds: usize) -> Vec<[Cost; 2]> {
    let mut turns = (0..=rounds).map(|_| {
        let before = api.requests();
        let floor = Running::floor(db, api).end(0, "");
        assert_eq!(u32::try_from(api.requests() - before), Ok(tokens), "the floor's requests");
        [floor, full_run(db, api, tokens)]
    });
    turns.next();
    turns.collect()
}

fn ratios(turns: &[[Cost; 2]], of: fn(&Cost) -> f64) -> impl Iterator<Item = f64> {
    turns.iter().map(move |[floor, product]| of(product) / of(floor))
}

fn one_token(server: &Mongod, table: &mut Table) {
    let (db, api) = (seeded(server, 1), Stub::always(Reply::valid()));
    let turns = in_turns(&db, &api, 1, SHORTEST_ROUNDS);
    let over = turns.iter().map(|[floor, product]| (product.wall_secs - floor.wall_secs) * 1000.0);
    table.add("1 token: time, × floor", Limit::AtMost(1.5), ratios(&turns, |cost| cost.wall_secs));
    table.add("1 token: time over the floor, ms", Limit::AtMost(40.0), over);
}

/// The loop, and what it asks of API and database.
fn thousand_tokens(server: &Mongod, table: &mut Table) {
    const TOKENS: u32 = 1000;
    let (db, api) = (seeded(server, TOKENS), Stub::always(Reply::valid()));
    let turns = in_turns(&db, &api, TOKENS, SHORT_ROUNDS);
    let (wall, cpu) = (ratios(&turns, |cost| cost.wall_secs), ratios(&turns, |cost| cost.cpu_secs));
    table.add("1,000 tokens: time, × floor", Limit::AtMost(1.15), wall);
    table.add("1,000 tokens: processor time, × floor", Limit::AtMost(1.3), cpu);
    for (i, who) in ["floor", "program"].into_iter().enumerate() {
        let name = |what| format!("1,000 tokens: {who}, {what}");
        table.add(&name("s"), Limit::None, turns.iter().map(|turn| turn[i].wall_secs));
        table.add(&name("s of processor time"), Limit::None, turns.iter().map(|turn| turn[i].cpu_secs));
    }

    let api = Stub::always(Reply::valid());
    let commands = || [&["update", "findAndModify"][..], &READS].map(|kinds| server.commands(kinds));
    let before = commands();
    full_run(&db, &api, TOKENS);
    let [updates, reads] = commands();
    let n = f64::from(TOKENS);
    for (what, limit, counted) in [
        ("requests to the API", Limit::About(n, 0.0), count(api.requests())),
        ("connections to the API", Limit::About(1.0, 0.0), count(api.connections())),
        ("updates in the database", Limit::About(n, 0.0), count(updates - before[0])),
        ("reads from the database", Limit::AtMost(n / 100.0 + 20.0), count(reads - before[1])),
    ] {
        table.add(&format!("1,000 tokens: {what}"), limit, [counted]);
    }
}

fn count(n: impl TryInto<u32>) -> f64 {
    f64::from(n.try_into().ok().expect("a small number"))
}

fn memory(server: &Mongod, table: &mut Table) {
    let api = Stub::always(Reply::valid());
    let sizes = [("1 token", 1), ("1,000 tokens", 1000), ("10,000 tokens", 10_000)];
    let dbs = sizes.map(|(_, tokens)| (tokens, seeded(server, tokens)));
    let round = |_| dbs.each_ref().map(|(tokens, db)| full_run(db, &api, *tokens).peak_kib);
    let peaks: Vec<[f64; 3]> = (0..ROUNDS).map(round).collect();
    for (i, (tokens, _)) in sizes.into_iter().enumerate() {
        let name = format!("{tokens}: peak memory, KiB");
        table.add(&name, Limit::None, peaks.iter().map(|peaks| peaks[i]));
    }
    let more = peaks.iter().map(|[one, _, many]| (many - one) * 1024.0 / 1e6);
    table.add("10,000 tokens: peak memory more than for 1, MB", Limit::AtMost(1.0), more);
}

/// Runs that wait most of the time, and therefore all at once: each has 100 tokens of its own and
/// an API that takes 200 ms. Gives seconds.
fn slow_runs(server: &Mongod, delay: &[&str]) -> Vec<f64> {
    const TOKENS: u32 = 100;
    let api = Stub::always(Reply::valid().after(Duration::from_millis(200)));
    let dbs: Vec<TestDb> = (0..ROUNDS).map(|_| seeded(server, TOKENS)).collect();
    let running: Vec<Running> = dbs.iter().map(|db| Running::product(db, &api, delay)).collect();
    running.into_iter().map(|run| run.end(0, &all_valid(TOKENS)).wall_secs).collect()
}

/// No pause: the API's latency is all there is.
fn latency(server: &Mongod, table: &mut Table) {
    let secs = slow_runs(server, &["--delay-ms=0"]);
    let what = "100 tokens, API takes 200 ms, no delay: time, × 20 s";
    table.add(what, Limit::AtMost(1.05), secs.into_iter().map(|secs| secs / 20.0));
}

/// The default pace, from start to start, so that latency adds nothing.
fn pace(server: &Mongod, table: &mut Table) {
    let secs = slow_runs(server, &[]);
    table.add("100 tokens, API takes 200 ms, default delay: s", Limit::About(100.0, 2.0), secs);
}

/// Several processes at once. Each count of processes has as many tokens a process, so that a
/// round takes seconds; linear is then the time of one process with its tokens.
fn shards(server: &Mongod, table: &mut Table) {
    /// Many enough for shards of nearly the same size.
    const TOKENS_EACH: u32 = 100;
    let api = Stub::always(Reply::valid().after(Duration::from_millis(50)));
    let processes = [1, 2, 4, 8];
    let dbs = processes.map(|n| (n, seeded(server, n * TOKENS_EACH)));
    let rounds: Vec<Vec<f64>> =
        (0..ROUNDS).map(|_| dbs.iter().map(|(n, db)| sharded(db, &api, *n)).collect()).collect();
    for (i, n) in processes.into_iter().enumerate().skip(1) {
        let what = format!("{n} shards at once, API takes 50 ms: speed, × {n} × 1 process");
        table.add(&what, Limit::AtLeast(0.9), rounds.iter().map(|secs| secs[0] / secs[i]));
    }
}

/// The seconds from the start of the first process to the end of the last.
fn sharded(db: &TestDb, api: &Stub, processes: u32) -> f64 {
    let (start, before) = (Instant::now(), api.requests());
    let part = |k| Running::product(db, api, &["--delay-ms=0", "--shard", &format!("{k}/{processes}")]);
    let running: Vec<Running> = (1..=processes).map(part).collect();
    for run in running {
        run.end(0, "失败: 0 个");
    }
    let secs = start.elapsed().as_secs_f64();
    assert_eq!(u64::try_from(api.requests() - before).ok(), db.tokens().count_documents(doc! {}).run().ok());
    secs
}

const MILLION: u32 = 1_000_000;

/// Memory, and how soon the first token is asked about.
fn million(server: &Mongod, table: &mut Table) {
    let fewer = seeded(server, 10_000);
    let db = server.fresh_db();
    seed_million(&db);
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
    let more = f64::from(MILLION - 10_000);
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

fn seed_million(db: &TestDb) {
    const BATCH: u32 = 10_000;
    /// They were last used over so many days, evenly.
    const DAYS: u32 = 100;
    let card = db.add_card("card");
    let (now, step) = (wall_clock().timestamp_millis(), i64::from(DAYS) * 86_400_000 / i64::from(MILLION));
    for first in (0..MILLION).step_by(BATCH as usize) {
        let batch = (first..first + BATCH).map(|n| {
            // In no order, as in real life: multiplied by a number without a common divisor.
            let place = i64::from(n) * 7919 % i64::from(MILLION);
            let used = DateTime::from_millis(now - place * step);
            Seed::new(&format!("token-{n}")).card(card).set("last_used", used).set("updated_at", used).0
        });
        // Not by the database's own helper, which would remember all of them.
        db.tokens().insert_many(batch.collect::<Vec<Document>>()).run().expect("tokens");
    }
}
