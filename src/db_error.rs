//! What went wrong with the database, in words that help, and what is worth a
//! repeat. Made of kinds and codes only: the driver's own texts may repeat the
//! connection string or whole documents.

use std::fmt;
use std::time::Duration;

use mongodb::error::{Error, ErrorKind, WriteFailure};

/// The server's code for an `_id` that exists.
pub const DUPLICATE_KEY: i32 = 11000;

/// Why an operation failed, after all its repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DbError {
    /// The server cannot be reached, does not answer, or takes no operations.
    Lost(String),
    /// Refused before it was carried out: the account's rights, or a command
    /// or filter that this server does not know.
    Refused(i32),
    /// Carried out, but not confirmed by as many members as were asked for.
    Unconfirmed(i32),
    /// Something about this one operation; the server's code, 0 when there is none.
    Other(i32),
}

impl DbError {
    pub fn no_answer(limit: Duration) -> Self {
        Self::Lost(format!("{} 秒内没有回应", limit.as_secs_f64()))
    }

    /// Whether the next operation would fail too.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Refused(_))
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => write!(f, "数据库没有应答或不接受操作 ({what})"),
            Self::Refused(0) => f.write_str("数据库拒绝登录，请检查用户和密码"),
            Self::Refused(13) => f.write_str(
                "数据库账户没有权限 (错误 13)，需要 listCollections，读 cards，并读写 baoming_tokens 和 baoming_tokens_deleted",
            ),
            Self::Refused(code) => write!(f, "数据库不支持此操作 (错误 {code})"),
            Self::Unconfirmed(code) => write!(f, "写入没有得到副本集多数成员的确认 (错误 {code})"),
            Self::Other(0) => f.write_str("数据库的回复无法识别"),
            Self::Other(code) => write!(f, "数据库错误 {code}"),
        }
    }
}

impl From<Error> for DbError {
    fn from(error: Error) -> Self {
        if let Some(kind) = lost_connection(&error) {
            return Self::Lost(kind.to_owned());
        }
        match &*error.kind {
            ErrorKind::Authentication { .. } => Self::Refused(0),
            ErrorKind::Write(WriteFailure::WriteConcernError(error)) => Self::Unconfirmed(error.code),
            _ => match code(&error) {
                code @ (2 | 9 | 13 | 59 | 115 | 168) => Self::Refused(code),
                // 18 and 8000: the login, but nobody says whether before or after the operation.
                code if is_passing(&error) || [18, 8000].contains(&code) => {
                    Self::Lost(format!("错误 {code}"))
                }
                code => Self::Other(code),
            },
        }
    }
}

/// Whether the same operation may succeed a moment later: no connection, or a
/// server that is throttled, stepping down, shutting down or not yet up.
pub fn is_passing(error: &Error) -> bool {
    #[rustfmt::skip]
    const PASSING: [i32; 18] =
        [6, 7, 89, 9001, 10058, 16500, 50, 112, 24, 91, 189, 202, 262, 10107, 11600, 11602, 13435, 13436];
    lost_connection(error).is_some()
        || ["RetryableWriteError", "RetryableError"].iter().any(|label| error.contains_label(label))
        || PASSING.contains(&code(error))
}

/// The kind of an error that means that there is no connection.
fn lost_connection(error: &Error) -> Option<&'static str> {
    match &*error.kind {
        ErrorKind::ServerSelection { .. } => Some("ServerSelection"),
        ErrorKind::ConnectionPoolCleared { .. } => Some("ConnectionPoolCleared"),
        ErrorKind::DnsResolve { .. } => Some("DnsResolve"),
        ErrorKind::Io(_) => Some("Io"),
        _ => None,
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

pub type Result<T> = std::result::Result<T, DbError>;
