//! All that this program ever writes, and what keeps a dry run from writing:
//! each write to the database is behind it. The one deletion of tokens is
//! [`Store::delete`]; only [`Store::purge_bin`] deletes for good.
//!
//! The two collections of the desktop application are only ever changed by
//! setting `last_used` and `updated_at` and by deleting or adding whole
//! documents, each guarded by what was decided on.

use log::warn;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawDocumentBuf;
use mongodb::bson::{DateTime, Document, doc, rawdoc};

use crate::db_error::{DUPLICATE_KEY, DbError, Result};
use crate::reads::Token;
use crate::store::{Documents, Store};

/// How old a bin entry may become.
const BIN_HOURS: u32 = 30 * 24;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Done,
    /// This is a dry run.
    Would,
    /// What it was decided on had changed meanwhile; nothing was written.
    Changed,
}

impl Store {
    /// Moves `last_used`, never backwards, and `updated_at` to now, if the
    /// token is still the one that was checked.
    pub fn mark_used(&self, token: &Token) -> Result<Written> {
        let filter = token.checked();
        if self.dry_run {
            return self.would_change(token.id, &filter);
        }
        let now = DateTime::from_millis(self.clock.wall_now().0);
        let change = doc! { "$max": { "last_used": now }, "$set": { "updated_at": now } };
        let tokens = self.tokens.clone();
        let update = move || tokens.update_one(filter.clone(), change.clone()).run();
        Ok(done_if(self.worker.repeat(update).1?.matched_count))
    }

    /// Deletes the token that a filter made by [`unchanged`] finds. The number of tries comes back with the result.
    pub fn delete(&self, id: ObjectId, filter: Document) -> (u32, Result<Written>) {
        if self.dry_run {
            return (1, self.would_change(id, &filter));
        }
        let tokens = self.tokens.clone();
        let (tries, result) = self.worker.repeat(move || tokens.delete_one(filter.clone()).run());
        (tries, result.map(|result| done_if(result.deleted_count)))
    }

    fn would_change(&self, id: ObjectId, filter: &Document) -> Result<Written> {
        if self.find_one(&self.tokens, filter.clone())?.is_none() {
            return Ok(Written::Changed);
        }
        self.pretended_changed.borrow_mut().insert(id);
        Ok(Written::Would)
    }

    /// Copies a token into the recycle bin; a majority has confirmed it when
    /// this succeeds, and nothing is left behind when it does not, as far as
    /// the server still listens. Returns the entry's `_id`.
    pub fn copy_into_bin(&self, token: &RawDocumentBuf, reason: &str) -> Result<ObjectId> {
        let id = ObjectId::new();
        if self.dry_run {
            return Ok(id);
        }
        let deleted_at = DateTime::from_millis(self.clock.now().as_millisecond());
        let entry = rawdoc! { "_id": id, "token": token.clone(), "reason": reason, "deleted_at": deleted_at };
        let written = match self.insert(&self.bin, &entry, id) {
            Ok(Written::Changed) => Err(DbError::Other(DUPLICATE_KEY)),
            written => written,
        };
        match written {
            Ok(_) => Ok(id),
            Err(error) => {
                // What was refused was not written.
                if !matches!(error, DbError::Refused(_))
                    && let Err(left) = self.take_out_of_bin(id)
                {
                    warn!("  ⚠️ 未完成的副本 {id} 可能留在回收站中: {left}");
                }
                Err(error)
            }
        }
    }

    pub fn take_out_of_bin(&self, id: ObjectId) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let bin = self.bin.clone();
        self.worker.repeat(move || bin.delete_one(doc! { "_id": id }).run()).1.map(drop)
    }

    /// Removes the entries of the recycle bin that are older than 30 days. Returns how many.
    pub fn purge_bin(&self) -> Result<u64> {
        if self.dry_run {
            return Ok(0);
        }
        let limit = DateTime::from_millis(self.clock.hours_ago(BIN_HOURS).as_millisecond());
        let bin = self.bin.clone();
        let purge = move || bin.delete_many(doc! { "deleted_at": { "$lt": limit } }).run();
        Ok(self.worker.repeat(purge).1?.deleted_count)
    }

    /// Adds a whole token, restored or imported; never changes one that is there.
    pub fn add(&self, token: &RawDocumentBuf, id: ObjectId, card_id: Option<ObjectId>) -> Result<Written> {
        if self.dry_run {
            self.pretended_added.borrow_mut().extend([id].into_iter().chain(card_id));
            return Ok(Written::Would);
        }
        self.insert(&self.tokens, token, id)
    }

    /// Inserts by a majority. `Changed`: a document like it is there already.
    fn insert(&self, collection: &Documents, document: &RawDocumentBuf, id: ObjectId) -> Result<Written> {
        let (confirmed, document) = (self.confirmed(collection), document.clone());
        let (tries, result) = self.worker.repeat(move || confirmed.insert_one(&document).run());
        match result {
            Ok(_) => Ok(Written::Done),
            Err(DbError::Other(DUPLICATE_KEY)) if tries > 1 && self.has(collection, id)? => {
                // An earlier try got through, only its answer did not. The server lets also a write that
                // finds nothing wait for the majority to have all that was before it.
                let (confirmed, nothing) = (self.confirmed(collection), doc! { "_id": ObjectId::new() });
                self.worker.repeat(move || confirmed.delete_one(nothing.clone()).run()).1?;
                Ok(Written::Done)
            }
            Err(DbError::Other(DUPLICATE_KEY)) => Ok(Written::Changed),
            Err(error) => Err(error),
        }
    }
}

/// The filter that finds a token if not one field of it has changed since it was copied.
///
/// # Errors
/// A document that breaks BSON's own rules, a text that is no UTF-8 for instance.
pub fn unchanged(id: ObjectId, copy: &RawDocumentBuf) -> Result<Document> {
    let filter = rawdoc! { "_id": id, "$expr": { "$eq": ["$$ROOT", { "$literal": copy.clone() }] } };
    Document::try_from(&filter).map_err(|_| DbError::Other(0))
}

fn done_if(count: u64) -> Written {
    if count == 1 { Written::Done } else { Written::Changed }
}
