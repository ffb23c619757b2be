//! What can go wrong with the database, and trying again. All operations of
//! this program are idempotent, so that each can be repeated after a lost answer.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;
use mongodb::error::{Error, ErrorKind, WriteFailure};

/// The server's code for an `_id` that exists.
pub const DUPLICATE_KEY: i32 = 11000;

/// How long an operation is tried again while the database is away.
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// Why an operation failed. Made of kinds and codes only: the driver's own
/// texts may repeat the connection string or whole documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DbError {
    /// No connection, also after trying again.
    Lost(&'static str),
    /// The account or its rights.
    Refused(&'static str),
    /// This one operation, for the server's error code, if any.
    Other(i32),
}

impl DbError {
    /// Whether the next operation would fail too.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Other(_))
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(kind) => write!(f, "无法连接数据库 ({kind})"),
            Self::Refused(kind) => write!(f, "数据库拒绝访问 ({kind})"),
            Self::Other(0) => write!(f, "数据库错误"),
            Self::Other(code) => write!(f, "数据库错误 {code}"),
        }
    }
}

impl From<Error> for DbError {
    fn from(error: Error) -> Self {
        match &*error.kind {
            ErrorKind::Authentication { .. } => Self::Refused("Authentication"),
            ErrorKind::InvalidTlsConfig { .. } => Self::Refused("InvalidTlsConfig"),
            ErrorKind::ServerSelection { .. } => Self::Lost("ServerSelection"),
            ErrorKind::ConnectionPoolCleared { .. } => Self::Lost("ConnectionPoolCleared"),
            ErrorKind::DnsResolve { .. } => Self::Lost("DnsResolve"),
            ErrorKind::Io(_) => Self::Lost("Io"),
            _ => match code(&error) {
                13 => Self::Refused("Unauthorized"),
                18 | 8000 => Self::Refused("Authentication"),
                // A server that is shutting down, stepping down or not yet up.
                6 | 7 | 43 | 89 | 91 | 189 | 262 | 9001 | 10058 | 10107 | 11600 | 11602 | 13435 | 13436 => {
                    Self::Lost("NotPrimary")
                }
                other => Self::Other(other),
            },
        }
    }
}

/// The server's error code; 0 when there is none.
fn code(error: &Error) -> i32 {
    match &*error.kind {
        ErrorKind::Command(error) => error.code,
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code,
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => error.code,
        _ => 0,
    }
}

/// The result of a database operation.
pub type Result<T> = std::result::Result<T, DbError>;

/// Runs an idempotent operation, again and again with growing pauses while the
/// database is away. The operation is told which try it is, from 1.
pub fn retry<T>(mut operation: impl FnMut(u32) -> mongodb::error::Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(250);
    for attempt in 1.. {
        let error = match operation(attempt) {
            Ok(value) => return Ok(value),
            Err(error) => DbError::from(error),
        };
        if !matches!(error, DbError::Lost(_)) || Instant::now() + pause >= end {
            return Err(error);
        }
        debug!("  {error}，稍后重试");
        thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
    Err(DbError::Lost("ServerSelection"))
}
