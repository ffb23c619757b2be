//! What a reply of the enroll API means for a token, and when silence means
//! that the API is down. Pure: status and body in, verdict out.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::text::{AccessToken, presentable};

/// What is known of a token after it was asked about. The texts are the API's
/// own or say what is wrong with its reply; they are safe to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Valid,
    /// The API says that the token is dead: the only reply that condemns.
    Invalid(String),
    /// The API refused for a reason that says nothing of the token.
    Unclear(String),
    /// No answer of the API's form came. What may pass is worth another try.
    NoAnswer {
        reason: String,
        is_passing: bool,
    },
}

impl Verdict {
    pub fn no_answer(reason: impl Into<String>, is_passing: bool) -> Self {
        Self::NoAnswer { reason: reason.into(), is_passing }
    }
}

/// The one text that condemns (with blanks around it, in any case).
const CONDEMNING: &str = "invalid access_token";
const WAITING: [&str; 5] = ["繁忙", "稍后", "频繁", "busy", "too many"];
/// With another text than the condemning one, the API wants a new login but
/// does not say that this token is dead.
const LOG_IN_AGAIN: i64 = -500;

/// Reasons of ours that [`advice`] knows.
const NO_JSON: &str = "响应不是 JSON 对象";
pub const TOO_LARGE: &str = "响应超过 1 MiB";

/// The fields that decide. A struct and not a map, because serde then refuses
/// a reply that names one of them twice.
#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    sta: Option<&'a RawValue>,
    #[serde(borrow)]
    msg: Option<&'a RawValue>,
}

/// Judges a whole reply about the token that is `own`.
pub fn judge(status: u16, body: &[u8], own: &AccessToken) -> Verdict {
    if status != 200 {
        return Verdict::no_answer(format!("HTTP {status}"), matches!(status, 429 | 500..=599));
    }
    // serde_json skips unknown fields without a look at their encoding.
    let Ok(body) = std::str::from_utf8(body) else {
        return Verdict::no_answer(NO_JSON, false);
    };
    let reply: Reply = match serde_json::from_str(body) {
        // An array would fill the struct, too.
        Ok(reply) if body.trim_start().starts_with('{') => reply,
        Err(error) if error.to_string().starts_with("duplicate field") => {
            return Verdict::no_answer("响应的字段重复", false);
        }
        _ => return Verdict::no_answer(NO_JSON, false),
    };
    // A plain integer of 64 bits; `-0` is none.
    let integer = |raw: &RawValue| raw.get().parse::<i64>().ok().filter(|_| raw.get() != "-0");
    let Some(sta) = reply.sta.and_then(integer) else {
        return Verdict::no_answer("响应没有整数 sta", false);
    };
    if sta == 0 {
        return Verdict::Valid;
    }
    let msg = reply.msg.and_then(|msg| serde_json::from_str::<String>(msg.get()).ok()).unwrap_or_default();
    let shown = presentable(&msg, Some(own));
    if msg.trim_matches(|c: char| c.is_ascii_whitespace()).eq_ignore_ascii_case(CONDEMNING) {
        return Verdict::Invalid(shown);
    }
    if asks_to_wait(&msg) {
        return Verdict::no_answer(shown, true);
    }
    Verdict::Unclear(match sta {
        LOG_IN_AGAIN => format!("API 要求重新登录: {shown}"),
        _ if msg.trim().is_empty() => format!("sta {sta}，没有 msg"),
        _ => shown,
    })
}

fn asks_to_wait(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    WAITING.iter().any(|part| text.contains(part))
}

/// The id of the caller's own enrolment, when a reply has a well-formed one.
pub fn info_id(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let id = body["data"]["info_id"].as_str()?;
    (id.len() == 24 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// What to check when this is the commonest reason and nothing worked.
pub fn advice(reason: &str) -> &'static str {
    match reason {
        "HTTP 404" => "请检查 BAOMING_API_BASE 的地址",
        "HTTP 401" | "HTTP 403" | "HTTP 407" | NO_JSON | TOO_LARGE => {
            "收到的不是 API 的回复，请检查代理和防火墙"
        }
        _ if reason.contains("data not found") => "--eid 的活动可能已被删除，请换一个仍存在的活动",
        _ if reason.starts_with("HTTP 3") => {
            "收到的不是 API 的回复，请检查代理、防火墙和 BAOMING_API_BASE 的地址"
        }
        _ if reason.starts_with("HTTP 5") => "API 暂时有故障，请稍后再运行",
        _ if asks_to_wait(reason) || reason == "HTTP 429" => {
            "API 要求降低频率，请稍后再运行或加大 --delay-ms"
        }
        _ if reason.starts_with("API 要求重新登录") => "API 要求重新登录，请在桌面程序中检查登录",
        _ if reason.contains("API") => "请检查网络、DNS、代理和 API 状态",
        _ => "请查看上面的原因",
    }
}

/// So many tokens in a row without an answer, and a control is asked.
const SILENT_IN_A_ROW: usize = 5;
/// How long after a row of silence began tokens are still tried again.
const PATIENCE: Duration = Duration::from_secs(120);

/// The tokens in a row that got no answer.
#[derive(Debug, Default)]
pub struct Silence {
    in_a_row: usize,
    began: Option<Instant>,
    any_sent: bool,
    any_answered: bool,
}

impl Silence {
    /// When trying again ends, for a token whose first question starts now.
    pub fn patience_ends(&self) -> Instant {
        self.began.unwrap_or_else(Instant::now) + PATIENCE
    }

    /// Notes what became of a token that was sent at `asked`.
    pub fn note(&mut self, verdict: &Verdict, asked: Instant) {
        self.any_sent = true;
        if let Verdict::NoAnswer { .. } = verdict {
            self.in_a_row += 1;
            self.began.get_or_insert(asked);
        } else {
            self.any_answered = true;
            self.in_a_row = 0;
            self.began = None;
        }
    }

    /// Whether the API may be away: the run then asks a control, the delete step ends.
    pub fn is_long(&self) -> bool {
        self.in_a_row >= SILENT_IN_A_ROW
    }

    pub fn was_asked(&self) -> bool {
        self.any_sent
    }

    /// Whether all were sent in vain, however few.
    pub fn is_total(&self) -> bool {
        self.any_sent && !self.any_answered
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Kind {
        Valid,
        Invalid,
        Unclear,
        NoAnswer,
        Again,
    }
    use Kind::{Again, Invalid, NoAnswer, Unclear, Valid};

    fn judged(status: u16, body: &[u8]) -> Verdict {
        judge(status, body, &AccessToken::new("s0me-0ther-t0ken").expect("a token"))
    }

    fn kind(status: u16, body: &[u8]) -> Kind {
        match judged(status, body) {
            Verdict::Valid => Valid,
            Verdict::Invalid(_) => Invalid,
            Verdict::Unclear(_) => Unclear,
            Verdict::NoAnswer { is_passing: false, .. } => NoAnswer,
            Verdict::NoAnswer { is_passing: true, .. } => Again,
        }
    }

    #[test]
    fn every_reply_of_the_contract() {
        let dead = r#"{"msg":"invalid access_token","sta":-500}"#;
        let table: &[(u16, &str, Kind)] = &[
            // Seen: the API's own and what stands before it.
            (200, dead, Invalid),
            (200, r#"{"msg":"invalid access_token","sta":-1}"#, Invalid),
            (200, r#"{"msg":" Invalid Access_Token ","sta":-500,"data":{}}"#, Invalid),
            (200, r#" {"msg":"\t\r\ninvalid access_token","sta":7} "#, Invalid),
            (200, r#"{"msg":"invalid access_token","sta":0}"#, Valid),
            (200, r#"{"msg":"ok","sta":0,"data":{"info_id":""}}"#, Valid),
            (200, r#"{"msg":"","sta":0,"data":{"info_id":"698add7c7068f814935d6804"}}"#, Valid),
            (200, r#"{"sta":0}"#, Valid),
            (200, r#"{"msg":null,"sta":0,"data":null}"#, Valid),
            (200, r#"{"sta":0,"data":1,"data":[2]}"#, Valid),
            (200, r#"{"msg":"token错误","sta":-1}"#, Unclear),
            (200, r#"{"msg":"invalid token","sta":-1}"#, Unclear),
            (200, r#"{"msg":"登录已过期，请重新登录","sta":-500}"#, Unclear),
            (200, r#"{"msg":"请重新登录","sta":-1}"#, Unclear),
            (200, r#"{"msg":"系统异常","sta":-500}"#, Unclear),
            (200, r#"{"msg":"data not found","sta":-1}"#, Unclear),
            (200, r#"{"msg":"报名未开始","sta":-1}"#, Unclear),
            (200, r#"{"msg":"提交次数超过限制","sta":-1}"#, Unclear),
            (200, r#"{"msg":"invalid parameter","sta":-1}"#, Unclear),
            (200, r#"{"msg":"签名验证失败","sta":-1}"#, Unclear),
            (200, r#"{"msg":"invalid\u0000access_token","sta":-500}"#, Unclear),
            (200, r#"{"msg":"invalid\u00a0access_token","sta":-500}"#, Unclear),
            (200, r#"{"msg":"\u00a0invalid access_token","sta":-500}"#, Unclear),
            (200, r#"{"msg":"invalid access_to\u212aen","sta":-500}"#, Unclear),
            (200, r#"{"msg":"invalid access_token\ud800","sta":-500}"#, Unclear),
            (200, r#"{"msg":"invalid  access_token","sta":-500}"#, Unclear),
            (200, r#"{"msg":"invalid access_token: rate limited","sta":-500}"#, Unclear),
            (200, r#"{"msg":["invalid access_token"],"sta":-500}"#, Unclear),
            (200, r#"{"msg":"","sta":-1}"#, Unclear),
            (200, r#"{"sta":-500}"#, Unclear),
            (200, r#"{"msg":"请求过于频繁，请稍后重试","sta":-1}"#, Again),
            (200, r#"{"msg":"系统繁忙","sta":-500}"#, Again),
            (200, r#"{"msg":"Server BUSY","sta":-1}"#, Again),
            (200, r#"{"msg":"Too Many requests","sta":-429}"#, Again),
            (200, r#"{"msg":"系统繁忙，请稍后再试","sta":0}"#, Valid),
            // Not of the API's form.
            (
                200,
                r#"{"msg":"invalid access_token","data":{"sta":-500},"sta":-1,"msg":"系统繁忙"}"#,
                NoAnswer,
            ),
            (200, r#"{"msg":"invalid access_token","sta":0,"sta":-500}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","s\u0074a":0,"sta":-500}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token"}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":"-500"}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":-500.5}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":-500.0}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":-5e2}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":-0}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":99999999999999999999}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":true}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":null}"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":[-500]}"#, NoAnswer),
            (200, r#"{"sta":0.0}"#, NoAnswer),
            (200, r#"{"sta":"0"}"#, NoAnswer),
            (200, r#"[{"msg":"invalid access_token","sta":-500}]"#, NoAnswer),
            (200, r#"["-500","invalid access_token"]"#, NoAnswer),
            (200, "[0]", NoAnswer),
            (200, "\u{feff}{\"msg\":\"invalid access_token\",\"sta\":-500}", NoAnswer),
            (200, "<html>invalid access_token</html>", NoAnswer),
            (200, "", NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":-500"#, NoAnswer),
            (200, r#"{"msg":"invalid access_token","sta":-500}{"#, NoAnswer),
            (201, dead, NoAnswer),
            (302, "", NoAnswer),
            (401, dead, NoAnswer),
            (403, dead, NoAnswer),
            (404, "not found", NoAnswer),
            (429, dead, Again),
            (500, dead, Again),
            (502, "", Again),
            (599, dead, Again),
            (600, dead, NoAnswer),
        ];
        for (status, body, expected) in table {
            assert_eq!(kind(*status, body.as_bytes()), *expected, "{status} {body}");
        }
    }

    #[test]
    fn the_reasons_say_what_to_check() {
        let advice_for = |status, body: &str| match judged(status, body.as_bytes()) {
            Verdict::Unclear(reason) | Verdict::NoAnswer { reason, .. } => advice(&reason),
            other => panic!("{other:?}"),
        };
        assert!(advice_for(404, "").contains("BAOMING_API_BASE"));
        assert!(advice_for(200, "<html>").contains("代理"));
        assert!(advice_for(200, r#"{"sta":-1,"msg":"data not found"}"#).contains("--eid"));
        assert!(advice_for(200, r#"{"sta":-500,"msg":"系统异常"}"#).contains("重新登录"));
        assert!(advice("无法连接 API: 系统错误 111 (os error 111)").contains("DNS"));
    }

    #[test]
    fn only_a_well_formed_info_id_is_taken() {
        let taken = |id: &str| info_id(format!(r#"{{"sta":0,"data":{{"info_id":"{id}"}}}}"#).as_bytes());
        let id = "698add7c7068f814935d6804";
        assert_eq!(taken(id).as_deref(), Some(id));
        assert_eq!((taken("\\u001b[2J"), taken("short"), info_id(b"[]")), (None, None, None));
    }

    #[test]
    fn five_in_a_row_need_a_control_and_an_answer_starts_anew() {
        let silent = Verdict::NoAnswer { reason: String::new(), is_passing: false };
        let mut silence = Silence::default();
        assert!(!silence.is_total());
        let start = Instant::now();
        (0..4).for_each(|_| silence.note(&silent, start));
        assert!(silence.is_total() && !silence.is_long());
        assert_eq!(silence.patience_ends(), start + PATIENCE);
        silence.note(&Verdict::Unclear(String::new()), start);
        assert!(silence.patience_ends() > start + PATIENCE);
        (0..4).for_each(|_| silence.note(&silent, start));
        assert!(!silence.is_total() && !silence.is_long());
        silence.note(&silent, start);
        assert!(silence.is_long());
    }

    /// Texts put together of what matters.
    fn message() -> impl Strategy<Value = String> {
        let words = vec![
            "invalid access_token",
            "Invalid",
            "access_token",
            "access_to\u{212a}en",
            "token错误",
            "请重新登录",
            "繁忙",
            "too many",
            " ",
            "\t",
            "\n",
            "\u{a0}",
            "\0",
            "x",
        ];
        prop::collection::vec(prop::sample::select(words), 0..4).prop_map(|words| words.concat())
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            (-2..3_i64).prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            message().prop_map(Into::into),
        ];
        let key = prop_oneof![Just("sta"), Just("msg"), Just("data"), Just("Sta"), Just("x")];
        leaf.prop_recursive(3, 16, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec((key.clone(), inner), 0..4).prop_map(|fields| {
                    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value));
                    fields.collect::<serde_json::Map<_, _>>().into()
                }),
            ]
        })
    }

    /// The one form that condemns, in other words than the code's.
    fn may_condemn(status: u16, reply: &serde_json::Value) -> bool {
        let sta = reply.get("sta").and_then(serde_json::Value::as_i64);
        let msg = reply.get("msg").and_then(serde_json::Value::as_str).unwrap_or_default();
        let core: String = msg.chars().filter(|c| !" \t\n\r\u{c}".contains(*c)).collect();
        status == 200
            && sta.is_some_and(|sta| sta != 0)
            && core.eq_ignore_ascii_case("INVALIDACCESS_TOKEN")
            && msg.to_ascii_lowercase().contains("invalid access_token")
    }

    // PROPTEST_CASES=100000 is the long mode.
    proptest! {
        #[test]
        fn any_bytes_never_condemn(status in any::<u16>(), body in any::<Vec<u8>>()) {
            prop_assert_ne!(kind(status, &body), Invalid);
        }

        #[test]
        fn any_json_condemns_only_by_the_one_form(status in prop_oneof![Just(200), any::<u16>()], reply in json()) {
            let is_invalid = kind(status, reply.to_string().as_bytes()) == Invalid;
            prop_assert_eq!(is_invalid, may_condemn(status, &reply));
        }

        #[test]
        fn any_message_condemns_only_by_the_one_form(sta in any::<i64>(), msg in message(), extra in json()) {
            let reply = serde_json::json!({ "sta": sta, "msg": msg, "extra": extra });
            prop_assert_eq!(kind(200, reply.to_string().as_bytes()) == Invalid, may_condemn(200, &reply));
        }

        #[test]
        fn no_double_key_condemns(first in json(), sta in any::<i64>(), key in prop_oneof![Just("sta"), Just("msg")]) {
            let body = format!(r#"{{"{key}":{first},"sta":{sta},"msg":"invalid access_token"}}"#);
            prop_assert_eq!(kind(200, body.as_bytes()), NoAnswer);
        }

        #[test]
        fn no_body_that_is_not_utf8_condemns(msg in message(), place in any::<prop::sample::Index>()) {
            let mut body = serde_json::json!({ "x": "y", "sta": -1, "msg": msg }).to_string().into_bytes();
            body.insert(place.index(body.len()), 0xff);
            prop_assert_eq!(kind(200, &body), NoAnswer);
        }
    }
}
