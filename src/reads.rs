//! All that is read of the database, and the types it is read into.

use std::collections::HashMap;

use jiff::Timestamp;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use mongodb::bson::{Bson, DateTime, Document, doc};

use crate::clock::WallTime;
use crate::db_error::Result;
use crate::select::Shard;
use crate::store::Store;
use crate::text::{AccessToken, presentable};

/// How many tokens are read at once: fresh enough, and few queries.
pub const CHUNK: usize = 200;

/// A token's place in the order of the run: 20 bytes, however many there are.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))] // without padding
pub struct Entry {
    pub id: ObjectId,
    /// In milliseconds; the smallest number when it is no date.
    last_used: i64,
}

impl Entry {
    /// When the token was last used, if that is known.
    pub fn last_used(&self) -> Option<WallTime> {
        (self.last_used != i64::MIN).then_some(WallTime(self.last_used))
    }

    /// What the cleanup decides on: that nobody has used the token since it was read.
    pub fn guard(&self) -> Document {
        doc! { "_id": self.id, "last_used": DateTime::from_millis(self.last_used) }
    }
}

/// What the run needs to know of a token. Whatever is missing or of another
/// type in the document is `None`.
pub struct Token {
    pub id: ObjectId,
    access_token: Option<AccessToken>,
    /// `uname`, safe to show.
    pub user: String,
    /// `last_used` as it is, of whatever type.
    last_used: Bson,
    /// `card`, or the id within it where it is a `DBRef`.
    pub card_id: Option<ObjectId>,
    /// The card's `name`, safe to show.
    pub card_name: String,
}

impl Token {
    /// When it was last used, for people.
    pub fn used(&self) -> String {
        let at = self.last_used.as_datetime().map(|at| WallTime(at.timestamp_millis()));
        at.map_or_else(|| "从未".to_owned(), |at| at.to_string())
    }

    /// The secret to send, else why there is none.
    pub fn sendable(&self) -> std::result::Result<&AccessToken, &'static str> {
        match &self.access_token {
            Some(access_token) if access_token.is_sendable() => Ok(access_token),
            Some(_) => Err("access_token 超过 4096 字节，未发送"),
            None => Err("没有可用的 access_token"),
        }
    }

    /// What a verdict decides on: the token that was checked.
    pub fn checked(&self) -> Document {
        doc! { "_id": self.id, "access_token": self.access_token.as_ref().map(AccessToken::expose) }
    }

    /// What a deletion by verdict decides on: that token, not used since it was read.
    pub fn guard(&self) -> Document {
        let mut guard = self.checked();
        // The server takes no filter with the deprecated type.
        if self.last_used != Bson::Undefined {
            guard.insert("last_used", doc! { "$eq": &self.last_used });
        }
        guard
    }
}

/// An entry of the recycle bin.
pub struct BinEntry {
    pub id: ObjectId,
    pub reason: String,
    /// In true UTC.
    pub deleted_at: Timestamp,
    pub token_id: ObjectId,
    pub card_id: Option<ObjectId>,
    pub token: RawDocumentBuf,
}

impl BinEntry {
    /// An entry as it is stored; `None` when it holds no token.
    pub fn read(raw: &RawDocument) -> Option<Self> {
        let token = raw.get_document("token").ok()?;
        Some(Self {
            id: raw.get_object_id("_id").ok()?,
            reason: raw.get_str("reason").unwrap_or_default().to_owned(),
            deleted_at: Timestamp::from_millisecond(date(raw, "deleted_at")?.0).ok()?,
            token_id: token.get_object_id("_id").ok()?,
            card_id: card_id(token),
            token: token.to_owned(),
        })
    }
}

impl Store {
    /// The tokens of a shard and of the chosen card, least recently used first;
    /// with `used_since` only those used then or later. Sorted here: the server
    /// would need an index or all documents in memory.
    pub fn entries(&self, used_since: Option<WallTime>, shard: Shard) -> Result<Vec<Entry>> {
        let pick = move |raw: &RawDocument| {
            let id = raw.get_object_id("_id").ok().filter(|id| shard.contains(id.bytes()))?;
            Some(Entry { id, last_used: date(raw, "last_used").map_or(i64::MIN, |at| at.0) })
        };
        let fields = doc! { "_id": 1, "last_used": 1 };
        let mut entries = self.scan(&self.tokens, self.chosen(used_since), fields, pick)?;
        let left_out = self.pretended_changed.borrow();
        entries.retain(|entry| !left_out.contains(&entry.id));
        // One that moved during the scan may have been found twice.
        entries.sort_unstable_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        entries.sort_unstable_by_key(|entry| (entry.last_used, entry.id));
        Ok(entries)
    }

    /// How many documents have another `_id` than an `ObjectId`: the application makes none such.
    pub fn foreign(&self, used_since: Option<WallTime>) -> Result<usize> {
        let mut filter = self.chosen(used_since);
        filter.insert("_id", doc! { "$not": { "$type": "objectId" } });
        Ok(self.scan(&self.tokens, filter, doc! { "_id": 1 }, |_| Some(()))?.len())
    }

    /// The filter for the tokens of the chosen card that were used then or later.
    fn chosen(&self, used_since: Option<WallTime>) -> Document {
        let mut filter = self.card.map_or_else(Document::new, |id| of_card("card", id));
        if let Some(at) = used_since {
            filter.insert("last_used", doc! { "$gte": DateTime::from_millis(at.0) });
        }
        filter
    }

    /// The present state of some tokens with the names of their cards. Tokens
    /// that no longer exist are missing from the answer.
    pub fn tokens(&self, entries: &[Entry]) -> Result<HashMap<ObjectId, Token>> {
        let ids: Vec<ObjectId> = entries.iter().map(|entry| entry.id).collect();
        let fields = doc! { "access_token": 1, "uname": 1, "last_used": 1, "card": 1 };
        let found = self.scan(&self.tokens, doc! { "_id": { "$in": ids } }, fields, token_from)?;
        let tokens = self.with_card_names(found)?;
        Ok(tokens.into_iter().map(|token| (token.id, token)).collect())
    }

    /// How many tokens there are, and the three most recently updated.
    pub fn newest(&self) -> Result<(u64, Vec<Token>)> {
        let tokens = self.tokens.clone();
        let count = self.worker.repeat(move || tokens.count_documents(doc! {}).run()).1?;
        let tokens = self.tokens.clone();
        let newest = move || {
            let found = tokens.find(doc! {}).sort(doc! { "updated_at": -1 }).limit(3).run()?;
            found.collect::<mongodb::error::Result<Vec<_>>>()
        };
        let found = self.worker.repeat(newest).1?;
        let tokens = found.iter().filter_map(|raw| token_from(raw)).collect();
        Ok((count, self.with_card_names(tokens)?))
    }

    pub fn exists(&self, id: ObjectId) -> Result<bool> {
        Ok(self.pretended_added.borrow().contains(&id) || self.has(&self.tokens, id)?)
    }

    pub fn card_has_token(&self, card_id: ObjectId) -> Result<bool> {
        let is_pretended = self.pretended_added.borrow().contains(&card_id);
        Ok(is_pretended || self.find_one(&self.tokens, of_card("card", card_id))?.is_some())
    }

    /// The ids of the cards of this exact name; else of the one card with this
    /// id, if it exists or any token or bin entry has it.
    pub fn cards_called(&self, name: &str) -> Result<Vec<ObjectId>> {
        let exact = name.to_owned();
        let id_of = move |raw: &RawDocument| {
            raw.get_object_id("_id").ok().filter(|_| raw.get_str("name").is_ok_and(|found| found == exact))
        };
        let named = self.scan(&self.cards, doc! { "name": name }, doc! { "name": 1 }, id_of)?;
        let Some(id) = ObjectId::parse_str(name).ok().filter(|_| named.is_empty()) else {
            return Ok(named);
        };
        let is_known = !self.card_names(&[id])?.is_empty()
            || self.card_has_token(id)?
            || self.find_one(&self.bin, of_card("token.card", id))?.is_some();
        Ok(if is_known { vec![id] } else { named })
    }

    /// The names of some cards. Cards that do not exist are missing from the answer.
    pub fn card_names(&self, ids: &[ObjectId]) -> Result<HashMap<ObjectId, String>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let name_of = |raw: &RawDocument| {
            let name = raw.get_str("name").unwrap_or("未命名名片");
            Some((raw.get_object_id("_id").ok()?, name.to_owned()))
        };
        let filter = doc! { "_id": { "$in": ids } };
        Ok(self.scan(&self.cards, filter, doc! { "name": 1 }, name_of)?.into_iter().collect())
    }

    /// What the recycle bin took since then, of the chosen card: the entries' ids, newest first.
    pub fn bin_entries(&self, since: Timestamp) -> Result<Vec<ObjectId>> {
        let mut filter = self.card.map_or_else(Document::new, |id| of_card("token.card", id));
        filter.insert("deleted_at", doc! { "$gte": DateTime::from_millis(since.as_millisecond()) });
        let place = |raw: &RawDocument| Some((date(raw, "deleted_at")?, raw.get_object_id("_id").ok()?));
        let mut found = self.scan(&self.bin, filter, doc! { "deleted_at": 1 }, place)?;
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, id)| id).collect())
    }

    fn with_card_names(&self, mut tokens: Vec<Token>) -> Result<Vec<Token>> {
        let ids: Vec<ObjectId> = tokens.iter().filter_map(|token| token.card_id).collect();
        let names = self.card_names(&ids)?;
        for token in &mut tokens {
            if let Some(name) = token.card_id.and_then(|id| names.get(&id)) {
                token.card_name = presentable(name, token.access_token.as_ref());
            }
        }
        Ok(tokens)
    }
}

/// Where a field holds a card; in old documents as a `DBRef`.
fn of_card(field: &str, id: ObjectId) -> Document {
    doc! { "$or": [{ field: id }, { format!("{field}.$id"): id }] }
}

fn token_from(raw: &RawDocument) -> Option<Token> {
    let access_token = raw.get_str("access_token").ok().and_then(AccessToken::new);
    let last_used = raw.get("last_used").ok().flatten();
    Some(Token {
        id: raw.get_object_id("_id").ok()?,
        user: presentable(raw.get_str("uname").unwrap_or("未知"), access_token.as_ref()),
        access_token,
        last_used: last_used.and_then(|value| value.try_into().ok()).unwrap_or(Bson::Null),
        card_id: card_id(raw),
        card_name: "已删除的名片".to_owned(),
    })
}

fn date(raw: &RawDocument, field: &str) -> Option<WallTime> {
    Some(WallTime(raw.get_datetime(field).ok()?.timestamp_millis()))
}

/// The card that a token belongs to: an `ObjectId`, in old documents a `DBRef`.
fn card_id(raw: &RawDocument) -> Option<ObjectId> {
    match raw.get("card").ok()?? {
        RawBsonRef::ObjectId(id) => Some(id),
        RawBsonRef::Document(reference) => reference.get_object_id("$id").ok(),
        _ => None,
    }
}
