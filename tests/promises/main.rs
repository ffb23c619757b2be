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

mod prelude {
    pub use crate::faults::{assert_report, dry, each, report};
    pub use crate::support::compare::*;
    pub use crate::support::*;
    pub use mongodb::bson::oid::ObjectId;
    pub use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
    pub use serde_json::json;
    pub use std::collections::{BTreeMap, BTreeSet};
    pub use std::ffi::OsString;
    pub use std::fs;
    pub use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
    pub use std::os::unix::fs::{PermissionsExt, symlink};
    pub use std::path::{Path, PathBuf};
    pub use std::process::{Command, Stdio};
    pub use std::sync::{Mutex, mpsc};
    pub use std::time::{Duration, Instant, SystemTime};

    /// A database of a test's own, and an API that answers by what the token is called.
    pub fn world() -> (TestDb, Stub) {
        (Mongod::shared().fresh_db(), Stub::by_label())
    }

    pub fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("there").permissions().mode() & 0o777
    }
}
