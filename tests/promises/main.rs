//! Every promise, tested on the real binary as a black box, against a real `mongod` and a stub of the API.

#[path = "../support/mod.rs"]
mod support;

mod connection;
mod deleting;
mod faults;
mod files;
mod ops;
mod output;
mod papers;
mod refreshing;
mod restoring;
mod scheduler;
mod shards;
mod stub;

use support::{Mongod, Stub, TestDb};

/// A database of a test's own, and an API that answers by what the token is called.
fn world() -> (TestDb, Stub) {
    (Mongod::shared().fresh_db(), Stub::by_label())
}
