//! Many machines: the parts of `--shard`. Two runs over the same tokens are a test of `faults`.

use crate::support::{Mongod, Reply, Run, Seed, Stub, TestDb, unique_token};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, doc};
use std::collections::BTreeSet;

/// Adds tokens that were last used so many days ago, written by as many applications.
fn add_used(db: &TestDb, label: &str, n: u32, days: f64) {
    let writers = 5;
    db.add_all((0..n).map(|i| {
        // Time, writer, counter: what an `_id` is made of.
        let id =
            format!("{:08x}{:010x}{:06x}", 1_700_000_000 + i, 0xbeef_0123 * u64::from(i % writers + 1), i);
        let seed = Seed::new(&unique_token(label)).set("_id", ObjectId::parse_str(id).expect("24 digits"));
        seed.last_used_days_ago(days)
    }));
}

/// The tokens that a run asked about.
fn asked(api: &Stub) -> BTreeSet<String> {
    api.recorded().iter().map(|request| request.token().to_owned()).collect()
}

/// The tokens of a part, by a dry run.
fn part(db: &TestDb, shard: &str) -> BTreeSet<String> {
    let api = Stub::always(Reply::valid());
    let outcome = Run::new(db, &api).args(["--dry-run", "--shard", shard]).go();
    let asked = asked(&api);
    assert_eq!(outcome.stat("成功"), asked.len() as u64, "{shard}");
    asked
}

#[test]
fn the_parts_are_disjoint_complete_and_stable() {
    let db = Mongod::shared().fresh_db();
    add_used(&db, "valid", 60, 1.0);
    // Belongs to no part by its `_id`, but must not be forgotten.
    db.tokens().insert_one(doc! { "_id": "text" }).run().expect("odd one");
    let all = part(&db, "1/1");
    assert_eq!(all.len(), 60);
    for n in [2, 3, 7] {
        let shards: Vec<String> = (1..=n).map(|k| format!("{k}/{n}")).collect();
        let parts: Vec<BTreeSet<String>> = shards.iter().map(|shard| part(&db, shard)).collect();
        assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), all.len(), "{n} parts are disjoint");
        let together: BTreeSet<String> = parts.iter().flatten().cloned().collect();
        assert_eq!(together, all, "{n} parts are complete");
        assert!(parts.iter().all(|part| !part.is_empty()));

        let api = Stub::always(Reply::valid());
        let runs = shards.iter().map(|shard| Run::new(&db, &api).arg(format!("--shard={shard}")).go());
        let totals: u64 = runs.map(|outcome| outcome.stat("总计")).sum();
        assert_eq!(totals, 61, "{n}: the odd one is reported once");
        // What a part is does not depend on when it was last used.
        let again: Vec<BTreeSet<String>> = shards.iter().map(|shard| part(&db, shard)).collect();
        assert_eq!(again, parts);
    }
}

fn tokens_left(db: &TestDb) -> BTreeSet<String> {
    let found = db.tokens().distinct("access_token", doc! {}).run().expect("tokens");
    found.iter().filter_map(Bson::as_str).map(str::to_owned).collect()
}

#[test]
fn a_part_refreshes_and_cleans_up_only_its_own() {
    let db = Mongod::shared().fresh_db();
    add_used(&db, "recent", 30, 1.0);
    let recent = part(&db, "1/1");
    let expired: Vec<Seed> =
        (0..30).map(|_| Seed::new(&unique_token("expired")).last_used_days_ago(40.0)).collect();
    db.add_all(expired);
    let all = part(&db, "1/1");
    for shard in ["1/2", "2/2"] {
        let own = part(&db, shard);
        let before = tokens_left(&db);
        let api = Stub::always(Reply::valid());
        let flags = ["--max-age-days=7", "--cleanup-days=30", "--max-delete=100%", "--shard", shard];
        let json = Run::new(&db, &api).args(flags).arg("--json").go().expect(0).json();
        let (refreshed, cleaned): (BTreeSet<String>, BTreeSet<String>) =
            own.into_iter().partition(|token| recent.contains(token));
        assert!(!refreshed.is_empty() && !cleaned.is_empty());
        assert_eq!(asked(&api), refreshed, "{shard}");
        assert_eq!(&before - &tokens_left(&db), cleaned, "{shard}");
        let counts = [refreshed.len() as u64, cleaned.len() as u64];
        assert_eq!([&json["total"], &json["cleaned"]].map(serde_json::Value::as_u64), counts.map(Some));
    }
    assert_eq!((tokens_left(&db), all.len()), (recent, 60));
    db.assert_none_lost();
}

#[test]
fn a_part_counts_its_own_against_the_limit() {
    let db = Mongod::shared().fresh_db();
    add_used(&db, "valid", 40, 40.0);
    let own = part(&db, "1/2");
    let (n, all) = (own.len(), tokens_left(&db));
    let condemned = own.clone();
    let api =
        Stub::start(
            move |request| {
                if condemned.contains(request.token()) { Reply::invalid() } else { Reply::valid() }
            },
        );
    // All of the part is condemned: more than 60% of it, but less than 60% of the collection.
    let verdicts = ["--max-delete=60%", "--shard=1/2"];
    let outcome = Run::new(&db, &api).args(verdicts).go().expect(25);
    assert_eq!((outcome.stat("保留"), tokens_left(&db)), (n as u64, all.clone()));
    let cleanup = ["--max-age-days=7", "--cleanup-days=30"];
    Run::new(&db, &api).args(cleanup).args(verdicts).go().expect(25);
    assert_eq!(tokens_left(&db), all);
    // Enough for the part, not for the collection.
    let enough = [format!("--max-delete={n}"), "--shard=1/2".to_owned()];
    let outcome = Run::new(&db, &api).args(enough).go().expect(0);
    assert_eq!((outcome.stat("删除"), tokens_left(&db)), (n as u64, &all - &own));
}
