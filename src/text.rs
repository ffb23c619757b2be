//! Texts and what may be shown of them: the two secrets as types without
//! `Debug` or `Display`, so that no log line can print them by accident, and
//! [`presentable`], through which everything that comes from outside goes.

use std::io::{self, ErrorKind};

const SHOWN_CHARS: usize = 100;
/// A text without blanks at least this long may be somebody's token.
const SUSPICIOUS_CHARS: usize = 16;
/// So many letters and digits in a row that stand in the token too give it away.
const TELLING_CHARS: usize = 8;
/// A longer token is not sent: it makes an address that no server takes.
const SENDABLE_BYTES: usize = 4096;
/// The API's own words for a dead token; they give nothing away.
const CONDEMNING_WORDS: [&str; 3] = ["invalid", "access", "token"];

#[derive(Clone)]
pub struct AccessToken(String);

impl AccessToken {
    /// A token as read from the database, or `None` when it is blank.
    pub fn new(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self(text.to_owned()))
    }

    /// The whole token: for the API call and for database filters, never for output.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_sendable(&self) -> bool {
        self.0.len() <= SENDABLE_BYTES
    }

    /// Whether `text` repeats a part of the token, forwards or backwards,
    /// spaced, punctuated or in other case.
    pub fn is_echoed_in(&self, text: &str) -> bool {
        // Four characters may be shown of a short token, too.
        let telling = letters(&self.0).take(TELLING_CHARS).count().max(5);
        if text.chars().count() < telling {
            return false; // most names; the rest takes its time
        }
        let (text, is_common): (Vec<char>, Vec<bool>) = letters(text).unzip();
        let own: Vec<char> = letters(&self.0).map(|(c, _)| c).take(SENDABLE_BYTES).collect();
        let backwards: Vec<char> = own.iter().rev().copied().collect();
        text.windows(telling).zip(is_common.windows(telling)).any(|(part, common)| {
            common.contains(&false)
                && [&own, &backwards].iter().any(|own| own.windows(telling).any(|w| w == part))
        })
    }
}

/// The letters and digits of a text in lower case; with each, whether it
/// belongs to a word of the condemning text.
fn letters(text: &str) -> impl Iterator<Item = (char, bool)> {
    text.split(|c: char| !c.is_alphanumeric()).flat_map(|word| {
        let is_common = CONDEMNING_WORDS.iter().any(|common| word.eq_ignore_ascii_case(common));
        word.chars().flat_map(char::to_lowercase).map(move |c| (c, is_common))
    })
}

/// The MongoDB connection string, password included.
#[derive(Clone)]
pub struct MongoUri(String);

impl MongoUri {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The whole connection string: for the driver only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A text from outside, fit to be shown or stored: short, harmless, and without
/// tokens, be it `own` or somebody else's.
pub fn presentable(text: &str, own: Option<&AccessToken>) -> String {
    // More than is shown, so that a token is seen that the end would cut through;
    // what the first cut goes through may be a part of one, too short to be known.
    let text = match text.char_indices().nth(4 * SHOWN_CHARS) {
        Some((end, _)) => text[..end].trim_end_matches(is_token_char).to_owned() + "…",
        None => text.to_owned(),
    };
    if own.is_some_and(|token| token.is_echoed_in(&text)) {
        return "(内容含 Token，不显示)".to_owned();
    }
    let shown = escape(&mask_suspicious(&text));
    match shown.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// A text from outside, made harmless: control characters, line separators and
/// bidirectional overrides could forge a log line or drive the terminal.
pub fn escape(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '/' | '=' | '%' | '.' | '~')
}

/// Masks everything that may be a token, also another user's or a
/// percent-encoded one: all but the first 4 of each long run of token characters.
fn mask_suspicious(text: &str) -> String {
    let is_other = |c: char| !is_token_char(c);
    let mask = |piece: &str| {
        let run = piece.trim_end_matches(is_other);
        let is_long = run.len() >= SUSPICIOUS_CHARS;
        if is_long { format!("{}…{}", &run[..4], &piece[run.len()..]) } else { piece.to_owned() }
    };
    text.split_inclusive(is_other).map(mask).collect()
}

/// An error of the operating system by its number, with words for the commonest:
/// the standard library's own are English sentences without it.
pub fn os_error(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else {
        return match error.kind() {
            ErrorKind::InvalidData => "内容不是有效的 UTF-8 (invalid UTF-8)".to_owned(),
            kind => format!("输入输出错误 ({kind:?})"),
        };
    };
    let words = match code {
        1 | 13 => " 没有权限",
        2 => " 文件或目录不存在",
        6 => " 管道没有读取方",
        11 => " 管道已满",
        17 => " 已存在",
        20 => " 不是目录",
        21 => " 是目录",
        28 => " 磁盘已满",
        30 => " 只读文件系统",
        32 => " 管道已关闭",
        40 => " 符号链接过多",
        101 | 113 => " 网络不可达",
        104 => " 连接被重置",
        110 => " 连接超时",
        111 => " 连接被拒绝",
        _ => "",
    };
    format!("系统错误 {code} (os error {code}){words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> AccessToken {
        AccessToken::new(text).expect("not blank")
    }

    #[test]
    fn blank_tokens_are_none_and_long_ones_are_not_sent() {
        assert!(AccessToken::new("").is_none());
        assert!(AccessToken::new(" \t").is_none());
        assert!(token(&"x".repeat(4096)).is_sendable());
        assert!(!token(&"x".repeat(4097)).is_sendable());
    }

    #[test]
    fn an_echo_of_the_token_is_not_shown() {
        let own = token("AbCd-1234-EfGh-5678-access_token");
        let hidden = [
            "AbCd-1234-EfGh-5678",
            "bad: abcd1234",
            "A b C d 1 2 3 4",
            "x 4321-dcba x",
            "cd.12,34;ef",
            "5678 access",
            "nekot_ssecca 8765",
        ];
        for text in hidden {
            assert_eq!(presentable(text, Some(&own)), "(内容含 Token，不显示)", "{text}");
        }
        let shown = ["invalid access_token", "AbCd-123", "Invalid Access Token", "系统繁忙", "4321dcb"];
        for text in shown {
            assert_eq!(presentable(text, Some(&own)), text);
        }
        assert_eq!(presentable("say secre t", Some(&token("secret"))), "(内容含 Token，不显示)");
        assert_eq!(presentable("abba", Some(&token("ab"))), "abba");
        let far = format!("{} AbCd-1234-EfGh", "。".repeat(96));
        assert_eq!(presentable(&far, Some(&own)), "(内容含 Token，不显示)");
    }

    #[test]
    fn long_runs_are_masked() {
        let table = [
            ("invalid access_token", "invalid access_token"),
            ("bad abcdefghijklmnop!", "bad abcd…!"),
            ("名片 abc%2Bdef%2Fghi%3D 无效", "名片 abc%… 无效"),
            ("系统繁忙，请稍后再试", "系统繁忙，请稍后再试"),
            ("", ""),
        ];
        for (text, expected) in table {
            assert_eq!(presentable(text, None), expected);
        }
    }

    #[test]
    fn no_part_of_a_token_is_left_by_the_cut() {
        let text = "x".repeat(384) + " somebodys-own-secret";
        assert_eq!(presentable(&text, None), "xxxx… …");
    }

    #[test]
    fn texts_from_outside_cannot_forge_a_line_or_drive_a_terminal() {
        let table = [
            ("张三 🎉 名片", "张三 🎉 名片"),
            ("a\n2026 [INFO] b", "a\\n2026 [INFO] b"),
            ("\u{1b}[2J\r", "\\u{1b}[2J\\r"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("\u{202e}x\u{2066}y\u{2028}", "\\u{202e}x\\u{2066}y\\u{2028}"),
        ];
        for (text, expected) in table {
            assert_eq!(escape(text), expected);
        }
    }

    #[test]
    fn long_texts_are_cut_at_characters() {
        let whole = "忙".repeat(100);
        assert_eq!(presentable(&whole, None), whole);
        assert_eq!(presentable(&(whole.clone() + "x"), None), whole + "…");
    }

    #[test]
    fn errors_of_the_system_carry_their_number() {
        let full = io::Error::from_raw_os_error(28);
        assert_eq!(os_error(&full), "系统错误 28 (os error 28) 磁盘已满");
    }
}
