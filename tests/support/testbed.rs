//! One run of the program with a real database and a stub of the API, both on loopback and gone
//! afterwards, and what it did to the database; then what was deleted is put back.

#[path = "mod.rs"]
mod support;

use mongodb::bson::{Document, doc};
use std::process::ExitCode;
use support::{Mongod, Run, Seed, Stub, TestDb, unique_token};

/// One token of each kind: the card's name (none: the card is gone), the label that the stub goes
/// by, days since it was last used, what that is in words, and what should become of it.
const KINDS: [(Option<&str>, &str, f64, &str, &str); 6] = [
    (Some("张三 1班"), "valid", 0.5, "valid", REFRESHED),
    (Some("李四"), "never_enrolled", 3.0, "valid, never enrolled", REFRESHED),
    (Some("王五 (旧手机)"), "invalid", 20.0, "invalid access_token", BINNED),
    (Some("赵六"), "busy", 1.0, "busy, try again later", KEPT),
    (None, "valid", 9.0, "valid; its card is gone", REFRESHED),
    (Some("孙七"), "valid", 2.0, "valid", REFRESHED),
];
const REFRESHED: &str = "refreshed";
const KEPT: &str = "kept as it was";
const BINNED: &str = "in the recycle bin";

fn main() -> ExitCode {
    let (mongod, api) = (Mongod::start(), Stub::by_label());
    let db = mongod.fresh_db();
    let seeded = KINDS.map(|(card, label, days, ..)| {
        let token = Seed::new(&unique_token(label)).set("uname", "。").last_used_days_ago(days);
        card.map_or(token.clone(), |name| token.card(db.add_card(name)))
    });
    db.add_all(seeded.clone());
    let (host, address) = (mongod.host(), api.address());
    println!("A MongoDB on {host}, the enroll API's stub on {address}; both go away with this demo.");

    let mut is_expected = run(&db, &api, &["--delay-ms", "300"], 3);
    println!("\nWhat that did to the database (at most 4 characters of a token; Shanghai time):\n");
    for (Seed(before), (card, _, _, says, expected)) in seeded.iter().zip(KINDS) {
        let (now, became) = fate(&db, before);
        let token = &before.get_str("access_token").expect("access_token")[..4];
        println!("  {token}, {}: the API says {says}", card.unwrap_or("(no card)"));
        println!("      last used {}, now {now}: {became}", last_used(before));
        is_expected &= became == expected;
    }

    println!("\nWhat was deleted can be put back:");
    is_expected &= run(&db, &api, &["--restore-hours", "1"], 0);
    let (bin, lost) = (db.snapshot().bin.len(), db.lost().len());
    println!("\nNow in the recycle bin: {bin}; lost: {lost}.");
    is_expected &= (bin, lost) == (0, 0);
    println!("{}", if is_expected { "All as expected." } else { "NOT as expected." });
    ExitCode::from(u8::from(!is_expected))
}

/// Runs the program before the eyes of whoever looks on; whether it exits with `code`.
fn run(db: &TestDb, api: &Stub, args: &[&str], code: i32) -> bool {
    println!("\n$ refresh_baoming_tokens {}", args.join(" "));
    let exit = Run::new(db, api).no_args().args(args).command().status().expect("the program, built");
    println!("({exit}; 0: done, 3: done, but some tokens failed)");
    exit.code() == Some(code)
}

/// When a token was last used, if it is still there, and what became of it.
fn fate(db: &TestDb, before: &Document) -> (String, &'static str) {
    let id = before.get_object_id("_id").expect("_id");
    let is_binned = || db.bin().count_documents(doc! { "token": before }).run().expect("bin") == 1;
    match db.token(id) {
        None => ("-".to_owned(), if is_binned() { BINNED } else { "LOST" }),
        Some(after) => (last_used(&after), if after == *before { KEPT } else { REFRESHED }),
    }
}

fn last_used(token: &Document) -> String {
    // Stored as the wall clock as if it were UTC, so that this is the wall clock.
    let date = token.get_datetime("last_used").expect("last_used");
    date.try_to_rfc3339_string().expect("a date of our days")[..19].replace('T', " ")
}
