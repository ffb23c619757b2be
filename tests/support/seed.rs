//! Cards and tokens in the shapes that the desktop application stores, and what became of them.

use super::compare::undated;
use super::{Mongod, Reply, Stub, Total, count};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use mongodb::sync::{Client, Collection, Database};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Now as the application stores it: Shanghai's wall clock as if it were UTC.
pub fn wall_clock() -> DateTime {
    wall_clock_days_ago(0.0)
}

pub fn wall_clock_days_ago(days: f64) -> DateTime {
    let now = SystemTime::now() + DAY / 3; // eight hours ahead of UTC
    DateTime::from_system_time(now - DAY.mul_f64(days))
}

/// An access token that no other test uses. Its first five characters occur in no other text, so
/// that a leak is found by them; what `label` says may be what the stub goes by.
pub fn unique_token(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(100);
    format!("x{:03}Z-{label}-4lphaB3taG4mma", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A document of `baoming_tokens` to be, whole and well-formed until told otherwise.
#[derive(Clone, Debug)]
pub struct Seed(pub Document);

impl Seed {
    /// All fields of the application, in its order; no card yet, last used a day ago.
    pub fn new(access_token: &str) -> Self {
        Self(doc! {
            "_id": ObjectId::new(),
            "card": ObjectId::new(),
            "access_token": access_token,
            "uname": "张三",
            "pic": "https://example.invalid/pic.png",
            "unionid": "o6_bmasdasdsad6_2sgVt7hMZOPf",
            "created_at": wall_clock_days_ago(40.0),
            "updated_at": wall_clock_days_ago(1.0),
            "last_used": wall_clock_days_ago(1.0),
        })
    }

    pub fn card(self, card: ObjectId) -> Self {
        self.set("card", card)
    }

    /// A token of this card, in the shape of old documents.
    pub fn card_dbref(self, card: ObjectId) -> Self {
        self.set("card", doc! { "$ref": "cards", "$id": card })
    }

    pub fn last_used_days_ago(self, days: f64) -> Self {
        let then = wall_clock_days_ago(days);
        self.set("updated_at", then).set("last_used", then)
    }

    /// Any field, any value: null, another type, one that does not belong there.
    pub fn set(mut self, field: &str, value: impl Into<Bson>) -> Self {
        self.0.insert(field, value);
        self
    }

    pub fn without(mut self, field: &str) -> Self {
        self.0.remove(field);
        self
    }
}

/// `n` tokens on the shared server, and an API that calls every token valid.
pub fn valid_tokens(n: u32) -> (TestDb, Stub) {
    let db = Mongod::shared().fresh_db();
    db.add_tokens("valid", n);
    (db, Stub::always(Reply::valid()))
}

/// A database of one test. Dropped with it.
pub struct TestDb {
    pub name: String,
    pub uri: String,
    pub db: Database,
    secrets: Mutex<BTreeSet<String>>,
    seeded: Mutex<Vec<Document>>,
}

impl TestDb {
    /// On the server or set of this client, at this connection string.
    pub(super) fn new(client: &Client, uri: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self {
            db: client.database(&name),
            name,
            uri: uri.to_owned(),
            secrets: Mutex::default(),
            seeded: Mutex::default(),
        }
    }

    pub fn tokens(&self) -> Collection<Document> {
        self.db.collection("baoming_tokens")
    }

    /// `baoming_tokens_deleted`, the recycle bin.
    pub fn bin(&self) -> Collection<Document> {
        self.db.collection("baoming_tokens_deleted")
    }

    pub fn add_card(&self, name: &str) -> ObjectId {
        let id = ObjectId::new();
        self.add_card_as(id, name);
        id
    }

    pub fn add_card_as(&self, id: ObjectId, name: &str) {
        let card = doc! { "_id": id, "name": name, "configs": [{ "keyword": "姓名", "value": name }] };
        self.db.collection("cards").insert_one(card).run().expect("card");
    }

    pub fn add(&self, seed: Seed) -> ObjectId {
        self.add_all([seed])[0]
    }

    pub fn add_all(&self, seeds: impl IntoIterator<Item = Seed>) -> Vec<ObjectId> {
        let documents: Vec<Document> = seeds.into_iter().map(|seed| seed.0).collect();
        self.tokens().insert_many(&documents).run().expect("tokens");
        for token in documents.iter().filter_map(|token| token.get_str("access_token").ok()) {
            // Four characters may show, a fifth may not.
            self.add_secret(&token.chars().take(5).collect::<String>());
        }
        let ids = documents.iter().map(|token| token.get_object_id("_id").expect("an _id")).collect();
        self.seeded.lock().expect("seeded").extend(documents);
        ids
    }

    /// Adds a well-formed token with a card of its own, called as the token's label.
    pub fn add_token(&self, label: &str) -> ObjectId {
        self.add_labelled(&[label])[0]
    }

    /// Adds tokens with a card each, last used a day ago, or as many as a part of the label says
    /// (`valid-41d`), one second after the other.
    pub fn add_labelled(&self, labels: &[&str]) -> Vec<ObjectId> {
        self.add_in_order(labels.iter().map(|label| (*label, self.add_card(label))))
    }

    /// Adds `n` tokens of one card, in the order of a run.
    pub fn add_tokens(&self, label: &str, n: u32) -> Vec<ObjectId> {
        let card = self.add_card(label);
        self.add_in_order((0..n).map(|_| (label, card)))
    }

    fn add_in_order<'a>(&self, tokens: impl Iterator<Item = (&'a str, ObjectId)>) -> Vec<ObjectId> {
        let days = |label: &str| label.split('-').find_map(|part| part.strip_suffix('d')?.parse().ok());
        self.add_all(tokens.zip(0..).map(|((label, card), i)| {
            let first = wall_clock_days_ago(days(label).unwrap_or(1.0)).timestamp_millis();
            let used = DateTime::from_millis(first + i * 1000);
            Seed::new(&unique_token(label)).card(card).set("updated_at", used).set("last_used", used)
        }))
    }

    /// Adds a token with a card of its own, last used so many days ago.
    pub fn add_used(&self, label: &str, days: f64) -> ObjectId {
        self.add(Seed::new(&unique_token(label)).card(self.add_card(label)).last_used_days_ago(days))
    }

    /// Adds an entry to the recycle bin as if it had been deleted so long ago.
    pub fn add_to_bin(&self, token: impl Into<Bson>, reason: &str, hours: f64) {
        let deleted_at = DateTime::from_system_time(SystemTime::now() - DAY.mul_f64(hours / 24.0));
        let entry = doc! { "token": token, "reason": reason, "deleted_at": deleted_at };
        self.bin().insert_one(entry).run().expect("bin entry");
    }

    /// Somebody else will delete this token: it is not lost when it is gone.
    pub fn disown(&self, id: ObjectId) {
        self.seeded.lock().expect("seeded").retain(|token| token.get_object_id("_id").expect("_id") != id);
    }

    pub fn token(&self, id: ObjectId) -> Option<Document> {
        self.tokens().find_one(doc! { "_id": id }).run().expect("token")
    }

    /// What no output may show, besides the access tokens of all added documents.
    pub fn add_secret(&self, secret: &str) {
        self.secrets.lock().expect("secrets").insert(secret.to_owned());
    }

    pub(super) fn secrets(&self) -> Vec<String> {
        self.secrets.lock().expect("secrets").iter().chain([&self.uri]).cloned().collect()
    }

    pub fn snapshot(&self) -> Snapshot {
        let all = |collection| {
            let collection = self.db.collection::<RawDocumentBuf>(collection);
            let found = collection.find(doc! {}).sort(doc! { "_id": 1 }).run();
            found.expect("documents").map(|document| document.expect("document")).collect()
        };
        Snapshot { tokens: all("baoming_tokens"), cards: all("cards"), bin: all("baoming_tokens_deleted") }
    }

    /// The added token documents that are neither still there, with the same `_id`, access token
    /// and all other fields but the two dates of a refresh, nor whole in the bin.
    pub fn lost(&self) -> Vec<Document> {
        let now = self.snapshot();
        let binned = now.binned();
        let there: Vec<_> = now.tokens.iter().chain(&binned).map(undated).collect();
        let mut lost = self.seeded.lock().expect("seeded").clone();
        lost.retain(|token| !there.contains(&undated(&RawDocumentBuf::try_from(token).expect("BSON"))));
        lost
    }

    pub fn assert_none_lost(&self) {
        let lost = self.lost();
        count(Total::AT_RISK, self.seeded.lock().expect("seeded").len());
        count(Total::LOST, lost.len());
        assert!(lost.is_empty(), "{} tokens lost: {lost:#?}", lost.len());
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        // Saves memory and open files of a shared server; a failing test leaves it to be looked at.
        if !thread::panicking() {
            let _ = self.db.drop().run();
        }
    }
}

/// The documents of a database at one moment, each collection in the order of `_id`.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub tokens: Vec<RawDocumentBuf>,
    pub cards: Vec<RawDocumentBuf>,
    pub bin: Vec<RawDocumentBuf>,
}

impl Snapshot {
    /// The tokens that the bin holds.
    pub fn binned(&self) -> Vec<RawDocumentBuf> {
        self.bin.iter().filter_map(|entry| Some(entry.get_document("token").ok()?.to_owned())).collect()
    }
}
