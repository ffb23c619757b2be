//! Whole outputs and whole documents, compared with what they must be.

use super::wall_clock;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawBsonRef;
use mongodb::bson::{DateTime, RawDocumentBuf};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// The `n`-th of a row of ids that read well.
pub fn id(n: u32) -> ObjectId {
    ObjectId::parse_str(format!("{n:024}")).expect("24 digits")
}

/// A stored date: `2026-02-12 18:50:05`.
pub fn date(text: &str) -> DateTime {
    DateTime::parse_rfc3339_str(text.replacen(' ', "T", 1) + "Z").expect("a date")
}

/// The text with each time of the last minute, on Shanghai's wall clock, shown as `NOW`.
pub fn timeless(text: &str) -> String {
    const LENGTH: usize = "2026-02-12 18:50:05".len();
    let now = wall_clock().timestamp_millis();
    let is_now = |text: &&str| {
        let date = DateTime::parse_rfc3339_str(text.replacen(' ', "T", 1) + "Z");
        date.is_ok_and(|date| (-1_000..60_000).contains(&(now - date.timestamp_millis())))
    };
    let parts = text.match_indices("20").filter_map(|(start, _)| text.get(start..start + LENGTH));
    let times: BTreeSet<&str> = parts.filter(is_now).collect();
    times.into_iter().fold(text.to_owned(), |text, time| text.replace(time, "NOW"))
}

/// Compares texts of many lines; shows the first line that differs, and all of the actual text.
#[track_caller]
pub fn assert_text(actual: &str, expected: &str) {
    let difference = actual.split('\n').zip(expected.split('\n')).find(|(is, expected)| is != expected);
    let (is, line) = difference.unwrap_or(("", "(one is longer)"));
    assert!(actual == expected, "\nexpected: {line}\nbut it is: {is}\n\n{actual}");
}

/// The document was refreshed just now, and nothing else has changed, neither value nor type nor
/// order. Both dates are one instant; where two runs wrote, the later one stands in `last_used`.
#[track_caller]
pub fn assert_refreshed(before: &RawDocumentBuf, after: &RawDocumentBuf) {
    assert_eq!(undated(before), undated(after));
    let [used, updated] = ["last_used", "updated_at"].map(|name| after.get_datetime(name).expect("a date"));
    let age = wall_clock().timestamp_millis() - updated.timestamp_millis();
    assert!((0..120_000).contains(&age) && used >= updated, "{age} ms: {after:?}");
}

/// All that a refresh leaves as it was.
pub(super) fn undated(document: &RawDocumentBuf) -> Vec<(&str, RawBsonRef<'_>)> {
    let fields = document.iter().map(|field| field.expect("a field"));
    let fields = fields.map(|(name, value)| (name.as_str(), value));
    fields.filter(|(name, _)| *name != "last_used" && *name != "updated_at").collect()
}

/// Holds the document as it was, byte for byte, and nothing but what a restore needs.
#[track_caller]
pub fn assert_bin_entry(entry: &RawDocumentBuf, document: &RawDocumentBuf) {
    let names: Vec<&str> = entry.iter().map(|field| field.expect("a field").0.as_str()).collect();
    assert_eq!(names, ["_id", "token", "reason", "deleted_at"]);
    entry.get_object_id("_id").expect("an ObjectId");
    assert_eq!(entry.get_document("token").expect("a document").as_bytes(), document.as_bytes());
    assert!(!entry.get_str("reason").expect("a text").is_empty());
    let deleted_at = entry.get_datetime("deleted_at").expect("a date").to_system_time();
    let age = SystemTime::now().duration_since(deleted_at);
    assert!(age.expect("the past, in UTC") < Duration::from_secs(120));
}
