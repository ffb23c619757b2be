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
const BAD_WITH_TOKEN: [&str; 7] = ["invalid", "expired", "illegal", "失效", "过期", "无效", "错误"];
/// Words that call a login bad when `登录` stands in the same message.
const BAD_WITH_LOGIN: [&str; 2] = ["过期", "失效"];
/// Words that ask to wait: the API's trouble, not the token's.
const WAIT: [&str; 8] = ["繁忙", "稍后", "频繁", "过多", "busy", "limit", "too many", "retry"];
/// Words that say that the message is about the event: 活动已过期, 无效的活动ID.
const ABOUT_THE_EVENT: [&str; 2] = ["活动", "eid"];

/// Judges a reply of `GET /enroll/v3/detail`.
pub fn judge(status: u16, body: &[u8]) -> Verdict {
    if status != 200 {
        return failed(format!("HTTP {status}"));
    }
    // serde would not look at the bytes of fields that we do not know, and would
    // also read an array into a struct.
    let text = std::str::from_utf8(body).unwrap_or_default();
    if !text.trim_start().starts_with('{') {
        return failed("响应不是 JSON 对象".to_owned());
    }
    let Ok(reply) = serde_json::from_str::<Reply>(text) else {
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
    let message = reply.msg.and_then(|msg| serde_json::from_str::<String>(msg.get()).ok());
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "valid";
    const INVALID: &str = "invalid";
    const FAILED: &str = "failed";

    fn verdict(status: u16, body: &[u8]) -> &'static str {
        match judge(status, body) {
            Verdict::Valid { .. } => VALID,
            Verdict::Invalid { .. } => INVALID,
            Verdict::Failed { .. } => FAILED,
        }
    }

    fn refusal(message: &str) -> String {
        serde_json::json!({ "sta": -1, "msg": message }).to_string()
    }

    #[test]
    fn every_kind_of_reply() {
        let table: &[(u16, &str, &str)] = &[
            (200, r#"{"sta":0,"msg":"","data":{"info_id":"698add7c7068f814935d6804"}}"#, VALID),
            (200, r#"{"sta":0}"#, VALID),
            (200, r#"{"sta":0,"data":null}"#, VALID),
            (200, r#"{"sta":0,"data":[1,{"info_id":7}]}"#, VALID),
            (200, r#"{"sta":0,"data":"text"}"#, VALID),
            (200, r#"{"sta":0,"msg":"invalid access_token"}"#, VALID),
            (200, " \n{\"sta\" : 0 } ", VALID),
            (200, r#"{"sta":-1,"msg":"invalid access_token"}"#, INVALID),
            (200, r#"{"sta":10001,"msg":"Invalid ACCESS_TOKEN"}"#, INVALID),
            // Only a 200 can condemn.
            (201, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (204, "", FAILED),
            (302, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (400, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (401, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (403, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (429, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (500, r#"{"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (500, r#"{"sta":0}"#, FAILED),
            // Only a whole JSON object with one integer `sta` can.
            (200, "", FAILED),
            (200, "<html>invalid access_token</html>", FAILED),
            (200, r#"[-1,"invalid access_token",null]"#, FAILED),
            (200, r#""invalid access_token""#, FAILED),
            (200, "null", FAILED),
            (200, r#"{"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":null,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":"-1","msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":true,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":-1.0,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":1e2,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":[-1],"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":-0,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":99999999999999999999,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":0.0}"#, FAILED),
            (200, r#"{"sta":"0"}"#, FAILED),
            (200, r#"{"sta":-1}"#, FAILED),
            (200, r#"{"sta":-1,"msg":null}"#, FAILED),
            (200, r#"{"sta":-1,"msg":["invalid access_token"]}"#, FAILED),
            (200, r#"{"sta":-1,"msg":""}"#, FAILED),
            (200, r#"{"sta":-1,"msg":"invalid access_token""#, FAILED),
            (200, r#"{"sta":-1,"msg":"invalid access_token"}{"#, FAILED),
            (200, r#"{"sta":0,"sta":-1,"msg":"invalid access_token"}"#, FAILED),
            (200, r#"{"sta":-1,"msg":"ok","msg":"invalid access_token"}"#, FAILED),
            (200, "\u{feff}{\"sta\":-1,\"msg\":\"invalid access_token\"}", FAILED),
        ];
        for (status, body, expected) in table {
            assert_eq!(verdict(*status, body.as_bytes()), *expected, "{status} {body}");
        }
    }

    #[test]
    fn every_kind_of_message() {
        let condemning = [
            "invalid access_token",
            "Access Token is INVALID",
            "token expired",
            "illegal token",
            "token已失效",
            "token 已过期",
            "token无效",
            "access_token错误",
            "请登录",
            "请先重新登录",
            "用户未登录",
            "登录已过期",
            "登录状态失效",
        ];
        for message in condemning {
            assert_eq!(verdict(200, refusal(message).as_bytes()), INVALID, "{message}");
        }
        let keeping = [
            "系统繁忙，请稍后再试",
            "请求过于频繁",
            "请求过多",
            "server busy",
            "rate limit",
            "Too Many requests",
            "please retry",
            "invalid access_token, retry later",
            "token 无效，请稍后再试",
            "请登录后稍后再试",
            "活动已过期",
            "无效的活动ID",
            "活动已过期，token 正常",
            "invalid eid for this token",
            "token",
            "登录",
            "invalid",
            "已过期",
            "参数错误",
            "服务器错误",
            " ",
        ];
        for message in keeping {
            assert_eq!(verdict(200, refusal(message).as_bytes()), FAILED, "{message}");
        }
    }

    #[test]
    fn only_a_well_formed_info_id_is_taken() {
        let info_id = |id: &str| {
            let body = serde_json::json!({ "sta": 0, "data": { "info_id": id } }).to_string();
            judge(200, body.as_bytes())
        };
        let id = "698add7c7068f814935d6804";
        let taken = Verdict::Valid { info_id: Some(id.to_owned()) };
        assert_eq!(info_id(id), taken);
        assert_eq!(info_id("\u{1b}[2J"), Verdict::Valid { info_id: None });
        assert_eq!(info_id("short"), Verdict::Valid { info_id: None });
    }

    /// The table for condemning messages in other words than the code's: a
    /// pattern per row, each word of it in the message, none of the exceptions.
    fn may_condemn(message: &str) -> bool {
        const ROWS: &str = "invalid access_token;token invalid;token expired;token illegal;\
                            token 失效;token 过期;token 无效;token 错误;请登录;重新登录;未登录;\
                            登录 过期;登录 失效";
        const NEVER: &str = "繁忙 稍后 频繁 过多 busy limit too\u{a0}many retry 活动 eid";
        let message = message.to_lowercase();
        ROWS.split(';').any(|row| row.split(' ').all(|word| message.contains(word)))
            && !NEVER.split(' ').any(|word| message.contains(&word.replace('\u{a0}', " ")))
    }

    /// Messages put together of the words that matter.
    fn message() -> impl Strategy<Value = String> {
        let words = vec![
            "token",
            "TOKEN",
            "invalid",
            "access_token",
            "invalid access_token",
            "expired",
            "illegal",
            "失效",
            "过期",
            "无效",
            "错误",
            "请登录",
            "重新登录",
            "未登录",
            "登录",
            "繁忙",
            "稍后",
            "频繁",
            "过多",
            "busy",
            "limit",
            "too many",
            "retry",
            "活动",
            "ID",
            " ",
            "，",
            "\n",
            "x",
        ];
        prop::collection::vec(prop::sample::select(words), 0..6).prop_map(|words| words.concat())
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            (-2..3_i64).prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            message().prop_map(Into::into),
        ];
        let key = prop_oneof![Just("sta"), Just("msg"), Just("data"), Just("info_id"), Just("x")];
        leaf.prop_recursive(3, 16, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec((key.clone(), inner), 0..4).prop_map(|fields| {
                    fields
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect::<serde_json::Map<_, _>>()
                        .into()
                }),
            ]
        })
    }

    // PROPTEST_CASES=100000 is the long mode.
    proptest! {
        #[test]
        fn any_bytes_never_condemn(status in any::<u16>(), body in any::<Vec<u8>>()) {
            // Random bytes are no JSON object that says so.
            prop_assert_ne!(verdict(status, &body), INVALID);
        }

        #[test]
        fn any_json_condemns_only_by_the_table(status in prop_oneof![Just(200), any::<u16>()], value in json()) {
            let expected = match (status, value.get("sta").and_then(serde_json::Value::as_i64)) {
                (200, Some(0)) => VALID,
                (200, Some(_)) => match value.get("msg").and_then(serde_json::Value::as_str) {
                    Some(message) if may_condemn(message) => INVALID,
                    _ => FAILED,
                },
                _ => FAILED,
            };
            prop_assert_eq!(verdict(status, value.to_string().as_bytes()), expected);
        }

        #[test]
        fn no_body_that_is_not_utf8_condemns(message in message(), place in any::<prop::sample::Index>()) {
            let mut body = serde_json::json!({ "x": "y", "sta": -1, "msg": message }).to_string().into_bytes();
            body.insert(place.index(body.len()), 0xff);
            prop_assert_eq!(verdict(200, &body), FAILED);
        }

        #[test]
        fn any_message_condemns_only_by_the_table(sta in any::<i64>(), message in message()) {
            let body = serde_json::json!({ "sta": sta, "msg": message }).to_string();
            let expected = match sta {
                0 => VALID,
                _ if may_condemn(&message) => INVALID,
                _ => FAILED,
            };
            prop_assert_eq!(verdict(200, body.as_bytes()), expected);
        }
    }
}
