//! One run of the program with a real database and a stub of the API, both on loopback and gone
//! afterwards, and what it did to the database; then what was deleted is put back.

#[path = "mod.rs"]
mod support;

use mongodb::bson::{Document, doc};
use std::array;
use std::process::ExitCode;
use support::{Mongod, Run, Seed, Stub, TestDb, unique_token};

/// One token of each kind: the card's name (none: the card is gone), the label that the stub goes
/// by, days since it was last used, what the program should make of it, and what that is in words.
const KINDS: [(Option<&str>, &str, f64, Fate, &str); 6] = [
    (Some("张三 1班"), "valid", 0.5, Fate::Refreshed, "valid"),
    (Some("李四"), "never_enrolled", 3.0, Fate::Refreshed, "valid, never enrolled"),
    (Some("王五 (旧手机)"), "invalid", 20.0, Fate::Binned, "invalid access_token"),
    (Some("赵六"), "busy", 1.0, Fate::Kept, "busy, try again later"),
    (None, "valid", 9.0, Fate::Refreshed, "valid; its card is gone"),
    (Some("孙七"), "valid", 2.0, Fate::Refreshed, "valid"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// `last_used` was set to now.
    Refreshed,
    /// Untouched.
    Kept,
    /// Moved to the recycle bin.
    Binned,
    /// In neither collection, or changed in any other way.
    Lost,
}

fn main() -> ExitCode {
    let (mongod, api) = (Mongod::start(), Stub::by_label());
    let db = mongod.fresh_db();
    let seeded = seed(&db);
    println!(
        "A MongoDB on {}, the enroll API's stub on {}; both go away with this demo.",
        mongod.host(),
        api.address()
    );

    let code = run(&db, &api, &["--delay-ms", "300"]);
    let fates = seeded.iter().map(|token| fate(&db, token)).collect::<Vec<_>>();
    println!("\nWhat that did to the database (at most 4 characters of a token; Shanghai time):\n");
    print_table(&db, &seeded, &fates);
    let first_ok =
        code == Some(3) && fates.iter().zip(KINDS).all(|(fate, (.., expected, _))| *fate == expected);

    println!("\nWhat was deleted can be put back:");
    let code = run(&db, &api, &["--restore-hours", "1"]);
    let bin = db.bin().count_documents(doc! {}).run().expect("count");
    println!("\nNow in the recycle bin: {bin}; lost: {}.", db.lost().len());
    let restored = code == Some(0) && bin == 0 && db.lost().is_empty();

    println!("{}", if first_ok && restored { "All as expected." } else { "NOT as expected." });
    ExitCode::from(u8::from(!(first_ok && restored)))
}

/// Runs the program before the eyes of whoever looks on; gives its exit code.
fn run(db: &TestDb, api: &Stub, args: &[&str]) -> Option<i32> {
    println!("\n$ refresh_baoming_tokens {}", args.join(" "));
    let run = Run::new(db, api).no_args().args(args);
    let code = run.command().status().expect("the program, built").code();
    let meaning = match code {
        Some(0) => "done",
        Some(3) => "done, but some tokens failed",
        _ => "unexpected",
    };
    println!("(exit code {}: {meaning})", code.unwrap_or(-1));
    code
}

/// What became of a token document.
fn fate(db: &TestDb, before: &Document) -> Fate {
    let id = before.get_object_id("_id").expect("_id");
    let binned = db.bin().find_one(doc! { "token._id": id }).run().expect("bin");
    let binned = binned.is_some_and(|entry| entry.get_document("token").ok() == Some(before));
    match db.token(id) {
        None if binned => Fate::Binned,
        Some(after) if after == *before => Fate::Kept,
        Some(after) if last_used(&after) > last_used(before) => Fate::Refreshed,
        _ => Fate::Lost,
    }
}

fn last_used(token: &Document) -> String {
    // Stored as the wall clock as if it were UTC, so that this is the wall clock.
    let date = token.get_datetime("last_used").expect("last_used");
    let text = date.try_to_rfc3339_string().expect("a date of our days");
    text[..19].replace('T', " ")
}

fn print_table(db: &TestDb, seeded: &[Document], fates: &[Fate]) {
    let head = ["card", "token", "the API says", "last_used before", "last_used after", "now"];
    let mut rows = vec![head.map(str::to_owned)];
    for ((before, fate), (card, .., says)) in seeded.iter().zip(fates).zip(KINDS) {
        let id = before.get_object_id("_id").expect("_id");
        let after = db.token(id).map_or("-".to_owned(), |after| last_used(&after));
        let now = match fate {
            Fate::Refreshed => "refreshed",
            Fate::Kept => "kept as it was",
            Fate::Binned => "in the recycle bin",
            Fate::Lost => "LOST",
        };
        let token = before.get_str("access_token").expect("access_token");
        let cells = [card.unwrap_or("(gone)"), &token[..4], says, &last_used(before), &after, now];
        rows.push(cells.map(str::to_owned));
    }
    let widths: [usize; 6] = array::from_fn(|i| rows.iter().map(|row| width(&row[i])).max().unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, wide)| cell.clone() + &" ".repeat(wide - width(cell)));
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Columns of a terminal; Chinese characters take two.
fn width(text: &str) -> usize {
    text.chars().map(|c| if c >= '\u{1100}' { 2 } else { 1 }).sum()
}

/// Seeds a token of each of [`KINDS`], in that order.
fn seed(db: &TestDb) -> Vec<Document> {
    let seeds = KINDS.map(|(card, label, days, ..)| {
        let token = Seed::new(&unique_token(label)).set("uname", "。").last_used_days_ago(days);
        match card {
            Some(name) => token.card(db.add_card(name)),
            None => token,
        }
    });
    db.add_all(seeds.clone());
    seeds.map(|seed| seed.0).into()
}
