//! MongoDB: the connection, its concerns and clock, and what kind of collections these are. All
//! documents are read by `reads.rs` and written by `writes.rs`.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::debug;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::{RawDocument, RawDocumentBuf};
use mongodb::bson::{Document, doc};
use mongodb::options::{
    Acknowledgment, ClientOptions, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use mongodb::sync::{Client, Collection, Database};

use crate::cause;
use crate::clock::Clock;
use crate::db_error::{Result, is_passing};
use crate::stop;
use crate::uri::Connection;
use crate::worker::{FIRST_PAUSE, STOPPED, Worker};

const TOKENS: &str = "baoming_tokens";
const CARDS: &str = "cards";
const BIN: &str = "baoming_tokens_deleted";

/// The first connection, name look-up included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// One try to find a server: short, so that refused connections are told soon.
const SELECTION_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a copy may wait for a majority of a replica set.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CLOCK_DIFFERENCE_MS: u64 = 3_600_000;
/// Documents in one reply of the server: few enough for the memory, many enough for few replies.
const BATCH: u32 = 2_000;

/// A collection whose documents are read as they are.
pub type Documents = Collection<RawDocumentBuf>;

pub struct Store {
    /// The run's clock.
    pub clock: Clock,
    /// The only card whose tokens are read.
    pub card: Option<ObjectId>,
    pub(crate) dry_run: bool,
    pub(crate) worker: Worker,
    pub(crate) database: Database,
    pub(crate) tokens: Documents,
    pub(crate) cards: Documents,
    pub(crate) bin: Documents,
    /// Tokens that a dry run would have refreshed or deleted: later reads leave them out.
    pub(crate) pretended_changed: RefCell<HashSet<ObjectId>>,
    /// Tokens, and cards with tokens, that a dry run would have added.
    pub(crate) pretended_added: RefCell<HashSet<ObjectId>>,
}

impl Store {
    /// Connects, reads once, and compares the clocks.
    ///
    /// # Errors
    /// What is wrong and what to do, safe to show.
    pub fn connect(
        connection: &Connection,
        database: &str,
        clock: Clock,
        dry_run: bool,
    ) -> std::result::Result<Self, String> {
        // What an ObjectId can hold: the driver ends the program when it makes one beyond that.
        if u32::try_from(clock.started.as_second()).is_err() {
            return Err("本机时钟早于 1970 年或晚于 2106 年；请校准时钟 (NTP)".to_owned());
        }
        let worker = Worker::start(connection.operation_limit);
        let (uri, name) = (connection.uri.clone(), database.to_owned());
        let started = Instant::now();
        let opened = worker.wait_for(started + CONNECT_LIMIT, move || {
            let mut options = ClientOptions::parse(uri.expose()).run()?;
            let limit = options.server_selection_timeout.map_or(CONNECT_LIMIT, |own| own.min(CONNECT_LIMIT));
            options.server_selection_timeout = Some(limit.min(SELECTION_TIMEOUT));
            options.connect_timeout = Some(options.connect_timeout.map_or(limit, |own| own.min(limit)));
            // Of the connection string and the cluster's defaults none is taken over.
            options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
            options.read_concern = Some(ReadConcern::local());
            options.write_concern = Some(WriteConcern::nodes(1));
            // `Worker::repeat` does what is needed, also on servers without transaction numbers.
            options.retry_writes = Some(false);
            options.retry_reads = Some(false);
            options.max_adaptive_retries = Some(0);
            let is_direct = options.direct_connection == Some(true);
            Ok((Client::with_options(options)?.database(&name), limit, is_direct))
        });
        let (database, limit, is_direct) = match opened {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return Err(cause::describe(&error, connection)),
            // Nothing but the look-up of mongodb+srv:// takes time so far.
            None => return Err(given_up(cause::SLOW_NAME.to_owned())),
        };
        let tokens: Documents = database.collection(TOKENS);
        let end = started + limit * 9 / 10; // the rest is for finding the cause
        let mut said = cause::TIMED_OUT.to_owned();
        let hello = loop {
            let (probed, on) = (tokens.clone(), database.clone());
            let error = match worker.wait_for(end, move || read_and_greet(&probed, &on)) {
                Some(Ok(hello)) => break hello,
                Some(Err(error)) => error,
                None => return Err(given_up(said)), // what the servers said when they were last asked
            };
            said = cause::describe(&error, connection);
            let pause_end = Instant::now() + FIRST_PAUSE;
            let may_pass = is_passing(&error) && !cause::is_final(&error) && pause_end < end;
            if may_pass {
                stop::sleep_until(pause_end);
            }
            if !may_pass || stop::requested().is_some() {
                return Err(said);
            }
        };
        // The driver reads from whatever `directConnection` leads to, but a secondary takes no writes.
        let is_primary = hello.as_ref().is_none_or(|hello| hello.get_bool("ismaster").unwrap_or(true));
        if is_direct && !is_primary {
            return Err(cause::NOT_PRIMARY.to_owned());
        }
        match hello.and_then(|hello| hello.get_datetime("localTime").ok().copied()) {
            Some(theirs) => compare_clocks(&clock, theirs.timestamp_millis())?,
            None => debug!("  数据库服务器没有报告时钟"),
        }
        Ok(Self {
            clock,
            card: None,
            dry_run,
            worker,
            tokens,
            cards: database.collection(CARDS),
            bin: database.collection(BIN),
            database,
            pretended_changed: RefCell::default(),
            pretended_added: RefCell::default(),
        })
    }

    pub fn has_tokens_collection(&self) -> Result<bool> {
        Ok(self
            .collections()?
            .iter()
            .any(|found| found.get_str("name").is_ok_and(|name| name == self.tokens.name())))
    }

    /// Why nothing may be deleted from these collections: one that drops or hides documents is no recycle
    /// bin, and one that compares texts by rules of its own cannot tell whether a token is the one that was copied.
    pub fn unfit_to_delete(&self) -> Result<Option<String>> {
        Ok(self.collections()?.iter().find_map(|found| {
            let option = |name: &str| found.get_document("options").is_ok_and(|all| all.contains_key(name));
            let kind = match found.get_str("type") {
                Ok("collection") if option("capped") => "固定大小的集合 (capped)",
                Ok("collection") if option("collation") => "有 collation 的集合",
                Ok("collection") => return None,
                _ => "视图或时间序列 (view, time series)",
            };
            Some(format!("{} 是{kind}，无法安全删除", found.get_str("name").unwrap_or_default()))
        }))
    }

    /// The collections of tokens, living and deleted, as the server describes them.
    fn collections(&self) -> Result<Vec<Document>> {
        let database = self.database.clone();
        let filter = doc! { "name": { "$in": [self.tokens.name(), self.bin.name()] } };
        let list =
            move || database.run_command(doc! { "listCollections": 1, "filter": filter.clone() }).run();
        let reply = self.worker.repeat(list).1?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        Ok(batch.into_iter().flatten().filter_map(|found| found.as_document().cloned()).collect())
    }

    /// The same collection for writes by a majority: what is inserted must survive whatever the deletion
    /// that follows it survives.
    pub(crate) fn confirmed(&self, collection: &Documents) -> Documents {
        let majority =
            WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_TIMEOUT).build();
        let options = CollectionOptions::builder().write_concern(majority).build();
        self.database.collection_with_options(collection.name(), options)
    }

    pub(crate) fn find_one(
        &self,
        collection: &Documents,
        filter: Document,
    ) -> Result<Option<RawDocumentBuf>> {
        let collection = collection.clone();
        self.worker.repeat(move || collection.find_one(filter.clone()).run()).1
    }

    pub(crate) fn has(&self, collection: &Documents, id: ObjectId) -> Result<bool> {
        Ok(self.find_one(collection, doc! { "_id": id })?.is_some())
    }

    /// Reads all that a filter finds, however long that takes: the limit is for each document. From the
    /// start when the connection was lost before the limit of the first one.
    pub(crate) fn scan<T: Send + 'static>(
        &self,
        collection: &Documents,
        filter: Document,
        fields: Document,
        pick: impl Fn(&RawDocument) -> Option<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>> {
        let (collection, documents) = (collection.clone(), self.worker.documents());
        let scan = move || {
            let find = collection.find(filter.clone()).projection(fields.clone());
            let mut cursor = find.batch_size(BATCH).run()?;
            let mut found = Vec::new();
            while cursor.advance()? {
                documents.fetch_add(1, Ordering::Relaxed);
                found.extend(pick(cursor.current()));
            }
            Ok(found)
        };
        self.worker.repeat(scan).1
    }
}

/// Why nobody waits for the first connection any longer.
fn given_up(cause: String) -> String {
    if stop::requested().is_some() { STOPPED.to_owned() } else { cause }
}

/// Reads once, since a ping would succeed without logging in, and asks the server about itself.
fn read_and_greet(tokens: &Documents, database: &Database) -> mongodb::error::Result<Option<Document>> {
    tokens.find_one(doc! {}).projection(doc! { "_id": 1 }).run()?;
    match database.run_command(doc! { "isMaster": 1 }).run() {
        Err(error) if is_passing(&error) => Err(error),
        reply => Ok(reply.ok()),
    }
}

/// What a clock that is wrong would write cannot be taken back.
fn compare_clocks(clock: &Clock, theirs_ms: i64) -> std::result::Result<(), String> {
    let ours = clock.now();
    if ours.as_millisecond().abs_diff(theirs_ms) <= MAX_CLOCK_DIFFERENCE_MS {
        return Ok(());
    }
    let theirs = Timestamp::from_millisecond(theirs_ms).unwrap_or(Timestamp::MIN);
    Err(format!(
        "本机时钟 {} 与数据库服务器时钟 {} 相差超过一小时，未做任何操作；请先校准时钟 (NTP)",
        clock.wall(ours),
        clock.wall(theirs)
    ))
}
