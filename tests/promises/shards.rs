//! Many machines: the parts of `--shard`. Two runs over the same tokens are a test of `faults`.

use crate::prelude::*;

type Tokens = BTreeSet<String>;

/// Adds tokens with ids of a row (other ids are a unit test of `src/select.rs`), last used so many days ago.
fn add_used(db: &TestDb, n: u32, days: f64) {
    db.add_all((1..=n).map(|n| Seed::new(&unique_token("valid")).set("_id", id(n)).last_used_days_ago(days)));
}

fn run(db: &TestDb, flags: &[&str]) -> (Outcome, Tokens) {
    let api = Stub::always(Reply::valid());
    let outcome = Run::new(db, &api).args(flags).go();
    (outcome, api.recorded().iter().map(|request| request.token().to_owned()).collect())
}

fn part(db: &TestDb, shard: &str) -> Tokens {
    run(db, &["--dry-run", "--shard", shard]).1
}

fn tokens_left(db: &TestDb) -> Tokens {
    let found = db.tokens().distinct("access_token", doc! {}).run().expect("tokens");
    found.iter().filter_map(Bson::as_str).map(str::to_owned).collect()
}

#[test]
fn the_parts_are_disjoint_complete_and_stable() {
    let db = Mongod::shared().fresh_db();
    add_used(&db, 60, 1.0);
    // Belongs to no part by its `_id`, but must not be forgotten.
    db.tokens().insert_one(doc! { "_id": "text" }).run().expect("odd one");
    let all = tokens_left(&db);
    for n in [1, 2, 3, 7] {
        let shards: Vec<String> = (1..=n).map(|k| format!("{k}/{n}")).collect();
        let runs = shards.iter().map(|shard| run(&db, &["--shard", shard]));
        let (outcomes, parts): (Vec<Outcome>, Vec<Tokens>) = runs.unzip();
        assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), all.len(), "{n} parts are disjoint");
        assert_eq!(parts.iter().flatten().cloned().collect::<Tokens>(), all, "{n} parts are complete");
        assert!(parts.iter().all(|part| !part.is_empty()));
        let totals = outcomes.iter().map(|outcome| outcome.stat("总计"));
        assert_eq!(totals.sum::<u64>(), 61, "the odd one is reported once");
        // What a part is does not depend on when it was last used.
        assert_eq!(shards.iter().map(|shard| part(&db, shard)).collect::<Vec<_>>(), parts);
    }
}

#[test]
fn a_part_refreshes_and_cleans_up_only_its_own() {
    let db = Mongod::shared().fresh_db();
    add_used(&db, 30, 1.0);
    let recent = tokens_left(&db);
    db.add_all((0..30).map(|_| Seed::new(&unique_token("expired")).last_used_days_ago(40.0)));
    for shard in ["1/2", "2/2"] {
        let own = part(&db, shard);
        let before = tokens_left(&db);
        let flags =
            ["--max-age-days=7", "--cleanup-days=30", "--max-delete=100%", "--json", "--shard", shard];
        let (outcome, asked) = run(&db, &flags);
        let (refreshed, cleaned): (Tokens, Tokens) =
            own.into_iter().partition(|token| recent.contains(token));
        assert!(!refreshed.is_empty() && !cleaned.is_empty());
        assert_eq!((&asked, &before - &tokens_left(&db)), (&refreshed, cleaned.clone()), "{shard}");
        let json = outcome.expect(0).json();
        assert_eq!((&json["total"], &json["cleaned"]), (&refreshed.len().into(), &cleaned.len().into()));
    }
    assert_eq!(tokens_left(&db), recent);
    db.assert_none_lost();
}

#[test]
fn a_part_counts_its_own_against_the_limit() {
    let db = Mongod::shared().fresh_db();
    add_used(&db, 40, 40.0);
    let (own, all) = (part(&db, "1/2"), tokens_left(&db));
    let condemned = own.clone();
    let api = Stub::start(move |request| {
        let is_invalid = condemned.contains(request.token());
        if is_invalid { Reply::invalid() } else { Reply::valid() }
    });
    let run = |flags: &[&str]| Run::new(&db, &api).arg("--shard=1/2").args(flags).go();
    // All of the part is condemned: more than 60% of it, but less than 60% of the collection.
    let outcome = run(&["--max-delete=60%"]).expect(25);
    assert_eq!(outcome.stat("保留"), own.len() as u64);
    run(&["--max-delete=60%", "--max-age-days=7", "--cleanup-days=30"]).expect(25);
    assert_eq!(tokens_left(&db), all);
    // Enough for the part, not for the collection.
    let outcome = run(&[&format!("--max-delete={}", own.len())]).expect(0);
    assert_eq!((outcome.stat("删除"), tokens_left(&db)), (own.len() as u64, &all - &own));
}
