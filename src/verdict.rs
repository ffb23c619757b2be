//! What a reply of the enroll API means for a token. Pure: status and body in,
//! verdict out. Whatever is not clearly one of the known replies is `Failed`,
//! and a failed token is kept.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What one reply says about the token that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The API accepted the token.
    Valid {
        /// The id of the enrolment, when the reply names a well-formed one.
        info_id: Option<String>,
    },
    /// The API says that the token or the login is bad.
    Invalid {
        /// The reply's `msg`, raw.
        message: String,
    },
    /// Nothing is known about the token.
    Failed {
        /// The reply's `msg`, raw, or what is odd about the reply.
        reason: String,
    },
}

/// The fields we know. A struct and not a map, because serde then refuses a
/// reply that names one of them twice.
#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    sta: Option<&'a RawValue>,
    #[serde(borrow)]
    msg: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Data {
    info_id: Option<String>,
}

/// Phrases that call a login bad on their own.
const BAD: [&str; 4] = ["invalid access_token", "请登录", "重新登录", "未登录"];
/// Words that call a token bad when `token` stands in the same message.
const BAD_WITH_TOKEN: [&str; 7] = [
    "invalid", "expired", "illegal", "失效", "过期", "无效", "错误",
];
/// Words that call a login bad when `登录` stands in the same message.
const BAD_WITH_LOGIN: [&str; 2] = ["过期", "失效"];
/// Words that ask to wait: the API's trouble, not the token's.
const WAIT: [&str; 8] = [
    "繁忙", "稍后", "频繁", "过多", "busy", "limit", "too many", "retry",
];
/// Words that say that the message is about the event: 活动已过期, 无效的活动ID.
const ABOUT_THE_EVENT: [&str; 2] = ["活动", "eid"];

/// Judges a reply of `GET /enroll/v3/detail`.
pub fn judge(status: u16, body: &[u8]) -> Verdict {
    if status != 200 {
        return failed(format!("HTTP {status}"));
    }
    // serde would also read an array into a struct.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return failed("响应不是 JSON 对象".to_owned());
    }
    let Ok(reply) = serde_json::from_slice::<Reply>(body) else {
        return failed("响应不是有效的 JSON".to_owned());
    };
    let Some(is_zero) = reply.sta.and_then(|sta| integer_is_zero(sta.get())) else {
        return failed("响应中没有整数 sta".to_owned());
    };
    if is_zero {
        let info_id = reply
            .data
            .and_then(|data| serde_json::from_str::<Data>(data.get()).ok())
            .and_then(|data| data.info_id)
            .filter(|id| id.len() == 24 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        return Verdict::Valid { info_id };
    }
    let message = reply
        .msg
        .and_then(|msg| serde_json::from_str::<String>(msg.get()).ok());
    match message {
        Some(message) if condemns(&message) => Verdict::Invalid { message },
        Some(message) if !message.trim().is_empty() => failed(message),
        _ => failed("API 未说明原因".to_owned()),
    }
}

/// Whether a JSON value is the integer 0; `None` when it is no integer.
fn integer_is_zero(json: &str) -> Option<bool> {
    match json {
        "0" => Some(true),
        // JSON's negative zero is a float.
        "-0" => None,
        _ => json.parse::<i64>().ok().map(|_| false),
    }
}

/// Whether the `msg` of a refusal says that the token or the login is bad.
fn condemns(message: &str) -> bool {
    let message = message.to_lowercase();
    let has_any = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has_any(&WAIT) || has_any(&ABOUT_THE_EVENT) {
        return false;
    }
    has_any(&BAD)
        || message.contains("token") && has_any(&BAD_WITH_TOKEN)
        || message.contains("登录") && has_any(&BAD_WITH_LOGIN)
}

fn failed(reason: String) -> Verdict {
    Verdict::Failed { reason }
}
