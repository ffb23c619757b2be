//! The two secrets of the program. Each has a type of its own, shows itself
//! masked, and has no `Debug`, so that no log line can print it by accident.

use std::fmt;

/// How many characters of a token may be shown.
const SHOWN_CHARS: usize = 4;

/// So many characters from the middle of a token give it away; fewer may be a common word.
const TELLING_CHARS: usize = 10;

/// A text without blanks at least this long may be somebody's token.
const SUSPICIOUS_CHARS: usize = 16;

/// The login token of one user.
#[derive(Clone, PartialEq, Eq)]
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

    /// `text` without whatever it repeats of this token: its beginning, or any long part.
    pub fn redact(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let beginning = shared_start(rest, &self.0);
            let part = self.0.char_indices().map(|(at, _)| shared_start(rest, &self.0[at..]));
            let part = part.max().unwrap_or(0);
            let taken = if rest[..beginning].chars().count() > SHOWN_CHARS {
                out += &masked(&rest[..beginning]);
                beginning
            } else if rest[..part].chars().count() >= TELLING_CHARS {
                out.push('…');
                part
            } else {
                out.push(next);
                next.len_utf8()
            };
            rest = &rest[taken..];
        }
        out
    }
}

/// How many bytes two texts have in common from their start, in whole characters.
fn shared_start(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

impl fmt::Display for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

/// The MongoDB connection string, password included.
#[derive(Clone)]
pub struct MongoUri(String);

impl MongoUri {
    /// A connection string as configured.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The whole connection string: for the driver only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MongoUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mongodb://…")
    }
}

/// Masks everything in a message of the API that may be a token, also another
/// user's or a percent-encoded one: each long run of token characters.
pub fn mask_suspicious(message: &str) -> String {
    let is_token_char = |c: char| c.is_ascii_alphanumeric() || "_-+/=%.~".contains(c);
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        let run = rest.find(|c| !is_token_char(c)).unwrap_or(rest.len());
        if run >= SUSPICIOUS_CHARS {
            out += &masked(&rest[..run]);
        } else {
            out += &rest[..run];
        }
        let other = rest[run..].find(is_token_char).unwrap_or(rest.len() - run);
        out += &rest[run..run + other];
        rest = &rest[run + other..];
    }
    out
}

fn masked(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> AccessToken {
        AccessToken::new(text).expect("not blank")
    }

    #[test]
    fn secrets_show_themselves_masked() {
        assert_eq!(token("0123456789").to_string(), "0123…");
        let uri = MongoUri::new("mongodb://user:password@host/db".to_owned());
        assert_eq!(uri.to_string(), "mongodb://…");
    }

    #[test]
    fn blank_tokens_are_none() {
        assert!(AccessToken::new("").is_none());
        assert!(AccessToken::new(" \t").is_none());
    }

    #[test]
    fn a_text_that_repeats_the_token_is_redacted() {
        assert_eq!(token("secret-7").redact("a secret-7 b secret-7"), "a secr… b secr…");
        assert_eq!(token("ab").redact("abba"), "abba");
        let long = token("0123-valid-456789abcdef");
        assert_eq!(long.redact("valid 0123-v 0123 012"), "valid 0123… 0123 012");
        assert_eq!(long.redact("id-456789ab, 6789abcdef"), "…, …");
        assert_eq!(long.redact("名片 456789abc"), "名片 456789abc");
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
        for (message, expected) in table {
            assert_eq!(mask_suspicious(message), expected);
        }
    }
}
