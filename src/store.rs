//! MongoDB: the one place that names collections and fields.
//!
//! The two collections of the desktop application are only ever changed by
//! setting `last_used` and `updated_at` and by deleting whole documents, each
//! guarded by the value that the decision was made on.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use mongodb::bson::{Bson, DateTime, Document, doc, rawdoc};
use mongodb::options::{
    Acknowledgment, ClientOptions, CollectionOptions, ReadPreference, SelectionCriteria, WriteConcern,
};
use mongodb::sync::{Client, Collection};

use crate::clock::WallTime;
use crate::db_error::{DUPLICATE_KEY, DbError, Result, retry};
use crate::secret::{AccessToken, MongoUri};
use crate::shard::Shard;

const TOKENS: &str = "baoming_tokens";
const CARDS: &str = "cards";
const BIN: &str = "baoming_tokens_deleted";

/// How many tokens are read at once: fresh enough, and few queries.
pub const CHUNK: usize = 200;

const SELECTION_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the recycle bin may wait for a majority of a replica set.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(10);
const BIN_DAYS: u64 = 30;
/// Ids in one reply of the server: few enough for the memory, many enough for few replies.
const ID_BATCH: u32 = 2_000;

/// A token's place in the order of the run: 20 bytes, however many there are.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))] // without padding
pub struct Entry {
    /// The document's `_id`.
    pub id: ObjectId,
    /// `last_used` in milliseconds; the smallest number when it is no date.
    last_used: i64,
}

impl Entry {
    /// When the token was last used, if that is known.
    pub fn last_used(&self) -> Option<WallTime> {
        (self.last_used != i64::MIN).then_some(WallTime(self.last_used))
    }

    /// What a cleanup is decided on: that nobody has used the token since it was read.
    pub fn guard(&self) -> Guard {
        Guard(doc! { "_id": self.id, "last_used": DateTime::from_millis(self.last_used) })
    }
}

/// The tokens of a run, least recently used first.
#[derive(Debug, Default)]
pub struct Entries {
    /// Those that can be checked.
    pub list: Vec<Entry>,
    /// Documents whose `_id` is no `ObjectId`: the application makes none such.
    pub odd: usize,
}

/// What the run needs to know of a token. Whatever is missing or of another
/// type in the document is `None`.
pub struct Token {
    /// The document's `_id`.
    pub id: ObjectId,
    /// The secret to check.
    pub access_token: Option<AccessToken>,
    /// `uname`.
    pub user: Option<String>,
    /// `last_used` as it is, of whatever type.
    last_used: Bson,
    /// `card`, or the id within it where it is a `DBRef`.
    pub card_id: Option<ObjectId>,
    /// The card's `name`, when there is such a card.
    pub card_name: Option<String>,
}

impl Token {
    /// When it was last used, if that is known.
    pub fn last_used(&self) -> Option<WallTime> {
        match self.last_used {
            Bson::DateTime(at) => Some(WallTime(at.timestamp_millis())),
            _ => None,
        }
    }

    /// What a deletion by verdict is decided on: the token that the API called
    /// invalid, and that nobody has used it since it was read.
    pub fn guard(&self) -> Guard {
        let token = self.access_token.as_ref().map(AccessToken::expose);
        Guard(doc! { "_id": self.id, "access_token": token, "last_used": { "$eq": &self.last_used } })
    }
}

/// What must still hold when a token is deleted. No `Debug`: it holds the secret.
pub struct Guard(Document);

/// Why a token was not put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It was put back.
    Yes,
    /// A document with its `_id` exists.
    SameIdExists,
    /// Its card has a token again.
    CardHasToken,
}

/// An entry of the recycle bin.
pub struct BinEntry {
    id: ObjectId,
    token_id: ObjectId,
    token: RawDocumentBuf,
}

impl BinEntry {
    /// The deleted token's card.
    pub fn card_id(&self) -> Option<ObjectId> {
        card_id(&self.token)
    }
}

/// The fields of a token that is imported.
pub struct NewToken {
    /// The card it belongs to.
    pub card_id: ObjectId,
    /// The secret.
    pub access_token: AccessToken,
    /// `uname`.
    pub user: String,
    /// `pic`.
    pub picture: String,
    /// `unionid`.
    pub union_id: String,
    /// `created_at`.
    pub created_at: WallTime,
    /// `updated_at` and `last_used`.
    pub now: WallTime,
}

/// The database.
pub struct Store {
    tokens: Collection<RawDocumentBuf>,
    cards: Collection<RawDocumentBuf>,
    bin: Collection<RawDocumentBuf>,
}

impl Store {
    /// Connects and reads once: a ping would succeed without logging in.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the account; not tried again.
    pub fn connect(uri: &MongoUri, database: &str) -> Result<Self> {
        let mut options = ClientOptions::parse(uri.expose()).run()?;
        options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
        options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
        // Decisions are made on the primary's data, whatever the URI prefers.
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let database = Client::with_options(options)?.database(database);
        // A bin entry must survive whatever its deletion survives.
        let majority = CollectionOptions::builder()
            .write_concern(
                WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_TIMEOUT).build(),
            )
            .build();
        let store = Self {
            tokens: database.collection(TOKENS),
            cards: database.collection(CARDS),
            bin: database.collection_with_options(BIN, majority),
        };
        store.tokens.find_one(doc! {}).projection(doc! { "_id": 1 }).run()?;
        Ok(store)
    }

    /// The tokens of a shard, least recently used first; with `used_since`
    /// only those used then or later. Sorted here: the server would need an
    /// index or all documents in memory.
    pub fn entries(&self, used_since: Option<WallTime>, shard: Shard) -> Result<Entries> {
        let filter = match used_since {
            Some(at) => doc! { "last_used": { "$gte": DateTime::from_millis(at.0) } },
            None => doc! {},
        };
        let mut entries = retry(|_| {
            let mut entries = Entries::default();
            let mut cursor = self
                .tokens
                .find(filter.clone())
                .projection(doc! { "_id": 1, "last_used": 1 })
                .batch_size(ID_BATCH)
                .run()?;
            while cursor.advance()? {
                let raw = cursor.current();
                match raw.get_object_id("_id") {
                    Ok(id) if shard.contains(id.bytes()) => entries
                        .list
                        .push(Entry { id, last_used: date(raw, "last_used").map_or(i64::MIN, |at| at.0) }),
                    Ok(_) => {}
                    // No shard is meant for these, so the first one reports them.
                    Err(_) => entries.odd += usize::from(shard.index == 0),
                }
            }
            Ok(entries)
        })?;
        entries.list.sort_unstable_by_key(|entry| (entry.last_used, entry.id));
        Ok(entries)
    }

    /// The present state of some tokens with the names of their cards. Tokens
    /// that no longer exist are missing from the answer.
    pub fn tokens(&self, entries: &[Entry]) -> Result<HashMap<ObjectId, Token>> {
        let ids: Vec<ObjectId> = entries.iter().map(|entry| entry.id).collect();
        let found = find(
            &self.tokens,
            &doc! { "_id": { "$in": ids } },
            &doc! { "access_token": 1, "uname": 1, "last_used": 1, "card": 1 },
        )?;
        let tokens = self.with_card_names(&found)?;
        Ok(tokens.into_iter().map(|token| (token.id, token)).collect())
    }

    /// How many tokens there are, and the three most recently updated.
    pub fn newest(&self) -> Result<(u64, Vec<Token>)> {
        let count = retry(|_| self.tokens.count_documents(doc! {}).run())?;
        let found: Vec<_> = retry(|_| {
            let newest = self.tokens.find(doc! {}).sort(doc! { "updated_at": -1 });
            newest.limit(3).run()?.collect()
        })?;
        Ok((count, self.with_card_names(&found)?))
    }

    /// Sets `last_used` and `updated_at`, unless somebody changed or used the
    /// token since it was read. Returns whether it was set.
    pub fn mark_used(&self, token: &Token, now: WallTime) -> Result<bool> {
        let now = DateTime::from_millis(now.0);
        let Guard(mut filter) = token.guard();
        let result = retry(|attempt| {
            if attempt > 1 {
                // An earlier try may have got through, only its answer did not.
                filter.insert("last_used", doc! { "$in": [&token.last_used, now] });
            }
            let change = doc! { "$set": { "last_used": now, "updated_at": now } };
            self.tokens.update_one(filter.clone(), change).run()
        })?;
        Ok(result.matched_count == 1)
    }

    /// Moves a token to the recycle bin, unless what the guard says has changed.
    /// Returns whether it was moved.
    pub fn recycle(&self, id: ObjectId, Guard(filter): &Guard, reason: &str) -> Result<bool> {
        let Some(token) = retry(|_| self.tokens.find_one(filter.clone()).run())? else {
            return Ok(false);
        };
        // The copy must be the document as it is deleted.
        let mut filter = filter.clone();
        filter.insert("updated_at", doc! { "$eq": field(&token, "updated_at") });
        // The id is made here, so that a second try does not write a second entry.
        let entry_id = ObjectId::new();
        let entry = rawdoc! {
            "_id": entry_id,
            "token": token,
            "reason": reason,
            "deleted_at": DateTime::now(),
        };
        insert(&self.bin, &entry)?;
        let mut tries = 0;
        let deleted = retry(|attempt| {
            tries = attempt;
            self.tokens.delete_one(filter.clone()).run()
        });
        let refusal = match deleted {
            Ok(result) if result.deleted_count == 1 => return Ok(true),
            // Whether the token is gone is not known: the entry stays.
            Err(error @ DbError::Lost(_)) => return Err(error),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let is_gone = retry(|_| self.tokens.find_one(doc! { "_id": id }).run())?.is_none();
        if is_gone && (tries > 1 || refusal.is_some()) {
            // Our deletion, although its answer was lost or an error.
            return Ok(true);
        }
        // Changed or deleted by somebody else, or refused: the entry must go.
        retry(|_| self.bin.delete_one(doc! { "_id": entry_id }).run())?;
        refusal.map_or(Ok(false), Err)
    }

    /// Deletes the entries of the recycle bin that are older than 30 days.
    /// Returns how many.
    pub fn purge_bin(&self) -> Result<u64> {
        let filter = doc! { "deleted_at": { "$lt": hours_ago(BIN_DAYS * 24) } };
        Ok(retry(|_| self.bin.delete_many(filter.clone()).run())?.deleted_count)
    }

    /// The ids of what the recycle bin took in the last hours, newest first.
    pub fn bin_entries(&self, hours: u32) -> Result<Vec<ObjectId>> {
        let found = find(
            &self.bin,
            &doc! { "deleted_at": { "$gte": hours_ago(hours.into()) } },
            &doc! { "deleted_at": 1 },
        )?;
        let mut ids: Vec<_> = found
            .iter()
            .filter_map(|raw| Some((date(raw, "deleted_at")?, raw.get_object_id("_id").ok()?)))
            .collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids.into_iter().map(|(_, id)| id).collect())
    }

    /// One entry of the recycle bin; `None` when it is gone or holds no token.
    pub fn bin_entry(&self, id: ObjectId) -> Result<Option<BinEntry>> {
        let raw = retry(|_| self.bin.find_one(doc! { "_id": id }).run())?;
        Ok(raw.and_then(|raw| {
            let token = raw.get_document("token").ok()?.to_owned();
            let token_id = token.get_object_id("_id").ok()?;
            Some(BinEntry { id, token_id, token })
        }))
    }

    /// Puts a deleted token back as it was, unless its `_id` exists or its
    /// card has a token again. Never overwrites.
    pub fn restore(&self, entry: &BinEntry, dry_run: bool) -> Result<Restored> {
        let same_id = doc! { "_id": entry.token_id };
        if retry(|_| self.tokens.find_one(same_id.clone()).run())?.is_some() {
            return Ok(Restored::SameIdExists);
        }
        if let Some(card_id) = entry.card_id()
            && self.card_has_token(card_id)?
        {
            return Ok(Restored::CardHasToken);
        }
        if !dry_run {
            match insert(&self.tokens, &entry.token) {
                // Somebody else was faster.
                Err(DbError::Other(DUPLICATE_KEY)) => return Ok(Restored::SameIdExists),
                other => other?,
            }
            retry(|_| self.bin.delete_one(doc! { "_id": entry.id }).run())?;
        }
        Ok(Restored::Yes)
    }

    /// Adds an imported token; never changes one.
    pub fn add(&self, token: &NewToken) -> Result<()> {
        let now = DateTime::from_millis(token.now.0);
        let document = rawdoc! {
            "_id": ObjectId::new(),
            "card": token.card_id,
            "access_token": token.access_token.expose(),
            "uname": token.user.as_str(),
            "pic": token.picture.as_str(),
            "unionid": token.union_id.as_str(),
            "created_at": DateTime::from_millis(token.created_at.0),
            "updated_at": now,
            "last_used": now,
        };
        insert(&self.tokens, &document)
    }

    /// Whether a card has a token.
    pub fn card_has_token(&self, card_id: ObjectId) -> Result<bool> {
        // Old documents hold a DBRef.
        let filter = doc! { "$or": [{ "card": card_id }, { "card.$id": card_id }] };
        Ok(retry(|_| self.tokens.find_one(filter.clone()).run())?.is_some())
    }

    /// The names of some cards. Cards that do not exist are missing from the answer.
    pub fn card_names(&self, ids: impl Iterator<Item = ObjectId>) -> Result<HashMap<ObjectId, String>> {
        let ids: Vec<ObjectId> = ids.collect();
        let mut names = HashMap::with_capacity(ids.len());
        if ids.is_empty() {
            return Ok(names);
        }
        let found = find(&self.cards, &doc! { "_id": { "$in": ids } }, &doc! { "name": 1 })?;
        for raw in found {
            if let Ok(id) = raw.get_object_id("_id") {
                let name = raw.get_str("name").unwrap_or("未命名名片");
                names.insert(id, name.to_owned());
            }
        }
        Ok(names)
    }

    fn with_card_names(&self, found: &[RawDocumentBuf]) -> Result<Vec<Token>> {
        let mut tokens: Vec<Token> = found.iter().filter_map(|raw| token_from(raw)).collect();
        let names = self.card_names(tokens.iter().filter_map(|token| token.card_id))?;
        for token in &mut tokens {
            token.card_name = token.card_id.and_then(|id| names.get(&id).cloned());
        }
        Ok(tokens)
    }
}

fn find(
    collection: &Collection<RawDocumentBuf>,
    filter: &Document,
    projection: &Document,
) -> Result<Vec<RawDocumentBuf>> {
    retry(|_| collection.find(filter.clone()).projection(projection.clone()).run()?.collect())
}

/// Inserts a document that has its `_id` already.
fn insert(collection: &Collection<RawDocumentBuf>, document: &RawDocumentBuf) -> Result<()> {
    let mut tries = 0;
    let inserted = retry(|attempt| {
        tries = attempt;
        collection.insert_one(document).run()
    });
    match inserted {
        // An earlier try got through, only its answer did not.
        Err(DbError::Other(DUPLICATE_KEY)) if tries > 1 => Ok(()),
        other => other.map(drop),
    }
}

fn token_from(raw: &RawDocument) -> Option<Token> {
    Some(Token {
        id: raw.get_object_id("_id").ok()?,
        access_token: raw.get_str("access_token").ok().and_then(AccessToken::new),
        user: raw.get_str("uname").ok().map(str::to_owned),
        last_used: field(raw, "last_used"),
        card_id: card_id(raw),
        card_name: None,
    })
}

/// A field of whatever type; null when it is missing.
fn field(raw: &RawDocument, name: &str) -> Bson {
    raw.get(name).ok().flatten().and_then(|value| value.try_into().ok()).unwrap_or(Bson::Null)
}

fn date(raw: &RawDocument, field: &str) -> Option<WallTime> {
    let at = raw.get_datetime(field).ok()?;
    Some(WallTime(at.timestamp_millis()))
}

/// The card that a token belongs to: an `ObjectId`, in old documents a `DBRef`.
fn card_id(raw: &RawDocument) -> Option<ObjectId> {
    match raw.get("card").ok()?? {
        RawBsonRef::ObjectId(id) => Some(id),
        RawBsonRef::Document(reference) => reference.get_object_id("$id").ok(),
        _ => None,
    }
}

fn hours_ago(hours: u64) -> DateTime {
    DateTime::from_system_time(SystemTime::now() - Duration::from_secs(hours * 3600))
}
